"""Segmentation: the mean intersection over union of labelled pictures.

The data set is a folder with ``images`` and ``masks`` in it; ``images/a/b.jpg`` has the mask
``masks/a/b.png``, of one channel or a palette, whose values are class indices. 255 marks pixels
that do not count.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from edgecv.errors import InputError
from edgecv.evaluate.classes import read_classes
from edgecv.evaluate.coco import sample
from edgecv.files import open_binary
from edgecv.preprocess import list_pictures

REST = "rest"
IGNORED = 255  # the mask's value of pixels that do not count (PASCAL VOC, Cityscapes, ADE20K)


@dataclass(frozen=True)
class LabelledMasks:
    """Pictures, each one's mask, and the model's class for each of a mask's values.

    ``classes`` ``[256]``: -1 marks values that do not count.
    """

    pictures: tuple[Path, ...]
    masks: tuple[Path, ...]
    classes: NDArray[np.int64]


def read_masks(
    folder: Path, count: int, classes: Path | None = None, limit: int | None = None
) -> LabelledMasks:
    """The pictures of ``folder/images`` that have a mask, for a model of ``count`` classes.

    ``classes`` is a JSON object ``{"value": index}``, in which ``rest`` stands for all values that
    it does not name; without it a mask's values are the model's own indices. Pictures without a
    mask are not labelled, and left out; a mask without its picture is an error. ``limit`` draws
    that many by seed.
    """
    masks = _by_stem(folder / "masks")
    pictures = _by_stem(folder / "images", masks)
    if not masks:
        raise InputError(f"{folder / 'masks'}: there are no masks")
    if missing := [path for key, path in masks.items() if key not in pictures]:
        raise InputError(
            f"{folder}: {len(missing)} masks have no picture in images, such as {missing[0].name}"
        )
    chosen = sample(sorted(masks), limit)
    table = np.full(256, -1, np.int64)
    if classes is None:
        table[: min(count, IGNORED)] = np.arange(min(count, IGNORED))
    else:
        given = read_classes(classes, count)
        table[:] = given.pop(REST, -1)
        for value, index in given.items():
            if not value.isdigit() or int(value) > 255:
                raise InputError(f"{classes}: {value!r} is not a mask's value from 0 to 255")
            table[int(value)] = index
    table[IGNORED] = -1
    return LabelledMasks(
        tuple(pictures[key] for key in chosen), tuple(masks[key] for key in chosen), table
    )


def _by_stem(folder: Path, wanted: Container[Path] | None = None) -> dict[Path, Path]:
    """The pictures of ``folder`` by their path in it, without the suffix; if only some are
    ``wanted``, those."""
    found: dict[Path, Path] = {}
    for path in list_pictures(folder):
        key = path.relative_to(folder).with_suffix("")
        if wanted is not None and key not in wanted:
            continue
        if key in found:
            raise InputError(
                f"{folder}: {found[key].name} and {path.name} are of one name: which mask is which "
                f"picture's cannot be told"
            )
        found[key] = path
    return found


def read_mask(path: Path, size: tuple[int, int], classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The mask ``[H, W]`` of a picture of ``size`` (width, height) in the model's classes.

    -1 marks pixels that do not count. A value that ``classes`` (see :class:`LabelledMasks`) does
    not know is an error, 255 excepted.
    """
    try:
        with open_binary(path) as file, Image.open(file) as picture:
            if picture.mode not in ("L", "P", "1"):
                raise InputError(
                    f"{path}: a mask of mode {picture.mode}; expected one channel of class indices"
                )
            values = np.asarray(picture.convert("L") if picture.mode == "1" else picture)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InputError(f"{path}: not a picture that Pillow can read ({error})") from error
    if values.shape != size[::-1]:
        raise InputError(
            f"{path}: {values.shape[1]}x{values.shape[0]} pixels, its picture has "
            f"{size[0]}x{size[1]}"
        )
    present = np.unique(values)
    if unknown := [int(v) for v in present if classes[v] < 0 and v != IGNORED]:
        raise InputError(
            f"{path}: the value {unknown[0]} is no class of the model; map the masks' values with "
            f"--classes FILE.json"
        )
    out: NDArray[np.int64] = classes[values]
    return out


def confusion(truth: NDArray[np.int64], found: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Pixels by class ``[count, count]``: rows the truth's, columns what was found.

    Pixels of ``truth`` that are -1 do not count.
    """
    known = truth >= 0
    pairs = truth[known] * count + found[known]
    return np.bincount(pairs, minlength=count * count).reshape(count, count)


def mean_iou(table: NDArray[np.int64], labels: Sequence[str]) -> tuple[float, dict[str, float]]:
    """The mean IoU of a :func:`confusion` over all pictures, and each class's.

    A class that neither the truth nor the answers have is left out.
    """
    both = np.diag(table).astype(np.float64)
    either = table.sum(axis=0) + table.sum(axis=1) - both
    per_class = {
        label: float(both[i] / either[i]) for i, label in enumerate(labels) if either[i] > 0
    }
    if not per_class:
        raise InputError("none of the masks has a pixel that counts: there is nothing to score")
    return float(np.mean(list(per_class.values()))), per_class
