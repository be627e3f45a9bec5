"""Landmarks: labelled points, and how far answers are from them.

The data set is a CSV file beside its pictures. The first line is a header. In the others the
first column is a picture's file, relative to the CSV's folder, and then come x and y of each point
in turn, in pixels of the upright picture, from its top left corner. A point whose two cells are
empty is not labelled, and does not count.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.evaluate.coco import sample

NEAR = 0.1  # of the normalizer: the error below which a point counts as found


@dataclass(frozen=True)
class LabelledPoints:
    """A picture and its ``points`` ``[K, 2]``: x, y in pixels, NaN where not labelled."""

    path: Path
    points: NDArray[np.float64]


def read_points(path: Path, limit: int | None = None) -> list[LabelledPoints]:
    """The pictures of a CSV file, in its order; ``limit`` draws that many by seed.

    Every line must have as many points as the header has pairs of columns.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable text file ({error})") from error
    header, *rows = list(csv.reader(text.splitlines())) or [[]]
    if len(header) < 3 or len(header) % 2 == 0:
        raise InputError(
            f"{path}: expected a header of a picture's column and two columns for each point "
            f"(picture,x1,y1,x2,y2,...), got {len(header)} columns"
        )
    if (path.parent / header[0].strip()).is_file():  # it would be skipped, and not missed
        raise InputError(
            f"{path}: line 1 is a picture; expected a header before it (picture,x1,y1,x2,y2,...)"
        )
    found = []
    for number, row in enumerate(rows, 2):
        if row:
            found.append(_read(row, len(header), path, f"{path}, line {number}"))
    if not found:
        raise InputError(f"{path}: has a header, and no pictures")
    return sample(found, limit)


def _read(row: list[str], columns: int, path: Path, where: str) -> LabelledPoints:
    if len(row) != columns:
        raise InputError(f"{where}: {len(row)} columns, the header has {columns}")
    picture = path.parent / row[0].strip()
    if not picture.is_file():
        raise InputError(f"{where}: there is no picture {picture}")
    try:
        values = [float(cell) if cell.strip() else np.nan for cell in row[1:]]
    except ValueError as error:
        raise InputError(f"{where}: expected numbers ({error})") from error
    points = np.array(values).reshape(-1, 2)
    half = np.isnan(points).sum(axis=1) == 1
    if half.any() or np.isinf(points).any():
        raise InputError(
            f"{where}: point {int(half.argmax()) + 1}: expected x and y, or two empty cells"
        )
    return LabelledPoints(picture, points)


def normalized_errors(
    truth: NDArray[np.float64], found: NDArray[np.floating], between: tuple[int, int] | None = None
) -> NDArray[np.float64]:
    """The distance of each labelled point ``[k]`` of a picture, by a length of that picture.

    Both are ``[K, 2]``. The length is the distance of the two points ``between`` (outer eye
    corners: 300-W's), or else the diagonal of the box around all labelled points. Empty where
    that length is 0 or not labelled.
    """
    known = ~np.isnan(truth).any(axis=1)
    if between is not None:
        length = float(np.linalg.norm(truth[between[0]] - truth[between[1]]))
    elif known.any():
        length = float(np.linalg.norm(np.ptp(truth[known], axis=0)))
    else:
        length = 0.0
    if not length > 0:  # also of NaN
        return np.zeros(0)
    distances = np.linalg.norm(truth[known] - found[known], axis=1)
    return np.asarray(distances / length, np.float64)


def summary(errors: list[NDArray[np.float64]]) -> tuple[float, float]:
    """The normalized mean error, and the share of points nearer than :data:`NEAR`."""
    every = np.concatenate(errors) if errors else np.zeros(0)
    if not len(every):
        raise InputError(
            "none of the pictures has labelled points that span a length: nothing to score"
        )
    return float(every.mean()), float((every < NEAR).mean())
