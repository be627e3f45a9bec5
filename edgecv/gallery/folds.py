"""The accuracy of verification by folds: the LFW protocol (Huang et al. 2007).

For each of ten folds the threshold is chosen on the other nine and scored on this one, so that no
pair helps to choose the threshold that judges it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.gallery.metrics import accepts
from edgecv.gallery.thresholds import most_accurate, roc

FOLDS = 10


def deal(same: NDArray[np.bool_]) -> NDArray[np.int64]:
    """A fold for each pair ``[N]``, so that each has its share of both kinds.

    Fewer than :data:`FOLDS` where there are fewer pairs of a kind; fewer than two pairs of a kind
    are an :class:`~edgecv.errors.InputError`: one cannot both choose and be judged.
    """
    fewest = int(min(same.sum(), (~same).sum()))
    if fewest < 2:
        raise InputError(
            f"expected at least 2 pairs of one person and 2 of two, got {int(same.sum())} and "
            f"{int((~same).sum())}"
        )
    folds = np.empty(len(same), np.int64)
    for kind in (same, ~same):
        folds[kind] = np.arange(int(kind.sum())) % min(FOLDS, fewest)
    return folds


def fold_hits(
    scores: NDArray[np.float64],
    same: NDArray[np.bool_],
    folds: NDArray[np.int64],
    metric: str = "cosine",
) -> tuple[NDArray[np.bool_], list[float]]:
    """Which pairs ``[N]`` are judged right by a threshold chosen on the other folds, and the
    thresholds, one per fold."""
    hits = np.zeros(len(scores), bool)
    thresholds = []
    for fold in np.unique(folds):
        here = folds == fold
        chosen = most_accurate(roc(scores[~here], same[~here], metric)).threshold
        accepted = np.array([accepts(metric, score, chosen) for score in scores[here]])
        hits[here] = accepted == same[here]
        thresholds.append(chosen)
    return hits, thresholds
