"""ONNX files without the onnx package: protobuf's wire format, walked field by field.

A message is a run of fields, each a number, a wire type and a value (protobuf.dev, "Encoding");
what the numbers mean is in :mod:`edgecv.onnxproto`. Nothing is copied but what is asked for: the
file is mapped into memory, so that gigabytes of weights are stepped over unread.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

from edgecv.errors import SpecError
from edgecv.files import open_binary

Buffer: TypeAlias = "bytes | mmap.mmap"


class Field(NamedTuple):
    """One field: its ``number``, where its value lies, and the value itself if it is an integer."""

    number: int
    start: int
    end: int
    value: int  # of a varint; 0 for the other wire types


@contextlib.contextmanager
def mapped(path: str | os.PathLike[str]) -> Iterator[Buffer]:
    """The bytes of the file ``path``, mapped; an :class:`InputError` where it cannot be read."""
    with open_binary(path) as file:
        if file.seek(0, os.SEEK_END) == 0:
            yield b""  # an empty file cannot be mapped
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


def fields(
    data: Buffer,
    where: Path | str,
    start: int = 0,
    end: int | None = None,
    *,
    limit: int | None = None,
) -> Iterator[Field]:
    """The fields of the message in ``data[start:end]``, in order.

    Raises :class:`SpecError`, naming ``where``, for bytes that are no message or one cut off, and
    for more than ``limit`` fields: a hostile file of empty fields would be walked for hours.
    """
    position, end = start, len(data) if end is None else end
    count = 0
    while position < end:
        count += 1
        if limit is not None and count > limit:
            raise SpecError(f"{where}: not an ONNX model (over {limit} fields at one level)")
        tag, position = varint_at(data, position, end, where)
        number, wire, value = tag >> 3, tag & 7, 0
        if wire == 0:
            begin = position
            value, position = varint_at(data, position, end, where)
            stop = position
        elif wire == 2:
            size, begin = varint_at(data, position, end, where)
            stop = begin + size
        elif wire in (1, 5):
            begin, stop = position, position + (8 if wire == 1 else 4)
        else:
            raise SpecError(f"{where}: not an ONNX model, or a damaged one (wire type {wire})")
        if number == 0 or stop > end:
            raise SpecError(
                f"{where}: not an ONNX model, or cut off (a field ends {stop - end} bytes "
                f"behind the end of the file); copy or export it again"
            )
        yield Field(number, begin, stop, value)
        position = stop


def varint_at(data: Buffer, position: int, end: int, where: Path | str) -> tuple[int, int]:
    """The integer at ``position``, and where the next thing begins."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise SpecError(f"{where}: not an ONNX model, or cut off in the middle of a field")


def varint(value: int) -> bytes:
    """An unsigned integer in the wire's form."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def message(number: int, value: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def integer(number: int, value: int) -> bytes:
    """A varint field."""
    return varint(number << 3) + varint(value)


def text(data: Buffer, field: Field, where: Path | str) -> str:
    """The string in ``field``."""
    try:
        return data[field.start : field.end].decode()
    except UnicodeDecodeError as error:
        raise SpecError(f"{where}: damaged: a name in it is not UTF-8 text") from error
