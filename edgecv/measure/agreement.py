"""Whether two models give the same answer to a picture, in the terms of their task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgecv.errors import CheckFailed
from edgecv.postprocess import boxes
from edgecv.results import (
    Classification,
    Detections,
    Embedding,
    Landmarks,
    Result,
    Segmentation,
)

BOX_IOU = 0.5  # COCO's loosest: below it a box is of something else
POINT_SHARE = 0.01  # of the points' extent: a face's 5 points move by a pixel in a hundred
SAME = 0.99  # embeddings by cosine, masks by pixels: below it the answer counts as changed


def agreements(candidate: Sequence[Result], reference: Sequence[Result]) -> list[float]:
    """Per picture from 0 to 1, how far the answers agree; 1 is the same answer.

    Classes: 1 where the best is the same. Boxes: twice the matched ones over all, matched one to
    one at an IoU of :data:`BOX_IOU` in one class, the best overlap first; two empty answers agree.
    Embeddings: the cosine, at least 0. Masks: the share of equal pixels. Points: the share that
    lies within :data:`POINT_SHARE` of the reference's extent.
    """
    return [_agree(a, b) for a, b in zip(candidate, reference, strict=True)]


def changed(results: Sequence[float], task: str) -> list[int]:
    """Which pictures' answers count as changed."""
    bound = SAME if task in ("embed", "segment") else 1.0
    return [index for index, value in enumerate(results) if value < bound]


def _agree(a: Result, b: Result) -> float:
    for kind, rule in _RULES.items():
        if isinstance(a, kind) and isinstance(b, kind):
            return rule(a, b)
    raise CheckFailed(f"the answers are of two tasks: {type(a).__name__} and {type(b).__name__}")


def _classes(a: Classification, b: Classification) -> float:
    return float(a.best.id == b.best.id)


def box_agreement(a: Detections, b: Detections, least: float = BOX_IOU) -> float:
    """Twice the boxes that match, at an IoU of ``least`` or more, over all; 1 without any."""
    if not len(a) and not len(b):
        return 1.0
    overlaps = np.asarray(boxes.iou(a.boxes, b.boxes)) if len(a) and len(b) else np.zeros((0, 0))
    if overlaps.size:
        overlaps = np.where(a.classes[:, None] == b.classes[None], overlaps, 0.0)
    matched = 0
    while overlaps.size and overlaps.max() >= least:
        row, column = np.unravel_index(int(overlaps.argmax()), overlaps.shape)
        overlaps[row], overlaps[:, column] = -1, -1
        matched += 1
    return 2 * matched / (len(a) + len(b))


def _embeddings(a: Embedding, b: Embedding) -> float:
    x, y = a.vector.astype(np.float64), b.vector.astype(np.float64)
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    return min(1.0, max(0.0, float(x @ y) / norms)) if norms else float(np.array_equal(x, y))


def _masks(a: Segmentation, b: Segmentation) -> float:
    return float(np.mean(a.mask == b.mask)) if a.mask.shape == b.mask.shape else 0.0


def _points(a: Landmarks, b: Landmarks) -> float:
    if a.points.shape != b.points.shape:
        return 0.0
    extent = float(np.linalg.norm(b.points.max(0) - b.points.min(0))) or 1.0
    return float(np.mean(np.linalg.norm(a.points - b.points, axis=1) <= POINT_SHARE * extent))


_RULES: dict[type, Callable[[Any, Any], float]] = {
    Classification: _classes,
    Detections: box_agreement,
    Embedding: _embeddings,
    Segmentation: _masks,
    Landmarks: _points,
}
