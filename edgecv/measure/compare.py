"""How far two sets of output tensors are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import CheckFailed

# Allowed max_rel of an FP32 file against its FP32 parent. Two correct FP32 programs differ by the
# order of their sums: unit roundoff 6e-8 times the square root of the terms summed along the
# net's depth (about 1e5 for MobileNetV2) is 2e-5 of the largest value; measured are 1e-6 to 5e-6.
FP32_MAX_REL = 1e-4

UNIT_ROUNDOFF = {"fp32": 2.0**-24, "bf16": 2.0**-8, "fp16": 2.0**-11}  # round to nearest
# Of an INT8 file against its float parent. A uniform 8-bit quantizer over a tensor's full range has
# an SQNR of 6.02 * 8 dB for a full-scale signal; activations of real nets lie 3 bits below the
# range that their outliers need, and the noise of L layers adds up as L. What falls short of
# 6.02 * (8 - 3) - 10 log10(L) dB is worse than rounding alone explains: a wrong scale, a saturated
# sum, a layer that should have stayed in float.
INT8_BITS_IN_USE = 8 - 3
INT8_SOURCES = 3  # of noise in one layer's output: its input, its weights, its own rounding
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "QLinearConv", "QLinearMatMul")


def layer_count(operators: Mapping[str, int]) -> int:
    """Layers with weights, each of which rounds or quantizes; ``operators``: how many of each."""
    return max(1, sum(operators.get(kind, 0) for kind in LAYERS))


def int8_min_sqnr(layers: int) -> float:
    """Least SQNR, in dB, of an INT8 file of ``layers`` layers against its float parent."""
    return 6.02 * INT8_BITS_IN_USE - 10 * math.log10(max(layers, 1))


def int8_layer_min_sqnr() -> float:
    """Least SQNR, in dB, of one INT8 layer's output when its inputs are exact."""
    return 6.02 * INT8_BITS_IN_USE - 10 * math.log10(INT8_SOURCES)


@dataclass(frozen=True)
class Comparison:
    """``max_abs``: largest absolute difference; ``max_rel``: that over the largest |reference|;
    ``cosine``: the worst row's cosine similarity; ``sqnr_db``: signal to quantization noise, dB
    (None: no difference at all)."""

    max_abs: float
    max_rel: float
    cosine: float
    sqnr_db: float | None

    def to_dict(self) -> dict[str, float | None]:
        return asdict(self)


def compare(
    candidate: Mapping[str, NDArray[np.generic]], reference: Mapping[str, NDArray[np.generic]]
) -> Comparison:
    """Compare tensors of the same names, ``[N, ...]`` each; the worst output counts.

    Other names, shapes, or values that are NaN or infinite are a
    :class:`~edgecv.errors.CheckFailed`: no figure describes them.
    """
    return worst(list(compare_each(candidate, reference).values()))


def compare_each(
    candidate: Mapping[str, NDArray[np.generic]], reference: Mapping[str, NDArray[np.generic]]
) -> dict[str, Comparison]:
    """:func:`compare` output by output."""
    if candidate.keys() != reference.keys():
        raise CheckFailed(f"outputs differ: {list(candidate)} against {list(reference)}")
    return {name: _compare_one(name, candidate[name], reference[name]) for name in reference}


def worst(comparisons: Sequence[Comparison]) -> Comparison:
    """Each figure at its worst over ``comparisons`` (at least one)."""
    ratios = [c.sqnr_db for c in comparisons if c.sqnr_db is not None]
    return Comparison(
        max_abs=max(c.max_abs for c in comparisons),
        max_rel=max(c.max_rel for c in comparisons),
        cosine=min(c.cosine for c in comparisons),
        sqnr_db=min(ratios) if ratios else None,
    )


def relative_rms(found: Comparison) -> float:
    """Root mean square of the difference over that of the reference."""
    return 0.0 if found.sqnr_db is None else float(10 ** (-found.sqnr_db / 20))


def _compare_one(
    name: str, candidate: NDArray[np.generic], reference: NDArray[np.generic]
) -> Comparison:
    if candidate.shape != reference.shape:
        raise CheckFailed(
            f"output {name!r}: shape {list(candidate.shape)} against {list(reference.shape)}"
        )
    a = candidate.astype(np.float64).reshape(len(candidate), -1)
    b = reference.astype(np.float64).reshape(len(reference), -1)
    for side, values in (("candidate", a), ("reference", b)):
        if not np.isfinite(values).all():
            raise CheckFailed(f"output {name!r}: the {side} has NaN or infinite values")
    difference = a - b
    max_abs = float(np.abs(difference).max(initial=0.0))
    largest = float(np.abs(b).max(initial=0.0))
    noise, signal = float(np.square(difference).sum()), float(np.square(b).sum())
    return Comparison(
        max_abs=max_abs,
        max_rel=max_abs / largest if largest else (math.inf if max_abs else 0.0),
        cosine=float(_cosine(a, b).min(initial=1.0)),
        sqnr_db=None if noise == 0 else 10 * math.log10(max(signal, 1e-300) / noise),
    )


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = (np.abs(a).max(1, initial=0) == 0) & (np.abs(b).max(1, initial=0) == 0)
    dots = (a * b).sum(1) / np.where(norms == 0, 1.0, norms)
    return np.where(both_zero, 1.0, np.minimum(dots, 1.0))
