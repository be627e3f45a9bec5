"""The YOLO families: from raw tensors to candidates, as the contract's ``decoding`` says.

Nothing is guessed: the family is the decoding's kind, and each function names the options that it
reads. ``C`` is the number of labels of the contract; a tensor with another number of channels is an
error. A candidate's score must be greater than ``conf``; its class is the best one (the lower
index, of equals), or, with the option ``multi_label``, every class above ``conf`` makes a
candidate of its own (what Ultralytics' ``val`` does). Boxes are in pixels of the model's input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import RuntimeFailure, SpecError
from edgecv.postprocess.activations import exp, sigmoid, softmax
from edgecv.postprocess.boxes import from_cxcywh
from edgecv.postprocess.candidates import Candidates, grid
from edgecv.postprocess.options import Array, Options, expect_shape, no_nan
from edgecv.postprocess.picking import input_size, pick, pick_columns, pick_rows
from edgecv.results import Placement

Outputs = Mapping[str, Array]

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
        rows, best, score = pick(scores, conf, options)
        cell = rows // boxes
        chosen = coordinates.reshape(-1, 4)[rows]
        corner = np.stack([cell % side, cell // side], axis=1).astype(chosen.dtype)
        center = (chosen[:, :2] + corner) / side
        sizes = chosen[:, 2:] ** 2 if rooted else chosen[:, 2:]
        relative = from_cxcywh(np.concatenate([center, sizes], axis=1))
        yield Candidates(relative * input_size(placement, relative.dtype), score, best)


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
            found, best, score = pick_rows(rows, conf, options)
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
            found, best, score = pick(scores, conf, options)
            values = values[found]
            cell = np.stack([column, row], axis=1)[found].astype(values.dtype)
            size_of = sizes[anchor[found]].astype(values.dtype)
            xy, wh = values[:, :2], values[:, 2:4]
            if not activated:
                xy, wh = sigmoid(xy), sigmoid(wh) if rule == "v5" else wh
            if rule == "v5":
                center, size = (2 * xy - 0.5 + cell) * stride, (2 * wh) ** 2 * size_of
            else:
                center, size = (xy + cell) * stride, exp(wh) * size_of
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
        found, best, score = pick_rows(rows, conf, options)
        boxes = rows[found, :4]
        if not decoded:
            cell = np.stack([x[found], y[found]], axis=1)
            size = exp(boxes[:, 2:])
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
            found, best, score = pick_columns(scores * confidence, conf, options)
            found = near[found]
        else:
            found, best, score = pick_columns(scores, limit, options)
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
                boxes = boxes * input_size(placement, boxes.dtype)
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
        found, best, score = pick_columns(scores, conf, options)
        cells = near[found]
        x, y, w, h = columns[1:5, cells]
        center_x = (np.tanh(x) + cells % width) / width
        center_y = (np.tanh(y) + cells // width) / height
        relative = np.stack([center_x, center_y, sigmoid(w), sigmoid(h)], axis=1)
        boxes = from_cxcywh(relative.astype(np.float32, copy=False))
        yield Candidates(boxes * input_size(placement, boxes.dtype), score, best)


def _logit(p: float) -> float:
    """The logit whose sigmoid is ``p``."""
    if p <= 0:
        return -np.inf
    return np.inf if p >= 1 else float(np.log(p / (1 - p)))


def _dfl(logits: Array) -> Array:
    """Distances ``[n, 4]`` as the means of the distributions ``[n, 4, bins]``."""
    return np.asarray(softmax(logits) @ np.arange(logits.shape[-1], dtype=logits.dtype))
