"""Decoding and NMS appended to a detector's graph, with the answers of the NumPy path.

After the graph's own output follow, as its contract's decoding says, in
:mod:`~edgecv.graph.heads` the first and in :mod:`~edgecv.graph.suppression` the others:

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

import onnx_ir as ir

from edgecv.errors import ExportError
from edgecv.graph.heads import HEADS, Head
from edgecv.graph.suppression import suppress_onnx, suppress_tensorrt
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
    if kind not in HEADS:
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
    head = Head(graph, "nms", spec)
    boxes, scores = HEADS[kind](head, graph.outputs)
    suppress = suppress_onnx if form == "onnx" else suppress_tensorrt
    results = suppress(head, spec, boxes, scores)
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
