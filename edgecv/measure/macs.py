"""How much arithmetic a layer is, and a model that shows how much a machine can do."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from edgecv import onnxproto as proto
from edgecv.measure.cut import value_info
from edgecv.onnxgraph import Node, OnnxGraph
from edgecv.wire import integer, message


def macs(
    graph: OnnxGraph, node: Node, input_shape: Sequence[int], output_shape: Sequence[int]
) -> int | None:
    """Multiply-accumulates of a node; None where it has no weights to multiply with.

    ``Conv``: every weight once per output position; ``ConvTranspose``: per input position;
    ``Gemm`` and ``MatMul``: once per row.
    """
    dims = graph.weight_dims(node)
    if dims is None:
        return None
    weights = math.prod(dims)
    if node.op == "Conv" and len(output_shape) > 2:
        return output_shape[0] * math.prod(output_shape[2:]) * weights
    if node.op == "ConvTranspose" and len(input_shape) > 2:
        return input_shape[0] * math.prod(input_shape[2:]) * weights
    if node.op in ("Gemm", "MatMul") and output_shape:
        return math.prod(output_shape[:-1]) * weights
    return None


def matmul_model(size: int) -> bytes:
    """``y[size, size] = x @ w`` in float32, with w a constant: what a machine's peak is measured
    with, through the same runtime as the model's layers."""
    weight = (
        integer(proto.TENSOR_DIMS, size) * 2
        + integer(proto.TENSOR_TYPE, proto.ELEMENT_TYPES["float32"])
        + message(proto.TENSOR_NAME, b"w")
        + message(proto.TENSOR_RAW, struct.pack("<f", 0.5) * (size * size))
    )
    node = (
        message(proto.NODE_INPUT, b"x")
        + message(proto.NODE_INPUT, b"w")
        + message(proto.NODE_OUTPUT, b"y")
        + message(proto.NODE_OP, b"MatMul")
    )
    graph = (
        message(proto.GRAPH_NODE, node)
        + message(proto.GRAPH_NAME, b"peak")
        + message(proto.GRAPH_INITIALIZER, weight)
        + message(proto.GRAPH_INPUT, value_info("x", "float32", (size, size)))
        + message(proto.GRAPH_OUTPUT, value_info("y", "float32", (size, size)))
    )
    opset = message(proto.MODEL_OPSET, integer(proto.OPSET_VERSION, 17))
    return integer(proto.MODEL_IR_VERSION, 8) + message(proto.MODEL_GRAPH, graph) + opset
