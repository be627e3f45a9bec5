"""The names of a data set's classes, matched to those of a model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgecv.errors import InputError


def match_classes(
    names: Sequence[str], labels: Sequence[str], where: Path, classes: Path | None = None
) -> list[int]:
    """The model's class index for each of a data set's class ``names``.

    They are matched by name (:func:`class_key`) with the model's ``labels``, or by the file
    ``classes`` (:func:`read_classes`). A name that matches nothing is an error: leaving its
    objects out would change the score.
    """
    index = own_classes(labels) if classes is None else read_classes(classes, len(labels))
    unknown = [name for name in names if class_key(name) not in index]
    if unknown:
        shown = ", ".join(labels[:5]) + (", ..." if len(labels) > 5 else "")
        raise InputError(
            f"{where}: {len(unknown)} of its {len(names)} classes are no class of the model, such "
            f"as {', '.join(unknown[:3])}; the model's are {shown}; name them alike, or map them "
            f"with --classes FILE"
        )
    refuse_shared(names, index, where)
    return [index[class_key(name)] for name in names]


SHARED = -1  # the index of a name that several of the model's classes have


def own_classes(labels: Sequence[str], ids: Sequence[str] = ()) -> dict[str, int]:
    """The index of each class by the :func:`class_key` of its label, and of its id, which wins;
    :data:`SHARED` for what is not one class's alone (ImageNet-1k has two cranes)."""
    index: dict[str, int] = {}
    for names in (labels, ids):
        own: dict[str, int] = {}
        for i, name in enumerate(names):
            own[class_key(name)] = SHARED if class_key(name) in own else i
        index |= own
    return index


def refuse_shared(names: Sequence[str], index: Mapping[str, int], where: Path) -> None:
    """An :class:`~edgecv.errors.InputError` where one of ``names`` does not say which it is."""
    if shared := [name for name in names if index[class_key(name)] == SHARED]:
        raise InputError(
            f"{where}: several classes of the model are named {shared[0]}; name the folder by the "
            f"class's id, or map the names with --classes FILE"
        )


def read_classes(path: Path, count: int) -> dict[str, int]:
    """The indices from 0 to ``count - 1`` that a user's file gives to names (:func:`class_key`).

    A JSON object ``{"name": index}``, or a text file in which line i names class i
    (``n01440764 tench``: the id, the name, or all of it).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable text file ({error})") from error
    if path.suffix == ".json":
        return _read_json_classes(path, text, count)
    index: dict[str, int] = {}
    for i, line in enumerate(text.splitlines()):
        head, _, tail = line.strip().partition("\t" if "\t" in line else " ")
        for name in (line, head, tail):
            if name.strip():
                index.setdefault(class_key(name), i)
    lines = len(text.splitlines())
    if lines > count:
        raise InputError(f"{path}: names {lines} classes, the model has {count}")
    return index


def _read_json_classes(path: Path, text: str, count: int) -> dict[str, int]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    fits = isinstance(data, Mapping) and all(
        type(value) is int and 0 <= value < count for value in data.values()
    )
    if not fits:
        raise InputError(
            f"{path}: expected an object of names and class indices from 0 to {count - 1}"
        )
    return {class_key(name): value for name, value in data.items()}


def class_key(name: str) -> str:
    """What names of one class have in common: case, blanks, hyphens, underscores are ignored."""
    return re.sub(r"[\s_-]+", "", name).casefold()
