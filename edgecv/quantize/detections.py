"""What the outputs of a detector mean to its quantization.

One tensor may hold boxes in pixels, up to hundreds, beside scores of 0 to 1. By squared error the
scores are nothing there: a file whose every score is off by 0.1 has an SQNR of 60 dB. So errors
are counted on boxes and scores apart, each in units of its own.

And one scale that serves both serves one of them badly. A convolution that makes both is the last
one, with few of the multiply-adds: its output stays float.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from edgecv.postprocess.activations import sigmoid, softmax
from edgecv.postprocess.options import Options
from edgecv.quantize.ranges import Array
from edgecv.quantize.sensitivity import Error, Outputs, relative_error
from edgecv.quantize.structure import constant, ends, plan, weight_axis
from edgecv.quantize.targets import Policy
from edgecv.spec import ModelSpec

MIXED = "boxes and scores in one tensor"  # why the output of a layer has no scale
SMALLEST = 8.0  # pixels: a cell of the finest grid; what is smaller is not located any better
SEEN = 0.05  # of finished detections, what scores less is never shown
# boxes [n, 4] and scores of 0 to 1 [n, classes] of all cells and pictures
View: TypeAlias = Callable[[Outputs], tuple[Array, Array]]


def error_for(spec: ModelSpec) -> Error:
    """What an error is, by what the outputs mean. Kinds that give boxes and scores in tensors of
    their own, or all of it from 0 to 1, are counted tensor by tensor."""
    kind, options = spec.decoding.kind, Options(spec)
    if kind == "yolox" or (kind == "yolo-anchors" and options.flag("decoded")):
        unit = _pixels(spec, corners=False) if options.flag("decoded") else 1.0
        return detection_error(lambda outputs: _rows(outputs, options), unit)
    if kind == "yolo-anchors":
        return detection_error(lambda outputs: _anchor_maps(outputs, options))
    if kind == "yolo-anchor-free":
        form = options.choice("boxes", ("cxcywh", "xyxy", "ltrb", "dfl"))
        pixels = form in ("cxcywh", "xyxy")
        unit = _pixels(spec, corners=form == "xyxy") if pixels else 1.0
        return detection_error(lambda outputs: _anchor_free(outputs, options, form), unit)
    if kind in ("yolo-end2end", "detections"):
        return finished_error(lambda outputs: _lists(outputs, options), _pixels(spec, corners=True))
    return relative_error


def detection_error(view: View, unit: float | Callable[[Array], Array] = 1.0) -> Error:
    """The error of boxes and scores, as ``view`` reads them off the outputs.

    Scores count by their relative squared error, boxes by their squared error, in ``unit``s (of
    each box ``[n, 1]``, or of all), under the best score of their cell: one that says nothing may
    say it from anywhere.
    """

    def error(reference: Outputs, candidate: Outputs) -> float:
        (boxes, good), (moved, other) = view(reference), view(candidate)
        weight = good.max(axis=1)
        length = unit(boxes) if callable(unit) else unit
        shift = np.square((boxes - moved) / length).sum(axis=1)
        scores = np.square(good - other).sum() / max(float(np.square(good).sum()), 1e-30)
        return float(scores + (weight * shift).sum() / max(float(weight.sum()), 1e-30))

    return error


def finished_error(
    lists: Callable[[Outputs], Iterable[Array]], unit: Callable[[Array], Array]
) -> Error:
    """The error of detections, a list a picture ``[n, 6]`` (x1, y1, x2, y2, score, class).

    A list is sorted, and a small change may swap two: each detection of the reference that
    scores more than :data:`SEEN` is held against the one that is most like it, and costs no more
    than if there were none. What is there beside them costs as much again.
    """

    def one_way(rows: Array, others: Array) -> float:
        rows = rows[rows[:, 4] > SEEN]
        score = rows[:, 4]
        missing = np.square(score)
        if not len(rows) or not len(others):
            return float(missing.sum())
        shift = np.square((rows[:, None, :4] - others[None, :, :4]) / unit(rows[:, :4])[:, None])
        cost = np.square(score[:, None] - others[None, :, 4]) + missing[:, None] * shift.sum(axis=2)
        cost[rows[:, None, 5] != others[None, :, 5]] = np.inf
        return float(np.minimum(cost.min(axis=1), missing).sum())

    def error(reference: Outputs, candidate: Outputs) -> float:
        total = power = 0.0
        for rows, others in zip(lists(reference), lists(candidate), strict=True):
            total += one_way(rows, others) + one_way(others, rows)
            power += float(np.square(rows[rows[:, 4] > SEEN, 4]).sum())
        return total / max(2 * power, SEEN**2)

    return error


def mixed_heads(model: ir.Model, policy: Policy, spec: ModelSpec) -> dict[str, str]:
    """The layers of ``model`` whose quantized output would hold boxes and scores under one scale,
    each with the reason why that output stays float."""
    mixes = _mixes(spec)
    if mixes is None:
        return {}
    chosen = plan(model, policy)
    last = set(ends(model, chosen))
    found = {}
    for unit in chosen.units:
        weight = constant(unit.node.inputs[1]) if unit.is_mac else None
        if weight is None or unit.output.name not in last:
            continue
        if mixes(weight.shape[weight_axis(unit.node)]):
            found[unit.node.name or ""] = MIXED
    return found


def _mixes(spec: ModelSpec) -> Callable[[int], bool] | None:
    """Whether so many channels are all that a cell says; None where heads are tensors apart."""
    kind, options, classes = spec.decoding.kind, Options(spec), len(spec.labels)
    if kind == "yolo-anchors":  # of every anchor
        return lambda channels: channels % (5 + classes) == 0
    if kind == "yolo-grid":
        cell, side = 5 * options.integer("boxes") + classes, options.integer("grid")
        return lambda channels: channels in (cell, cell * side * side)
    if kind in ("yolox", "fastestdet"):
        return lambda channels: channels == 5 + classes
    if kind == "yolo-anchor-free":
        bins = options.integer("bins") if options.text("boxes") == "dfl" else 1
        whole = 4 * bins + options.flag("objectness") + classes
        return lambda channels: channels == whole
    return None


def _pixels(spec: ModelSpec, *, corners: bool) -> Callable[[Array], Array]:
    """The side of each box, of boxes by their ``corners`` or by centre and size."""
    p = spec.preparation
    relative = spec.decoding.options.get("normalized", False)
    least = SMALLEST / math.sqrt(p.height * p.width) if relative else SMALLEST

    def side(boxes: Array) -> Array:
        size = np.maximum(boxes[:, 2:] - boxes[:, :2] if corners else boxes[:, 2:], 0)
        return np.asarray(np.maximum(np.sqrt(size.prod(axis=1, keepdims=True)), least))

    return side


def _double(values: Array) -> Array:
    return np.asarray(values, np.float64)


def _stacked(tensors: Iterable[Array], channels_first: bool) -> Array:
    """All ``tensors`` as rows ``[n, channels]``, in double precision."""
    parts = [np.moveaxis(a, 1, -1) if channels_first else a for a in tensors]
    return _double(np.concatenate([part.reshape(-1, part.shape[-1]) for part in parts]))


def _lists(outputs: Outputs, options: Options) -> Iterable[Array]:
    """``yolo-end2end`` and ``detections``, where the first ``num`` of each picture count."""
    if options.spec.decoding.kind == "yolo-end2end":
        return list(_double(options.only_output(outputs)))
    roles = ("num", "boxes", "scores", "classes")
    num, boxes, *rest = (_double(options.output(outputs, role)) for role in roles)
    rows = np.concatenate([boxes, *(part[..., None] for part in rest)], axis=2)
    counts = num.reshape(-1).astype(int)
    return [found[:count] for found, count in zip(rows, counts, strict=True)]


def _rows(outputs: Outputs, options: Options) -> tuple[Array, Array]:
    """``[N, n, 5 + C]``: box, objectness and class probabilities."""
    rows = _stacked([options.only_output(outputs)], channels_first=False)
    return rows[:, :4], rows[:, 4:5] * rows[:, 5:]


def _anchor_maps(outputs: Outputs, options: Options) -> tuple[Array, Array]:
    """The maps of ``yolo-anchors``: x, y within the cell, w, h as the anchor's multiple or its
    logarithm, so that a box counts in cells."""
    channels = 5 + len(options.spec.labels)
    first = options.text("layout") == "channels-first"
    # [..., A * channels] or [..., channels]
    maps = [np.moveaxis(a, 1, -1) if first else a for a in options.all_outputs(outputs)]
    rows = np.concatenate([_double(a).reshape(-1, channels) for a in maps])
    boxes, confidence, classes = rows[:, :4], rows[:, 4:5], rows[:, 5:]
    if not options.flag("activated"):
        rule = options.text("rule")
        within = 4 if rule == "v5" else 2
        boxes = np.concatenate([sigmoid(boxes[:, :within]), boxes[:, within:]], axis=1)
        confidence = sigmoid(confidence)
        classes = softmax(classes) if rule == "v2" else sigmoid(classes)
    return boxes, confidence * classes


def _anchor_free(outputs: Outputs, options: Options, form: str) -> tuple[Array, Array]:
    """``yolo-anchor-free``: distances in cells (their means, of distributions), or boxes."""
    tensors = options.all_outputs(outputs)
    rows = _stacked(tensors, len(tensors) > 1 or options.text("layout") == "channels-first")
    bins = options.integer("bins") if form == "dfl" else 1
    boxes, rest = rows[:, : 4 * bins], rows[:, 4 * bins :]
    if options.text("scores") == "logits":
        rest = sigmoid(rest)
    scores = rest[:, :1] * rest[:, 1:] if options.flag("objectness") else rest
    if form == "dfl":
        boxes = softmax(boxes.reshape(-1, 4, bins)) @ np.arange(bins, dtype=np.float64)
    return boxes, scores
