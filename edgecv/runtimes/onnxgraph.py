"""What backends must know of an ONNX file before, and after, a runtime has read it.

Before: that it is whole, and that its external data, if it has some, lies where it may. After:
which nodes of an optimized graph compute in which type. Field numbers are those of onnx.proto3.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from edgecv.errors import SpecError
from edgecv.onnxfile import MAX_FIELDS
from edgecv.wire import Buffer, Field, fields, mapped, text

MAX_EXTERNAL_BYTES = 2 * 1024**3  # what a protobuf file itself can hold; no edge model has more

MODEL_GRAPH, MODEL_FUNCTIONS = 7, 25
# where graphs, nodes, attributes and tensors contain one another: (kind, field number) -> kind
_INSIDE = {
    ("model", MODEL_GRAPH): "graph",
    ("model", MODEL_FUNCTIONS): "function",
    ("function", 7): "node",
    ("function", 11): "attribute",
    ("graph", 1): "node",
    ("graph", 5): "tensor",
    ("graph", 15): "sparse",
    ("node", 5): "attribute",
    ("attribute", 5): "tensor",
    ("attribute", 6): "graph",
    ("attribute", 10): "tensor",
    ("attribute", 11): "graph",
    ("attribute", 22): "sparse",
    ("attribute", 23): "sparse",
    ("sparse", 1): "tensor",
    ("sparse", 2): "tensor",
}
MAX_DEPTH = 64  # of graphs within graphs: protobuf's own limit is 100 messages
TENSOR_NAME, TENSOR_EXTERNAL, TENSOR_LOCATION = 8, 13, 14


def check_file(path: Path) -> None:
    """Refuse a file that no runtime should be asked to read.

    Raises :class:`~edgecv.errors.SpecError` for one that is cut off or not ONNX (some runtimes
    crash, or guess at other formats), and for external data that is absent, cut off, above
    :data:`MAX_EXTERNAL_BYTES`, or outside of the file's own folder: a model from elsewhere must
    not read ``/etc/shadow`` into its weights.
    """
    with mapped(path) as data:
        numbers = [field.number for field in fields(data, path, limit=MAX_FIELDS)]
        if MODEL_GRAPH not in numbers:
            raise SpecError(f"{path}: not an ONNX model (there is no graph in it)")
        # every external tensor has an entry of this key; C finds it 100 times faster than we
        # could walk the graph
        if data.find(b"location") < 0:
            return
        total = sum(_external_bytes(path, *found) for found in _external(data, path))
    if total > MAX_EXTERNAL_BYTES:
        raise SpecError(
            f"{path}: refers to {total:,} bytes of external data, at most {MAX_EXTERNAL_BYTES:,} "
            f"are allowed; export the model as one file"
        )


def _external(data: Buffer, path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Name and external-data entries of each tensor that has some."""
    for field in _tensors(data, path, "model", 0, len(data), 0):
        name, external, entries = "?", False, {}
        for part in fields(data, path, field.start, field.end):
            if part.number == TENSOR_NAME:
                name = text(data, part, path)
            elif part.number == TENSOR_LOCATION:
                external = part.value == 1
            elif part.number == TENSOR_EXTERNAL:
                pair = {
                    f.number: text(data, f, path) for f in fields(data, path, part.start, part.end)
                }
                entries[pair.get(1, "")] = pair.get(2, "")
        if external or entries:
            yield name, entries


def _tensors(
    data: Buffer, path: Path, kind: str, start: int, end: int, depth: int
) -> Iterator[Field]:
    if depth > MAX_DEPTH:
        raise SpecError(f"{path}: graphs nested more than {MAX_DEPTH} messages deep")
    for field in fields(data, path, start, end):
        inner = _INSIDE.get((kind, field.number))
        if inner == "tensor":
            yield field
        elif inner is not None:
            yield from _tensors(data, path, inner, field.start, field.end, depth + 1)


def _external_bytes(path: Path, name: str, entries: dict[str, str]) -> int:
    """How many bytes of another file the tensor ``name`` takes, which are there."""
    what = f"{path}: the weights of {name!r} are in the external file"
    location = entries.get("location", "")
    parts = PurePosixPath(location).parts + PureWindowsPath(location).parts
    if not location or ".." in parts or "\0" in location or _is_absolute(location):
        raise SpecError(f"{what} {location!r}; expected a name inside the model's own folder")
    folder = Path(os.path.realpath(path)).parent
    target = Path(os.path.realpath(folder / location))
    if folder not in target.parents:
        raise SpecError(f"{what} {location!r}, a link that leaves the model's own folder")
    if not target.is_file():
        raise SpecError(f"{what} {location!r}, which is not there; copy it beside the model")
    size = target.stat().st_size
    try:
        offset = int(entries.get("offset") or 0)
        length = int(entries["length"]) if entries.get("length") else size - offset
    except ValueError as error:
        raise SpecError(f"{what} {location!r}, at an offset that is no number") from error
    if offset < 0 or length < 0 or offset + length > size:
        raise SpecError(
            f"{what} {location!r} at {offset} to {offset + length}, which has {size} bytes; "
            f"copy it again"
        )
    return length


def _is_absolute(location: str) -> bool:
    windows = PureWindowsPath(location)
    return PurePosixPath(location).is_absolute() or bool(windows.drive or windows.root)


# --- what a graph computes in ---------------------------------------------------------------

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
    """One node: operator, domain, and the names of its tensors in order."""

    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


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
    inputs, outputs, op_type, domain = [], [], "", ""
    for part in fields(data, path, field.start, field.end):
        if part.number == 1:
            inputs.append(text(data, part, path))
        elif part.number == 2:
            outputs.append(text(data, part, path))
        elif part.number == 4:
            op_type = text(data, part, path)
        elif part.number == 7:
            domain = text(data, part, path)
    return Node(op_type, domain, tuple(inputs), tuple(outputs))


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
