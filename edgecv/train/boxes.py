"""Pictures with labelled boxes, as training sees them: in pixels of the net's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgecv.errors import InputError
from edgecv.evaluate.coco import LabelledPicture
from edgecv.evaluate.coco_json import read_coco
from edgecv.evaluate.yolo_labels import read_yolo, yolo_names, yolo_splits
from edgecv.results import Placement
from edgecv.train.fitted import FittedPictures, fit_pictures
from edgecv.train.job import Job
from edgecv.train.parts import two_parts
from edgecv.train.views import ViewSettings

VISIBLE = 0.25  # the share of an object that must be left inside for it to be looked for


@dataclass(frozen=True, eq=False)
class BoxData:
    """``truth[i]`` is what is labelled in picture i; ``boxes[i]`` ``[m, 4]`` xyxy are the same in
    pixels of the input, ``classes[i]`` int64 ``[m]``. Crowds are in ``truth`` only."""

    pictures: FittedPictures
    truth: tuple[LabelledPicture, ...]
    boxes: tuple[Tensor, ...]
    classes: tuple[Tensor, ...]

    @property
    def objects(self) -> int:
        return sum(map(len, self.classes))


def read_boxes(job: Job, settings: ViewSettings) -> tuple[BoxData, BoxData, tuple[str, ...]]:
    """What to learn from, what is held out, and the labels.

    ``data`` is a COCO file, or a folder as :func:`~edgecv.evaluate.yolo_labels.read_yolo` takes
    it, of whose ``data.yaml`` the split ``train`` is learned from and ``val`` held out. Without
    such splits, and without ``held_out``, a part of the pictures is held out by seed.
    """
    source = job.path(job.files.data)
    coco = source.suffix.lower() == ".json"
    splits = () if coco else yolo_splits(source)
    labels = (() if job.fixed_labels or coco else yolo_names(source)) or job.labels
    classes = job.file(settings.classes) if settings.classes else None

    def labelled(path: Path, split: str | None) -> list[LabelledPicture]:
        if path.suffix.lower() == ".json":
            return read_coco(path, labels, classes)
        return read_yolo(path, labels, split, classes)

    learned = "train" if "train" in splits else None
    elsewhere = job.files.held_out and job.path(job.files.held_out).resolve() != source.resolve()
    first: Sequence[LabelledPicture]
    second: Sequence[LabelledPicture] | None
    if learned and "val" in splits and not elsewhere:
        first, second = labelled(source, learned), labelled(source, "val")
    else:
        first, second = two_parts(job, lambda p: labelled(p, learned if p == source else None))
    data = fit(first, job, "data")
    if not data.objects:
        raise InputError(f"{source}: none of its {len(first)} pictures has an object to learn from")
    # held_out that is the data itself: how well they are fitted
    return data, data if second is None else fit(second, job, "held_out"), labels


def fit(labelled: Sequence[LabelledPicture], job: Job, title: str) -> BoxData:
    """Read the pictures, and carry their boxes over into the input."""
    pictures = fit_pictures([one.path for one in labelled], job, title)
    truth = tuple(labelled[i] for i in pictures.kept)
    boxes, classes = [], []
    for one, placement in zip(truth, pictures.placements, strict=True):
        found, index = inside(placed(one, placement), placement.input_width, placement.input_height)
        index = index[~torch.from_numpy(one.crowd)[index]]
        boxes.append(found[index])
        classes.append(torch.from_numpy(one.classes)[index])
    return BoxData(pictures, truth, tuple(boxes), tuple(classes))


def placed(one: LabelledPicture, placement: Placement) -> Tensor:
    """The boxes ``[m, 4]`` of a picture in pixels of the input, not clipped."""
    size = np.array([placement.width, placement.height] * 2) if one.relative else 1.0
    scale = np.array([placement.scale_x, placement.scale_y] * 2)
    offset = np.array([placement.offset_x, placement.offset_y] * 2)
    return torch.from_numpy((one.boxes * size * scale + offset).astype(np.float32))


def inside(boxes: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Boxes ``[m, 4]`` cut at the input's borders, and the places of those of which enough
    (:data:`VISIBLE`) is left; empty boxes never are."""
    limits = boxes.new_tensor([width, height] * 2)
    cut = torch.minimum(boxes.clamp_min(0), limits)
    before = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    after = (cut[:, 2:] - cut[:, :2]).clamp_min(0).prod(1)
    return cut, torch.nonzero((after > 0) & (after >= VISIBLE * before))[:, 0]
