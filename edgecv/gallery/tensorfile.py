"""Reading and writing safetensors files with NumPy alone.

The format (huggingface/safetensors, README, "Format"): eight bytes, the header's length as an
unsigned little-endian integer; a JSON object ``{name: {"dtype", "shape", "data_offsets"}}`` padded
with blanks; then the tensors' bytes, little-endian and row-major, without a gap. Nothing in it can
run code. The ``safetensors`` package reads what is written here, and the other way round.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.files import open_binary

DTYPES = {"F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "U8": "|u1"}
MAX_HEADER = 100_000_000  # the package's own limit, in bytes
ALIGNMENT = 8  # where the data starts, as the package has it

_NAMES = {np.dtype(code): name for name, code in DTYPES.items()}


def write_tensors(
    file: BinaryIO, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    """Write ``tensors`` (of :data:`DTYPES`) in the given order; same input, same bytes."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, array in tensors.items():
        size = array.nbytes
        header[name] = {
            "dtype": _NAMES[array.dtype.newbyteorder("<")],
            "shape": list(array.shape),
            "data_offsets": [position, position + size],
        }
        position += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    for array in tensors.values():
        little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
        file.write(np.ascontiguousarray(little).data.cast("B") if little.size else b"")


def read_tensors(
    path: str | os.PathLike[str],
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """All tensors of the file ``path``, and its metadata.

    Raises :class:`~edgecv.errors.InputError` for a file that is not safetensors, is cut off, has
    bytes that belong to no tensor, or holds a dtype that is not in :data:`DTYPES`.
    """
    path = Path(path)
    with open_binary(path) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if end < 8 or length > min(MAX_HEADER, end - 8):
            raise InputError(
                f"{path}: not a safetensors file, or one that is cut off ({end} bytes)"
            )
        header = _header(file.read(length), path)
        metadata = header.pop("__metadata__", {})
        tensors, position = {}, 0
        for name, entry in sorted(header.items(), key=_start):
            dtype, shape, start, stop = _entry(name, entry, path)
            size = math.prod(shape) * dtype.itemsize
            if start != position or stop - start != size:
                raise InputError(f"{path}: damaged: tensor {name!r} does not lie where it should")
            if 8 + length + stop > end:
                raise InputError(
                    f"{path}: cut off: tensor {name!r} ends {8 + length + stop - end} bytes behind "
                    f"the end of the file; restore it from a copy"
                )
            array = np.fromfile(file, dtype, math.prod(shape)).reshape(shape)
            tensors[name] = array if sys.byteorder == "little" else array.astype(array.dtype)
            position = stop
        if 8 + length + position != end:
            raise InputError(f"{path}: damaged: there are bytes behind the last tensor")
    return tensors, {str(key): str(value) for key, value in metadata.items()}


def _header(text: bytes, path: Path) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a safetensors file (its header is no JSON)") from error
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise InputError(f"{path}: not a safetensors file (its header is no JSON object)")
    return header


def _start(item: tuple[str, Any]) -> int:
    try:
        return int(item[1]["data_offsets"][0])
    except (TypeError, KeyError, IndexError, ValueError):
        return -1  # _entry says what is wrong with it


def _entry(name: str, entry: Any, path: Path) -> tuple[np.dtype[Any], list[int], int, int]:
    try:
        code, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(
            f"{path}: damaged: tensor {name!r} has no dtype, shape or place"
        ) from error
    sizes = [*shape, start, stop] if isinstance(shape, list) else [-1]
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise InputError(f"{path}: damaged: tensor {name!r} has the shape {shape}")
    if not isinstance(code, str) or code not in DTYPES:
        raise InputError(
            f"{path}: tensor {name!r} is of dtype {code}; expected one of {', '.join(DTYPES)}"
        )
    return np.dtype(DTYPES[code]), shape, start, stop
