"""The YOLO families: from raw tensors to candidates, as the contract's ``decoding`` says.

Nothing is guessed: the family is the decoding's kind, and each function names the options that it
reads. ``C`` is the number of labels of the contract; a tensor with another number of channels is an
error. A candidate's score must be greater than ``conf``; its class is the best one (the lower
index, of equals), or, with the option ``multi_label``, every class above ``conf`` makes a
candidate of its own (what Ultralytics' ``val`` does). Boxes are in pixels of the model's input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import RuntimeFailure, SpecError
from edgecv.postprocess.activations import sigmoid, softmax
from edgecv.postprocess.boxes import Floats, from_cxcywh
from edgecv.postprocess.candidates import Candidates, grid
from edgecv.postprocess.options import Array, Options, expect_shape, no_nan
from edgecv.results import Placement

Outputs = Mapping[str, Array]
Indices = NDArray[np.intp]

LAYOUTS = ("channels-first", "channels-last", "anchors-first")


def grid_v1(
    outputs: Outputs, options: Options, conf: float, placements: Sequence[Placement]
) -> Iterator[Candidates]:
    """``yolo-grid``: the original YOLO (Redmon et al. 2016, arXiv:1506.02640).

    One output of ``S * S * (5B + C)`` values a picture, of any shape. Options: ``grid`` (S),
    ``boxes`` (B), ``square_root`` (bool: the net gives the square roots of the sizes, as the
    paper's does) and ``order``:

    - ``boxes-first``: per cell B times x, y, w, h, confidence, then C class scores
    - ``classes-first``: per cell C class scores, then B times confidence, x, y, w, h
    - ``darknet``: all cells' class scores, then all confidences, then all x, y, w, h

    x and y count from the cell's corner in cells, w and h are relative to the input. The score is
    confidence times class score.
    """
    raw = options.only_output(outputs)
    side, boxes = options.integer("grid"), options.integer("boxes")
    order = options.choice("order", ("boxes-first", "classes-first", "darknet"))
    rooted = options.flag("square_root")
    classes, cells = len(options.spec.labels), side * side
    expected = cells * (5 * boxes + classes)
    if raw.size != expected * len(raw):
        raise RuntimeFailure(
            f"{options.where}: {side} x {side} cells with {boxes} boxes and {classes} labels make "
            f"{expected} values a picture, got a tensor {list(raw.shape)}"
        )
    raw = raw.reshape(len(raw), expected)
    for values, placement in zip(raw, placements, strict=False):
        if order == "darknet":
            parts = np.split(values, [cells * classes, cells * (classes + boxes)])
            probabilities = parts[0].reshape(cells, classes)
            confidence = parts[1].reshape(cells, boxes)
            coordinates = parts[2].reshape(cells, boxes, 4)
        else:
            rows = values.reshape(cells, -1)
            if order == "boxes-first":
                part = rows[:, : 5 * boxes].reshape(cells, boxes, 5)
                probabilities, coordinates = rows[:, 5 * boxes :], part[..., :4]
                confidence = part[..., 4]
            else:
                part = rows[:, classes:].reshape(cells, boxes, 5)
                probabilities, coordinates = rows[:, :classes], part[..., 1:]
                confidence = part[..., 0]
        scores = (confidence[..., None] * probabilities[:, None]).reshape(cells * boxes, classes)
        rows, best, score = _pick(scores, conf, options)
        cell = rows // boxes
        chosen = coordinates.reshape(-1, 4)[rows]
        corner = np.stack([cell % side, cell // side], axis=1).astype(chosen.dtype)
        center = (chosen[:, :2] + corner) / side
        sizes = chosen[:, 2:] ** 2 if rooted else chosen[:, 2:]
        relative = from_cxcywh(np.concatenate([center, sizes], axis=1))
        yield Candidates(relative * _input_size(placement, relative.dtype), score, best)


def anchors(
    outputs: Outputs, options: Options, conf: float, placements: Sequence[Placement]
) -> Iterator[Candidates]:
    """``yolo-anchors``: YOLOv2, v3, v4, v5, v7.

    Option ``decoded`` (bool). True: one output ``[N, n, 5 + C]`` of cx, cy, w, h in pixels of the
    input, objectness and class probabilities, as v5 and v7 export it. False: one map a stride, in
    the order of the option ``strides``, and

    - ``anchors``: for each stride its A anchors ``[w, h]`` in pixels of the input
    - ``layout``: ``channels-first`` ``[N, A * (5 + C), H, W]``, ``channels-last`` ``[N, H, W, A *
      (5 + C)]`` or ``[N, H, W, A, 5 + C]``, ``anchors-first`` ``[N, A, H, W, 5 + C]``
    - ``activated`` (bool): x, y, objectness and class scores (with ``v5`` also w and h) have been
      through the sigmoid or softmax in the graph
    - ``rule``: with s the sigmoid, (i, j) the cell, p the anchor,

      ====== ======================================= ==========================
      v2     ``(s(x) + i) * stride``, ``exp(w) * p`` softmax over the classes
      v3     the same                                sigmoid for each class
      v5     ``(2 s(x) - 0.5 + i) * stride``,        sigmoid for each class
             ``(2 s(w))^2 * p``
      ====== ======================================= ==========================

    The score is objectness times class probability (arXiv:1612.08242, arXiv:1804.02767).
    """
    if options.flag("decoded"):
        raw = options.only_output(outputs)
        expect_shape(
            raw,
            ("N", "n", 5 + len(options.spec.labels)),
            f"{options.where}: the output",
            f"the contract has {len(options.spec.labels)} labels",
        )
        for rows, _ in zip(raw, placements, strict=False):
            found, best, score = _pick_rows(rows, conf, options)
            yield Candidates(from_cxcywh(rows[found, :4]), score, best)
        return
    rule = options.choice("rule", ("v2", "v3", "v5"))
    activated = options.flag("activated")
    strides, table = options.strides(), options.numbers("anchors")
    maps = options.all_outputs(outputs)
    _check_anchors(options, strides, table, len(maps))
    layout = options.choice("layout", LAYOUTS)
    for index, placement in enumerate(placements):
        parts = []
        for tensor, stride, sizes in zip(maps, strides, table, strict=True):
            view = _anchor_view(tensor, layout, len(sizes), stride, placement, options)[index]
            confidence = view[..., 4]
            no_nan(confidence, options.where)
            if not activated:
                confidence = sigmoid(confidence)
            anchor, row, column = np.nonzero(confidence > conf)
            values = view[anchor, row, column]
            classes = values[:, 5:]
            if not activated:
                classes = softmax(classes) if rule == "v2" else sigmoid(classes)
            scores = classes * confidence[anchor, row, column][:, None]
            found, best, score = _pick(scores, conf, options)
            values = values[found]
            cell = np.stack([column, row], axis=1)[found].astype(values.dtype)
            size_of = sizes[anchor[found]].astype(values.dtype)
            xy, wh = values[:, :2], values[:, 2:4]
            if not activated:
                xy, wh = sigmoid(xy), sigmoid(wh) if rule == "v5" else wh
            if rule == "v5":
                center, size = (2 * xy - 0.5 + cell) * stride, (2 * wh) ** 2 * size_of
            else:
                center, size = (xy + cell) * stride, _exp(wh) * size_of
            parts.append((from_cxcywh(np.concatenate([center, size], axis=1)), score, best))
        yield Candidates(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _check_anchors(
    options: Options, strides: tuple[int, ...], table: NDArray[np.float64], maps: int
) -> None:
    if table.ndim != 3 or len(table) != len(strides) or table.shape[2] != 2 or (table <= 0).any():
        raise SpecError(
            f"{options.where}: option 'anchors' must hold, for each of the {len(strides)} strides, "
            f"as many positive [width, height]; got an array {list(table.shape)}"
        )
    if maps != len(strides):
        raise SpecError(
            f"{options.where}: {len(strides)} strides, and the contract names {maps} outputs; "
            f"expected one map a stride"
        )


def _anchor_view(
    tensor: Array,
    layout: str,
    anchors: int,
    stride: int,
    placement: Placement,
    options: Options,
) -> Array:
    """A map as ``[N, A, H, W, 5 + C]``, without copying it."""
    classes = len(options.spec.labels)
    channels = 5 + classes
    height, width = placement.input_height // stride, placement.input_width // stride
    what = f"{options.where}: the map of stride {stride}"
    hint = (
        f"{anchors} anchors, {classes} labels; is the layout {layout!r} right, are the outputs in "
        f"the order of the strides?"
    )
    count = tensor.shape[0]
    if layout == "anchors-first":
        expect_shape(tensor, ("N", anchors, height, width, channels), what, hint)
        return tensor
    if layout == "channels-first":
        expect_shape(tensor, ("N", anchors * channels, height, width), what, hint)
        return tensor.reshape(count, anchors, channels, height, width).transpose(0, 1, 3, 4, 2)
    if tensor.ndim == 5:
        expect_shape(tensor, ("N", height, width, anchors, channels), what, hint)
    else:
        expect_shape(tensor, ("N", height, width, anchors * channels), what, hint)
    return tensor.reshape(count, height, width, anchors, channels).transpose(0, 3, 1, 2, 4)


def yolox(
    outputs: Outputs, options: Options, conf: float, placements: Sequence[Placement]
) -> Iterator[Candidates]:
    """``yolox`` (Ge et al. 2021, arXiv:2107.08430): one output ``[N, cells, 5 + C]``.

    cx, cy, w, h, then objectness and class scores, which are probabilities already; the cells of
    all ``strides``, row by row. Option ``decoded`` (bool): false where the graph leaves cx and cy
    as distances from the cell and w and h as logarithms, all in cells; true where it gives
    pixels. The score is objectness times class score.

    The reference's AP on COCO is measured with ``conf`` 0.001, ``iou`` 0.65, ``max_det`` 300,
    ``multi_label`` true, ``clip`` false, and pictures whose size is rounded down
    (``size_rounding`` of the preparation).
    """
    raw = options.only_output(outputs)
    decoded, strides = options.flag("decoded"), options.strides()
    classes = len(options.spec.labels)
    for index, placement in enumerate(placements):
        height, width = placement.input_height, placement.input_width
        x, y, scale = grid(height, width, strides)
        expect_shape(
            raw,
            ("N", len(x), 5 + classes),
            f"{options.where}: the output",
            f"strides {list(strides)} on {width}x{height} pixels, {classes} labels",
        )
        rows = raw[index]
        found, best, score = _pick_rows(rows, conf, options)
        boxes = rows[found, :4]
        if not decoded:
            cell = np.stack([x[found], y[found]], axis=1)
            size = _exp(boxes[:, 2:])
            boxes = np.concatenate([boxes[:, :2] + cell, size], axis=1) * scale[found, None]
        yield Candidates(from_cxcywh(boxes), score, best)


def anchor_free(
    outputs: Outputs, options: Options, conf: float, placements: Sequence[Placement]
) -> Iterator[Candidates]:
    """``yolo-anchor-free``: YOLOv6, v8, v9, v11 and their like.

    One output, or one map ``[N, channels, H, W]`` a stride in the order of ``strides``. Options:

    - ``layout``, of a single output: ``channels-first`` ``[N, channels, n]`` (v8, v9, v11) or
      ``channels-last`` ``[N, n, channels]`` (v6)
    - ``boxes``, the first channels: ``cxcywh`` or ``xyxy``: 4 in pixels of the input (relative to
      it with ``normalized``); ``ltrb``: 4 distances from the cell's centre to the sides, in
      cells; ``dfl``: 4 x ``bins`` logits of such distances, the mean of the softmax over 0 to
      bins - 1 (Li et al. 2020, arXiv:2006.04388)
    - ``strides``, for ``ltrb`` and ``dfl``
    - ``objectness`` (bool): a channel before the classes' that multiplies their scores (v6)
    - ``scores``: ``probabilities`` or ``logits`` (objectness too)
    """
    form = options.choice("boxes", ("cxcywh", "xyxy", "ltrb", "dfl"))
    objectness = options.flag("objectness")
    logits = options.choice("scores", ("probabilities", "logits")) == "logits"
    bins = options.integer("bins") if form == "dfl" else 1
    normalized = form in ("cxcywh", "xyxy") and options.flag("normalized")
    strides = options.strides() if form in ("ltrb", "dfl") else ()
    first = 4 * bins + objectness
    channels = first + len(options.spec.labels)
    tensors = options.all_outputs(outputs)
    for index, placement in enumerate(placements):
        columns = _columns(tensors, index, channels, strides, placement, options)
        scores = columns[first:]
        limit = _logit(conf) if logits else conf
        if objectness:
            # what is left has few columns: a class probability only lowers the objectness
            confidence = columns[first - 1]
            no_nan(confidence, options.where)
            near = np.flatnonzero(confidence > limit)
            confidence, scores = confidence[near], scores[:, near]
            if logits:
                confidence, scores = sigmoid(confidence), sigmoid(scores)
            found, best, score = _pick_columns(scores * confidence, conf, options)
            found = near[found]
        else:
            found, best, score = _pick_columns(scores, limit, options)
            if logits:
                score = sigmoid(score)
        coordinates = columns[: 4 * bins, found].T
        if form == "dfl":
            coordinates = _dfl(coordinates.reshape(-1, 4, bins))
        if strides:
            x, y, scale = grid(placement.input_height, placement.input_width, strides)[:, found]
            center = np.stack([x, y], axis=1) + np.float32(0.5)
            boxes = np.concatenate(
                [center - coordinates[:, :2], center + coordinates[:, 2:]], axis=1
            )
            boxes *= scale[:, None]
        else:
            boxes = from_cxcywh(coordinates) if form == "cxcywh" else coordinates
            if normalized:
                boxes = boxes * _input_size(placement, boxes.dtype)
        yield Candidates(boxes, score, best)


def _columns(
    tensors: Sequence[Array],
    index: int,
    channels: int,
    strides: tuple[int, ...],
    placement: Placement,
    options: Options,
) -> Array:
    """One picture's output as ``[channels, n]``."""
    height, width = placement.input_height, placement.input_width
    labels = len(options.spec.labels)
    if len(tensors) > 1:
        if len(tensors) != len(strides):
            raise SpecError(
                f"{options.where}: {len(tensors)} outputs, and {len(strides)} strides for maps; "
                f"expected one map a stride, with boxes 'ltrb' or 'dfl'"
            )
        for tensor, stride in zip(tensors, strides, strict=True):
            expect_shape(
                tensor,
                ("N", channels, height // stride, width // stride),
                f"{options.where}: the map of stride {stride}",
                f"{labels} labels; are the outputs in the order of the strides?",
            )
        return np.concatenate([t[index].reshape(channels, -1) for t in tensors], axis=1)
    tensor = tensors[0]
    count: int | str = grid(height, width, strides).shape[1] if strides else "n"
    hint = f"{labels} labels"
    if options.choice("layout", LAYOUTS[:2]) == "channels-first":
        expected: tuple[int | str, ...] = ("N", channels, count)
        if tensor.ndim == 3 and tensor.shape[2] == channels:
            hint += "; it looks like the layout 'channels-last'"
    else:
        expected = ("N", count, channels)
        if tensor.ndim == 3 and tensor.shape[1] == channels:
            hint += "; it looks like the layout 'channels-first'"
    expect_shape(tensor, expected, f"{options.where}: the output", hint)
    columns: Array = tensor[index] if expected[1] == channels else tensor[index].T
    return columns


def end2end(
    outputs: Outputs, options: Options, conf: float, placements: Sequence[Placement]
) -> Iterator[Candidates]:
    """``yolo-end2end``: YOLOv10 (arXiv:2405.14458) and other heads that need no NMS.

    One output ``[N, n, 6]``: x1, y1, x2, y2 in pixels of the input (relative to it with the
    option ``normalized``), score, class number.
    """
    raw = options.only_output(outputs)
    normalized = options.flag("normalized")
    expect_shape(raw, ("N", "n", 6), f"{options.where}: the output")
    for rows, placement in zip(raw, placements, strict=False):
        no_nan(rows[:, 4], options.where)
        rows = rows[rows[:, 4] > conf]
        boxes = rows[:, :4] * _input_size(placement, rows.dtype) if normalized else rows[:, :4]
        yield Candidates(boxes, rows[:, 4], _class_numbers(rows[:, 5], options))


def suppressed(
    outputs: Outputs, options: Options, conf: float, placements: Sequence[Placement]
) -> Iterator[Candidates]:
    """``detections``: NMS was done in the graph (EfficientNMS and its like).

    Four outputs, ``num`` ``[N]`` or ``[N, 1]``, ``boxes`` ``[N, n, 4]`` x1, y1, x2, y2 in pixels
    of the input (relative to it with the option ``normalized``), ``scores`` and ``classes`` ``[N,
    n]``; the first ``num`` of each picture count. Option ``outputs`` maps these four to the
    graph's own names.
    """
    num, boxes, scores, classes = (
        options.output(outputs, role) for role in ("num", "boxes", "scores", "classes")
    )
    normalized = options.flag("normalized")
    expect_shape(scores, ("N", "n"), f"{options.where}: output 'scores'")
    expect_shape(boxes, (*scores.shape, 4), f"{options.where}: output 'boxes'")
    expect_shape(classes, scores.shape, f"{options.where}: output 'classes'")
    if num.size != len(scores):
        raise RuntimeFailure(
            f"{options.where}: output 'num': expected one count a picture, got {list(num.shape)}"
        )
    for index, placement in enumerate(placements):
        count = int(num.reshape(-1)[index])
        if not 0 <= count <= scores.shape[1]:
            raise RuntimeFailure(
                f"{options.where}: output 'num' says {count} detections of {scores.shape[1]}"
            )
        no_nan(scores[index, :count], options.where)
        chosen = np.flatnonzero(scores[index, :count] > conf)
        box = boxes[index, chosen]
        yield Candidates(
            box * _input_size(placement, box.dtype) if normalized else box,
            scores[index, chosen],
            _class_numbers(classes[index, chosen], options),
        )


def fastestdet(
    outputs: Outputs, options: Options, conf: float, placements: Sequence[Placement]
) -> Iterator[Candidates]:
    """``fastestdet`` (github.com/dog-qiuqiu/FastestDet): one map ``[N, 5 + C, H, W]``.

    Channels: objectness (a probability), x and y (through tanh: from the cell's corner, in
    cells), w and h (through the sigmoid: relative to the input), C class probabilities. The
    score is ``objectness^0.6 * class^0.4``.
    """
    raw = options.only_output(outputs)
    classes = len(options.spec.labels)
    hint = f"the contract has {classes} labels"
    expect_shape(raw, ("N", 5 + classes, "H", "W"), f"{options.where}: the output", hint)
    _, _, height, width = raw.shape
    for values, placement in zip(raw, placements, strict=False):
        columns = values.reshape(5 + classes, -1)
        no_nan(columns[0], options.where)
        confidence = np.maximum(columns[0], 0) ** 0.6
        near = np.flatnonzero(confidence > conf)
        scores = np.maximum(columns[5:, near], 0) ** 0.4 * confidence[near]
        found, best, score = _pick_columns(scores, conf, options)
        cells = near[found]
        x, y, w, h = columns[1:5, cells]
        center_x = (np.tanh(x) + cells % width) / width
        center_y = (np.tanh(y) + cells // width) / height
        relative = np.stack([center_x, center_y, sigmoid(w), sigmoid(h)], axis=1)
        boxes = from_cxcywh(relative.astype(np.float32, copy=False))
        yield Candidates(boxes * _input_size(placement, boxes.dtype), score, best)


# --- what the families share ----------------------------------------------------------------------


def _exp(x: Array) -> Array:
    """``exp``; what overflows is infinite, and reported where candidates are checked."""
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(x))


def _logit(p: float) -> float:
    """The logit whose sigmoid is ``p``."""
    if p <= 0:
        return -np.inf
    return np.inf if p >= 1 else float(np.log(p / (1 - p)))


def _dfl(logits: Array) -> Array:
    """Distances ``[n, 4]`` as the means of the distributions ``[n, 4, bins]``."""
    return np.asarray(softmax(logits) @ np.arange(logits.shape[-1], dtype=logits.dtype))


def _input_size(placement: Placement, dtype: np.dtype[Any]) -> Floats:
    return np.array([placement.input_width, placement.input_height] * 2, dtype)


def _pick_rows(rows: Array, conf: float, options: Options) -> tuple[Indices, Indices, Floats]:
    """:func:`_pick` for rows ``[n, 5 + C]`` with objectness in column 4.

    A class score is at most 1, so only rows whose objectness passes have to be looked at.
    """
    confidence = rows[:, 4]
    no_nan(confidence, options.where)
    near = np.flatnonzero(confidence > conf)
    chosen = rows[near]
    found, best, score = _pick(chosen[:, 5:] * chosen[:, 4:5], conf, options)
    return near[found], best, score


def _pick(scores: Array, conf: float, options: Options) -> tuple[Indices, Indices, Floats]:
    """Rows, classes and scores of the candidates of ``scores`` ``[n, C]``."""
    if options.flag("multi_label", False):
        no_nan(scores, options.where)
        rows, classes = np.nonzero(scores > conf)
        return rows, classes, scores[rows, classes]
    classes = scores.argmax(axis=1)  # of a row with NaN: the NaN
    best = np.take_along_axis(scores, classes[:, None], axis=1)[:, 0]
    no_nan(best, options.where)
    rows = np.flatnonzero(best > conf)
    return rows, classes[rows], best[rows]


def _pick_columns(scores: Array, limit: float, options: Options) -> tuple[Indices, Indices, Floats]:
    """:func:`_pick` for ``[C, n]``: the maximum first, for few columns pass ``limit``."""
    best = scores.max(axis=0) if scores.shape[1] else scores[0]
    no_nan(best, options.where)
    near = np.flatnonzero(best > limit)
    if not options.flag("multi_label", False):
        chosen = scores[:, near]
        return near, chosen.argmax(axis=0), best[near]
    candidates = scores[:, near].T
    rows, classes = np.nonzero(candidates > limit)
    return near[rows], classes, scores[classes, near[rows]]


def _class_numbers(values: Array, options: Options) -> NDArray[np.int64]:
    """Class numbers as integers; anything that is none of the labels' is an error."""
    numbers = values.astype(np.int64)
    count = len(options.spec.labels)
    if ((numbers != values) | (numbers < 0) | (numbers >= count)).any():
        wrong = values[(numbers != values) | (numbers < 0) | (numbers >= count)][0]
        raise RuntimeFailure(
            f"{options.where}: {wrong} is no class number from 0 to {count - 1}; are the outputs "
            f"or their columns in another order, or has the model other labels?"
        )
    return numbers
