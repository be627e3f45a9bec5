"""Labelled pictures as YOLO's tools write them: a text file of boxes beside each picture.

A line is ``class cx cy width height``, in parts of the picture's width and height, or ``class x1
y1 x2 y2 x3 y3 ...``, a polygon, of which the box around it is taken. A picture's file is named
after it: ``images/a/b.jpg`` has ``labels/a/b.txt``. A picture with no file, or with an empty one,
has nothing in it, and counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.evaluate.classes import match_classes
from edgecv.evaluate.coco import LabelledPicture, sample
from edgecv.preprocess import list_pictures

SPLITS = ("train", "val", "test")
DEFAULT_SPLIT = "val"


def read_yolo(
    path: Path,
    labels: tuple[str, ...],
    split: str | None = None,
    classes: Path | None = None,
    limit: int | None = None,
) -> list[LabelledPicture]:
    """The pictures of a ``data.yaml``, or of a folder with one, or with ``images`` and ``labels``.

    ``split`` is a key of the ``data.yaml`` (``val`` where it is None). Its class names are matched
    to the model's ``labels`` by name, or by the file ``classes``. Without a ``data.yaml`` the
    numbers in the files are the model's own. ``limit`` draws that many pictures by seed.
    """
    yaml = path if path.is_file() else path / "data.yaml"
    if yaml.is_file():
        pictures, names = _read_yaml(yaml, split or DEFAULT_SPLIT)
        index = _matched(names, labels, yaml, classes)
    elif (path / "images").is_dir() and (path / "labels").is_dir():
        if split is not None:
            raise InputError(
                f"{path}: --split {split} needs a data.yaml there that says what it is; without "
                f"one all the pictures of {path / 'images'} are taken"
            )
        if classes is not None:
            raise InputError(
                f"{path}: --classes maps names, and without a data.yaml there are none: the "
                f"numbers in the label files are taken for the model's own"
            )
        pictures = list_pictures(path / "images")
        index = {i: i for i in range(len(labels))}
    else:
        raise InputError(
            f"{path}: expected a data.yaml, or a folder with one, or a folder with images and "
            f"labels in it"
        )
    if not pictures:
        raise InputError(f"{yaml if yaml.is_file() else path}: there are no pictures")
    files = {picture: _label_file(picture) for picture in pictures}
    if not any(file.is_file() for file in files.values()):
        raise InputError(
            f"{path}: none of its {len(pictures)} pictures has a label file; expected, say, "
            f"{files[pictures[0]]}"
        )
    return [_read(picture, files[picture], index) for picture in sample(pictures, limit)]


def yolo_splits(path: Path) -> tuple[str, ...]:
    """The splits that the ``data.yaml`` of :func:`read_yolo`'s ``path`` names; none without one."""
    yaml = path if path.is_file() else path / "data.yaml"
    data = _load(yaml) if yaml.is_file() else {}
    return tuple(key for key in SPLITS if data.get(key))


def yolo_names(path: Path) -> tuple[str, ...]:
    """The class names of that ``data.yaml``, in the order of their numbers; none without one."""
    yaml = path if path.is_file() else path / "data.yaml"
    if not yaml.is_file():
        return ()
    names = _names(_load(yaml), yaml)
    return tuple(names[key] for key in sorted(names))


def _matched(
    names: Mapping[int, str], labels: tuple[str, ...], where: Path, classes: Path | None
) -> dict[int, int]:
    order = sorted(names)
    indices = match_classes([names[key] for key in order], labels, where, classes)
    return dict(zip(order, indices, strict=True))


def _label_file(picture: Path) -> Path:
    """``.../images/a/b.jpg`` -> ``.../labels/a/b.txt``: the last folder named images is meant."""
    parts = list(picture.parts)
    for position in range(len(parts) - 2, -1, -1):
        if parts[position] == "images":
            parts[position] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _read(picture: Path, file: Path, index: Mapping[int, int]) -> LabelledPicture:
    boxes: list[NDArray[np.float64]] = []
    kinds = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not a readable text file ({error})") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            kind, box = _parse(line, f"{file}, line {number}")
            if kind not in index:
                raise InputError(
                    f"{file}, line {number}: class {kind} is not one of the {len(index)} classes "
                    f"({min(index, default=0)} to {max(index, default=0)})"
                )
            kinds.append(index[kind])
            boxes.append(box)
    return LabelledPicture(
        path=picture,
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        classes=np.array(kinds, np.int64),
        areas=np.full(len(kinds), np.nan),
        crowd=np.zeros(len(kinds), np.bool_),
        relative=True,
    )


def _parse(line: str, where: str) -> tuple[int, NDArray[np.float64]]:
    try:
        values = [float(word) for word in line.split()]
    except ValueError as error:
        raise InputError(f"{where}: expected numbers, got {line.strip()[:60]!r}") from error
    polygon = len(values) >= 7 and len(values) % 2 == 1
    if (len(values) != 5 and not polygon) or values[0] % 1 != 0:  # also of NaN and infinity
        raise InputError(
            f"{where}: expected `class cx cy width height` or `class x1 y1 x2 y2 x3 y3 ...`, got "
            f"{line.strip()[:60]!r}"
        )
    numbers = np.array(values[1:])
    if not ((numbers >= -0.01) & (numbers <= 1.01)).all():  # labelling tools round
        raise InputError(
            f"{where}: expected parts of the picture's size, 0 to 1 (pixels are to be divided by "
            f"it), got {line.strip()[:60]!r}"
        )
    if polygon:
        points = numbers.reshape(-1, 2)
        return int(values[0]), np.concatenate([points.min(axis=0), points.max(axis=0)])
    center, half = numbers[:2], numbers[2:] / 2
    return int(values[0]), np.concatenate([center - half, center + half])


def _read_yaml(path: Path, split: str) -> tuple[list[Path], dict[int, str]]:
    data = _load(path)
    splits = [key for key in SPLITS if data.get(key)]
    if split not in splits:
        raise InputError(
            f"{path}: has no split {split!r}; it has {', '.join(splits) or 'none'} (--split)"
        )
    names = _names(data, path)
    entries = data[split] if isinstance(data[split], list) else [data[split]]
    pictures: list[Path] = []
    for entry in entries:
        pictures += _pictures(path, data.get("path"), str(entry))
    return pictures, names


def _names(data: Mapping[str, Any], path: Path) -> dict[int, str]:
    names = data.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(isinstance(key, int) for key in names) or not names:
        raise InputError(f"{path}: names: expected a list of class names, or numbers and names")
    if data.get("nc", len(names)) != len(names):
        raise InputError(f"{path}: nc is {data['nc']}, names has {len(names)}")
    return {key: str(name) for key, name in names.items()}


def _pictures(yaml: Path, root: object, entry: str) -> list[Path]:
    """What one entry of a split means: a folder, or a text file that lists pictures.

    It is relative to ``path``, and that to the file's own folder. Files by Roboflow say
    ``../valid/images`` for a folder that lies beside them, so that is tried as well.
    """
    tried = []
    for base in ([yaml.parent / str(root)] if root else []) + [yaml.parent]:
        for name in dict.fromkeys((entry, entry.removeprefix("../"))):
            place = base / name
            if place.is_dir():
                return list_pictures(place)
            if place.is_file() and place.suffix == ".txt":
                return _listed(place)
            tried.append(str(place))
    raise InputError(f"{yaml}: {entry} is not there; looked for {', '.join(tried)}")


def _listed(file: Path) -> list[Path]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not a readable text file ({error})") from error
    pictures = [file.parent / line.strip() for line in lines if line.strip()]
    if missing := [picture for picture in pictures if not picture.is_file()]:
        raise InputError(
            f"{file}: {len(missing)} of its {len(pictures)} pictures are missing, such as "
            f"{missing[0]}"
        )
    return pictures


def _load(path: Path) -> Mapping[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise InputError(
            f"{path}: reading YAML needs the package PyYAML: pip install 'edgecv[eval]'"
        ) from error
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not readable as YAML ({error})") from error
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected keys and values, such as val: images/val")
    return data
