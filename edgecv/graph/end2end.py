"""Decoding and NMS appended to a detector's graph, with the answers of the NumPy path.

After the graph's own output follow, as its contract's decoding says:

1. the boxes ``[N, A, 4]`` (x1, y1, x2, y2 in pixels of the input) and class scores ``[N, A, C]``
2. a candidate per box, its best class (the lower index, of equals); with ``multi_label`` every
   class; with ``agnostic`` one class for all in the suppression
3. suppression per class: of scores *greater* than ``conf``, those that no better box overlaps by
   *more* than ``iou``; of equal scores the lower index is the better
4. the best ``max_det`` of each picture, best first

The four outputs are those of TensorRT's EfficientNMS plugin: ``num`` int32 ``[N, 1]``, ``boxes``
float32 ``[N, k, 4]``, ``scores`` float32 ``[N, k]``, ``classes`` int32 ``[N, k]``, k being
``max_det``; behind the first ``num`` of a picture the scores are 0. So what was written for
EfficientNMS (Triton, DeepStream) takes such a file as it is. The form ``onnx`` uses
NonMaxSuppression, ScatterND and TopK of opset 18, and runs in onnxruntime and OpenVINO (seen:
TensorRT-RTX 1.7 builds no NonMaxSuppression; give it the file without). ``tensorrt`` is the plugin
itself, which runs in TensorRT only and breaks ties in an order of its own.

What differs from NumPy: the rounding of exp, pow and the sigmoid in the last bit; and NumPy looks
at the best 30,000 candidates of a picture, the graph at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.tape import Tape

from edgecv.errors import ExportError
from edgecv.postprocess.candidates import grid
from edgecv.spec import ModelSpec

FORMS = ("onnx", "tensorrt")
OUTPUTS = ("num", "boxes", "scores", "classes")
MIN_OPSET = 18  # ReduceMax with its axes as an input


def append_nms(model: ir.Model, spec: ModelSpec, form: str = "onnx") -> None:
    """Append decoding and NMS to ``model``, whose contract is ``spec``, in place.

    Raises :class:`~edgecv.errors.ExportError` with the reason where that cannot be done: a kind of
    decoding that has no NMS or gives landmarks, several maps, a size that the graph leaves open, an
    old opset.
    """
    kind, options = spec.decoding.kind, spec.decoding.options
    if form not in FORMS:
        raise ExportError(f"the form of NMS must be one of {', '.join(FORMS)}; got {form!r}")
    if kind not in _DECODERS:
        raise ExportError(
            f"{spec.name}: NMS cannot be appended to {kind!r}: {_REFUSED.get(kind, 'no detector')}"
        )
    if (opset := model.opset_imports.get("", 0)) < MIN_OPSET:
        raise ExportError(
            f"{spec.name}: appending NMS needs opset {MIN_OPSET}, this graph has {opset}; upgrade "
            f"it first"
        )
    if options.get("measure", "iou") != "iou":
        raise ExportError(f"{spec.name}: NMS in the graph compares IoU, not {options['measure']!r}")
    if options.get("nms", "hard") != "hard":
        raise ExportError(
            f"{spec.name}: NMS in the graph drops boxes; nms {options['nms']!r} is done in NumPy"
        )
    graph = model.graph
    _make_room(graph)
    builder = _Builder(graph, spec)
    boxes, scores = _DECODERS[kind](builder, graph.outputs)
    append = _append_onnx if form == "onnx" else _append_tensorrt
    results = append(builder, boxes, scores)
    graph.outputs.clear()
    batch = graph.inputs[0].shape[0] if graph.inputs[0].shape is not None else None
    count = int(spec.decoding.options["max_det"])
    shapes = ([batch, 1], [batch, count, 4], [batch, count], [batch, count])
    types = (ir.DataType.INT32, ir.DataType.FLOAT, ir.DataType.FLOAT, ir.DataType.INT32)
    for name, value, shape, dtype in zip(OUTPUTS, results, shapes, types, strict=True):
        value.name, value.shape, value.dtype = name, ir.Shape(shape), dtype
        graph.outputs.append(value)
    if form == "tensorrt":
        model.opset_imports["TRT"] = 1


_REFUSED = {
    "yunet": "the four outputs have no place for landmarks",
    "yolo-end2end": "this head needs no NMS",
    "detections": "its NMS is in the graph already",
    "yolo-grid": "this version decodes it in NumPy only",
}


def _make_room(graph: ir.Graph) -> None:
    """Values of the graph whose names are those of the new outputs get others."""
    taken = set(OUTPUTS)
    for value in [*graph.outputs, *(out for node in graph for out in node.outputs)]:
        if value.name in taken:
            value.name = f"{value.name}_raw"


class _Builder:
    """Appends nodes to a graph, under names that say what they are for."""

    def __init__(self, graph: ir.Graph, spec: ModelSpec) -> None:
        self._graph, self._tape, self.spec = graph, Tape(graph), spec
        self.options: Mapping[str, Any] = spec.decoding.options
        self._made = 0
        p = spec.preparation
        self.height, self.width = p.height, p.width
        self.open_size = any(isinstance(size, str) for size in spec.inputs[0].shape[1:])

    def op(self, kind: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """One node with one output."""
        self._made += 1
        name = f"nms/{kind}_{self._made}"
        value = self._tape.op(kind, inputs, attributes or None, name=name)
        value.name = f"{name}:0"
        return value

    def ops(self, kind: str, inputs: list[ir.Value], count: int, **attributes: Any) -> Any:
        """One node with ``count`` outputs; ``domain`` among the attributes is the node's."""
        self._made += 1
        name = f"nms/{kind}_{self._made}"
        domain = attributes.pop("domain", "")
        values = self._tape.op_multi_out(
            kind, inputs, attributes, num_outputs=count, domain=domain, name=name
        )
        for index, value in enumerate(values):
            value.name = f"{name}:{index}"
        return values

    def constant(self, array: Any, dtype: Any = np.float32) -> ir.Value:
        """An initializer."""
        self._made += 1
        tensor = ir.tensor(np.asarray(array, dtype))
        return self._tape.initializer(tensor, name=f"nms/constant_{self._made}")

    def ints(self, *values: int) -> ir.Value:
        return self.constant(values, np.int64)

    def slice(self, value: ir.Value, start: int, stop: int, axis: int = 2) -> ir.Value:
        bounds = self.ints(start), self.ints(stop), self.ints(axis)
        return self.op("Slice", value, *bounds)

    def cells(self) -> NDArray[np.float32]:
        """x, y, stride of each cell ``[3, A]``; only where the graph fixes the input's size."""
        if self.open_size:
            raise ExportError(
                f"{self.spec.name}: the graph leaves the input's size open, and a decoder in the "
                f"graph needs it; export with a fixed size"
            )
        return grid(self.height, self.width, tuple(int(s) for s in self.options["strides"]))

    def corners(self, center: ir.Value, size: ir.Value) -> ir.Value:
        """Centre and size ``[N, A, 2]`` to x1, y1, x2, y2 ``[N, A, 4]``, in NumPy's order."""
        half = self.op("Mul", size, self.constant(0.5))
        low, high = self.op("Sub", center, half), self.op("Add", center, half)
        return self.op("Concat", low, high, axis=2)

    def scaled(self, boxes: ir.Value) -> ir.Value:
        """Relative boxes in pixels of the input."""
        if self.open_size:
            self.cells()
        return self.op("Mul", boxes, self.constant([self.width, self.height] * 2))

    @property
    def multi_label(self) -> bool:
        return bool(self.options.get("multi_label", False))


# --- 1. boxes and scores --------------------------------------------------------------------------

Outputs = Any  # the graph's own, a list of ir.Value
Pair = tuple[ir.Value, ir.Value]


def _only(builder: _Builder, outputs: Outputs) -> ir.Value:
    if len(outputs) != 1:
        raise ExportError(
            f"{builder.spec.name}: NMS is appended to one output, this graph gives {len(outputs)} "
            f"maps; export it with its heads joined"
        )
    value: ir.Value = outputs[0]
    return value


def _with_objectness(builder: _Builder, raw: ir.Value) -> ir.Value:
    """Objectness times class scores of ``[N, A, 5 + C]``."""
    end = 5 + len(builder.spec.labels)
    return builder.op("Mul", builder.slice(raw, 5, end), builder.slice(raw, 4, 5))


def _yolox(builder: _Builder, outputs: Outputs) -> Pair:
    raw = _only(builder, outputs)
    center, size = builder.slice(raw, 0, 2), builder.slice(raw, 2, 4)
    if not builder.options["decoded"]:
        x, y, stride = builder.cells()
        scale = builder.constant(stride[None, :, None])
        center = builder.op("Add", center, builder.constant(np.stack([x, y], axis=1)[None]))
        center = builder.op("Mul", center, scale)
        size = builder.op("Mul", builder.op("Exp", size), scale)
    return builder.corners(center, size), _with_objectness(builder, raw)


def _anchors(builder: _Builder, outputs: Outputs) -> Pair:
    if not builder.options["decoded"]:
        return _anchor_maps(builder, outputs)
    raw = _only(builder, outputs)
    boxes = builder.corners(builder.slice(raw, 0, 2), builder.slice(raw, 2, 4))
    return boxes, _with_objectness(builder, raw)


def _anchor_maps(builder: _Builder, outputs: Outputs) -> Pair:
    """Raw maps ``[N, A * (5 + C), H, W]``, one a stride: what the NumPy decoder does with them."""
    options = builder.options
    if options["layout"] != "channels-first" or options["activated"]:
        raise ExportError(
            f"{builder.spec.name}: NMS is appended to maps [N, A * (5 + C), H, W] that have been "
            f"through no sigmoid, or to the decoded output [N, n, 5 + C]; export the net with its "
            f"decoding (YOLOv7: --grid)"
        )
    builder.cells()  # refuses an open size
    channels, rule = 5 + len(builder.spec.labels), options["rule"]
    parts, places, strides, sizes = [], [], [], []
    for value, stride, anchors in zip(outputs, options["strides"], options["anchors"], strict=True):
        x, y, scale = grid(builder.height, builder.width, (int(stride),))
        view = builder.ints(0, len(anchors), channels, len(x))
        rows = builder.op("Transpose", builder.op("Reshape", value, view), perm=[0, 1, 3, 2])
        parts.append(builder.op("Reshape", rows, builder.ints(0, -1, channels)))
        places += [np.stack([x, y], axis=1)] * len(anchors)
        strides += [scale] * len(anchors)
        sizes += [np.tile(np.float32(anchor), (len(x), 1)) for anchor in anchors]
    raw = builder.op("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]
    place, size = np.concatenate(places)[None], builder.constant(np.concatenate(sizes)[None])
    center, shape = builder.op("Sigmoid", builder.slice(raw, 0, 2)), builder.slice(raw, 2, 4)
    if rule == "v5":
        center = builder.op("Mul", center, builder.constant(2.0))
        place = place - np.float32(0.5)
        shape = builder.op("Mul", builder.op("Sigmoid", shape), builder.constant(2.0))
        shape = builder.op("Mul", shape, shape)
    else:
        shape = builder.op("Exp", shape)
    center = builder.op("Add", center, builder.constant(place))
    center = builder.op("Mul", center, builder.constant(np.concatenate(strides)[None, :, None]))
    boxes = builder.corners(center, builder.op("Mul", shape, size))
    logits = builder.slice(raw, 5, channels)
    classes = (
        builder.op("Softmax", logits, axis=-1) if rule == "v2" else builder.op("Sigmoid", logits)
    )
    return boxes, builder.op("Mul", classes, builder.op("Sigmoid", builder.slice(raw, 4, 5)))


def _anchor_free(builder: _Builder, outputs: Outputs) -> Pair:
    raw, options = _only(builder, outputs), builder.options
    if options["layout"] == "channels-first":
        raw = builder.op("Transpose", raw, perm=[0, 2, 1])
    form = options["boxes"]
    bins = int(options["bins"]) if form == "dfl" else 1
    first = 4 * bins + bool(options["objectness"])
    scores = builder.slice(raw, first, first + len(builder.spec.labels))
    confidence = builder.slice(raw, first - 1, first) if options["objectness"] else None
    if options["scores"] == "logits":
        scores = builder.op("Sigmoid", scores)
        confidence = None if confidence is None else builder.op("Sigmoid", confidence)
    if confidence is not None:
        scores = builder.op("Mul", scores, confidence)
    box = builder.slice(raw, 0, 4 * bins)
    if form == "dfl":
        logits = builder.op("Reshape", box, builder.ints(0, -1, 4, bins))
        means = builder.constant(np.arange(bins)[:, None])
        box = builder.op("MatMul", builder.op("Softmax", logits, axis=-1), means)
        box = builder.op("Reshape", box, builder.ints(0, -1, 4))
    if form in ("dfl", "ltrb"):
        x, y, stride = builder.cells()
        center = builder.constant(np.stack([x, y], axis=1)[None] + np.float32(0.5))
        low = builder.op("Sub", center, builder.slice(box, 0, 2))
        high = builder.op("Add", center, builder.slice(box, 2, 4))
        corners = builder.op("Concat", low, high, axis=2)
        return builder.op("Mul", corners, builder.constant(stride[None, :, None])), scores
    if form == "cxcywh":
        box = builder.corners(builder.slice(box, 0, 2), builder.slice(box, 2, 4))
    return builder.scaled(box) if options["normalized"] else box, scores


def _fastestdet(builder: _Builder, outputs: Outputs) -> Pair:
    raw = _only(builder, outputs)
    shape = builder.spec.outputs[0].shape
    height, width = shape[2:]
    if not isinstance(height, int) or not isinstance(width, int):
        raise ExportError(f"{builder.spec.name}: the map's size is open: {list(shape)}")
    channels = 5 + len(builder.spec.labels)
    flat = builder.op("Reshape", raw, builder.ints(0, channels, -1))
    rows = builder.op("Transpose", flat, perm=[0, 2, 1])

    def power(value: ir.Value, exponent: float) -> ir.Value:
        return builder.op("Pow", builder.op("Relu", value), builder.constant(exponent))

    confidence = power(builder.slice(rows, 0, 1), 0.6)
    scores = builder.op("Mul", power(builder.slice(rows, 5, channels), 0.4), confidence)
    cells = np.arange(height * width)
    corner = np.stack([cells % width, cells // width], axis=1)[None]
    center = builder.op("Tanh", builder.slice(rows, 1, 3))
    center = builder.op("Add", center, builder.constant(corner))
    center = builder.op("Div", center, builder.constant([width, height]))
    size = builder.op("Sigmoid", builder.slice(rows, 3, 5))
    return builder.scaled(builder.corners(center, size)), scores


def _rfb(builder: _Builder, outputs: Outputs) -> Pair:
    names = builder.options.get("outputs", {})
    by_name = {t.name: v for t, v in zip(builder.spec.outputs, outputs, strict=True)}
    scores, boxes = (by_name[names.get(role, role)] for role in ("scores", "boxes"))
    return builder.scaled(boxes), builder.slice(scores, 1, 2)


_DECODERS: Mapping[str, Callable[[_Builder, Outputs], Pair]] = {
    "yolox": _yolox,
    "yolo-anchors": _anchors,
    "yolo-anchor-free": _anchor_free,
    "fastestdet": _fastestdet,
    "rfb": _rfb,
}


# --- 2. to 4. candidates, suppression, the best ---------------------------------------------------


def _best_class(builder: _Builder, scores: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Each box's best score and its class, both ``[N, A, 1]``."""
    best = builder.op("ReduceMax", scores, builder.ints(2), keepdims=1)
    return best, builder.op("ArgMax", scores, axis=2, keepdims=1, select_last_index=0)


def _of_best_class(builder: _Builder, scores: ir.Value, classes: ir.Value) -> ir.Value:
    """``scores`` with 0 for every class but a box's best."""
    every = builder.constant(np.arange(len(builder.spec.labels))[None, None], np.int64)
    return builder.op("Where", builder.op("Equal", every, classes), scores, builder.constant(0.0))


def _append_onnx(builder: _Builder, boxes: ir.Value, scores: ir.Value) -> tuple[ir.Value, ...]:
    options, count = builder.options, len(builder.spec.labels)
    agnostic = bool(options.get("agnostic", False))
    if agnostic and builder.multi_label:
        raise ExportError(
            f"{builder.spec.name}: NMS in the graph cannot be agnostic and multi_label at once"
        )
    classes = None
    if not builder.multi_label:
        best, classes = _best_class(builder, scores)
        scores = best if agnostic else _of_best_class(builder, scores, classes)
    by_class = builder.op("Transpose", scores, perm=[0, 2, 1])  # [N, C, A]
    limit = builder.ints(int(options["max_det"]))
    chosen = builder.op(  # [M, 3]: picture, class, box
        "NonMaxSuppression",
        boxes,
        by_class,
        limit,
        builder.constant([options["iou"]]),
        builder.constant([options["conf"]]),
    )
    # From a list of any length to a table [N, places]: a place per box, or per box and class, in
    # the order in which NumPy lists candidates, so that TopK breaks ties as it does
    picture, box = builder.slice(chosen, 0, 1, 1), builder.slice(chosen, 2, 3, 1)
    place = box
    if builder.multi_label:
        start = builder.op("Mul", box, builder.ints(count))
        place = builder.op("Add", start, builder.slice(chosen, 1, 2, 1))
    values = builder.op("GatherND", by_class, chosen)
    rows = builder.op("Shape", boxes, start=0, end=2)  # N, A
    sizes = builder.op("Mul", rows, builder.ints(1, count if builder.multi_label else 1))
    empty = builder.op("ConstantOfShape", sizes, value=ir.tensor(np.zeros(1, np.float32)))
    where = builder.op("Concat", picture, place, axis=1)
    table = builder.op("ScatterND", empty, where, values)
    room = int(options["max_det"])
    # a table narrower than max_det is filled up, so that the outputs have one shape always
    table = builder.op(
        "Pad", table, builder.ints(0, 0, 0, room), builder.constant(0.0), mode="constant"
    )
    top, index = builder.ops("TopK", [table, builder.ints(room)], 2, axis=1, largest=1, sorted=1)
    found = builder.op("Greater", top, builder.constant(0.0))
    number = builder.op("Cast", found, to=ir.DataType.INT32)
    number = builder.op("ReduceSum", number, builder.ints(1), keepdims=1)
    index = builder.op("Where", found, index, builder.ints(0))
    axis = builder.ints(2)
    if classes is None:
        source = builder.op("Div", index, builder.ints(count))
        kinds = builder.op("Mod", index, builder.ints(count))
    else:
        source = index
        flat = builder.op("Squeeze", classes, axis)
        kinds = builder.op("GatherElements", flat, index, axis=1)
    out = builder.op("GatherND", boxes, builder.op("Unsqueeze", source, axis), batch_dims=1)
    return number, out, top, builder.op("Cast", kinds, to=ir.DataType.INT32)


def _append_tensorrt(builder: _Builder, boxes: ir.Value, scores: ir.Value) -> tuple[ir.Value, ...]:
    options = builder.options
    if not builder.multi_label:
        scores = _of_best_class(builder, scores, _best_class(builder, scores)[1])
    results: tuple[ir.Value, ...] = tuple(
        builder.ops(
            "EfficientNMS_TRT",
            [boxes, scores],
            4,
            domain="TRT",
            plugin_version="1",
            background_class=-1,
            max_output_boxes=int(options["max_det"]),
            score_threshold=float(options["conf"]),
            iou_threshold=float(options["iou"]),
            score_activation=0,
            class_agnostic=int(bool(options.get("agnostic", False))),
            box_coding=0,
        )
    )
    return results
