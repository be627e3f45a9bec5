"""The files of a folder gallery: the manifest, and segments of vectors, each written whole."""

from __future__ import annotations

import json
import os
import secrets
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.files import atomic_write, open_binary, write_json
from edgecv.gallery.metrics import Vectors
from edgecv.gallery.settings import Settings
from edgecv.gallery.tensorfile import read_tensors, write_tensors

FORMAT = "edgecv.gallery"
VERSION = 1  # of the galleries that this code writes
READER = 1  # the highest min_reader that this code understands
MANIFEST = "gallery.json"

Names = NDArray[np.bytes_]  # [n], UTF-8: a tenth of the memory of a list of str


@dataclass(frozen=True)
class Rows:
    """Named vectors as a segment holds them."""

    vectors: Vectors  # [n, D]
    names: Names

    def __getitem__(self, keep: NDArray[Any] | slice) -> Rows:
        return Rows(self.vectors[keep], self.names[keep])


def manifest_identity(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise InputError(
            f"{path.parent}: there is no gallery here (no {MANIFEST}); `edgecv gallery enrol` "
            f"makes one"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def read_whole(path: Path) -> bytes:
    with open_binary(path) as file:
        return file.read()


def write_manifest(folder: Path, settings: Settings, segments: Sequence[Mapping[str, Any]]) -> None:
    write_json(
        folder / MANIFEST,
        {
            "format": FORMAT,
            "version": VERSION,
            "min_reader": 1,
            "settings": settings.to_dict(),
            "segments": [dict(segment) for segment in segments],
        },
    )


def parse_manifest(text: bytes, path: Path) -> tuple[Settings, tuple[Mapping[str, Any], ...]]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cut off or damaged ({error}); restore it from a copy") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"{path}: not a gallery's {MANIFEST} (its format is not {FORMAT!r})")
    needed = data.get("min_reader")
    if type(needed) is not int or needed > READER:
        raise InputError(
            f"{path}: written for readers of version {needed} and later, this EdgeCV reads up to "
            f"{READER}; update EdgeCV"
        )
    segments = data.get("segments")
    fine = isinstance(segments, list) and all(
        isinstance(s, dict)
        and isinstance(s.get("file"), str)
        and Path(s["file"]).name == s["file"]  # never outside the folder
        and type(s.get("count")) is int
        and type(s.get("crc32")) is int
        for s in segments
    )
    if not fine or not isinstance(segments, list):
        raise InputError(f"{path}: its list of segments is damaged; restore it from a copy")
    return Settings.from_dict(data.get("settings", {}), str(path)), tuple(segments)


def write_segment(folder: Path, rows: Rows) -> dict[str, Any]:
    name = f"vectors-{secrets.token_hex(8)}.safetensors"
    width = max(1, rows.names.dtype.itemsize)
    names = rows.names.astype(f"S{width}").view(np.uint8).reshape(len(rows.names), width)
    tensors: dict[str, NDArray[Any]] = {"vectors": rows.vectors, "names": names}
    with atomic_write(folder / name) as file:
        write_tensors(file, tensors, {"format": FORMAT, "version": str(VERSION)})
    return {"file": name, "count": len(names), "crc32": _checksum(tensors)}


def _checksum(tensors: Mapping[str, NDArray[Any]]) -> int:
    value = 0
    for name in ("vectors", "names"):
        value = zlib.crc32(np.ascontiguousarray(tensors[name]).data.cast("B"), value)
    return value


def read_segment(folder: Path, segment: Mapping[str, Any], dimension: int) -> Rows:
    path = folder / segment["file"]
    tensors, _ = read_tensors(path)
    count = segment["count"]
    shapes = {name: (str(t.dtype), t.shape[:1]) for name, t in tensors.items()}
    expected = {
        "vectors": ("float32", (count,)),
        "names": ("uint8", (count,)),
    }
    fine = shapes == expected and tensors["vectors"].shape == (count, dimension)
    if not fine or tensors["names"].ndim != 2 or _checksum(tensors) != segment["crc32"]:
        raise InputError(
            f"{path}: damaged: it is not what {MANIFEST} says of it; restore the folder from a copy"
        )
    names = np.ascontiguousarray(tensors["names"]).view(f"S{tensors['names'].shape[1]}")[:, 0]
    return Rows(tensors["vectors"], names)


def erase(path: Path) -> None:
    try:
        with path.open("r+b") as file:
            left = file.seek(0, os.SEEK_END)
            file.seek(0)
            while left > 0:
                left -= file.write(bytes(min(left, 1 << 20)))
            file.flush()
            os.fsync(file.fileno())
        path.unlink()
    except OSError as error:
        raise InputError(f"{path}: could not be erased ({error.strerror}); erase it") from error
