"""What an ONNX file says of its graph, read without the onnx package and without its weights.

The messages are walked field by field (:mod:`edgecv.wire`); field numbers are those of
onnx.proto3. Weights are skipped unread: only their types and where they lie are looked at.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from edgecv.onnxfile import MAX_FIELDS
from edgecv.wire import Buffer, Field, fields, mapped, text

_FLOAT, _FLOAT16 = 1, 10  # TensorProto.DataType
_EXTERNAL = 1  # TensorProto.data_location
_QUANTIZED = frozenset(
    ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger")
)


@dataclass(frozen=True)
class Header:
    """``operators``: how often each node type occurs. ``external``: weights lie in other files.

    ``precision``: int8 where there are quantized nodes, fp16 where most float weights are, else
    fp32.
    """

    opset: int
    producer: str
    operators: dict[str, int]
    precision: str
    external: bool


def read_header(path: str | os.PathLike[str]) -> Header:
    """The :class:`Header` of the ONNX file ``path``.

    Raises :class:`~edgecv.errors.SpecError` for a file that is no ONNX model or is cut off.
    """
    path = Path(path)
    opset, producer, external = 0, "", False
    operators: Counter[str] = Counter()
    weights: Counter[int] = Counter()
    with mapped(path) as data:
        for part in fields(data, path, limit=MAX_FIELDS):
            if part.number == 2:  # producer_name
                producer = text(data, part, path)
            elif part.number == 8:  # opset_import
                domain, version = _opset(data, part, path)
                opset = version if domain in ("", "ai.onnx") else opset
            elif part.number == 7:  # graph
                for inner in fields(data, path, part.start, part.end):
                    if inner.number == 1:  # node
                        operators[_operator(data, inner, path)] += 1
                    elif inner.number == 5:  # initializer
                        kind, elsewhere = _weight(data, inner, path)
                        weights[kind] += 1
                        external = external or elsewhere
    half = weights[_FLOAT16] > weights[_FLOAT]
    precision = "int8" if _QUANTIZED & operators.keys() else "fp16" if half else "fp32"
    return Header(opset, producer, dict(operators.most_common()), precision, external)


def _opset(data: Buffer, message: Field, path: Path) -> tuple[str, int]:
    """Domain and version of an ``OperatorSetIdProto``."""
    domain, version = "", 0
    for part in fields(data, path, message.start, message.end):
        if part.number == 1:
            domain = text(data, part, path)
        elif part.number == 2:
            version = part.value
    return domain, version


def _operator(data: Buffer, message: Field, path: Path) -> str:
    """``op_type`` of a ``NodeProto``."""
    for part in fields(data, path, message.start, message.end):
        if part.number == 4:
            return text(data, part, path)
    return ""


def _weight(data: Buffer, message: Field, path: Path) -> tuple[int, bool]:
    """Type of a ``TensorProto``, and whether its data lies in another file."""
    kind, elsewhere = 0, False
    for part in fields(data, path, message.start, message.end):
        if part.number == 2:
            kind = part.value
        elif part.number == 14:
            elsewhere = part.value == _EXTERNAL
    return kind, elsewhere
