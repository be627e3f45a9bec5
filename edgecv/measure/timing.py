"""Latency: warm-up, a plain loop on the monotonic clock, percentiles that the sample supports."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np

PERCENTILES = (50.0, 90.0, 99.0)
WARMUP_SECONDS, WARMUP_RUNS = 0.3, 3  # whichever is longer: caches fill, clocks rise
MIN_RUNS = 10


def measure(run: Callable[[], object], duration: float) -> list[int]:
    """Call ``run`` for ``duration`` seconds, at least :data:`MIN_RUNS` times, after a warm-up.

    Returns nanoseconds per call, in order. Nothing is dropped: a slow call is one that a user
    waits for. Inside the timed region is ``run`` and one reading of the clock.
    """
    warm_until = time.perf_counter() + min(WARMUP_SECONDS, duration)
    count = 0
    while count < WARMUP_RUNS or time.perf_counter() < warm_until:
        run()
        count += 1
    times: list[int] = []
    clock = time.perf_counter_ns
    end = clock() + int(duration * 1e9)
    while clock() < end or len(times) < MIN_RUNS:
        start = clock()
        run()
        times.append(clock() - start)
    return times


def percentiles(nanoseconds: Sequence[int]) -> dict[str, float]:
    """Percentiles in milliseconds, ``{"p50": ..}``, each only where the sample supports it.

    A percentile p of n calls needs at least one call beyond it: n * (1 - p) >= 1, so p99 needs
    100 calls. What is not supported is absent. Linear interpolation between ranks (NumPy's
    default).
    """
    count = len(nanoseconds)
    return {
        f"p{p:g}": round(float(np.percentile(nanoseconds, p)) / 1e6, 4)
        for p in PERCENTILES
        if count >= math.ceil(100 / (100 - p))
    }
