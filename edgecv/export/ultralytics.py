"""What Ultralytics' exporter writes into an ONNX file about the model: text, never code.

Its entries are the ``str()`` of Python values; they are read as literals. YOLOv5's own exporter
writes ``names`` and ``stride`` only.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass

from edgecv.errors import SpecError


@dataclass(frozen=True)
class UltralyticsNote:
    """The entries that matter; each is None, or empty, where the file has none.

    ``size``: (height, width). ``family``: ``yolov8n``, ``yolo11s-cls``, ... from the description.
    """

    names: tuple[str, ...]
    size: tuple[int, int] | None
    stride: int | None
    task: str | None
    licence: str
    family: str | None
    version: str | None


def read_note(metadata: Mapping[str, str], where: str) -> UltralyticsNote | None:
    """The note in an ONNX file's ``metadata``; None where there is none.

    Raises :class:`~edgecv.errors.SpecError` for entries that are not what they should be.
    """
    if "names" not in metadata or "stride" not in metadata:
        return None
    names = _literal(metadata["names"], f"{where}: metadata 'names'")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or sorted(names) != list(range(len(names))):
        raise SpecError(
            f"{where}: metadata 'names': expected the classes 0 to n - 1 with a name each, got "
            f"{metadata['names'][:80]!r}"
        )
    size = None
    if "imgsz" in metadata:
        size = _size(_literal(metadata["imgsz"], f"{where}: metadata 'imgsz'"), where)
    description = re.match(r"Ultralytics ([\w.-]+) model", metadata.get("description", ""))
    stride = _literal(metadata["stride"], f"{where}: metadata 'stride'")
    return UltralyticsNote(
        names=tuple(str(names[i]) for i in range(len(names))),
        size=size,
        stride=int(stride) if isinstance(stride, int | float) else None,
        task=metadata.get("task"),
        licence=metadata.get("license", ""),
        family=description[1].lower() if description else None,
        version=metadata.get("version"),
    )


def _size(value: object, where: str) -> tuple[int, int]:
    values = [value, value] if isinstance(value, int) else value
    if not isinstance(values, list | tuple) or len(values) != 2:
        raise SpecError(f"{where}: metadata 'imgsz': expected [height, width], got {value!r}")
    height, width = values
    if not isinstance(height, int) or not isinstance(width, int):
        raise SpecError(f"{where}: metadata 'imgsz': expected whole numbers, got {value!r}")
    return height, width


def _literal(text: str, what: str) -> object:
    try:
        value: object = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise SpecError(f"{what}: not a plain value: {text[:80]!r}") from error
    return value
