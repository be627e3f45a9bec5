"""Learning to segment: a class for every pixel, scored as the exported file is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, one_hot

from edgecv.errors import InputError, RecipeError
from edgecv.evaluate.segmentation import (
    IGNORED,
    confusion,
    mean_iou,
    read_mask,
    read_masks,
)
from edgecv.preprocess import fit_pixels
from edgecv.results import Placement, Result, Segmentation
from edgecv.spec import ModelSpec, Preparation
from edgecv.train.balance import balanced_weights
from edgecv.train.fitted import Kept, fit_pictures
from edgecv.train.job import Job, Prepared
from edgecv.train.parts import two_parts
from edgecv.train.scoring import answers, contract
from edgecv.train.settings import at_least, one_of
from edgecv.train.task import Batch
from edgecv.train.vary import PlaceTask, Variation, color_settings
from edgecv.train.views import ViewSettings

SMALL = 1e-6
OWN = 1 << 30  # bytes, one a pixel, of masks that are kept in their own sizes to be scored by


@dataclass(frozen=True)
class SegmentSettings:
    """A recipe's [train.segment] table: what the terms of the loss weigh."""

    cross_entropy: float = 1.0
    dice: float = 1.0
    class_weights: str = "none"  # or balanced: a pixel counts by the inverse of its class's share

    def __post_init__(self) -> None:
        at_least("cross_entropy", self.cross_entropy, 0)
        at_least("dice", self.dice, 0)
        one_of("class_weights", self.class_weights, ("none", "balanced"))
        if not self.cross_entropy and not self.dice:
            raise RecipeError("cross_entropy: it and dice are both 0: there is no loss")


@dataclass(frozen=True, eq=False)
class LabelledMask:
    """A picture, its mask, and the class of each of a mask's values ``[256]``."""

    picture: Path
    mask: Path
    classes: NDArray[np.int64]


class MaskData:
    """Pictures and masks in the input's size; ``truth`` names the masks as they are labelled.

    Each mask is read once. With ``scored`` they are kept in their own sizes too, for
    :meth:`original`; where they take more than :data:`OWN` that reads them again.
    """

    def __init__(
        self, labelled: Sequence[LabelledMask], job: Job, title: str, *, scored: bool
    ) -> None:
        self.pictures = fit_pictures([one.picture for one in labelled], job, title)
        self.truth = tuple(labelled[i] for i in self.pictures.kept)
        self.counts = np.zeros(256, np.int64)  # pixels of each class
        self._kept, self._own = Kept(), Kept(OWN if scored else 0)
        for i in range(len(self.truth)):
            own = self._read(i)
            mask = self._fit(i, own)
            self.counts += np.bincount(mask.ravel(), minlength=256)
            self._kept.add(mask)
            self._own.add(own)

    def masks(self, index: Tensor) -> Tensor:
        """uint8 ``[n, H, W]``; :data:`IGNORED` are pixels that do not count."""
        return self._kept.take(index, lambda i: self._fit(i, self._read(i)))

    def original(self, i: int) -> NDArray[np.int64]:
        """The mask of picture i in its own size; -1 are pixels that do not count."""
        mask = self._own.get(i, self._read)
        return np.where(mask == IGNORED, -1, mask.astype(np.int64))

    def _read(self, i: int) -> NDArray[np.uint8]:
        placement, one = self.pictures.placements[i], self.truth[i]
        mask = read_mask(one.mask, (placement.width, placement.height), one.classes)
        return np.where(mask < 0, IGNORED, mask).astype(np.uint8)

    def _fit(self, i: int, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return fit_mask(mask, self.pictures.preparation, self.pictures.placements[i])


def fit_mask(
    mask: NDArray[np.uint8], preparation: Preparation, placement: Placement
) -> NDArray[np.uint8]:
    """A mask ``[h, w]`` as :func:`fit_pixels` places its picture, by the nearest pixel; what is
    padded is :data:`IGNORED`: it does not count."""
    picture = Image.fromarray(mask).convert("RGB")
    nearest = replace(preparation, interpolation="pillow-nearest", pad_value=IGNORED, color="rgb")
    nearest = replace(nearest, mean=(0.0,) * 3, std=(1.0,) * 3)
    fitted, where = fit_pixels(picture, nearest)
    assert where == placement
    return np.ascontiguousarray(fitted[:, :, 0])


class SegmentationTask(PlaceTask[MaskData, SegmentSettings]):
    """See :class:`edgecv.train.task.Task`. The net gives logits ``[N, C, h, w]``."""

    metric = "miou"

    def __init__(
        self,
        data: MaskData,
        held_out: MaskData,
        spec: ModelSpec,
        variation: Variation,
        terms: SegmentSettings,
    ) -> None:
        super().__init__(data, held_out, spec, variation, terms)
        balanced = balanced_weights(torch.from_numpy(data.counts[: len(spec.labels)]).double())
        weighted = terms.class_weights == "balanced"
        self.weights = (balanced if weighted else torch.ones_like(balanced)).float()

    def draw(self, index: Tensor, part: slice, generator: torch.Generator) -> Batch:
        inputs, views = self.variation(index, part, generator)
        masks = views.masks(self.data.masks(index[part]).long(), IGNORED)
        return Batch(inputs, masks, len(masks) / len(index))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy and Dice, each of every picture, and the mean over the pictures."""
        if outputs.ndim != 4:
            raise RecipeError(
                f"a net that is trained to segment gives logits [N, C, h, w], this one "
                f"{list(outputs.shape)}"
            )
        if outputs.shape[2:] != targets.shape[1:]:
            size = list(targets.shape[1:])
            outputs = interpolate(outputs, size, mode="bilinear", align_corners=False)
        if outputs.shape[1] == 1:  # one logit a pixel: that of the second class by the first
            outputs = torch.cat([torch.zeros_like(outputs), outputs], 1)
        known = targets != IGNORED
        classes = torch.where(known, targets, 0)
        settings, loss = self.terms, outputs.new_zeros(())
        if settings.cross_entropy:
            weights = self.weights.to(outputs.device)
            each = cross_entropy(outputs, classes, weights, reduction="none") * known
            weight = (weights[classes] * known).sum((1, 2)).clamp_min(SMALL)
            loss = loss + settings.cross_entropy * (each.sum((1, 2)) / weight).mean()
        if settings.dice:
            loss = loss + settings.dice * dice_loss(outputs, classes, known).mean()
        return loss

    def results(self, batch: Batch) -> list[Result]:
        """The masks; pixels that do not count as class 0."""
        masks = batch.targets.where(batch.targets != IGNORED, 0).numpy()
        return [Segmentation(mask, self.spec.labels) for mask in masks]

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """``miou`` and ``accuracy``, 0 to 1, of the held-out pictures in their own sizes."""
        labels = self.spec.labels
        table = np.zeros((len(labels), len(labels)), np.int64)
        for i, (result, _) in enumerate(answers(model, self.spec, self.held_out.pictures)):
            assert isinstance(result, Segmentation)
            table += confusion(self.held_out.original(i), result.mask, len(labels))
        miou, _ = mean_iou(table, labels)
        return {"miou": miou, "accuracy": float(np.trace(table) / table.sum())}


def dice_loss(logits: Tensor, classes: Tensor, known: Tensor) -> Tensor:
    """``1 - Dice`` ``[N]``, the mean over the classes that a picture has.

    Milletari et al., "V-Net", arXiv:1606.04797: ``2 sum(p g) / (sum(p^2) + sum(g^2))`` of the
    probabilities p and the truth g of a class, over the pixels that are ``known``. Logits are
    ``[N, C, H, W]``, ``classes`` and ``known`` ``[N, H, W]``.
    """
    p = logits.softmax(1) * known[:, None]
    g = one_hot(classes, logits.shape[1]).permute(0, 3, 1, 2) * known[:, None]
    both = (p * g).sum((2, 3))
    dice = 2 * both / (p.square().sum((2, 3)) + g.sum((2, 3))).clamp_min(SMALL)
    present = g.sum((2, 3)) > 0
    return ((1 - dice) * present).sum(1) / present.sum(1).clamp_min(1)


def prepare(job: Job) -> Prepared:
    """Read pictures and masks: folders as :func:`edgecv.evaluate.segmentation.read_masks` has
    them, the values mapped to the labels by the file ``classes``."""
    views = job.flat(ViewSettings)
    colors = color_settings(job)
    settings = job.table("segment", SegmentSettings)
    job.done()
    if job.decoding.kind == "probabilities":
        raise RecipeError(
            f"{job.where}: a net to be trained gives logits, and this one's contract says "
            f"probabilities; put the softmax or sigmoid behind it for the export only"
        )
    if len(job.labels) > IGNORED:
        raise RecipeError(
            f"{job.where}: {len(job.labels)} labels; masks of one byte a pixel tell {IGNORED} "
            f"classes apart, {IGNORED} itself being pixels that do not count"
        )
    spec = contract(job.where, "segment", job.preparation, job.decoding, job.labels)
    classes = job.file(views.classes) if views.classes else None

    def read(path: Path) -> list[LabelledMask]:
        found = read_masks(path, len(job.labels), classes)
        pairs = zip(found.pictures, found.masks, strict=True)
        return [LabelledMask(picture, mask, found.classes) for picture, mask in pairs]

    first, second = two_parts(job, read)
    data = MaskData(first, job, "data", scored=second is None)
    absent = [name for i, name in enumerate(job.labels) if not data.counts[i]]
    if len(absent) == len(job.labels):
        raise InputError(f"{job.path(job.files.data)}: none of its masks has a pixel that counts")
    if absent:
        job.say(f"WARNING: no pixel of {', '.join(absent)} in the masks to learn from")
    held_out = data if second is None else MaskData(second, job, "held_out", scored=True)
    variation = Variation(data.pictures, views, colors)
    return Prepared(SegmentationTask(data, held_out, spec, variation, settings), job.labels)
