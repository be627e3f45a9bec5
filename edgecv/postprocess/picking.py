"""Which rows of a detector's tensors are candidates, what all its families share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import RuntimeFailure
from edgecv.postprocess.boxes import Floats
from edgecv.postprocess.options import Array, Options, no_nan
from edgecv.results import Placement

Indices = NDArray[np.intp]


def input_size(placement: Placement, dtype: np.dtype[Any]) -> Floats:
    return np.array([placement.input_width, placement.input_height] * 2, dtype)


def pick_rows(rows: Array, conf: float, options: Options) -> tuple[Indices, Indices, Floats]:
    """:func:`pick` for rows ``[n, 5 + C]`` with objectness in column 4.

    A class score is at most 1, so only rows whose objectness passes have to be looked at.
    """
    confidence = rows[:, 4]
    no_nan(confidence, options.where)
    near = np.flatnonzero(confidence > conf)
    chosen = rows[near]
    found, best, score = pick(chosen[:, 5:] * chosen[:, 4:5], conf, options)
    return near[found], best, score


def pick(scores: Array, conf: float, options: Options) -> tuple[Indices, Indices, Floats]:
    """Rows, classes and scores of the candidates of ``scores`` ``[n, C]``."""
    if options.flag("multi_label", False):
        no_nan(scores, options.where)
        rows, classes = np.nonzero(scores > conf)
        return rows, classes, scores[rows, classes]
    classes = scores.argmax(axis=1)  # of a row with NaN: the NaN
    best = np.take_along_axis(scores, classes[:, None], axis=1)[:, 0]
    no_nan(best, options.where)
    rows = np.flatnonzero(best > conf)
    return rows, classes[rows], best[rows]


def pick_columns(scores: Array, limit: float, options: Options) -> tuple[Indices, Indices, Floats]:
    """:func:`pick` for ``[C, n]``: the maximum first, for few columns pass ``limit``."""
    best = scores.max(axis=0) if scores.shape[1] else scores[0]
    no_nan(best, options.where)
    near = np.flatnonzero(best > limit)
    if not options.flag("multi_label", False):
        chosen = scores[:, near]
        return near, chosen.argmax(axis=0), best[near]
    candidates = scores[:, near].T
    rows, classes = np.nonzero(candidates > limit)
    return near[rows], classes, scores[classes, near[rows]]


def class_numbers(values: Array, options: Options) -> NDArray[np.int64]:
    """Class numbers as integers; anything that is none of the labels' is an error."""
    numbers = values.astype(np.int64)
    count = len(options.spec.labels)
    if ((numbers != values) | (numbers < 0) | (numbers >= count)).any():
        wrong = values[(numbers != values) | (numbers < 0) | (numbers >= count)][0]
        raise RuntimeFailure(
            f"{options.where}: {wrong} is no class number from 0 to {count - 1}; are the outputs "
            f"or their columns in another order, or has the model other labels?"
        )
    return numbers
