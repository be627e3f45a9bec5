"""Learning to detect: YOLO heads of three kinds, scored as the exported file is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgecv.errors import InputError, RecipeError
from edgecv.evaluate.coco import MIN_SCORE, average_precision, library
from edgecv.postprocess.options import Options
from edgecv.results import Detections, Result
from edgecv.spec import Decoding, ModelSpec
from edgecv.train.anchors import kmeans, mean_best_iou
from edgecv.train.assign import Objects
from edgecv.train.boxes import BoxData, inside, read_boxes
from edgecv.train.job import Job, Prepared
from edgecv.train.scoring import answers, contract
from edgecv.train.task import Batch
from edgecv.train.vary import PlaceTask, S, Variation, color_settings
from edgecv.train.views import ViewSettings
from edgecv.train.yololoss import DetectSettings, YoloLoss, make_loss


class BoxTask(PlaceTask[BoxData, S]):
    """What tasks with boxes share: batches of views with their objects, and COCO's AP.

    A batch's targets are boxes ``[m, 4]``, classes and pictures ``[m]``, and the number of
    objects, of the whole batch, that falls to its part.
    """

    metric = "ap50"

    def draw(self, index: Tensor, part: slice, generator: torch.Generator) -> Batch:
        inputs, views = self.variation(index, part, generator)
        own = index[part].tolist()
        sizes = torch.tensor([len(self.data.classes[i]) for i in own])
        picture = torch.repeat_interleave(torch.arange(len(own)), sizes)
        boxes = views.boxes(torch.cat([self.data.boxes[i] for i in own]), picture)
        classes = torch.cat([self.data.classes[i] for i in own])
        boxes, seen = inside(boxes, views.width, views.height)
        share = len(own) / len(index)
        objects = sum(len(self.data.classes[i]) for i in index.tolist())
        count = torch.tensor(max(objects, 1) * share)
        targets = (boxes[seen], classes[seen], picture[seen], count)
        return Batch(inputs, targets, share)

    def results(self, batch: Batch) -> list[Result]:
        """The objects that the net is told of, certain ones."""
        boxes, classes, picture, _ = batch.targets
        found: list[Result] = []
        for i in range(len(batch.inputs)):
            own = picture == i
            scores = np.ones(int(own.sum()), np.float32)
            labels = self.spec.labels
            found.append(Detections(boxes[own].numpy(), scores, classes[own].numpy(), labels))
        return found

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """COCO's ``ap50`` and ``ap``, 0 to 1, of the held-out pictures."""
        found, sizes = [], []
        conf = MIN_SCORE
        for result, placement in answers(model, self.spec, self.held_out.pictures, conf):
            assert isinstance(result, Detections)
            found.append(result)
            sizes.append((placement.width, placement.height))
        figures = average_precision(self.held_out.truth, found, sizes, self.spec.labels)
        return {"ap50": figures.ap50 or 0.0, "ap": figures.ap or 0.0}


class DetectionTask(BoxTask[YoloLoss]):
    """See :class:`edgecv.train.task.Task`. The net gives what the contract's decoding reads."""

    def loss(self, outputs: Any, targets: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        boxes, classes, picture, count = targets
        return self.terms(outputs, Objects(boxes, classes, picture), count)


def prepare(job: Job) -> Prepared:
    """Read ``job``'s pictures and boxes (:func:`~edgecv.train.boxes.read_boxes`)."""
    if job.decoding.kind == "yolo-end2end":
        from edgecv.train.places import prepare_localization

        return prepare_localization(job)
    views = job.flat(ViewSettings)
    colors = color_settings(job)
    settings = job.table("detect", DetectSettings)
    job.done()
    library()  # what scores the epochs is missed before the first one
    data, held_out, labels = read_boxes(job, views)
    spec = contract(job.where, "detect", job.preparation, job.decoding, labels)
    decoding = None
    if settings.anchors == "kmeans":
        decoding = with_anchors(spec, data, job)
        spec = replace(spec, decoding=decoding)
    p = job.preparation
    criterion = make_loss(Options(spec), settings, (p.height, p.width))
    variation = Variation(data.pictures, views, colors)
    task = DetectionTask(data, held_out, spec, variation, criterion)
    return Prepared(task, labels, decoding=decoding)


def with_anchors(spec: ModelSpec, data: BoxData, job: Job) -> Decoding:
    """The contract's decoding with the data's own anchors: the smallest on the finest stride."""
    options = Options(spec)
    if spec.decoding.kind != "yolo-anchors":
        raise RecipeError(
            f"{job.where}.detect.anchors: {spec.decoding.kind} has no anchors; leave it out"
        )
    strides, table = options.strides(), options.numbers("anchors")
    boxes = torch.cat(data.boxes)
    sizes = (boxes[:, 2:] - boxes[:, :2]).numpy().astype(np.float64)
    try:
        found = kmeans(sizes, table.shape[0] * table.shape[1], job.seed).round(1)
    except InputError as error:
        raise InputError(f"{job.where}.detect.anchors: {error}") from error
    before, after = (mean_best_iou(sizes, t.reshape(-1, 2)) for t in (table, found))
    job.say(f"anchors by k-means: mean best IoU {after:.3f}, the recipe's {before:.3f}")
    anchors = found.reshape(len(strides), -1, 2).tolist()
    return replace(spec.decoding, options={**spec.decoding.options, "anchors": anchors})
