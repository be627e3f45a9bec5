"""Learning places: the one object of a picture (box and class), and its landmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, smooth_l1_loss

from edgecv.errors import InputError, RecipeError
from edgecv.evaluate.coco import library
from edgecv.evaluate.points import LabelledPoints, normalized_errors, read_points, summary
from edgecv.results import Landmarks, Placement, Result
from edgecv.train.boxes import read_boxes
from edgecv.train.boxloss import KINDS, box_loss
from edgecv.train.detection import BoxTask
from edgecv.train.fitted import fit_pictures
from edgecv.train.job import Job, Prepared
from edgecv.train.parts import two_parts
from edgecv.train.pointloss import POINT_LOSSES, point_loss
from edgecv.train.scoring import answers, contract
from edgecv.train.settings import at_least, one_of
from edgecv.train.task import Batch
from edgecv.train.vary import PlaceTask, Variation, color_settings
from edgecv.train.views import ViewSettings

SMOOTH = "smooth-l1"
BEND = 0.1  # smooth L1 is quadratic below this error, in parts of the input's side


@dataclass(frozen=True)
class LocalizeSettings:
    """A recipe's [train.localize] table: the terms of the loss, and what they weigh."""

    box: float = 5.0
    classes: float = 1.0
    # smooth-l1 of centre and size (arXiv:1504.08083), or one of edgecv.train.boxloss
    box_loss: str = SMOOTH

    def __post_init__(self) -> None:
        at_least("box", self.box, 0)
        at_least("classes", self.classes, 0)
        one_of("box_loss", self.box_loss, (SMOOTH, *KINDS))


class LocalizationTask(BoxTask[LocalizeSettings]):
    """See :class:`edgecv.train.task.Task`. In training mode the net gives boxes ``[N, 4]`` (cx,
    cy, w, h of the input, 0 to 1) and logits ``[N, C]``; each picture has one object."""

    def loss(
        self, outputs: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor, Tensor, Tensor]
    ) -> Tensor:
        if not isinstance(outputs, tuple | list) or len(outputs) != 2:
            raise RecipeError(
                "a net that is trained to localize gives, in training mode, boxes [N, 4] and "
                "logits [N, C]"
            )
        boxes, classes, picture, count = targets
        found, logits = (output[picture] for output in outputs)  # where the object is still seen
        p = self.spec.preparation
        size = boxes.new_tensor([p.width, p.height])
        if self.terms.box_loss == SMOOTH:
            center, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
            truth = torch.cat([center / size, sides / size], 1)
            wrong = smooth_l1_loss(found, truth, beta=BEND, reduction="none").sum()
        else:
            half = found[:, 2:] / 2
            corners = torch.cat([found[:, :2] - half, found[:, :2] + half], 1)
            wrong = box_loss(corners * size.repeat(2), boxes, self.terms.box_loss, size).sum()
        named = cross_entropy(logits, classes, reduction="sum")
        return (self.terms.box * wrong + self.terms.classes * named) / count


def prepare_localization(job: Job) -> Prepared:
    """Read pictures with exactly one labelled box each."""
    views = job.flat(ViewSettings)
    colors = color_settings(job)
    settings = job.table("localize", LocalizeSettings)
    job.done()
    library()
    data, held_out, labels = read_boxes(job, views)
    for part in dict.fromkeys((data, held_out)):
        for truth, classes in zip(part.truth, part.classes, strict=True):
            if len(truth.classes) != 1 or len(classes) != 1:
                raise InputError(
                    f"{truth.path}: has {len(truth.classes)} labelled boxes, of which "
                    f"{len(classes)} lie in the net's input; localization learns from exactly one "
                    f"a picture"
                )
    spec = contract(job.where, "detect", job.preparation, job.decoding, labels)
    variation = Variation(data.pictures, views, colors)
    return Prepared(LocalizationTask(data, held_out, spec, variation, settings), labels)


@dataclass(frozen=True)
class LandmarkSettings:
    """A recipe's [train.landmarks] table."""

    loss: str = "wing"
    wing: float = 10.0  # pixels of the input: errors below it are weighed by their logarithm
    curvature: float = 2.0  # pixels: how early that bends
    # the place of each point's partner in a mirrored picture: [1, 0, 2, 4, 3] for eyes, nose,
    # corners of the mouth; without it pictures are not mirrored
    mirror: tuple[int, ...] = ()
    between: tuple[int, ...] = ()  # two points whose distance is the unit of the error

    def __post_init__(self) -> None:
        one_of("loss", self.loss, POINT_LOSSES)
        for key in ("wing", "curvature"):
            if not getattr(self, key) > 0:
                raise RecipeError(f"{key}: expected more than 0, got {getattr(self, key)}")
        if self.mirror and sorted(self.mirror) != list(range(len(self.mirror))):
            raise RecipeError(
                f"mirror: expected each point's number once, from 0, got {list(self.mirror)}"
            )
        if self.mirror and any(self.mirror[k] != i for i, k in enumerate(self.mirror)):
            raise RecipeError(f"mirror: partners must be each other's, got {list(self.mirror)}")
        if len(self.between) not in (0, 2):
            raise RecipeError(f"between: expected two points, got {list(self.between)}")


class PointData:
    """Pictures and their points ``[N, K, 2]`` in pixels of the input, NaN where not labelled."""

    def __init__(self, labelled: Sequence[LabelledPoints], job: Job, title: str) -> None:
        self.pictures = fit_pictures([one.path for one in labelled], job, title)
        self.truth = tuple(labelled[i] for i in self.pictures.kept)
        pairs = zip(self.truth, self.pictures.placements, strict=True)
        points = np.stack([_placed(one, placement) for one, placement in pairs])
        self.points = torch.from_numpy(points.astype(np.float32))


def _placed(one: LabelledPoints, placement: Placement) -> NDArray[np.float64]:
    outside = (one.points < 0) | (one.points > [placement.width, placement.height])
    if outside.any():
        raise InputError(
            f"{one.path}: point {int(outside.any(axis=1).argmax()) + 1} lies outside the picture "
            f"of {placement.width}x{placement.height} pixels: {one.points[outside.any(axis=1)][0]}"
        )
    scale = np.array([placement.scale_x, placement.scale_y])
    placed: NDArray[np.float64] = one.points * scale + [placement.offset_x, placement.offset_y]
    return placed


class LandmarkTask(PlaceTask[PointData, LandmarkSettings]):
    """See :class:`edgecv.train.task.Task`. The net gives points ``[N, K, 2]``."""

    metric = "near"

    def draw(self, index: Tensor, part: slice, generator: torch.Generator) -> Batch:
        inputs, views = self.variation(index, part, generator)
        own = index[part]
        points = views.points(self.data.points[own])
        if views.mirrored.any():
            points[views.mirrored] = points[views.mirrored][:, list(self.terms.mirror)]
        share = len(own) / len(index)
        labelled = (~self.data.points[index].isnan().any(2)).sum()
        return Batch(inputs, (points, labelled.clamp_min(1) * share), share)

    def loss(self, outputs: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
        points, count = targets
        if outputs.shape != points.shape:
            raise RecipeError(
                f"the net gives points {list(outputs.shape[1:])}, the data has "
                f"{list(points.shape[1:])}; see [model.options] points"
            )
        p, known = self.spec.preparation, ~points.isnan().any(2)
        normalized = self.spec.decoding.options.get("normalized", False)
        scale = [p.width, p.height] if normalized else [1.0, 1.0]
        apart = (outputs * outputs.new_tensor(scale) - points)[known]  # [k, 2] pixels
        s = self.terms
        return point_loss(apart, s.loss, s.wing, s.curvature).sum() / count

    def results(self, batch: Batch) -> list[Result]:
        """The labelled points."""
        points, _ = batch.targets
        return [Landmarks(one[~one.isnan().any(1)].numpy()) for one in points]

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """``nme``, the normalized mean error, and ``near``, the share of points that are found."""
        between = self.terms.between
        errors = []
        for i, (result, _) in enumerate(answers(model, self.spec, self.held_out.pictures)):
            assert isinstance(result, Landmarks)
            pair = (between[0], between[1]) if between else None
            errors.append(normalized_errors(self.held_out.truth[i].points, result.points, pair))
        nme, near = summary(errors)
        return {"near": near, "nme": nme}


def prepare_landmarks(job: Job) -> Prepared:
    """Read a CSV file of points (:func:`edgecv.evaluate.points.read_points`)."""
    views = job.flat(ViewSettings)
    colors = color_settings(job)
    settings = job.table("landmarks", LandmarkSettings)
    job.done()
    if views.flip and not settings.mirror:
        job.say("pictures are not mirrored: landmarks.mirror does not say which points change")
        views = ViewSettings(views.classes, False, views.zoom, views.shift)
    first, second = two_parts(job, lambda path: _points(path, job, settings))
    data = PointData(first, job, "data")
    held_out = data if second is None else PointData(second, job, "held_out")
    spec = contract(job.where, "landmarks", job.preparation, job.decoding, job.labels)
    variation = Variation(data.pictures, views, colors)
    return Prepared(LandmarkTask(data, held_out, spec, variation, settings), job.labels)


def _points(path: Path, job: Job, settings: LandmarkSettings) -> list[LabelledPoints]:
    if path.suffix.lower() != ".csv":
        raise InputError(f"{path}: expected a CSV file of points; see {job.where}.data")
    found = read_points(path)
    count = len(found[0].points)
    if job.labels and len(job.labels) != count:
        raise InputError(f"{path}: has {count} points, the recipe {len(job.labels)} labels")
    if settings.mirror and len(settings.mirror) != count:
        raise RecipeError(
            f"{job.where}.landmarks.mirror: {len(settings.mirror)} points, {path} has {count}"
        )
    if settings.between and max(settings.between) >= count:
        raise RecipeError(
            f"{job.where}.landmarks.between: {list(settings.between)}, {path} has {count} points"
        )
    return found
