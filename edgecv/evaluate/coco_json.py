"""Labelled pictures as COCO writes them: one JSON file with images, annotations, categories."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgecv.errors import InputError
from edgecv.evaluate.classes import match_classes
from edgecv.evaluate.coco import LabelledPicture, sample


def read_coco(
    path: Path, labels: tuple[str, ...], classes: Path | None = None, limit: int | None = None
) -> list[LabelledPicture]:
    """The pictures of the COCO file ``path``, in the order of their ids.

    Its categories are matched to the model's ``labels`` by name, or by the file ``classes``; only
    those that have an annotation need one. The pictures lie beside the file, in ``images`` beside
    it or beside its folder, or in a folder that is named after the file's last word
    (``annotations/instances_val2017.json`` and ``val2017``). ``limit`` draws that many by seed.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        images = {int(entry["id"]): str(entry["file_name"]) for entry in data["images"]}
        names = {int(entry["id"]): str(entry["name"]) for entry in data["categories"]}
        annotations = [entry for entry in data["annotations"] if "bbox" in entry]
        used = sorted({int(entry["category_id"]) for entry in annotations})
        by_image: dict[int, list[Mapping[str, Any]]] = {key: [] for key in images}
        for entry in annotations:
            by_image[int(entry["image_id"])].append(entry)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable text file ({error})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: not a COCO file: expected an object with images, annotations and categories, "
            f"each annotation with a known image_id ({type(error).__name__}: {error})"
        ) from error
    if not images:
        raise InputError(f"{path}: lists no pictures")
    if missing := [key for key in used if key not in names]:
        raise InputError(f"{path}: category_id {missing[0]} is not among its categories")
    indices = match_classes([names[key] for key in used], labels, path, classes)
    index = dict(zip(used, indices, strict=True))
    folder = _pictures_folder(path, sorted(images.values()))
    if len(set(images.values())) < len(images):  # one would take the other's place
        raise InputError(f"{path}: two of its images have one file_name; each must be listed once")
    located = {folder / images[key]: key for key in sorted(images)}
    return [
        _picture(picture, by_image[located[picture]], index, path)
        for picture in sample(list(located), limit)
    ]


def _picture(
    picture: Path, entries: list[Mapping[str, Any]], index: Mapping[int, int], where: Path
) -> LabelledPicture:
    try:
        boxes = np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4)
        areas = np.array([entry.get("area", np.nan) for entry in entries], np.float64)
        crowd = np.array([bool(entry.get("iscrowd", 0)) for entry in entries], np.bool_)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{where}: {picture.name} has an annotation whose bbox is not [x, y, width, height]"
        ) from error
    if not np.isfinite(boxes).all() or (boxes[:, 2:] < 0).any():
        raise InputError(f"{where}: {picture.name} has a bbox that is negative or not finite")
    boxes[:, 2:] += boxes[:, :2]
    kinds = np.array([index[int(entry["category_id"])] for entry in entries], np.int64)
    return LabelledPicture(picture, boxes, kinds, areas, crowd)


def _pictures_folder(path: Path, names: list[str]) -> Path:
    """The folder in which all the pictures are."""
    word = path.stem.rpartition("_")[2]
    above = path.parent.parent
    places = [
        path.parent,
        path.parent / "images",
        path.parent / word,
        above,
        above / "images",
        above / word,
        above / "images" / word,
    ]
    best: tuple[int, Path, str] | None = None
    for place in places:
        missing = [name for name in names if not (place / name).is_file()]
        if not missing:
            return place
        if best is None or len(missing) < best[0]:
            best = len(missing), place, missing[0]
    assert best is not None
    if best[0] < len(names):
        raise InputError(
            f"{path}: {best[0]} of its {len(names)} pictures are missing in {best[1]}, such as "
            f"{best[2]}"
        )
    looked = ", ".join(str(place) for place in dict.fromkeys(places))
    raise InputError(f"{path}: its pictures, such as {names[0]}, are in none of {looked}")
