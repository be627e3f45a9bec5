"""Can this INT8 file's sums saturate on a processor without VNNI? Told from its weights alone.

Without VNNI onnxruntime multiplies U8 by S8 in pairs (``vpmaddubsw``): two neighbouring products
are added in 16 bits, and what does not fit is cut off at 32767 or -32768. An activation is at most
255, whatever its range stands for, so a pair of weights is safe where its positive parts sum to at
most 128, and so do its negative ones: 255 * 128 = 32640. Weights of 7 bits always are (63 + 63),
which is what the target ``onnxruntime-x86-avx2`` is. S8 activations are made U8 on the way, with
the same sums.

Neighbours are those of the product that onnxruntime makes of the operator: along a convolution's
input channels, kernel position by kernel position (``ReorderFilter`` in its
``qlinearconv.cc``); along K of a matrix product. A convolution with one input channel per group
is computed by another kernel, in 32 bits.

The file is read as bytes (:mod:`edgecv.onnxgraph`): no onnx package, no runtime, no run.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecv import onnxproto as proto
from edgecv.onnxgraph import Initializer, Node, OnnxGraph, read_graph
from edgecv.wire import Buffer, fields, varint_at

SAFE = 32767 // 255  # what the positive parts of a pair may sum to
# operator -> which of its inputs are the weights
WEIGHTS = {"Conv": 1, "Gemm": 1, "MatMul": 1, "QLinearConv": 3, "QLinearMatMul": 3}


@dataclass(frozen=True)
class Saturation:
    """A layer whose sums may saturate: ``pairs`` of all its pairs of weights, as a share, and the
    largest ``sum`` of one pair in units of 16 bits: 1.5 is cut off at two thirds."""

    node: str
    op: str
    pairs: float
    sum: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def saturation(model: str | os.PathLike[str] | bytes) -> tuple[Saturation, ...]:
    """The layers of the INT8 file ``model`` that can saturate without VNNI, the worst first.

    Empty where none can, which is a proof, and for a float file, which has no such sums.
    """
    graph = read_graph(model)
    with graph.opened() as data:
        found = [one for node in graph.nodes if (one := _layer(graph, node, data)) is not None]
    return tuple(sorted(found, key=lambda one: (-one.pairs, one.node)))


def saturation_note(layers: tuple[Saturation, ...]) -> str:
    """What :func:`saturation` found, in a line for people."""
    if not layers:
        return "no sum can saturate, on any processor"
    worst = layers[0]
    return (
        f"on x86 without VNNI {len(layers)} layers may saturate, up to {worst.pairs:.1%} of the "
        f"pairs of weights ({worst.node}), by up to {max(one.sum for one in layers):.2f} times 16 "
        f"bits; --target onnxruntime-x86-avx2 cannot"
    )


def _layer(graph: OnnxGraph, node: Node, data: Buffer) -> Saturation | None:
    weights = _weights(graph, node, data)
    if weights is None or weights.size == 0:
        return None
    rows = _rows(node, weights.astype(np.int32))
    if rows is None:
        return None
    if rows.shape[1] % 2:
        rows = np.pad(rows, ((0, 0), (0, 1)))  # the last one is alone
    pairs = rows.reshape(len(rows), -1, 2)
    high = np.maximum(pairs, 0).sum(axis=2)
    low = np.maximum(-pairs, 0).sum(axis=2)
    largest = np.maximum(high, low)
    over = largest > SAFE
    if not over.any():
        return None
    return Saturation(node.label, node.op, float(over.mean()), float(largest.max()) * 255 / 32767)


def _rows(node: Node, weights: NDArray[np.int32]) -> NDArray[np.int32] | None:
    """``[outputs, K]`` in the order in which products are added; None: added in 32 bits."""
    if node.op in ("Conv", "QLinearConv"):
        if weights.ndim < 3 or (weights.shape[1] == 1 and node.ints.get("group", 1) > 1):
            return None
        return np.moveaxis(weights, 1, -1).reshape(len(weights), -1)
    if weights.ndim < 2:
        return None
    if node.op == "Gemm" and node.ints.get("transB", 0):
        return weights
    return np.moveaxis(weights, -2, -1).reshape(-1, weights.shape[-2])


def _weights(graph: OnnxGraph, node: Node, data: Buffer) -> NDArray[np.int8] | None:
    """The S8 weights of a layer, where it has any that are constants of the file."""
    index = WEIGHTS.get(node.op, len(node.inputs))
    name = node.inputs[index] if index < len(node.inputs) else ""
    producer = graph.producers.get(name)
    if producer is not None and producer.op == "DequantizeLinear":
        name = producer.inputs[0]
    one = graph.initializers.get(name)
    if one is None or one.element != proto.ELEMENT_TYPES["int8"] or one.external:
        return None
    return _numbers(one, data).reshape(one.dims)


def _numbers(one: Initializer, data: Buffer) -> NDArray[np.int8]:
    """The bytes of ``raw_data``, or the integers of ``int32_data`` (packed or not)."""
    listed: list[int] = []
    for part in fields(data, one.name, *one.span):
        if part.number == proto.TENSOR_RAW:
            return np.frombuffer(data[part.start : part.end], np.int8)
        if part.number == proto.TENSOR_INT32:
            position = part.start
            while position < part.end:
                value, position = varint_at(data, position, part.end, one.name)
                listed.append(value & 0xFF)
    return np.array(listed, np.uint8).view(np.int8)
