"""Weights of classes that come in unequal numbers."""

from __future__ import annotations

from torch import Tensor


def balanced_weights(counts: Tensor) -> Tensor:
    """``N / (classes * n_c)`` for the counts ``[classes]``: the mean weight of a sample is 1."""
    return counts.sum() / (len(counts) * counts.clamp_min(1))
