"""The outermost layer of an ONNX file: its metadata entries, read and written without onnx.

An ONNX file is one protobuf message, ``ModelProto`` (onnx.proto3). Its top level is walked field
by field; the graph (field 7) with the weights is skipped unread, so that the metadata
(``metadata_props``, field 14) of a file of any size costs a few kilobytes.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from edgecv.errors import SpecError
from edgecv.files import atomic_write, open_binary

MAX_ENTRY_BYTES = 16 * 1024 * 1024  # a contract of 21,000 labels and a self-test stays under 1 MB
MAX_FIELDS = 100_000  # at the top level: a real file has one per opset, function and entry

_GRAPH, _METADATA = 7, 14  # field numbers of ModelProto


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """All metadata entries of an ONNX file, without loading its graph or weights.

    Raises :class:`~edgecv.errors.SpecError` for a file that is truncated or not ONNX,
    :class:`~edgecv.errors.InputError` for one that is not there.
    """
    path = Path(path)
    found: dict[str, str] = {}
    with open_binary(path) as file:
        graph_seen = False
        for number, start, size in fields(file, path):
            graph_seen = graph_seen or number == _GRAPH
            if number == _METADATA:
                file.seek(start)
                key, value = _entry(file.read(size), path)
                found[key] = value
    if not graph_seen:
        raise SpecError(f"{path}: not an ONNX model (there is no graph in it)")
    return found


def write_metadata(
    source: str | os.PathLike[str] | bytes, key: str, value: str, path: str | os.PathLike[str]
) -> None:
    """Write the ONNX model ``source`` (a file or its bytes) to ``path`` with one entry set.

    An older entry of that key is replaced; everything else is copied byte for byte. ``path``
    appears whole or not at all.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    kept = []
    position = 0
    for number, start, size in fields(io.BytesIO(data), Path(path)):
        end = start + size
        if not (number == _METADATA and _entry(data[start:end], Path(path))[0] == key):
            kept.append(data[position:end])
        position = end
    raw_key, raw_value = key.encode(), value.encode()
    entry = (
        b"\x0a" + varint(len(raw_key)) + raw_key + b"\x12" + varint(len(raw_value)) + raw_value
    )
    tag = varint(_METADATA << 3 | 2)
    with atomic_write(path) as out:
        out.writelines([*kept, tag, varint(len(entry)), entry])


def fields(
    file: BinaryIO, path: Path, start: int = 0, size: int | None = None
) -> Iterator[tuple[int, int, int]]:
    """The fields of the protobuf message of ``size`` bytes at ``start``, by default the file.

    Of each field its number, where its value starts, and the value's size.
    """
    end = file.seek(0, os.SEEK_END) if size is None else start + size
    position, count = start, 0
    while position < end:
        count += 1
        if count > MAX_FIELDS:  # a hostile file of empty fields would be walked for hours
            raise SpecError(f"{path}: not an ONNX model (over {MAX_FIELDS} fields at one level)")
        file.seek(position)
        head = file.read(20)  # a tag and a length, each at most 10 bytes
        tag, used = read_varint(head, 0, path)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            begin = position + used
            length = read_varint(head, used, path)[1] - used
        elif wire == 2:
            length, used = read_varint(head, used, path)
            begin = position + used
        elif wire in (1, 5):
            begin, length = position + used, 8 if wire == 1 else 4
        else:
            raise SpecError(f"{path}: not an ONNX model, or a damaged one (wire type {wire})")
        if number == 0 or begin + length > end:
            raise SpecError(
                f"{path}: not an ONNX model, or cut off (a field ends {begin + length - end} bytes "
                f"behind the end of the file); copy or export it again"
            )
        yield number, begin, length
        position = begin + length


def read_varint(data: bytes, position: int, path: Path) -> tuple[int, int]:
    """The number at ``position``, seven bits a byte, and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise SpecError(f"{path}: not an ONNX model, or cut off in the middle of a field")


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _entry(data: bytes, path: Path) -> tuple[str, str]:
    """Key and value of a ``StringStringEntryProto``."""
    if len(data) > MAX_ENTRY_BYTES:
        raise SpecError(f"{path}: a metadata entry of {len(data)} bytes; that is no contract")
    texts = {1: "", 2: ""}
    for number, start, size in fields(io.BytesIO(data), path):
        if number in texts:
            try:
                texts[number] = data[start : start + size].decode()
            except UnicodeDecodeError as error:
                raise SpecError(f"{path}: a metadata entry is not UTF-8 text") from error
    return texts[1], texts[2]
