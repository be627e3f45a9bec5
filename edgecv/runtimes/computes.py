"""In which type an ONNX graph computes: read from the graph that a runtime made of the file.

Field numbers are those of onnx.proto3.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from edgecv.runtimes.filecheck import MODEL_GRAPH, TENSOR_NAME
from edgecv.wire import Buffer, Field, fields, mapped, text

# TensorProto.DataType -> the names that contracts use
ELEMENTS = {1: "fp32", 10: "fp16", 11: "fp64", 16: "bf16", 2: "int8", 3: "int8"}
# Operators that do nearly all of the arithmetic; a net computes in the type that these have
HEAVY = (
    "Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "ConvInteger", "Gemm", "FusedGemm",
    "MatMul", "FusedMatMul", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QGemm",
    "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearConvTranspose", "LSTM", "GRU",
    "Attention", "MultiHeadAttention", "MatMulNBits",
)  # fmt: skip
INTEGER_PREFIXES = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul")


@dataclass(frozen=True)
class Node:
    """One node: operator, domain, the names of its tensors in order; ``to`` is a Cast's type."""

    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    to: int = 0


def read_nodes(path: Path) -> tuple[list[Node], dict[str, int]]:
    """The nodes of the main graph in order, and the element type of each tensor that has one."""
    nodes: list[Node] = []
    types: dict[str, int] = {}
    with mapped(path) as data:
        for graph in fields(data, path):
            if graph.number != MODEL_GRAPH:
                continue
            for field in fields(data, path, graph.start, graph.end):
                if field.number == 1:
                    nodes.append(_node(data, path, field))
                elif field.number == 5:
                    types.update(_initializer(data, path, field))
                elif field.number in (11, 12, 13):  # input, output, value_info
                    types.update(_value_info(data, path, field))
    return nodes, types


def graph_names(path: Path) -> tuple[list[str], list[str]]:
    """The names of the main graph's inputs (initializers may be among them) and outputs."""
    names: dict[int, list[str]] = {11: [], 12: []}
    with mapped(path) as data:
        for graph in fields(data, path):
            if graph.number != MODEL_GRAPH:
                continue
            for field in fields(data, path, graph.start, graph.end):
                if field.number in names:
                    for part in fields(data, path, field.start, field.end):
                        if part.number == 1:
                            names[field.number].append(text(data, part, path))
    return names[11], names[12]


def compute_types(nodes: list[Node], types: dict[str, int]) -> dict[str, int]:
    """How many of the :data:`HEAVY` nodes compute in which precision, most frequent first."""
    counts: Counter[str] = Counter()
    # the casts that a runtime puts in have no value_info
    types = types | {name: node.to for node in nodes if node.to for name in node.outputs}
    for node in nodes:
        if node.op_type not in HEAVY:
            continue
        if node.op_type.startswith(INTEGER_PREFIXES):
            counts["int8"] += 1
            continue
        # the weight's type, where known: activations may still carry the type that the file
        # gave them before the runtime put casts around this node
        known = [types[name] for name in (*node.inputs[1::-1], *node.outputs) if name in types]
        counts[ELEMENTS.get(known[0], f"type {known[0]}") if known else "unknown"] += 1
    return dict(counts.most_common())


def _node(data: Buffer, path: Path, field: Field) -> Node:
    inputs, outputs, op_type, domain, to = [], [], "", "", 0
    for part in fields(data, path, field.start, field.end):
        if part.number == 1:
            inputs.append(text(data, part, path))
        elif part.number == 2:
            outputs.append(text(data, part, path))
        elif part.number == 4:
            op_type = text(data, part, path)
        elif part.number == 7:
            domain = text(data, part, path)
        elif part.number == 5:
            to = _cast_type(data, path, part) or to
    return Node(op_type, domain, tuple(inputs), tuple(outputs), to if op_type == "Cast" else 0)


def _cast_type(data: Buffer, path: Path, field: Field) -> int:
    """The integer (field 3) of an attribute whose name (field 1) is ``to``; 0 for any other."""
    name, value = "", 0
    for part in fields(data, path, field.start, field.end):
        if part.number == 1:
            name = text(data, part, path)
        elif part.number == 3:
            value = part.value
    return value if name == "to" else 0


def _initializer(data: Buffer, path: Path, field: Field) -> dict[str, int]:
    name, element = "", 0
    for part in fields(data, path, field.start, field.end):
        if part.number == TENSOR_NAME:
            name = text(data, part, path)
        elif part.number == 2:
            element = part.value
    return {name: element}


def _value_info(data: Buffer, path: Path, field: Field) -> dict[str, int]:
    """``ValueInfoProto``: name 1, type 2 -> ``TypeProto.tensor_type`` 1 -> ``elem_type`` 1."""
    name, element = "", 0
    for part in fields(data, path, field.start, field.end):
        if part.number == 1:
            name = text(data, part, path)
        elif part.number == 2:
            for kind in fields(data, path, part.start, part.end):
                if kind.number == 1:
                    for leaf in fields(data, path, kind.start, kind.end):
                        element = leaf.value if leaf.number == 1 else element
    return {name: element} if element else {}
