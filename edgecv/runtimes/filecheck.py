"""What must be known of an ONNX file before a runtime reads it.

That it is whole, and that its external data, if it has some, lies where it may.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from edgecv import onnxproto as proto
from edgecv.errors import SpecError
from edgecv.files import make_folder, sha256_of
from edgecv.onnxfile import MAX_FIELDS
from edgecv.wire import Buffer, Field, fields, mapped, text

MAX_EXTERNAL_BYTES = 2 * 1024**3  # what a protobuf file itself can hold; no edge model has more

# where graphs, nodes, attributes and tensors contain one another: (kind, field number) -> kind
_INSIDE = {
    ("model", proto.MODEL_GRAPH): "graph",
    ("model", proto.MODEL_FUNCTION): "function",
    ("function", proto.FUNCTION_NODE): "node",
    ("function", proto.FUNCTION_ATTRIBUTE): "attribute",
    ("graph", proto.GRAPH_NODE): "node",
    ("graph", proto.GRAPH_INITIALIZER): "tensor",
    ("graph", proto.GRAPH_SPARSE): "sparse",
    ("node", proto.NODE_ATTRIBUTE): "attribute",
    ("attribute", proto.ATTRIBUTE_TENSOR): "tensor",
    ("attribute", proto.ATTRIBUTE_GRAPH): "graph",
    ("attribute", proto.ATTRIBUTE_TENSORS): "tensor",
    ("attribute", proto.ATTRIBUTE_GRAPHS): "graph",
    ("attribute", proto.ATTRIBUTE_SPARSE): "sparse",
    ("attribute", proto.ATTRIBUTE_SPARSES): "sparse",
    ("sparse", proto.SPARSE_VALUES): "tensor",
    ("sparse", proto.SPARSE_INDICES): "tensor",
}


def check_file(path: Path) -> None:
    """Refuse a file that no runtime should be asked to read.

    Raises :class:`~edgecv.errors.SpecError` for one that is cut off or not ONNX (some runtimes
    crash, or guess at other formats), and for external data that is absent, cut off, above
    :data:`MAX_EXTERNAL_BYTES`, or outside of the file's own folder: a model from elsewhere must
    not read ``/etc/shadow`` into its weights.
    """
    with mapped(path) as data:
        numbers = [field.number for field in fields(data, path, limit=MAX_FIELDS)]
        if proto.MODEL_GRAPH not in numbers:
            raise SpecError(f"{path}: not an ONNX model (there is no graph in it)")
        if not _may_have_external(data):
            return
        total = sum(_external_bytes(path, *found) for found in _external(data, path))
    if total > MAX_EXTERNAL_BYTES:
        raise SpecError(
            f"{path}: refers to {total:,} bytes of external data, at most {MAX_EXTERNAL_BYTES:,} "
            f"are allowed; export the model as one file"
        )


def content_sha256(path: Path) -> str:
    """The sha256 of the model ``path``: of its file, and of those that hold its external data.

    What caches of compiled models go by: onnxruntime's and OpenVINO's own keys are made of names,
    sizes and times, and give one model's weights to another. ``path`` has passed
    :func:`check_file`. Without external data it is the file's sha256.
    """
    digests = [sha256_of(path)]
    with mapped(path) as data:
        if _may_have_external(data):
            places = {entries["location"] for _, entries in _external(data, path)}
            folder = Path(os.path.realpath(path)).parent
            digests += [f"{place} {sha256_of(folder / place)}" for place in sorted(places)]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def content_folder(base: Path, path: Path, form: str = "") -> Path:
    """The folder of the cache ``base`` for what is compiled of the model ``path``, made if need be.

    ``form`` tells apart what the same content may be compiled to.
    """
    return make_folder(base / f"{content_sha256(path)[:24]}{form}")


def _may_have_external(data: Buffer) -> bool:
    """Every external tensor has an entry of this key; C finds it 100 times faster than we could
    walk the graph."""
    return data.find(b"location") >= 0


def _external(data: Buffer, path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Name and external-data entries of each tensor that has some."""
    for field in _tensors(data, path, "model", 0, len(data), 0):
        name, external, entries = "?", False, {}
        for part in fields(data, path, field.start, field.end):
            if part.number == proto.TENSOR_NAME:
                name = text(data, part, path)
            elif part.number == proto.TENSOR_LOCATION:
                external = part.value == proto.LOCATION_EXTERNAL
            elif part.number == proto.TENSOR_EXTERNAL:
                pair = {
                    f.number: text(data, f, path) for f in fields(data, path, part.start, part.end)
                }
                entries[pair.get(proto.ENTRY_KEY, "")] = pair.get(proto.ENTRY_VALUE, "")
        if external or entries:
            yield name, entries


def _tensors(
    data: Buffer, path: Path, kind: str, start: int, end: int, depth: int
) -> Iterator[Field]:
    if depth > proto.MAX_DEPTH:
        raise SpecError(f"{path}: graphs nested more than {proto.MAX_DEPTH} messages deep")
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
