"""Detection: COCO's mean average precision, on labelled pictures of either form.

The arithmetic is COCO's own (https://cocodataset.org/#detection-eval), by ``faster-coco-eval`` or
``pycocotools``, whichever is installed: 101 recall points, IoU 0.50 to 0.95 in steps of 0.05, at
most 100 detections a picture, classes without a labelled object left out of the mean. Every
picture of the data set counts, also one in which nothing is labelled or nothing was found: its
false detections cost precision, its missed objects recall.

Ultralytics' ``val`` gives other figures for the same file and pictures, by up to a point or two:

- It interpolates precision by its own rule (the area under 101 interpolated points, with an
  end point added), keeps up to 300 detections a picture, and does not know COCO's ``iscrowd``.
- Its NMS lets one box answer for several classes (``multi_label``); EdgeCV's contract gives each
  box its best class, in evaluation as in use.
- It pads pictures to the smallest rectangle of a batch (``rect=True``); EdgeCV prepares them as
  the contract says, the same in evaluation as in use.
- It takes IoU 0.7 for NMS whatever the model is deployed with; EdgeCV takes the contract's.
- Objects of which two labels are equal count once there, and twice here.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.results import Detections

T = TypeVar("T")

MIN_SCORE = 0.001  # of the boxes that an evaluation looks at: the curve's tail, as is usual


@dataclass(frozen=True)
class LabelledPicture:
    """A picture and what is in it: ``boxes`` ``[N, 4]`` xyxy, ``classes`` ``[N]`` of the model.

    Boxes are in pixels, or in parts of the width and height where ``relative``. ``areas`` ``[N]``
    are the labelled regions' in square pixels (NaN: the box's), which COCO sorts into small, medium
    and large. ``crowd`` ``[N]``: regions that may be matched by any number of boxes, or by none.
    """

    path: Path
    boxes: NDArray[np.float64]
    classes: NDArray[np.int64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    relative: bool = False


@dataclass(frozen=True)
class AveragePrecision:
    """COCO's figures, 0 to 1; ``None`` where the data set has no object that could count."""

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    recall: float | None  # the mean of the highest recalls, at 100 detections a picture
    per_class: dict[str, float]


def sample(pictures: Sequence[T], limit: int | None) -> list[T]:
    """``limit`` of ``pictures``, always the same ones, in their order; all of them for ``None``."""
    if limit is None or limit >= len(pictures):
        return list(pictures)
    keep = np.sort(np.random.default_rng(0).choice(len(pictures), limit, replace=False))
    return [pictures[i] for i in keep]


def average_precision(
    truth: Sequence[LabelledPicture],
    found: Sequence[Detections],
    sizes: Sequence[tuple[int, int]],
    labels: Sequence[str],
) -> AveragePrecision:
    """Score ``found[i]`` against ``truth[i]``, a picture of ``sizes[i]`` (width, height).

    The model's classes ``labels`` that no object of ``truth`` has are left out of the mean. Raises
    :class:`~edgecv.errors.InputError` where nothing is labelled at all.
    """
    if not any(len(picture.classes) for picture in truth):
        raise InputError("none of the pictures has a labelled object: there is nothing to score")
    coco, evaluator = library()
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints what it does
        reference = coco()
        reference.dataset = _dataset(truth, sizes, labels)
        reference.createIndex()
        answers = [box for index, one in enumerate(found) for box in one.to_coco(index)]
        if answers:
            loaded = reference.loadRes(answers)
        else:  # pycocotools' loadRes takes no empty list
            loaded = coco()
            loaded.dataset = {**reference.dataset, "annotations": []}
            loaded.createIndex()
        evaluation = evaluator(reference, loaded, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    # precision [IoU, recall point, class, area range, detections], recall [IoU, class, ...]
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    all_sizes = precision[:, :, :, 0, -1]
    return AveragePrecision(
        ap=_mean(all_sizes),
        ap50=_mean(all_sizes[0]),
        ap75=_mean(all_sizes[5]),
        ap_small=_mean(precision[:, :, :, 1, -1]),
        ap_medium=_mean(precision[:, :, :, 2, -1]),
        ap_large=_mean(precision[:, :, :, 3, -1]),
        recall=_mean(recall[:, :, 0, -1]),
        per_class={
            label: value
            for index, label in enumerate(labels)
            if (value := _mean(all_sizes[:, :, index])) is not None
        },
    )


def _mean(values: NDArray[np.float64]) -> float | None:
    known = values[values > -1]  # COCO's mark of "no object could count"
    return float(known.mean()) if known.size else None


def _dataset(
    truth: Sequence[LabelledPicture], sizes: Sequence[tuple[int, int]], labels: Sequence[str]
) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    images = []
    for index, (picture, (width, height)) in enumerate(zip(truth, sizes, strict=True)):
        images.append({"id": index, "width": width, "height": height})
        scale = np.array([width, height, width, height] if picture.relative else [1.0])
        for box, kind, area, crowd in zip(
            picture.boxes * scale, picture.classes, picture.areas, picture.crowd, strict=True
        ):
            x1, y1, x2, y2 = map(float, box)
            own = (x2 - x1) * (y2 - y1)
            annotations.append(
                {
                    "id": len(annotations) + 1,  # 0 means "unmatched" to COCO's code
                    "image_id": index,
                    "category_id": int(kind),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": own if np.isnan(area) else float(area),
                    "iscrowd": int(crowd),
                }
            )
    categories = [{"id": index, "name": label} for index, label in enumerate(labels)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def library() -> tuple[Any, Any]:
    """COCO's classes ``COCO`` and ``COCOeval``; an error with the remedy where there are none."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        try:
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval
        except ImportError as error:
            raise InputError(
                "scoring a detector needs faster-coco-eval or pycocotools, and neither is "
                "installed: pip install 'edgecv[eval]'"
            ) from error
        return COCO, COCOeval
    return COCO, COCOeval_faster
