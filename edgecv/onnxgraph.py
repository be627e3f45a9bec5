"""The graph of an ONNX file, read without the onnx package and without its weights.

The messages are walked field by field (:mod:`edgecv.wire`). Of a tensor its name, shape and type
are looked at and where it lies in the file; the numbers are stepped over unread, so that a graph of
any size costs what its nodes cost. Weights in external files are not followed.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from edgecv import onnxproto as proto
from edgecv.errors import SpecError
from edgecv.onnxfile import MAX_FIELDS
from edgecv.onnxproto import ELEMENT_TYPES
from edgecv.wire import Buffer, Field, fields, mapped, text, varint_at

Span: TypeAlias = "tuple[int, int]"  # where a message's bytes begin and end in the file
Symbols: TypeAlias = "tuple[str, ...]"  # the name of each size of a tensor; "" where it has none

_QUANTIZED = frozenset(
    ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger")
)
_SEE_THROUGH = ("DequantizeLinear", "QuantizeLinear", "Cast", "Identity")


@dataclass(frozen=True)
class Node:
    """One node: names of its tensors in order; an optional one that is left out is ``""``.

    ``captured`` are outer tensors that its subgraphs (If, Loop) read; ``ints`` its attributes that
    are one integer.
    """

    name: str
    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    captured: frozenset[str]
    ints: Mapping[str, int]
    span: Span

    @property
    def reads(self) -> set[str]:
        return {name for name in self.inputs if name} | self.captured

    @property
    def label(self) -> str:
        """Its name, or, where it has none, that of its first output."""
        return self.name or self.outputs[0]


@dataclass(frozen=True)
class Initializer:
    """A constant; ``external``: its numbers lie in another file."""

    name: str
    dims: tuple[int, ...]
    element: int
    external: bool
    span: Span


@dataclass(frozen=True)
class OnnxGraph:
    """The main graph of a file.

    ``nodes`` in the file's (topological) order. ``inputs`` (constants may be among them) and
    ``outputs`` by name, in order. ``types``: the element type of each tensor that declares one.
    ``head`` and ``rest`` are the fields of the model and of the graph that are not looked into: IR
    version, opsets, functions; name, sparse constants, documentation.
    """

    source: Path | bytes = field(repr=False)
    opset: int
    producer: str
    nodes: tuple[Node, ...]
    initializers: dict[str, Initializer]
    inputs: dict[str, Span]
    outputs: dict[str, Span]
    types: dict[str, int] = field(repr=False)
    head: tuple[Span, ...] = field(repr=False)
    rest: tuple[Span, ...] = field(repr=False)

    @cached_property
    def producers(self) -> dict[str, Node]:
        """The node that makes each tensor."""
        return {out: node for node in self.nodes for out in node.outputs if out}

    @property
    def operators(self) -> dict[str, int]:
        """How often each node type occurs, most frequent first."""
        return dict(Counter(node.op for node in self.nodes).most_common())

    @property
    def precision(self) -> str:
        """int8 where there are quantized nodes, fp16 where most float weights are, else fp32."""
        if not _QUANTIZED.isdisjoint(node.op for node in self.nodes):
            return "int8"
        weights = Counter(one.element for one in self.initializers.values())
        half = weights[ELEMENT_TYPES["float16"]] > weights[ELEMENT_TYPES["float32"]]
        return "fp16" if half else "fp32"

    @property
    def external(self) -> bool:
        """Whether weights of the main graph lie in other files."""
        return any(one.external for one in self.initializers.values())

    def opened(self) -> AbstractContextManager[Buffer]:
        """The bytes that the spans lie in."""
        if isinstance(self.source, bytes):
            return contextlib.nullcontext(self.source)
        return mapped(self.source)

    def tensors(self) -> list[str]:
        """What the nodes make, in order."""
        return [out for node in self.nodes for out in node.outputs if out]

    def weight_dims(self, node: Node) -> tuple[int, ...] | None:
        """The shape of the constant that is a node's second input, seen through casts and
        dequantization."""
        name = node.inputs[1] if len(node.inputs) > 1 else ""
        while name and name not in self.initializers:
            producer = self.producers.get(name)
            if producer is None or producer.op not in _SEE_THROUGH:
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


def read_graph(source: str | os.PathLike[str] | bytes) -> OnnxGraph:
    """Read the main graph of an ONNX file, or of its bytes.

    Raises :class:`~edgecv.errors.SpecError` for what is no ONNX model, is cut off, or nests graphs
    without end; :class:`~edgecv.errors.InputError` for a file that is not there.
    """
    origin = source if isinstance(source, bytes) else Path(source)
    with contextlib.nullcontext(origin) if isinstance(origin, bytes) else mapped(origin) as data:
        return _Reader(data, "the model" if isinstance(origin, bytes) else origin).model(origin)


def read_ends(path: str | os.PathLike[str]) -> tuple[dict[str, Symbols], dict[str, Symbols]]:
    """The graph's inputs (constants may be among them) and outputs by name, in order: what their
    sizes are called.

    The nodes are stepped over: a file opens without the milliseconds that reading them takes.
    Raises what :func:`read_graph` does.
    """
    with mapped(path) as data:
        return _Reader(data, Path(path)).ends()


class _Reader:
    """One walk over ``data``; ``where`` is what its errors name."""

    def __init__(self, data: Buffer, where: Path | str) -> None:
        self._data = data
        self._where = where

    def model(self, source: Path | bytes) -> OnnxGraph:
        opset, producer, position = 0, "", 0
        head: list[Span] = []
        graph: Field | None = None
        for part in fields(self._data, self._where, limit=MAX_FIELDS):
            if part.number == proto.MODEL_GRAPH:
                graph = part
            else:
                head.append((position, part.end))
                if part.number == proto.MODEL_PRODUCER:
                    producer = self._text(part)
                elif part.number == proto.MODEL_OPSET:
                    opset = self._opset(part) or opset
            position = part.end
        if graph is None:
            raise SpecError(f"{self._where}: not an ONNX model (there is no graph in it)")
        nodes: list[Node] = []
        weights: dict[str, Initializer] = {}
        ends: dict[int, dict[str, Span]] = {proto.GRAPH_INPUT: {}, proto.GRAPH_OUTPUT: {}}
        types: dict[str, int] = {}
        rest: list[Span] = []
        position = graph.start
        for part in self._inside(graph):
            if part.number == proto.GRAPH_NODE:
                nodes.append(self._node(part, 2))
            elif part.number == proto.GRAPH_INITIALIZER:
                one = self._initializer(part)
                weights[one.name], types[one.name] = one, one.element
            elif part.number in (proto.GRAPH_INPUT, proto.GRAPH_OUTPUT, proto.GRAPH_VALUE_INFO):
                name, element = self._value(part)
                if element:
                    types[name] = element
                if part.number in ends:
                    ends[part.number][name] = (part.start, part.end)
            else:
                rest.append((position, part.end))
            position = part.end
        return OnnxGraph(
            source,
            opset,
            producer,
            tuple(nodes),
            weights,
            ends[proto.GRAPH_INPUT],
            ends[proto.GRAPH_OUTPUT],
            types,
            tuple(head),
            tuple(rest),
        )

    def ends(self) -> tuple[dict[str, Symbols], dict[str, Symbols]]:
        found: dict[int, dict[str, Symbols]] = {proto.GRAPH_INPUT: {}, proto.GRAPH_OUTPUT: {}}
        for graph in fields(self._data, self._where, limit=MAX_FIELDS):
            if graph.number == proto.MODEL_GRAPH:
                for part in self._inside(graph):
                    if part.number in found:
                        name = self._name(part, proto.VALUE_NAME)
                        found[part.number][name] = self._symbols(part)
        return found[proto.GRAPH_INPUT], found[proto.GRAPH_OUTPUT]

    def _inside(self, message: Field) -> Iterator[Field]:
        return fields(self._data, self._where, message.start, message.end)

    def _text(self, part: Field) -> str:
        return text(self._data, part, self._where)

    def _name(self, message: Field, number: int) -> str:
        """The text in field ``number`` of a message."""
        return next(
            (self._text(part) for part in self._inside(message) if part.number == number), ""
        )

    def _opset(self, message: Field) -> int:
        """The version of ONNX's own operators; 0 where it is another domain's."""
        domain, version = "", 0
        for part in self._inside(message):
            if part.number == proto.OPSET_DOMAIN:
                domain = self._text(part)
            elif part.number == proto.OPSET_VERSION:
                version = part.value
        return version if domain in ("", "ai.onnx") else 0

    def _node(self, message: Field, depth: int) -> Node:
        texts = {proto.NODE_NAME: "", proto.NODE_OP: "", proto.NODE_DOMAIN: ""}
        inputs, outputs, captured = [], [], set()
        ints: dict[str, int] = {}
        for part in self._inside(message):
            if part.number == proto.NODE_INPUT:
                inputs.append(self._text(part))
            elif part.number == proto.NODE_OUTPUT:
                outputs.append(self._text(part))
            elif part.number in texts:
                texts[part.number] = self._text(part)
            elif part.number == proto.NODE_ATTRIBUTE:
                captured |= self._attribute(part, ints, depth + 1)
        return Node(
            texts[proto.NODE_NAME],
            texts[proto.NODE_OP],
            texts[proto.NODE_DOMAIN],
            tuple(inputs),
            tuple(outputs),
            frozenset(captured),
            ints,
            (message.start, message.end),
        )

    def _attribute(self, message: Field, ints: dict[str, int], depth: int) -> set[str]:
        """What the graphs in an attribute read from outside; its integer, if it is one, goes to
        ``ints``."""
        name, value = "", None
        captured: set[str] = set()
        for part in self._inside(message):
            if part.number == proto.ATTRIBUTE_NAME:
                name = self._text(part)
            elif part.number == proto.ATTRIBUTE_INT:
                value = part.value - (part.value >> 63 << 64)  # negative ones have all 64 bits
            elif part.number in (proto.ATTRIBUTE_GRAPH, proto.ATTRIBUTE_GRAPHS):
                captured |= self._captures(part, depth + 1)
        if value is not None:
            ints[name] = value
        return captured

    def _captures(self, graph: Field, depth: int) -> set[str]:
        """Names that a subgraph reads and does not make itself."""
        if depth > proto.MAX_DEPTH:
            raise SpecError(
                f"{self._where}: graphs nested more than {proto.MAX_DEPTH} messages deep"
            )
        reads: set[str] = set()
        makes: set[str] = set()
        for part in self._inside(graph):
            if part.number == proto.GRAPH_NODE:
                node = self._node(part, depth + 1)
                reads |= node.reads
                makes |= set(node.outputs)
            elif part.number == proto.GRAPH_INPUT:
                makes.add(self._name(part, proto.VALUE_NAME))
            elif part.number == proto.GRAPH_OUTPUT:
                reads.add(self._name(part, proto.VALUE_NAME))
            elif part.number == proto.GRAPH_INITIALIZER:
                makes.add(self._name(part, proto.TENSOR_NAME))
        return reads - makes

    def _initializer(self, message: Field) -> Initializer:
        name, element, external = "", 0, False
        dims: list[int] = []
        for part in self._inside(message):
            if part.number == proto.TENSOR_DIMS:  # one each, or all in one field (packed)
                position = part.start
                while position < part.end:
                    size, position = varint_at(self._data, position, part.end, self._where)
                    dims.append(size)
            elif part.number == proto.TENSOR_TYPE:
                element = part.value
            elif part.number == proto.TENSOR_NAME:
                name = self._text(part)
            elif part.number == proto.TENSOR_LOCATION:
                external = part.value == proto.LOCATION_EXTERNAL
        return Initializer(name, tuple(dims), element, external, (message.start, message.end))

    def _symbols(self, message: Field) -> Symbols:
        """What a ``ValueInfoProto`` calls the sizes of its tensor."""
        levels = (proto.VALUE_TYPE, proto.TYPE_TENSOR, proto.TENSOR_TYPE_SHAPE, proto.SHAPE_DIM)
        parts = [message]
        for number in levels:
            parts = [part for one in parts for part in self._inside(one) if part.number == number]
        return tuple(self._name(size, proto.DIM_SYMBOL) for size in parts)

    def _value(self, message: Field) -> tuple[str, int]:
        """Name and element type of a ``ValueInfoProto``; 0 for what is no plain tensor."""
        name, element = "", 0
        for part in self._inside(message):
            if part.number == proto.VALUE_NAME:
                name = self._text(part)
            elif part.number == proto.VALUE_TYPE:
                for kind in self._inside(part):
                    if kind.number == proto.TYPE_TENSOR:
                        for leaf in self._inside(kind):
                            if leaf.number == proto.TENSOR_TYPE_ELEMENT:
                                element = leaf.value
        return name, element
