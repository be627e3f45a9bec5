"""The graph of an ONNX file without the onnx package: nodes, weights' shapes, cutting pieces out.

Field numbers are those of onnx.proto3. Messages are kept as bytes and only looked into as far as
needed, so that a piece that is written out again is the original's, byte for byte. Weights in
external files are not followed.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from edgecv.errors import SpecError
from edgecv.wire import fields, varint, varint_at

# ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto, ValueInfoProto
MODEL_GRAPH = 7
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT, GRAPH_VALUE_INFO = 1, 5, 11, 12, 13
NODE_INPUT, NODE_OUTPUT, NODE_NAME, NODE_OP, NODE_ATTRIBUTE, NODE_DOMAIN = 1, 2, 3, 4, 5, 7
ATTRIBUTE_NAME, ATTRIBUTE_INT, ATTRIBUTE_GRAPH, ATTRIBUTE_INTS = 1, 3, 6, 8
TENSOR_DIMS, TENSOR_TYPE, TENSOR_NAME = 1, 2, 8
VALUE_NAME = 1
# TensorProto.DataType of the types that a cut graph's inputs have
ELEMENT_TYPES = {
    "float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9, "float16": 10,
    "float64": 11,
}  # fmt: skip


@dataclass(frozen=True)
class Node:
    """One node; ``captured`` are outer tensors that its subgraphs (If, Loop) read."""

    name: str
    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    captured: frozenset[str]
    raw: bytes

    @property
    def reads(self) -> set[str]:
        return {name for name in self.inputs if name} | self.captured

    @property
    def label(self) -> str:
        """Its name, or, where it has none, that of its first output."""
        return self.name or self.outputs[0]


@dataclass(frozen=True)
class Initializer:
    """A constant: ``dims``, and its message."""

    name: str
    dims: tuple[int, ...]
    raw: bytes


@dataclass(frozen=True)
class OnnxGraph:
    """``nodes`` in the file's (topological) order; ``inputs`` and ``outputs`` by name."""

    nodes: tuple[Node, ...]
    initializers: dict[str, Initializer]
    inputs: dict[str, bytes]
    outputs: dict[str, bytes]
    head: bytes = field(repr=False)  # the model's other fields: IR version, opsets, functions
    rest: bytes = field(repr=False)  # the graph's other fields

    @cached_property
    def producers(self) -> dict[str, Node]:
        """The node that makes each tensor."""
        return {out: node for node in self.nodes for out in node.outputs if out}

    def tensors(self) -> list[str]:
        """What the nodes make, in order."""
        return [out for node in self.nodes for out in node.outputs if out]

    def weight_dims(self, node: Node, index: int = 1) -> tuple[int, ...] | None:
        """The shape of the constant behind a node's input, through casts and dequantization."""
        name = node.inputs[index] if len(node.inputs) > index else ""
        while name and name not in self.initializers:
            producer = self.producers.get(name)
            if producer is None or producer.op not in (
                "DequantizeLinear", "QuantizeLinear", "Cast", "Identity",
            ):  # fmt: skip
                return None
            name = producer.inputs[0]
        return self.initializers[name].dims if name else None

    def needed(self, outputs: Iterable[str], given: Iterable[str] = ()) -> list[Node]:
        """The nodes that ``outputs`` depend on when the tensors ``given`` come from outside."""
        stop, wanted = set(given), list(outputs)
        keep: set[int] = set()
        while wanted:
            name = wanted.pop()
            node = None if name in stop else self.producers.get(name)
            if node is not None and id(node) not in keep:
                keep.add(id(node))
                wanted += node.reads
        return [node for node in self.nodes if id(node) in keep]

    def serialize(
        self,
        outputs: Sequence[str] | None = None,
        given: dict[str, str] | None = None,
        *,
        keep_outputs: bool = True,
    ) -> bytes:
        """The model with more ``outputs``, and with tensors ``given`` ({name: dtype}) from outside.

        Nodes that are no longer needed are left out. ``keep_outputs``: the graph's own too.
        """
        given = given or {}
        named = list(dict.fromkeys([*(self.outputs if keep_outputs else ()), *(outputs or ())]))
        nodes = self.needed(named, given)
        read = {name for node in nodes for name in node.reads} | set(named)
        made = {out for node in nodes for out in node.outputs}
        body = [message(GRAPH_NODE, node.raw) for node in nodes]
        body += [
            message(GRAPH_INITIALIZER, one.raw)
            for one in self.initializers.values()
            if one.name in read and one.name not in given
        ]
        body += [
            message(GRAPH_INPUT, raw)
            for name, raw in self.inputs.items()
            if name in read and name not in given and name not in self.initializers
        ]
        body += [
            message(GRAPH_INPUT, _value_info(name, dtype))
            for name, dtype in given.items()
            if name in read and name not in made
        ]
        body += [
            message(GRAPH_OUTPUT, self.outputs.get(name) or message(VALUE_NAME, name.encode()))
            for name in named
        ]
        return self.head + message(MODEL_GRAPH, self.rest + b"".join(body))


def read_graph(source: str | os.PathLike[str] | bytes) -> OnnxGraph:
    """Read an ONNX file, or its bytes. A damaged one is a :class:`~edgecv.errors.SpecError`."""
    where = Path("the model" if isinstance(source, bytes) else source)
    data = source if isinstance(source, bytes) else where.read_bytes()
    head, graph = b"", None
    for number, raw, value in _split(data, where):
        if number == MODEL_GRAPH:
            graph = value
        else:
            head += raw
    if graph is None:
        raise SpecError(f"{where}: not an ONNX model (there is no graph in it)")
    nodes: list[Node] = []
    initializers: dict[str, Initializer] = {}
    inputs: dict[str, bytes] = {}
    outputs: dict[str, bytes] = {}
    rest = b""
    for number, raw, value in _split(graph, where):
        if number == GRAPH_NODE:
            nodes.append(_node(value, where))
        elif number == GRAPH_INITIALIZER:
            one = _initializer(value, where)
            initializers[one.name] = one
        elif number in (GRAPH_INPUT, GRAPH_OUTPUT):
            name = _text(value, VALUE_NAME, where)
            (inputs if number == GRAPH_INPUT else outputs)[name] = value
        elif number != GRAPH_VALUE_INFO:  # shapes of intermediates: runtimes infer them again
            rest += raw
    return OnnxGraph(tuple(nodes), initializers, inputs, outputs, head, rest)


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


def message(number: int, value: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def integer(number: int, value: int) -> bytes:
    """A varint field."""
    return varint(number << 3) + varint(value)


def matmul_model(size: int) -> bytes:
    """``y[size, size] = x @ w`` in float32, with w a constant: what a machine's peak is measured
    with, through the same runtime as the model's layers."""
    values = struct.pack("<f", 0.5) * (size * size)
    weight = (
        integer(TENSOR_DIMS, size) * 2
        + integer(TENSOR_TYPE, ELEMENT_TYPES["float32"])
        + message(TENSOR_NAME, b"w")
        + message(9, values)  # raw_data
    )
    node = (
        message(NODE_INPUT, b"x")
        + message(NODE_INPUT, b"w")
        + message(NODE_OUTPUT, b"y")
        + message(NODE_OP, b"MatMul")
    )
    graph = (
        message(GRAPH_NODE, node)
        + message(2, b"peak")
        + message(GRAPH_INITIALIZER, weight)
        + message(GRAPH_INPUT, _value_info("x", "float32", (size, size)))
        + message(GRAPH_OUTPUT, _value_info("y", "float32", (size, size)))
    )
    opset = message(8, integer(2, 17))
    return integer(1, 8) + message(MODEL_GRAPH, graph) + opset


def _value_info(name: str, dtype: str, shape: Sequence[int] | None = None) -> bytes:
    if dtype not in ELEMENT_TYPES:
        raise SpecError(f"tensor {name!r} is {dtype}, which cannot be fed")
    tensor = integer(1, ELEMENT_TYPES[dtype])
    if shape is not None:
        tensor += message(2, b"".join(message(1, integer(1, size)) for size in shape))
    return message(VALUE_NAME, name.encode()) + message(2, message(1, tensor))


def _split(data: bytes, where: Path) -> Iterator[tuple[int, bytes, bytes]]:
    """Number, the whole field, and its value, of each field of a message."""
    position = 0
    for part in fields(data, where):
        yield part.number, data[position : part.end], data[part.start : part.end]
        position = part.end


def _node(data: bytes, where: Path) -> Node:
    texts = {NODE_NAME: "", NODE_OP: "", NODE_DOMAIN: ""}
    inputs, outputs, captured = [], [], set()
    for number, _, value in _split(data, where):
        if number == NODE_INPUT:
            inputs.append(value.decode())
        elif number == NODE_OUTPUT:
            outputs.append(value.decode())
        elif number in texts:
            texts[number] = value.decode()
        elif number == NODE_ATTRIBUTE:
            for inner, _, content in _split(value, where):
                if inner == ATTRIBUTE_GRAPH:
                    captured |= _captures(content, where)
    return Node(
        texts[NODE_NAME],
        texts[NODE_OP],
        texts[NODE_DOMAIN],
        tuple(inputs),
        tuple(outputs),
        frozenset(captured),
        data,
    )


def _captures(graph: bytes, where: Path) -> set[str]:
    """Names that a subgraph reads and does not make itself."""
    reads: set[str] = set()
    makes: set[str] = set()
    for number, _, value in _split(graph, where):
        if number == GRAPH_NODE:
            node = _node(value, where)
            reads |= node.reads
            makes |= set(node.outputs)
        elif number in (GRAPH_INPUT,):
            makes.add(_text(value, VALUE_NAME, where))
        elif number == GRAPH_OUTPUT:
            reads.add(_text(value, VALUE_NAME, where))
        elif number == GRAPH_INITIALIZER:
            makes.add(_text(value, TENSOR_NAME, where))
    return reads - makes


def _initializer(data: bytes, where: Path) -> Initializer:
    dims: list[int] = []
    for number, raw, value in _split(data, where):
        if number == TENSOR_DIMS and raw[0] & 7 == 2:  # packed
            position = 0
            while position < len(value):
                size, position = varint_at(value, position, len(value), where)
                dims.append(size)
        elif number == TENSOR_DIMS:
            dims.append(varint_at(value, 0, len(value), where)[0])
    return Initializer(_text(data, TENSOR_NAME, where), tuple(dims), data)


def _text(data: bytes, wanted: int, where: Path) -> str:
    for number, _, value in _split(data, where):
        if number == wanted:
            return value.decode()
    return ""
