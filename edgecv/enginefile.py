"""Engine files: a compiled engine and the contract of the model that it came from, in one file.

::

    16 bytes   magic
     8 bytes   size of the header, little-endian
    N bytes    header, JSON: what the engine is, for which GPUs, and the model's metadata entries
    the rest   the engine, as TensorRT serialized it

Read without TensorRT; a header of another ``version`` is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgecv.errors import SpecError
from edgecv.files import atomic_write
from edgecv.wire import mapped

MAGIC = b"EdgeCV engine\r\n\x1a"  # a text-mode copy damages it, as in PNG
VERSION = 1
MAX_HEADER_BYTES = 32 * 1024 * 1024  # the contract may have 16 MB of it


@dataclass(frozen=True)
class EngineHeader:
    """What an engine is, by whom it was built and for what."""

    backend: str  # tensorrt or tensorrt-rtx
    library_version: str  # an engine runs on the version that built it
    gpus: tuple[str, ...]  # sm86: compute capability 8.6
    model_sha256: str
    engine_sha256: str
    inputs: tuple[Mapping[str, Any], ...]  # {name, shape, dtype} of each, as contracts have them
    outputs: tuple[Mapping[str, Any], ...]
    profile: Mapping[str, tuple[int, int, int]]  # {symbol: (least, usual, most)}
    settings: Mapping[str, Any]  # of the builder
    nodes: Mapping[str, int]  # convolutions and products by precision: strongly typed, so they hold
    metadata: Mapping[str, str] = field(default_factory=dict)  # the ONNX file's entries
    version: int = VERSION


def is_engine(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` begins as an engine file does."""
    with mapped(path) as data:
        return data[: len(MAGIC)] == MAGIC


def write_engine(path: str | os.PathLike[str], header: EngineHeader, engine: bytes) -> None:
    """Write an engine file; ``path`` appears whole or not at all."""
    text = json.dumps(asdict(header), sort_keys=True, separators=(",", ":")).encode()
    with atomic_write(path) as file:
        file.writelines([MAGIC, len(text).to_bytes(8, "little"), text, engine])


def read_header(path: str | os.PathLike[str]) -> EngineHeader:
    """What the engine file ``path`` says of itself; the engine is not read.

    Raises :class:`~edgecv.errors.SpecError` for a damaged file or one of another version.
    """
    return _read(Path(path), whole=False)[0]


def read_engine(path: str | os.PathLike[str]) -> tuple[EngineHeader, bytes]:
    """Header and engine; one whose bytes are not those that were written is a ``SpecError``."""
    return _read(Path(path), whole=True)


def _read(path: Path, *, whole: bool) -> tuple[EngineHeader, bytes]:
    start = len(MAGIC) + 8
    with mapped(path) as data:
        size = int.from_bytes(data[len(MAGIC) : start], "little")
        if data[: len(MAGIC)] != MAGIC or size > MAX_HEADER_BYTES or start + size > len(data):
            raise SpecError(f"{path}: not an engine file of EdgeCV, or cut off; build it again")
        header = _parse(data[start : start + size], path)
        engine = data[start + size :] if whole else b""
    if whole and hashlib.sha256(engine).hexdigest() != header.engine_sha256:
        raise SpecError(f"{path}: the engine in it is damaged (its sha256 differs); build it again")
    return header, engine


def _parse(text: bytes, path: Path) -> EngineHeader:
    try:
        raw = json.loads(text)
        if raw["version"] != VERSION:
            raise SpecError(
                f"{path}: an engine file of version {raw['version']}, this EdgeCV reads {VERSION}; "
                f"build it again"
            )
        profile = raw["profile"].items()
        return EngineHeader(
            backend=str(raw["backend"]),
            library_version=str(raw["library_version"]),
            gpus=tuple(map(str, raw["gpus"])),
            model_sha256=str(raw["model_sha256"]),
            engine_sha256=str(raw["engine_sha256"]),
            inputs=tuple(map(dict, raw["inputs"])),
            outputs=tuple(map(dict, raw["outputs"])),
            profile={str(key): (int(a), int(b), int(c)) for key, (a, b, c) in profile},
            settings=dict(raw["settings"]),
            nodes={str(key): int(count) for key, count in raw["nodes"].items()},
            metadata={str(key): str(value) for key, value in raw["metadata"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SpecError(f"{path}: the header is damaged ({error!r}); build it again") from error
