"""The outermost layer of an ONNX file: its metadata entries, read and written without onnx.

An ONNX file is one protobuf message, ``ModelProto`` (onnx.proto3). Its top level is walked field
by field; the graph (field 7) with the weights is skipped unread, so that the metadata
(``metadata_props``, field 14) of a file of any size costs a few kilobytes.
"""

from __future__ import annotations

import os
from pathlib import Path

from edgecv.enginefile import is_engine, read_header
from edgecv.errors import SpecError
from edgecv.files import atomic_write
from edgecv.onnxproto import ENTRY_KEY, ENTRY_VALUE, MODEL_GRAPH, MODEL_METADATA
from edgecv.wire import fields, mapped, message, text

MAX_ENTRY_BYTES = 16 * 1024 * 1024  # a contract of 21,000 labels and a self-test stays under 1 MB
MAX_FIELDS = 100_000  # at the top level: a real file has one per opset, function and entry


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """All metadata entries of an ONNX file, without loading its graph or weights.

    An engine file (:mod:`edgecv.enginefile`) has those of the ONNX file that it was built from.

    Raises :class:`~edgecv.errors.SpecError` for a file that is truncated or not ONNX,
    :class:`~edgecv.errors.InputError` for one that is not there.
    """
    path = Path(path)
    if is_engine(path):
        return dict(read_header(path).metadata)
    found: dict[str, str] = {}
    graph_seen = False
    with mapped(path) as data:
        for number, start, end, _ in fields(data, path, limit=MAX_FIELDS):
            graph_seen = graph_seen or number == MODEL_GRAPH
            if number == MODEL_METADATA:
                if end - start > MAX_ENTRY_BYTES:
                    size = f"{end - start} bytes"
                    raise SpecError(f"{path}: a metadata entry of {size}; that is no contract")
                key, value = _entry(data[start:end], path)
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
    for number, start, end, _ in fields(data, Path(path), limit=MAX_FIELDS):
        if not (number == MODEL_METADATA and _entry(data[start:end], Path(path))[0] == key):
            kept.append(data[position:end])
        position = end
    entry = message(ENTRY_KEY, key.encode()) + message(ENTRY_VALUE, value.encode())
    with atomic_write(path) as out:
        out.writelines([*kept, message(MODEL_METADATA, entry)])


def _entry(data: bytes, path: Path) -> tuple[str, str]:
    """Key and value of a ``StringStringEntryProto``."""
    texts = {ENTRY_KEY: "", ENTRY_VALUE: ""}
    for field in fields(data, path, limit=MAX_FIELDS):
        if field.number in texts:
            texts[field.number] = text(data, field, path)
    return texts[ENTRY_KEY], texts[ENTRY_VALUE]
