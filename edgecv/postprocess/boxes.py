"""Boxes as arrays: conversions, areas, overlaps, clipping, and the way back to the picture.

A box is ``x1, y1, x2, y2`` (``xyxy``) in pixels, continuous coordinates: the width is
``x2 - x1``, with no ``+ 1``. A box with ``x2 <= x1`` or ``y2 <= y1`` is empty: its area and every
overlap with it are 0. NaN goes through arithmetic and comes out as NaN; the functions of
:mod:`edgecv.postprocess.nms` say what they do with it.
"""

from __future__ import annotations

from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.results import Placement

Floats: TypeAlias = NDArray[np.floating[Any]]


def floats(values: NDArray[Any]) -> Floats:
    """``values`` in a floating type that boxes can be computed in: float64 where they are float64
    or integers, otherwise float32 (float16 ends at 65504, an area of 256 x 256 pixels)."""
    array = np.asarray(values)
    if array.dtype in (np.float32, np.float64):
        return cast(Floats, array)
    return array.astype(np.float32 if array.dtype == np.float16 else np.float64)


def as_boxes(values: NDArray[Any], what: str = "boxes") -> Floats:
    """``values`` as floats ``[N, 4]``; an :class:`InputError` for any other shape."""
    array = floats(values)
    if array.ndim != 2 or array.shape[1] != 4:
        raise InputError(f"{what}: expected an array [N, 4] of x1, y1, x2, y2, got {array.shape}")
    return array


def from_cxcywh(boxes: NDArray[Any]) -> Floats:
    """Centre and size ``[..., 4]`` to ``xyxy``."""
    array = floats(boxes)
    out = np.empty_like(array)
    half = array[..., 2:] * 0.5
    np.subtract(array[..., :2], half, out=out[..., :2])
    np.add(array[..., :2], half, out=out[..., 2:])
    return out


def to_cxcywh(boxes: NDArray[Any]) -> Floats:
    """``xyxy`` ``[..., 4]`` to centre and size."""
    array = floats(boxes)
    sizes = array[..., 2:] - array[..., :2]
    return np.concatenate([array[..., :2] + sizes * 0.5, sizes], axis=-1)


def from_xywh(boxes: NDArray[Any]) -> Floats:
    """Top left corner and size ``[..., 4]`` (COCO's) to ``xyxy``."""
    array = floats(boxes)
    return np.concatenate([array[..., :2], array[..., :2] + array[..., 2:]], axis=-1)


def to_xywh(boxes: NDArray[Any]) -> Floats:
    """``xyxy`` ``[..., 4]`` to top left corner and size (COCO's)."""
    array = floats(boxes)
    return np.concatenate([array[..., :2], array[..., 2:] - array[..., :2]], axis=-1)


def area(boxes: NDArray[Any]) -> Floats:
    """Areas ``[...]`` of boxes ``[..., 4]``; 0 for an empty or inverted one."""
    array = floats(boxes)
    sizes = np.maximum(array[..., 2:] - array[..., :2], 0)
    return cast(Floats, sizes[..., 0] * sizes[..., 1])


def _overlap(a: Floats, b: Floats) -> tuple[Floats, Floats, Floats]:
    """IoU, intersection and union of boxes that broadcast against each other."""
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    sizes = np.maximum(high - low, 0)
    inter = sizes[..., 0] * sizes[..., 1]
    union = area(a) + area(b) - inter
    return ratio(inter, union), inter, union


def ratio(part: Floats, whole: Floats) -> Floats:
    """``part / whole``, and 0 where ``whole`` is 0: nothing overlaps with an empty box."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole != 0)


def iou(a: NDArray[Any], b: NDArray[Any]) -> Floats:
    """Intersection over union, 0 to 1, of every box of ``a`` ``[N, 4]`` with every one of ``b``
    ``[M, 4]``: ``[N, M]``. 0 where either box is empty."""
    return _overlap(as_boxes(a, "a")[:, None], as_boxes(b, "b")[None])[0]


def giou(a: NDArray[Any], b: NDArray[Any]) -> Floats:
    """Generalized IoU ``[N, M]``, -1 to 1: IoU less the share of the enclosing box that neither
    covers (Rezatofighi et al. 2019, arXiv:1902.09630)."""
    left, right = as_boxes(a, "a")[:, None], as_boxes(b, "b")[None]
    overlap, _, union = _overlap(left, right)
    hull = area(_hull(left, right))
    return cast(Floats, overlap - ratio(hull - union, hull))


def diou(a: NDArray[Any], b: NDArray[Any]) -> Floats:
    """Distance IoU ``[N, M]``, -1 to 1: IoU less the squared distance of the centres over the
    squared diagonal of the enclosing box (Zheng et al. 2020, arXiv:1911.08287)."""
    left, right = as_boxes(a, "a")[:, None], as_boxes(b, "b")[None]
    return cast(Floats, _overlap(left, right)[0] - center_distance(left, right))


def center_distance(a: Floats, b: Floats) -> Floats:
    """DIoU's penalty for boxes that broadcast: ``d^2 / c^2``, 0 where the hull is a point."""
    centers = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) * 0.5
    hull = _hull(a, b)
    diagonal = hull[..., 2:] - hull[..., :2]
    return ratio((centers**2).sum(axis=-1), (diagonal**2).sum(axis=-1))


def _hull(a: Floats, b: Floats) -> Floats:
    low, high = np.minimum(a[..., :2], b[..., :2]), np.maximum(a[..., 2:], b[..., 2:])
    return np.concatenate([low, high], axis=-1)


def clip(boxes: NDArray[Any], width: float, height: float) -> Floats:
    """Boxes ``[..., 4]`` cut at the borders of a picture of ``width`` x ``height`` pixels."""
    limits = np.array([width, height, width, height])
    array = floats(boxes)
    return np.clip(array, 0, limits.astype(array.dtype))


def to_picture(points: NDArray[Any], placement: Placement) -> Floats:
    """Coordinates of the model's input to those of the source picture.

    ``points`` ``[..., 2k]`` are x and y in turn: boxes ``[N, 4]`` or points ``[K, 2]``. The way
    back of ``input = picture * scale + offset``; nothing is clipped.
    """
    array = floats(points)
    pairs = array.shape[-1] // 2
    offset = np.array([placement.offset_x, placement.offset_y] * pairs, array.dtype)
    scale = np.array([placement.scale_x, placement.scale_y] * pairs, array.dtype)
    return cast(Floats, (array - offset) / scale)
