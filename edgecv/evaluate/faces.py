"""Verification data sets: pairs of pictures, of one person or of two."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.evaluate.coco import sample
from edgecv.gallery.folds import deal

_YES = {"yes", "true", "same", "1"}
_NO = {"no", "false", "different", "0"}


@dataclass(frozen=True)
class Pairs:
    """``left`` and ``right`` ``[N]`` index ``pictures`` (each listed once); ``same`` ``[N]`` says
    whether a pair is of one person, ``folds`` ``[N]`` to which fold it belongs (from 0)."""

    pictures: tuple[Path, ...]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    same: NDArray[np.bool_]
    folds: NDArray[np.int64]


def read_pairs(path: Path, limit: int | None = None) -> Pairs:
    """The pairs of ``path``; pictures are looked for beside it.

    Two formats are read: a CSV file with a header whose first three columns are two file names and
    a decision (yes/no, true/false, same/different, 1/0), and LFW's ``pairs.txt`` (``10 300``, then
    ``NAME 1 4`` or ``NAME 1 OTHER 2`` for ``NAME/NAME_0001.jpg``), which has folds of its own.
    A CSV's pairs are dealt out to ten folds in turn, those of one person and those of two
    separately, so that every fold has both. ``limit`` draws that many by seed.

    Raises :class:`~edgecv.errors.InputError` for anything else, and for absent pictures.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable text file ({error})") from error
    rows = _read_csv(text, path) if "," in text.partition("\n")[0] else _read_lfw(text, path)
    rows = sample(rows, limit)
    index: dict[str, int] = {}
    for row in rows:
        for name in row[:2]:
            index.setdefault(name, len(index))
    pictures = tuple(path.parent / name for name in index)
    absent = [picture for picture in pictures if not picture.is_file()]
    if absent:
        raise InputError(
            f"{path}: {len(absent)} of {len(pictures)} pictures are not there, such as {absent[0]}"
        )
    same = np.array([row[2] for row in rows], bool)
    stated = [row[3] for row in rows]
    folds = np.array(stated, np.int64) if min(stated) >= 0 else deal(same)
    left = np.array([index[row[0]] for row in rows], np.int64)
    right = np.array([index[row[1]] for row in rows], np.int64)
    return Pairs(pictures, left, right, same, folds)


_Row = tuple[str, str, bool, int]  # two names, whether of one person, the fold (-1: not stated)


def _read_csv(text: str, path: Path) -> list[_Row]:
    rows: list[_Row] = []
    for number, cells in enumerate(csv.reader(text.splitlines()), 1):
        if not cells:
            continue
        if number == 1:
            if (path.parent / cells[0].strip()).is_file():  # it would be skipped, and not missed
                raise InputError(
                    f"{path}: line 1 is a pair; expected a header before it, such as "
                    f"file_x,file_y,same"
                )
            continue
        word = cells[2].strip().casefold() if len(cells) >= 3 else ""
        if word not in _YES | _NO:
            raise InputError(
                f"{path}: line {number}: expected two file names and yes or no, got {cells}"
            )
        rows.append((cells[0].strip(), cells[1].strip(), word in _YES, -1))
    if not rows:
        raise InputError(f"{path}: there are no pairs in this file")
    return rows


def _read_lfw(text: str, path: Path) -> list[_Row]:
    lines = [line.split() for line in text.splitlines() if line.strip()]
    rows: list[_Row] = []
    try:
        head = [int(cell) for cell in lines[0]]
        folds, each = (head[0], head[1]) if len(head) == 2 else (1, head[0])
        for number, cells in enumerate(lines[1:]):
            fold = number // (2 * each) if folds > 1 else -1
            if len(cells) == 3:
                rows.append((_lfw(cells[0], cells[1]), _lfw(cells[0], cells[2]), True, fold))
            else:
                one, first, other, second = cells
                rows.append((_lfw(one, first), _lfw(other, second), False, fold))
    except (ValueError, IndexError) as error:
        raise InputError(
            f"{path}: expected a CSV file with a header (file_x,file_y,same), or LFW's pairs.txt "
            f"(NAME 1 4, or NAME 1 OTHER 2, under a line with the number of folds and pairs)"
        ) from error
    if len(rows) != 2 * each * folds:
        raise InputError(
            f"{path}: its first line promises {2 * each * folds} pairs, {len(rows)} came"
        )
    return rows


def _lfw(name: str, number: str) -> str:
    return f"{name}/{name}_{int(number):04d}.jpg"
