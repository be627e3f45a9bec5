"""From scores of labelled pairs to a threshold: ROC, EER, TAR at a FAR, accuracy.

A pair is *accepted* where its score is at least as good as the threshold. FAR, the false-accept
rate, is the share of pairs of different people that are accepted; TAR, the true-accept rate, the
share of pairs of one person. With n pairs of different people no FAR below 1/n can be measured:
"0 of n accepted" says, at 95% confidence, that it is under about 3/n (:attr:`Choice.far_bound`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgecv.errors import InputError
from edgecv.gallery.metrics import check_metric, is_similarity

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Roc:
    """One point per threshold that tells two scores apart, the strictest (accept none) first.

    ``thresholds`` lie midway between neighbouring scores; the first accepts nothing and the last
    everything, each half a gap beyond the ends. ``far`` and ``tar`` ``[M]`` rise with the index.
    """

    metric: str
    thresholds: Floats  # [M]
    gaps: Floats  # [M], between the two scores beside each threshold
    far: Floats  # [M]
    tar: Floats  # [M]
    same: int  # pairs of one person
    different: int  # pairs of two

    @property
    def accuracy(self) -> Floats:
        """The share of pairs judged right at each threshold."""
        right = self.tar * self.same + (1 - self.far) * self.different
        return right / (self.same + self.different)

    @property
    def eer(self) -> float:
        """The rate at which false accepts and false rejects are equally frequent, on the line
        between the two points where they cross."""
        gap = self.far - (1 - self.tar)  # rises from -1 to 1
        after = int(np.searchsorted(gap, 0.0))
        if gap[after] == 0:
            return float(self.far[after])
        before = after - 1
        share = -gap[before] / (gap[after] - gap[before])
        return float(self.far[before] + share * (self.far[after] - self.far[before]))

    @property
    def auc(self) -> float:
        """The area under the curve: the chance that a pair of one person scores better than a pair
        of two, equal scores counting as half (Mann and Whitney's U)."""
        means = (self.tar[1:] + self.tar[:-1]) / 2
        return float((np.diff(self.far) * means).sum())

    def corners(self) -> dict[str, list[float]]:
        """``threshold``, ``far`` and ``tar`` of the points where the curve turns, and of both its
        ends: what a plot needs, and the points between lie on straight lines."""
        keep = np.ones(len(self.far), bool)
        flat = [np.diff(values) == 0 for values in (self.far, self.tar)]
        keep[1:-1] = ~np.logical_or.reduce([still[:-1] & still[1:] for still in flat])
        columns = {"threshold": self.thresholds, "far": self.far, "tar": self.tar}
        return {name: values[keep].tolist() for name, values in columns.items()}

    def tar_at(self, far: float) -> float:
        """The highest TAR whose FAR is at most ``far``."""
        return float(self.tar[_last_within(self.far, far)])


@dataclass(frozen=True)
class Choice:
    """A threshold and what it gives on the pairs that it was chosen on."""

    threshold: float
    far: float
    tar: float
    accuracy: float
    far_bound: float  # FAR is below this at 95% confidence (Clopper and Pearson's for 0 accepted)


def roc(scores: ArrayLike, same: ArrayLike, metric: str = "cosine") -> Roc:
    """The ROC of pairs with ``scores`` ``[N]``, ``same`` ``[N]`` saying which are of one person.

    Raises :class:`~edgecv.errors.InputError` where scores are NaN or infinite, or where one of the
    two kinds of pairs is missing.
    """
    check_metric(metric)
    values = np.asarray(scores, np.float64)
    labels = np.asarray(same, bool)
    if values.ndim != 1 or values.shape != labels.shape:
        raise InputError(
            f"expected one score and one label per pair, got shapes {values.shape}, {labels.shape}"
        )
    if not np.isfinite(values).all():
        raise InputError("scores of pairs must be finite, and some are NaN or infinite")
    count = int(labels.sum())
    if count in (0, len(labels)):
        raise InputError(
            f"a threshold needs pairs of one person and pairs of two; got {count} and "
            f"{len(labels) - count}"
        )
    rising = values if is_similarity(metric) else -values
    order = np.argsort(-rising, kind="stable")
    ranked, hits = rising[order], labels[order]
    ends = np.flatnonzero(np.append(np.diff(ranked) != 0, True))  # the last of each run of equals
    tar = np.append(0, np.cumsum(hits)[ends]) / count
    far = np.append(0, np.cumsum(~hits)[ends]) / (len(labels) - count)
    levels = ranked[ends]
    middles = (levels[:-1] + levels[1:]) / 2
    # between neighbouring floats the middle may be the lower one, which would accept it
    middles = np.where(middles > levels[1:], middles, levels[:-1])
    edge = float(np.abs(np.diff(levels)).mean()) / 2 if len(levels) > 1 else 0.5
    thresholds = np.concatenate([[levels[0] + edge], middles, [levels[-1] - edge]])
    signed = thresholds if is_similarity(metric) else -thresholds
    gaps = np.concatenate([[edge], -np.diff(levels), [edge]])
    return Roc(metric, signed, gaps, far, tar, count, len(labels) - count)


def at_far(curve: Roc, far: float) -> Choice:
    """The loosest threshold whose measured FAR is at most ``far``.

    It lies midway between the best pair that it still rejects and the worst that it accepts.
    """
    if not 0 <= far < 1:
        raise InputError(f"a false-accept rate lies from 0 to below 1, got {far:g}")
    index = _last_within(curve.far, far)
    if curve.tar[index] == 0:
        raise InputError(
            f"no threshold has a false-accept rate of {far:g} and accepts anybody: pairs of two "
            f"people score as well as the best pair of one; look for wrong labels"
        )
    return _choice(curve, index)


def most_accurate(curve: Roc) -> Choice:
    """The threshold with the most pairs right; of several, the middle of the widest gap."""
    accuracy = curve.accuracy
    # equal counts of pairs may differ in the last bit of their rates
    best = np.flatnonzero(accuracy > accuracy.max() - 0.5 / (curve.same + curve.different))
    return _choice(curve, int(best[curve.gaps[best].argmax()]))


def _choice(curve: Roc, index: int) -> Choice:
    accepted = round(float(curve.far[index]) * curve.different)
    return Choice(
        threshold=float(curve.thresholds[index]),
        far=float(curve.far[index]),
        tar=float(curve.tar[index]),
        accuracy=float(curve.accuracy[index]),
        far_bound=_upper_bound(accepted, curve.different),
    )


def _last_within(far: Floats, limit: float) -> int:
    # a rate like 0.001 of 1000 pairs must count as 1 in 1000, whatever its last bit
    return int(np.searchsorted(far, limit * (1 + 1e-12), side="right")) - 1


def _upper_bound(accepted: int, pairs: int) -> float:
    """The one-sided 95% bound on a rate, ``accepted`` of ``pairs`` seen (Clopper and Pearson 1934):
    the rate at which that few would be seen with probability 0.05, by bisection."""
    low, high = accepted / pairs, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        if _at_most(accepted, pairs, middle) > 0.05:
            low = middle
        else:
            high = middle
    return high


def _at_most(k: int, n: int, rate: float) -> float:
    """P(X <= k) for a binomial X of ``n`` trials."""
    if k >= n or rate <= 0:
        return 1.0
    if rate >= 1:
        return 0.0
    i = np.arange(1, k + 1)
    steps = np.log((n - i + 1) / i) + math.log(rate) - math.log1p(-rate)
    logs = n * math.log1p(-rate) + np.append(0.0, np.cumsum(steps))
    return float(np.exp(logs).sum())
