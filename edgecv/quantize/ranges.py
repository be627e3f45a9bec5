"""Ranges of tensors, and the affine map between real numbers and integers.

``real = scale * (integer - zero_point)``, rounding half to even and saturating, as ONNX's
QuantizeLinear defines it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgecv.quantize.targets import Policy

Array: TypeAlias = NDArray[Any]
MIN_SPAN = 1e-6  # of a tensor that is constant: its scale must not be zero


@dataclass(frozen=True)
class Range:
    """The real numbers that a tensor's integers span, and how they were chosen.

    ``sqnr_db`` is the signal-to-noise ratio that this range gave on the calibration pictures.
    """

    lo: float
    hi: float
    method: str = "minmax"
    sqnr_db: float | None = None


Ranges: TypeAlias = Mapping[str, Range]  # by value name


@dataclass(frozen=True)
class Affine:
    """Scale, zero point and integer type of one tensor."""

    scale: np.float32
    zero_point: int
    dtype: str  # "uint8" or "int8"

    def fake(self, values: Array) -> Array:
        """``values`` as they come back from integers."""
        info = np.iinfo(self.dtype)
        q = np.rint(values / self.scale) + self.zero_point
        return (q.clip(info.min, info.max) - self.zero_point) * self.scale


def affine(span: Range, policy: Policy) -> Affine:
    """The affine map of an activation with the range ``span``; zero is always exact.

    Zero must be a value of its own: padding writes it, and ReLU makes it.
    """
    lo, hi = min(span.lo, 0.0), max(span.hi, 0.0)
    qmin, qmax = policy.activation_range
    if policy.symmetric:
        scale = np.float32(max(hi, -lo, MIN_SPAN) / qmax)
        return Affine(scale, 0, policy.activations)
    scale = np.float32(max(hi - lo, MIN_SPAN) / (qmax - qmin))
    zero = int(np.clip(np.rint(qmin - lo / float(scale)), qmin, qmax))
    return Affine(scale, zero, policy.activations)


def weight_scales(weight: Array, axis: int, largest: int) -> NDArray[np.float32]:
    """Symmetric scales per slice of ``axis``, by the largest magnitude.

    A slice of zeros takes the tensor's coarsest scale: any would do for its weights, but the
    bias is stored in units of it.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    peak = np.abs(weight).max(axis=others, initial=0.0).astype(np.float64)
    peak[peak == 0] = peak.max(initial=0.0) or 1.0
    return np.asarray(peak / largest, np.float32)


def quantize_weight(
    weight: Array, scales: NDArray[np.float32], axis: int, largest: int
) -> NDArray[np.int8]:
    """Round ``weight`` to integers of ``-largest`` to ``largest``."""
    shape = [1] * weight.ndim
    shape[axis] = -1
    q = np.rint(weight / scales.reshape(shape))
    return q.clip(-largest, largest).astype(np.int8)
