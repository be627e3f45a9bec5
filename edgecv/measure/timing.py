"""Latency: warm-up, a plain loop on the monotonic clock, percentiles that the sample supports."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
SUPPORT = 0.95  # how sure a percentile has to be that it is not beyond the largest sample
WARMUP_SECONDS, WARMUP_RUNS = 0.3, 3  # whichever is longer: caches fill, clocks rise
MIN_RUNS = 10
# What is compared alternates in turns this short: on a shared machine neighbours come and go within
# a second, and what lies within one turn of the other sees the same of them.
TURN_SECONDS, TURN_RUNS = 0.005, 3  # whichever is longer
TURN_WARMUP_NS, TURN_WARMUP_RUNS = 3_000_000, 2  # after another one had the caches


def warm_up(run: Callable[[], object], seconds: float = WARMUP_SECONDS) -> None:
    """Call ``run`` for ``seconds``, at least :data:`WARMUP_RUNS` times; nothing is kept."""
    until = time.perf_counter() + seconds
    count = 0
    while count < WARMUP_RUNS or time.perf_counter() < until:
        run()
        count += 1


def timed(run: Callable[[], object], duration: float, least: int = MIN_RUNS) -> array[int]:
    """Call ``run`` for ``duration`` seconds, at least ``least`` times.

    Returns nanoseconds per call, in order, 8 bytes each. Nothing is dropped: a slow call is one
    that a user waits for. Inside the timed region is ``run`` and one reading of the clock.
    """
    times = array("q")
    clock = time.perf_counter_ns
    end = clock() + int(duration * 1e9)
    while clock() < end or len(times) < least:
        start = clock()
        run()
        times.append(clock() - start)
    return times


def warm_turn(run: Callable[[], object]) -> None:
    """Call ``run`` until its code and weights are in the caches again; nothing is kept."""
    until = time.perf_counter_ns() + TURN_WARMUP_NS
    for _ in range(TURN_WARMUP_RUNS):
        run()
    while time.perf_counter_ns() < until:
        run()


def by_turns(
    runs: Sequence[Callable[[], object]], rounds: int, seconds: float
) -> list[list[float]]:
    """The median of each of ``runs`` in each round, in milliseconds, after a warm-up.

    In a round each has ``seconds``, and one turn at least: what the machine does to a round it does
    to all, and :func:`edgecv.measure.statistics.ratio` compares them round by round. For runs on
    one thread: a runtime's other threads would spin on into the next one's turn.
    """
    for run in runs:
        warm_up(run)
    medians: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        times = [array("q") for _ in runs]
        turns = list(zip(runs, times, strict=True))
        while any(sum(mine) < seconds * 1e9 for mine in times):
            for run, mine in turns:
                warm_turn(run)
                mine.extend(timed(run, TURN_SECONDS, TURN_RUNS))
            turns.reverse()
        for all_medians, mine in zip(medians, times, strict=True):
            all_medians.append(float(np.median(mine)) / 1e6)
    return medians


def needed(percentile: float) -> int:
    """How many calls a percentile takes before it is a measurement.

    With n independent calls the chance that at least one lies beyond the percentile p is
    ``1 - p**n`` (Wilks, 1941); below :data:`SUPPORT` the figure would be the sample's maximum under
    another name. 5 calls for p50, 29 for p90, 299 for p99, 2995 for p99.9.
    """
    return math.ceil(math.log(1 - SUPPORT) / math.log(percentile / 100))


def percentiles(nanoseconds: Sequence[int] | NDArray[np.int64]) -> dict[str, float]:
    """Percentiles in milliseconds, ``{"p50": ..}``, each only where the sample supports it.

    See :func:`needed`; what is not supported is absent. Linear interpolation between ranks
    (NumPy's default).
    """
    values = np.asarray(nanoseconds, np.int64)
    return {
        f"p{p:g}": round(float(np.percentile(values, p)) / 1e6, 6)
        for p in PERCENTILES
        if len(values) >= needed(p)
    }
