"""What an ONNX file says of its graph, read without the onnx package and without its weights.

The messages are walked field by field (:mod:`edgecv.onnxfile`); field numbers are those of
onnx.proto3. Weights are skipped unread: only their types and where they lie are looked at.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgecv.errors import SpecError
from edgecv.files import open_binary
from edgecv.onnxfile import fields, read_varint

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
    with open_binary(path) as file:
        message = _Message(file, path)
        for number, start, size in message.children():
            if number == 2:  # producer_name
                producer = message.text(start, size)
            elif number == 8:  # opset_import
                domain, version = message.opset(start, size)
                opset = version if domain in ("", "ai.onnx") else opset
            elif number == 7:  # graph
                for field, begin, length in message.children(start, size):
                    if field == 1:  # node
                        operators[message.operator(begin, length)] += 1
                    elif field == 5:  # initializer
                        kind, elsewhere = message.weight(begin, length)
                        weights[kind] += 1
                        external = external or elsewhere
    half = weights[_FLOAT16] > weights[_FLOAT]
    precision = "int8" if _QUANTIZED & operators.keys() else "fp16" if half else "fp32"
    return Header(opset, producer, dict(operators.most_common()), precision, external)


class _Message:
    """Reads the parts of one file."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path

    def children(self, start: int = 0, size: int | None = None) -> Iterator[tuple[int, int, int]]:
        return fields(self._file, self._path, start, size)

    def text(self, start: int, size: int) -> str:
        self._file.seek(start)
        try:
            return self._file.read(size).decode()
        except UnicodeDecodeError as error:
            raise SpecError(f"{self._path}: a name in it is not UTF-8 text") from error

    def number(self, start: int, size: int) -> int:
        self._file.seek(start)
        return read_varint(self._file.read(size), 0, self._path)[0]

    def opset(self, start: int, size: int) -> tuple[str, int]:
        """Domain and version of an ``OperatorSetIdProto``."""
        domain, version = "", 0
        for number, begin, length in self.children(start, size):
            if number == 1:
                domain = self.text(begin, length)
            elif number == 2:
                version = self.number(begin, length)
        return domain, version

    def operator(self, start: int, size: int) -> str:
        """``op_type`` of a ``NodeProto``."""
        for number, begin, length in self.children(start, size):
            if number == 4:
                return self.text(begin, length)
        return ""

    def weight(self, start: int, size: int) -> tuple[int, bool]:
        """Type of a ``TensorProto``, and whether its data lies in another file."""
        kind, elsewhere = 0, False
        for number, begin, length in self.children(start, size):
            if number == 2:
                kind = self.number(begin, length)
            elif number == 14:
                elsewhere = self.number(begin, length) == _EXTERNAL
        return kind, elsewhere
