"""Learning to embed: pictures of one class near each other, also of classes never seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from edgecv.errors import InputError, RecipeError
from edgecv.gallery.metrics import pair_scores
from edgecv.models.siamese import Siamese
from edgecv.spec import Preparation
from edgecv.train.augment import Augmenter, AugmentSettings
from edgecv.train.byclass import by_class, check_classes
from edgecv.train.data import LabelledPictures, read_labelled, split
from edgecv.train.draws import Among
from edgecv.train.job import Job, Prepared
from edgecv.train.metric import MetricSettings, embedder_of, learner, make_loss
from edgecv.train.pixels import check_shift, normalize, shift_and_flip
from edgecv.train.settings import at_least
from edgecv.train.task import Batch, device_of
from edgecv.train.verification import draw_pairs, verification

SCORED = 250  # pictures at a time


@dataclass(frozen=True)
class EmbedSettings:
    """An embedding net's keys of a recipe's [train] table."""

    shift: int = 4  # pixels: random translation, the border reflected
    flip: bool = True

    def __post_init__(self) -> None:
        at_least("shift", self.shift, 0)


class EmbeddingTask:
    """See :class:`edgecv.train.task.Task`. The net gives embeddings ``[N, D]``, or what
    :func:`~edgecv.train.metric.learner` makes of them; batches are blocks of K of a class."""

    metric = "auc"

    def __init__(
        self,
        pictures: LabelledPictures,
        held_out: LabelledPictures,
        preparation: Preparation,
        settings: EmbedSettings,
        metric: MetricSettings,
        augment: AugmentSettings,
        *,
        batch: int,
        normalize: bool,
        seed: int,
    ) -> None:
        self.per_batch, rest = divmod(batch, metric.per_class)
        if rest or self.per_batch < 2:
            raise RecipeError(
                f"train.batch: {batch} is not at least 2 classes of metric.per_class = "
                f"{metric.per_class} pictures; set it to a multiple of that"
            )
        check_classes(pictures.labels, pictures.classes, self.per_batch, metric.per_class)
        if augment.mixes:
            raise RecipeError(
                "train.augment: mixup and cutmix make pictures of two classes, and an embedding "
                "is learned from pictures of one: set both to 0"
            )
        check_shift(settings.shift, preparation)
        self.pictures, self.held_out = pictures, held_out
        self.preparation, self.settings, self.metric_settings = preparation, settings, metric
        self.normalized = normalize
        self.augmenter = Augmenter.of(augment, pictures.pixels)
        self.measure = make_loss(metric, normalize=normalize)
        self.pairs = draw_pairs(held_out.labels, held_out.classes, metric.pairs, seed)

    def learner(self, net: nn.Module) -> nn.Module:
        """``net`` as it is trained."""
        with torch.no_grad():
            net.eval()
            vectors = net(self.plain(torch.arange(2)))
        return learner(net, self.metric_settings, vectors.shape[1], len(self.pictures.classes))

    def order(self, generator: torch.Generator) -> Tensor:
        per_class = self.metric_settings.per_class
        return by_class(self.pictures.labels, self.per_batch, per_class, generator)

    def plain(self, index: Tensor) -> Tensor:
        return normalize(self.pictures.pixels[index], self.preparation)

    def draw(self, index: Tensor, part: slice, generator: torch.Generator) -> Batch:
        own, among = index[part], Among(len(index), part)
        labels = self.pictures.labels[own]
        self._check_part(labels, len(index))
        s = self.settings
        pixels = shift_and_flip(self.pictures.pixels[own], s.shift, s.flip, generator, among)
        inputs, _ = self.augmenter.inputs(pixels, labels, generator, self.preparation, among)
        return Batch(inputs, labels, len(labels) / len(index))

    def _check_part(self, labels: Tensor, whole: int) -> None:
        """A process compares the pictures of its own part of a batch."""
        kinds, counts = torch.unique(labels, return_counts=True)
        if len(labels) < whole and (len(kinds) < 2 or int(counts.min()) < 2):
            raise InputError(
                f"each process gets {len(labels)} of a batch of {whole} pictures, which are not "
                f"two of two classes: raise batch, or start fewer processes"
            )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.measure(outputs, targets)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """:func:`~edgecv.train.verification.verification` of the held-out pairs, by cosine where
        embeddings are scaled to length 1, else by distance; a Siamese pair's by its likeness."""
        net = embedder_of(model)
        device = device_of(net)
        vectors = torch.cat(
            [
                net(normalize(pixels, self.preparation).to(device)).float()
                for pixels in torch.split(self.held_out.pixels, SCORED)
            ]
        )
        if not torch.isfinite(vectors).all():
            raise InputError("the net's embeddings are NaN or infinite; try a lower lr")
        left, right = vectors[self.pairs.left], vectors[self.pairs.right]
        weights = net.likeness() if isinstance(net, Siamese) else None
        measure = "cosine" if self.normalized else "squared-euclidean"
        measure = measure if weights is None else "likeness"
        scores = pair_scores(left.cpu().numpy(), right.cpu().numpy(), measure, weights)
        # a net that gives zeros, as an untrained one may: no direction, alike to nothing
        return verification(np.nan_to_num(scores, nan=-1.0), self.pairs.same, measure)


def prepare(job: Job) -> Prepared:
    """Read ``job``'s pictures, a folder per class; those of the unseen classes are verified."""
    settings = job.flat(EmbedSettings)
    metric = job.table("metric", MetricSettings)
    augment = job.table("augment", AugmentSettings)
    job.done()
    pictures, held_out = _read(job, metric)
    task = EmbeddingTask(
        pictures,
        held_out,
        job.preparation,
        settings,
        metric,
        augment,
        batch=job.batch,
        normalize=bool(job.decoding.options.get("normalize", False)),
        seed=job.seed,
    )
    return Prepared(task, job.labels, task.learner, pictures.classes)


def _read(job: Job, metric: MetricSettings) -> tuple[LabelledPictures, LabelledPictures]:
    """What is learned from, and what is verified: unseen classes, or else unseen pictures."""
    files = job.files

    pictures = read_labelled(job, files.data, "data")
    held_out = read_labelled(job, files.held_out, "held_out") if files.held_out else None
    if metric.unseen:
        seen = [name for name in pictures.classes if name not in metric.unseen]
        verified = pictures if held_out is None else held_out
        if unknown := sorted(set(metric.unseen) - set(verified.classes)):
            raise InputError(
                f"{job.path(files.held_out or files.data)}: has no class {', '.join(unknown)}, "
                f"which metric.unseen names; it has {', '.join(verified.classes)}"
            )
        return pictures.of_classes(seen), verified.of_classes(metric.unseen)
    return split(pictures, files.split, job.seed) if held_out is None else (pictures, held_out)
