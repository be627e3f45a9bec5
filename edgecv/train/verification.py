"""Verification while training: are held-out pictures of one class told from pictures of two?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgecv.errors import InputError
from edgecv.gallery.folds import deal, fold_hits
from edgecv.gallery.thresholds import most_accurate, roc

FARS = (0.1, 0.01)


@dataclass(frozen=True)
class HeldOutPairs:
    """``left`` and ``right`` ``[N]`` index pictures; ``same`` ``[N]``: whether of one class."""

    left: Tensor
    right: Tensor
    same: NDArray[np.bool_]


def draw_pairs(labels: Tensor, classes: Sequence[str], count: int, seed: int) -> HeldOutPairs:
    """``count`` pairs of pictures with ``labels`` ``[N]``: two of one class, two of two, in turn.

    Classes are drawn evenly, then their pictures. Raises :class:`~edgecv.errors.InputError` where
    there are fewer than two classes, or a class has one picture.
    """
    members = {name: torch.nonzero(labels == i)[:, 0].tolist() for i, name in enumerate(classes)}
    members = {name: found for name, found in members.items() if found}
    if len(members) < 2:
        raise InputError(
            f"verification needs held-out pictures of at least 2 classes, got {list(members)}"
        )
    for name, found in members.items():
        if len(found) < 2:
            raise InputError(
                f"class {name}: verification needs at least 2 held-out pictures of a class, got 1"
            )
    rng = np.random.default_rng(seed)
    groups = list(members.values())
    left, right = [], []
    for i in range(count):
        first, second = rng.choice(len(groups), 2, replace=False)
        if i % 2 == 0:
            a, b = rng.choice(groups[first], 2, replace=False)
        else:
            a, b = rng.choice(groups[first]), rng.choice(groups[second])
        left.append(int(a))
        right.append(int(b))
    return HeldOutPairs(torch.tensor(left), torch.tensor(right), np.arange(count) % 2 == 0)


def verification(
    scores: NDArray[np.float64], same: NDArray[np.bool_], metric: str = "cosine"
) -> dict[str, float]:
    """How well ``scores`` ``[N]`` tell pairs apart; rates from 0 to 1.

    ``accuracy`` is over ten folds, each judged by the threshold that is best on the others;
    ``threshold`` is the best on all pairs, ``auc`` the area under the ROC, ``eer`` the equal error
    rate and ``tar_at_R`` the true-accept rate at the false-accept rate R.
    """
    curve = roc(scores, same, metric)
    hits, _ = fold_hits(scores, same, deal(same), metric)
    return {
        "accuracy": float(hits.mean()),
        "threshold": most_accurate(curve).threshold,
        "auc": curve.auc,
        "eer": curve.eer,
        **{f"tar_at_{far:g}": curve.tar_at(far) for far in FARS},
    }
