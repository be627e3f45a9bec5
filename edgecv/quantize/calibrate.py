"""Ranges from calibration pictures, in two streaming passes and bounded memory.

The first pass finds each tensor's extremes, the second fills a histogram between them. On the
histogram every method proposes a range, and the one with the smallest expected squared error
wins, per tensor:

- ``minmax``: nothing is cut off;
- ``percentile``: 99.99% or 99.999% of the values;
- ``mse``: both ends searched for the least squared error (Banner et al., "Post training 4-bit
  quantization of convolutional networks", 2019, search it the same way);
- ``entropy``: least Kullback-Leibler divergence between the histogram and its quantized form
  (Migacz, "8-bit inference with TensorRT", GTC 2017).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgecv.errors import QuantizeError
from edgecv.progress import Progress, silent
from edgecv.quantize.ranges import Affine, Array, Range, affine
from edgecv.quantize.run import Batches, Probe
from edgecv.quantize.targets import Policy

BINS = 2048
METHODS = ("minmax", "percentile", "mse", "entropy")


@dataclass
class Extremes:
    """What the first pass saw of one tensor."""

    lo: float
    hi: float

    def take(self, values: Array) -> None:
        """Widen by one more batch; a NaN stays."""
        self.lo = float(np.minimum(self.lo, values.min()))
        self.hi = float(np.maximum(self.hi, values.max()))


@dataclass
class Histogram:
    """Counts of a tensor's values in :data:`BINS` equal bins from ``lo`` to ``hi``."""

    lo: float
    hi: float
    counts: NDArray[np.int64]

    @property
    def centers(self) -> NDArray[np.float64]:
        step = (self.hi - self.lo) / BINS
        return np.asarray(self.lo + step * (np.arange(BINS) + 0.5), np.float64)

    def take(self, values: Array) -> None:
        """Count one more batch; values outside fall into the outermost bins."""
        scale = np.float32(BINS / max(self.hi - self.lo, 1e-30))
        index = ((values.ravel() - np.float32(self.lo)) * scale).astype(np.int32)
        np.clip(index, 0, BINS - 1, out=index)
        self.counts += np.bincount(index, minlength=BINS)


def extremes(
    model: ir.Model,
    values: Sequence[str],
    batches: Batches,
    progress: Progress = silent,
) -> dict[str, Extremes]:
    """The first pass: the extremes of each of ``values``.

    Raises :class:`~edgecv.errors.QuantizeError` for a value that is NaN or infinite on a picture.
    """
    probe = Probe(model, values)
    found: dict[str, Extremes] = {}
    for number, batch in enumerate(batches()):
        for name, array in probe(batch).items():
            found.setdefault(name, Extremes(math.inf, -math.inf)).take(array)
        progress("ranges", number + 1, 0)
    if not found:
        raise QuantizeError("there are no calibration pictures")
    for name, extreme in found.items():
        if not (math.isfinite(extreme.lo) and math.isfinite(extreme.hi)):
            raise QuantizeError(
                f"value {name!r} is NaN or infinite on a calibration picture: the model itself "
                f"overflows, and has to be repaired before it can be quantized"
            )
    return found


def histograms(
    model: ir.Model,
    found: Mapping[str, Extremes],
    batches: Batches,
    progress: Progress = silent,
) -> dict[str, Histogram]:
    """The second pass: a histogram of each value of ``found`` between its extremes."""
    result = {
        name: Histogram(min(e.lo, 0.0), max(e.hi, 0.0), np.zeros(BINS, np.int64))
        for name, e in found.items()
    }
    probe = Probe(model, list(found))
    for number, batch in enumerate(batches()):
        for name, array in probe(batch).items():
            result[name].take(array)
        progress("histograms", number + 1, 0)
    return result


def choose(
    found: Mapping[str, Histogram], policy: Policy, methods: Sequence[str] = METHODS
) -> dict[str, Range]:
    """A range per tensor: the best of ``methods`` by squared error."""
    return {name: _best(histogram, policy, methods) for name, histogram in found.items()}


def _best(histogram: Histogram, policy: Policy, methods: Sequence[str]) -> Range:
    proposals = {"minmax": [(histogram.lo, histogram.hi)]}
    if "percentile" in methods:
        proposals["percentile"] = [percentile(histogram, p) for p in (0.9999, 0.99999)]
    if "mse" in methods:
        proposals["mse"] = [least_squares(histogram, policy)]
    if "entropy" in methods:
        proposals["entropy"] = [_entropy(histogram, policy)]
    best, least = Range(histogram.lo, histogram.hi), math.inf
    for method in methods:
        for lo, hi in proposals[method]:
            error = squared_error(histogram, affine(Range(lo, hi), policy))
            if error < least:
                best, least = Range(lo, hi, method), error
    power = float((histogram.counts * np.square(histogram.centers)).sum())
    sqnr = 10 * math.log10(max(power, 1e-300) / max(least, 1e-300))
    return Range(best.lo, best.hi, best.method, round(min(sqnr, 200.0), 2))


def squared_error(histogram: Histogram, found: Affine) -> float:
    """The summed squared error of ``found`` on the tensor, as its histogram describes it.

    Inside the range rounding is uniform noise, step^2 / 12; bins narrower than a step would
    otherwise report the position of their centre, not the spread of their values.
    """
    info = np.iinfo(found.dtype)
    scale = float(found.scale)
    lo, hi = (info.min - found.zero_point) * scale, (info.max - found.zero_point) * scale
    x = histogram.centers
    beyond = np.square(np.maximum(lo - x, 0) + np.maximum(x - hi, 0))
    inside = (x >= lo) & (x <= hi)
    noise = np.where(inside, scale * scale / 12, beyond)
    # zero is exact, and after a ReLU half of the values are zero
    zero = int(np.clip((0.0 - histogram.lo) / max(histogram.hi - histogram.lo, 1e-30) * BINS,
                       0, BINS - 1))  # fmt: skip
    width = (histogram.hi - histogram.lo) / BINS
    noise[zero] = min(noise[zero], width * width / 3)
    return float((histogram.counts * noise).sum())


def percentile(histogram: Histogram, share: float) -> tuple[float, float]:
    total = np.cumsum(histogram.counts)
    tail = (1 - share) / 2 * total[-1]
    step = (histogram.hi - histogram.lo) / BINS
    first = int(np.searchsorted(total, tail, "right"))
    last = int(np.searchsorted(total, total[-1] - tail, "left"))
    return histogram.lo + first * step, histogram.lo + (last + 1) * step


def least_squares(histogram: Histogram, policy: Policy) -> tuple[float, float]:
    """Search both ends in turn: the error of one end hardly depends on the other."""
    lo, hi = histogram.lo, histogram.hi
    for _ in range(2):
        hi = min(
            (histogram.hi * f for f in np.linspace(1.0, 0.3, 71)),
            key=lambda v: squared_error(histogram, affine(Range(lo, float(v)), policy)),
        )
        lo = min(
            (histogram.lo * f for f in np.linspace(1.0, 0.3, 71)),
            key=lambda v: squared_error(histogram, affine(Range(float(v), hi), policy)),
        )
        if histogram.lo == 0 or histogram.hi == 0:
            break
    return float(lo), float(hi)


def _entropy(histogram: Histogram, policy: Policy) -> tuple[float, float]:
    """The shrink of the full range with the least divergence after quantization."""
    lo, hi = histogram.lo, histogram.hi
    spans = [Range(float(lo * f), float(hi * f)) for f in np.linspace(0.3, 1.0, 36)]
    best = min(spans, key=lambda span: _divergence(histogram, affine(span, policy)))
    return best.lo, best.hi


def _divergence(histogram: Histogram, found: Affine) -> float:
    """KL divergence of the clipped histogram from its quantized form.

    What is cut off piles up in the outermost bins of the first and is missing in the second.
    """
    info = np.iinfo(found.dtype)
    level = np.rint(histogram.centers / float(found.scale)) + found.zero_point
    inside = np.flatnonzero((level >= info.min) & (level <= info.max))
    kept = histogram.counts[inside].astype(np.float64)
    reference = kept.copy()
    reference[0] += histogram.counts[: inside[0]].sum()
    reference[-1] += histogram.counts[inside[-1] + 1 :].sum()
    steps = level[inside].astype(np.int64) - info.min
    occupied = np.bincount(steps, weights=kept > 0, minlength=256)
    mass = np.bincount(steps, weights=kept, minlength=256)
    coarse = np.where(kept > 0, (mass / np.maximum(occupied, 1))[steps], 0)
    p = reference / max(reference.sum(), 1.0)
    q = np.maximum(coarse / max(coarse.sum(), 1.0), 1e-12)
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / q[seen])).sum())
