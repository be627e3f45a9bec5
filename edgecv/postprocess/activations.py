"""Exponentials, sigmoid and softmax that warn of nothing: what overflows is found later."""

from __future__ import annotations

import numpy as np

from edgecv.postprocess.options import Array


def exp(x: Array) -> Array:
    """``exp``; what overflows is infinite, and reported where candidates are checked."""
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(x))


def sigmoid(x: Array) -> Array:
    """``1 / (1 + exp(-x))``; far below 0 it is 0, with no warning."""
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-x)))


def softmax(x: Array, axis: int = -1) -> Array:
    """``exp(x)`` over its sum along ``axis``, after subtracting the maximum."""
    exponentials = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=axis, keepdims=True))
