"""A detector's own output, in nodes: boxes and class scores, as the NumPy decoders compute them.

Each function takes the graph's outputs and gives the boxes ``[N, A, 4]`` (x1, y1, x2, y2 in pixels
of the input) and the class scores ``[N, A, C]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgecv.errors import ExportError
from edgecv.graph.nodes import Nodes
from edgecv.postprocess.candidates import grid
from edgecv.spec import ModelSpec

Outputs = Any  # the graph's own, a list of ir.Value
Pair = tuple[ir.Value, ir.Value]


class Head(Nodes):
    """Nodes, and what the contract ``spec`` says of the head that they decode."""

    def __init__(self, graph: ir.Graph, prefix: str, spec: ModelSpec) -> None:
        super().__init__(graph, prefix)
        self.spec = spec
        self.options: Mapping[str, Any] = spec.decoding.options
        p = spec.preparation
        self.height, self.width = p.height, p.width
        self.open_size = any(isinstance(size, str) for size in spec.inputs[0].shape[1:])

    def cells(self) -> NDArray[np.float32]:
        """x, y, stride of each cell ``[3, A]``; only where the graph fixes the input's size."""
        self.require_size()
        return grid(self.height, self.width, tuple(int(s) for s in self.options["strides"]))

    def require_size(self) -> None:
        """Refuse a graph that takes pictures of any size."""
        if self.open_size:
            raise ExportError(
                f"{self.spec.name}: the graph leaves the input's size open, and a decoder in the "
                f"graph needs it; export with a fixed size"
            )

    def corners(self, center: ir.Value, size: ir.Value) -> ir.Value:
        """Centre and size ``[N, A, 2]`` to x1, y1, x2, y2 ``[N, A, 4]``, in NumPy's order."""
        half = self.op("Mul", size, self.constant(0.5))
        low, high = self.op("Sub", center, half), self.op("Add", center, half)
        return self.op("Concat", low, high, axis=2)

    def scaled(self, boxes: ir.Value) -> ir.Value:
        """Relative boxes in pixels of the input."""
        self.require_size()
        return self.op("Mul", boxes, self.constant([self.width, self.height] * 2))


def _only(head: Head, outputs: Outputs) -> ir.Value:
    if len(outputs) != 1:
        raise ExportError(
            f"{head.spec.name}: NMS is appended to one output, this graph gives {len(outputs)} "
            f"maps; export it with its heads joined"
        )
    value: ir.Value = outputs[0]
    return value


def _with_objectness(head: Head, raw: ir.Value) -> ir.Value:
    """Objectness times class scores of ``[N, A, 5 + C]``."""
    end = 5 + len(head.spec.labels)
    return head.op("Mul", head.slice(raw, 5, end), head.slice(raw, 4, 5))


def _yolox(head: Head, outputs: Outputs) -> Pair:
    raw = _only(head, outputs)
    center, size = head.slice(raw, 0, 2), head.slice(raw, 2, 4)
    if not head.options["decoded"]:
        x, y, stride = head.cells()
        scale = head.constant(stride[None, :, None])
        center = head.op("Add", center, head.constant(np.stack([x, y], axis=1)[None]))
        center = head.op("Mul", center, scale)
        size = head.op("Mul", head.op("Exp", size), scale)
    return head.corners(center, size), _with_objectness(head, raw)


def _anchors(head: Head, outputs: Outputs) -> Pair:
    if not head.options["decoded"]:
        return _anchor_maps(head, outputs)
    raw = _only(head, outputs)
    boxes = head.corners(head.slice(raw, 0, 2), head.slice(raw, 2, 4))
    return boxes, _with_objectness(head, raw)


def _anchor_maps(head: Head, outputs: Outputs) -> Pair:
    """Raw maps ``[N, A * (5 + C), H, W]``, one a stride: what the NumPy decoder does with them."""
    options = head.options
    if options["layout"] != "channels-first" or options["activated"]:
        raise ExportError(
            f"{head.spec.name}: NMS is appended to maps [N, A * (5 + C), H, W] that have been "
            f"through no sigmoid, or to the decoded output [N, n, 5 + C]; export the net with its "
            f"decoding (YOLOv7: --grid)"
        )
    head.require_size()
    channels, rule = 5 + len(head.spec.labels), options["rule"]
    parts, places, strides, sizes = [], [], [], []
    for value, stride, anchors in zip(outputs, options["strides"], options["anchors"], strict=True):
        x, y, scale = grid(head.height, head.width, (int(stride),))
        view = head.ints(0, len(anchors), channels, len(x))
        rows = head.op("Transpose", head.op("Reshape", value, view), perm=[0, 1, 3, 2])
        parts.append(head.op("Reshape", rows, head.ints(0, -1, channels)))
        places += [np.stack([x, y], axis=1)] * len(anchors)
        strides += [scale] * len(anchors)
        sizes += [np.tile(np.float32(anchor), (len(x), 1)) for anchor in anchors]
    raw = head.op("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]
    place, size = np.concatenate(places)[None], head.constant(np.concatenate(sizes)[None])
    center, shape = head.op("Sigmoid", head.slice(raw, 0, 2)), head.slice(raw, 2, 4)
    if rule == "v5":
        center = head.op("Mul", center, head.constant(2.0))
        place = place - np.float32(0.5)
        shape = head.op("Mul", head.op("Sigmoid", shape), head.constant(2.0))
        shape = head.op("Mul", shape, shape)
    else:
        shape = head.op("Exp", shape)
    center = head.op("Add", center, head.constant(place))
    center = head.op("Mul", center, head.constant(np.concatenate(strides)[None, :, None]))
    boxes = head.corners(center, head.op("Mul", shape, size))
    logits = head.slice(raw, 5, channels)
    classes = head.op("Softmax", logits, axis=-1) if rule == "v2" else head.op("Sigmoid", logits)
    return boxes, head.op("Mul", classes, head.op("Sigmoid", head.slice(raw, 4, 5)))


def _anchor_free(head: Head, outputs: Outputs) -> Pair:
    raw, options = _only(head, outputs), head.options
    if options["layout"] == "channels-first":
        raw = head.op("Transpose", raw, perm=[0, 2, 1])
    form = options["boxes"]
    bins = int(options["bins"]) if form == "dfl" else 1
    first = 4 * bins + bool(options["objectness"])
    scores = head.slice(raw, first, first + len(head.spec.labels))
    confidence = head.slice(raw, first - 1, first) if options["objectness"] else None
    if options["scores"] == "logits":
        scores = head.op("Sigmoid", scores)
        confidence = None if confidence is None else head.op("Sigmoid", confidence)
    if confidence is not None:
        scores = head.op("Mul", scores, confidence)
    box = head.slice(raw, 0, 4 * bins)
    if form == "dfl":
        logits = head.op("Reshape", box, head.ints(0, -1, 4, bins))
        means = head.constant(np.arange(bins)[:, None])
        box = head.op("MatMul", head.op("Softmax", logits, axis=-1), means)
        box = head.op("Reshape", box, head.ints(0, -1, 4))
    if form in ("dfl", "ltrb"):
        x, y, stride = head.cells()
        center = head.constant(np.stack([x, y], axis=1)[None] + np.float32(0.5))
        low = head.op("Sub", center, head.slice(box, 0, 2))
        high = head.op("Add", center, head.slice(box, 2, 4))
        corners = head.op("Concat", low, high, axis=2)
        return head.op("Mul", corners, head.constant(stride[None, :, None])), scores
    if form == "cxcywh":
        box = head.corners(head.slice(box, 0, 2), head.slice(box, 2, 4))
    return head.scaled(box) if options["normalized"] else box, scores


def _fastestdet(head: Head, outputs: Outputs) -> Pair:
    raw = _only(head, outputs)
    shape = head.spec.outputs[0].shape
    height, width = shape[2:]
    if not isinstance(height, int) or not isinstance(width, int):
        raise ExportError(f"{head.spec.name}: the map's size is open: {list(shape)}")
    channels = 5 + len(head.spec.labels)
    flat = head.op("Reshape", raw, head.ints(0, channels, -1))
    rows = head.op("Transpose", flat, perm=[0, 2, 1])

    def power(value: ir.Value, exponent: float) -> ir.Value:
        return head.op("Pow", head.op("Relu", value), head.constant(exponent))

    confidence = power(head.slice(rows, 0, 1), 0.6)
    scores = head.op("Mul", power(head.slice(rows, 5, channels), 0.4), confidence)
    cells = np.arange(height * width)
    corner = np.stack([cells % width, cells // width], axis=1)[None]
    center = head.op("Tanh", head.slice(rows, 1, 3))
    center = head.op("Add", center, head.constant(corner))
    center = head.op("Div", center, head.constant([width, height]))
    size = head.op("Sigmoid", head.slice(rows, 3, 5))
    return head.scaled(head.corners(center, size)), scores


def _rfb(head: Head, outputs: Outputs) -> Pair:
    names = head.options.get("outputs", {})
    by_name = {t.name: v for t, v in zip(head.spec.outputs, outputs, strict=True)}
    scores, boxes = (by_name[names.get(role, role)] for role in ("scores", "boxes"))
    return head.scaled(boxes), head.slice(scores, 1, 2)


HEADS: Mapping[str, Callable[[Head, Outputs], Pair]] = {
    "yolox": _yolox,
    "yolo-anchors": _anchors,
    "yolo-anchor-free": _anchor_free,
    "fastestdet": _fastestdet,
    "rfb": _rfb,
}
