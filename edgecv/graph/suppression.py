"""Non-maximum suppression in nodes: boxes and class scores to the best of each picture.

Both functions take the boxes ``[N, A, 4]`` and class scores ``[N, A, C]`` of the contract ``spec``,
and give EfficientNMS' four outputs, as :mod:`edgecv.graph.end2end` describes them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgecv.errors import ExportError
from edgecv.graph.nodes import Nodes
from edgecv.spec import ModelSpec

Results = tuple[ir.Value, ...]  # num, boxes, scores, classes


def suppress_onnx(nodes: Nodes, spec: ModelSpec, boxes: ir.Value, scores: ir.Value) -> Results:
    """By NonMaxSuppression, ScatterND and TopK of opset 18; ties as NumPy breaks them."""
    options, count = spec.decoding.options, len(spec.labels)
    agnostic, multi_label = bool(options.get("agnostic", False)), _multi_label(spec)
    if agnostic and multi_label:
        raise ExportError(
            f"{spec.name}: NMS in the graph cannot be agnostic and multi_label at once"
        )
    classes = None
    if not multi_label:
        best, classes = _best_class(nodes, scores)
        scores = best if agnostic else _of_best_class(nodes, count, scores, classes)
    by_class = nodes.op("Transpose", scores, perm=[0, 2, 1])  # [N, C, A]
    room = int(options["max_det"])
    limit = nodes.ints(room)
    iou, conf = nodes.constant([options["iou"]]), nodes.constant([options["conf"]])
    chosen = nodes.op("NonMaxSuppression", boxes, by_class, limit, iou, conf)
    table = _table(nodes, boxes, by_class, chosen, places=count if multi_label else 1)
    number, top, index = _best(nodes, table, room)
    axis = nodes.ints(2)
    if classes is None:
        source = nodes.op("Div", index, nodes.ints(count))
        kinds = nodes.op("Mod", index, nodes.ints(count))
    else:
        source = index
        flat = nodes.op("Squeeze", classes, axis)
        kinds = nodes.op("GatherElements", flat, index, axis=1)
    out = nodes.op("GatherND", boxes, nodes.op("Unsqueeze", source, axis), batch_dims=1)
    return number, out, top, nodes.op("Cast", kinds, to=ir.DataType.INT32)


def _table(
    nodes: Nodes, boxes: ir.Value, by_class: ir.Value, chosen: ir.Value, places: int
) -> ir.Value:
    """The scores of ``chosen`` ``[M, 3]`` (picture, class, box) as ``[N, A * places]``, else 0.

    A place per box, or per box and class, in the order in which NumPy lists candidates, so that
    TopK breaks ties as it does.
    """
    picture, box = nodes.slice(chosen, 0, 1, 1), nodes.slice(chosen, 2, 3, 1)
    place = box
    if places > 1:
        start = nodes.op("Mul", box, nodes.ints(places))
        place = nodes.op("Add", start, nodes.slice(chosen, 1, 2, 1))
    values = nodes.op("GatherND", by_class, chosen)
    rows = nodes.op("Shape", boxes, start=0, end=2)  # N, A
    sizes = nodes.op("Mul", rows, nodes.ints(1, places))
    empty = nodes.op("ConstantOfShape", sizes, value=ir.tensor(np.zeros(1, np.float32)))
    where = nodes.op("Concat", picture, place, axis=1)
    return nodes.op("ScatterND", empty, where, values)


def _best(nodes: Nodes, table: ir.Value, room: int) -> tuple[ir.Value, ir.Value, ir.Value]:
    """How many each picture has ``[N, 1]``; scores and places ``[N, room]``, best first."""
    # a table narrower than max_det is filled up, so that the outputs have one shape always
    table = nodes.op("Pad", table, nodes.ints(0, 0, 0, room), nodes.constant(0.0), mode="constant")
    top, index = nodes.ops("TopK", [table, nodes.ints(room)], 2, axis=1, largest=1, sorted=1)
    found = nodes.op("Greater", top, nodes.constant(0.0))
    number = nodes.op("Cast", found, to=ir.DataType.INT32)
    number = nodes.op("ReduceSum", number, nodes.ints(1), keepdims=1)
    return number, top, nodes.op("Where", found, index, nodes.ints(0))


def suppress_tensorrt(nodes: Nodes, spec: ModelSpec, boxes: ir.Value, scores: ir.Value) -> Results:
    """By TensorRT's plugin EfficientNMS, which breaks ties in an order of its own."""
    options = spec.decoding.options
    if not _multi_label(spec):
        classes = _best_class(nodes, scores)[1]
        scores = _of_best_class(nodes, len(spec.labels), scores, classes)
    results: Results = tuple(
        nodes.ops(
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


def _multi_label(spec: ModelSpec) -> bool:
    return bool(spec.decoding.options.get("multi_label", False))


def _best_class(nodes: Nodes, scores: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Each box's best score and its class, both ``[N, A, 1]``."""
    best = nodes.op("ReduceMax", scores, nodes.ints(2), keepdims=1)
    return best, nodes.op("ArgMax", scores, axis=2, keepdims=1, select_last_index=0)


def _of_best_class(nodes: Nodes, count: int, scores: ir.Value, classes: ir.Value) -> ir.Value:
    """``scores`` with 0 for every class but a box's best."""
    every = nodes.constant(np.arange(count)[None, None], np.int64)
    return nodes.op("Where", nodes.op("Equal", every, classes), scores, nodes.constant(0.0))
