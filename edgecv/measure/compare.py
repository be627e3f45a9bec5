"""How far two sets of output tensors are apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
# Of an FP16 file against its float parent: see fp16_max_rel
FP16_SOURCES = 2  # of rounding in one layer: its weights, and the values that it gives
SIGMAS = 4.0  # of 1,000 outputs one in 16 times has one that far off by chance
DRAWS = 4  # of roundings, whose largest effect is the condition
EXTREMES = 2.0  # between the furthest outputs of two draws, where noise is heavy-tailed: see there
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "QLinearConv", "QLinearMatMul")


def layer_count(operators: Mapping[str, int]) -> int:
    """Layers with weights, each of which rounds or quantizes; ``operators``: how many of each."""
    return max(1, sum(operators.get(kind, 0) for kind in LAYERS))


def fp16_max_rel(condition: float, layers: int) -> float:
    """Allowed max_rel of an FP16 file against its FP32 parent.

    Rounding to nearest is uniform noise, of standard deviation u / sqrt(3) where u is the unit
    roundoff 2^-11. A layer rounds its weights and the values that it gives, independently of the
    others, so that ``layers`` layers leave ``u * sqrt(2 layers / 3)`` of the largest output. The
    largest of all outputs lies up to :data:`SIGMAS` of that off where noise is normal. A detector's
    is not: a few of its 300,000 outputs move 100 times as far as most. There the measure is
    ``condition``, how far the furthest output moves, relative to the largest, per relative change
    of the input, taken on the model itself (:func:`condition_of`), times :data:`EXTREMES`.

    Measured, as a share of the bound, the worst of 5 seeded pictures: MobileNetV2 with ImageNet's
    weights 63%, MobileFaceNet 61%, MobileNetV2 with CIFAR-10's 33%, nets of random weights
    (LeNet-5, MobileNetV1 to V3, ResNet-18 and 34, U-Net) 2 to 10%: their noise averages out. What
    trained nets amplify inside, the condition at the input does not see, hence no tighter bound.
    YOLOX-Nano on 6 photographs: the noise, root mean square, is 0.6 to 1.35 times what the input's
    predicts, so the model of it is right; the furthest output 0.5 to 1.8 times, hence EXTREMES.
    """
    noise = UNIT_ROUNDOFF["fp16"] * math.sqrt(FP16_SOURCES * layers / 3)
    return max(SIGMAS, EXTREMES * condition) * noise


def int8_min_sqnr(layers: int) -> float:
    """Least SQNR, in dB, of an INT8 file of ``layers`` layers against its float parent."""
    return 6.02 * INT8_BITS_IN_USE - 10 * math.log10(max(layers, 1))


def int8_layer_min_sqnr() -> float:
    """Least SQNR, in dB, of one INT8 layer's output when its inputs are exact."""
    return 6.02 * INT8_BITS_IN_USE - 10 * math.log10(INT8_SOURCES)


def condition_of(
    run: Callable[[NDArray[np.floating]], Mapping[str, NDArray[np.generic]]],
    batch: NDArray[np.floating],
) -> float:
    """How much ``run`` amplifies a relative rounding of its input to 11 bits: max_rel over it, the
    largest of :data:`DRAWS`.

    At least 1: no net is trusted to damp every rounding inside it.
    """
    step, rng, still = UNIT_ROUNDOFF["fp16"], np.random.default_rng(0), run(batch)
    found = 1.0
    for _ in range(DRAWS):
        signs = rng.choice(np.asarray([-1.0, 1.0]), batch.shape)
        moved = (batch * (1 + step * signs)).astype(batch.dtype)
        found = max(found, compare(run(moved), still).max_rel / step)
    return found


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
