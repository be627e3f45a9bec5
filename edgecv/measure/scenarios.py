"""The load patterns of a benchmark, after MLPerf Inference (Reddi et al., 2020, arXiv:1911.02549).

- ``single-stream``: one picture (or the file's batch) at a time; latency counts (p90).
- ``multi-stream``: a query of 8 pictures at once; latency of the whole query counts (p99).
- ``offline``: everything is there already; throughput counts.
- ``server``: pictures (or batches, where the file's is fixed) come one by one at random moments (a
  Poisson process) and each has to be answered within a bound, waiting in the queue included; the
  highest rate that holds counts.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgecv.errors import InputError
from edgecv.measure.timing import needed

SCENARIOS = ("single-stream", "multi-stream", "offline", "server")
STREAMS = 8  # pictures of one multi-stream query
OFFLINE_BATCH = 8
LATENCY_BOUND_MS = 100.0  # server: what an interactive user does not notice
SERVER_SEED = 17
HIGHEST_LOAD = 0.98  # of what the model could do back to back; at 1 a queue grows without end


@dataclass(frozen=True)
class Plan:
    """One timed call of a scenario: ``runs`` runs of ``batch`` pictures are one query."""

    batch: int
    runs: int

    @property
    def pictures(self) -> int:
        return self.batch * self.runs


def plan(scenario: str, size: int | str, asked: int | None, name: str) -> Plan:
    """How ``scenario`` feeds a file whose batch is ``size`` (a string: any)."""
    if isinstance(size, int):
        if asked not in (None, size):
            raise InputError(
                f"{name}: its batch is fixed at {size}, not {asked}; export it with "
                f"--batch dynamic, or --batch {asked}"
            )
        return Plan(size, -(-STREAMS // size) if scenario == "multi-stream" else 1)
    if scenario == "multi-stream":
        if asked is not None and STREAMS % asked:
            raise InputError(
                f"multi-stream sends {STREAMS} pictures at once, not batches of {asked}"
            )
        batch = asked or STREAMS
        return Plan(batch, STREAMS // batch)
    return Plan(asked or (OFFLINE_BATCH if scenario == "offline" else 1), 1)


def serve(run: Callable[[], object], rate: float, seconds: float, seed: int) -> array[int]:
    """Answer arrivals at ``rate`` per second for ``seconds``; nanoseconds from arrival to answer.

    The moments come from a seed. A picture that finds the model busy waits, and its latency counts
    from its arrival, not from its start (no coordinated omission).
    """
    gaps = np.random.default_rng(seed).exponential(1 / rate, max(1, int(rate * seconds)))
    arrivals = (np.cumsum(gaps) * 1e9).astype(np.int64).tolist()
    clock, latencies = time.perf_counter_ns, array("q")
    start = clock()
    for offset in arrivals:
        arrival = start + offset
        while (ahead := arrival - clock()) > 0:
            if ahead > 200_000:  # sleep most of the way, then watch the clock: sleep oversleeps
                time.sleep((ahead - 100_000) / 1e9)
        run()
        latencies.append(clock() - arrival)
    return latencies


@dataclass
class RateSearch:
    """Bisection for the highest arrival rate whose latency stays within a bound.

    ``capacity``: how many queries (a picture each, or the file's batch) the model answers back to
    back, per second. Each step is a measurement of its own; :attr:`best` is the highest rate that
    held, with the latencies seen at it; ``answered`` counts the queries of all steps.
    """

    capacity: float
    bound_ms: float
    step_seconds: float
    low: float = 0.0
    high: float = HIGHEST_LOAD
    best: tuple[float, array[int]] | None = None
    answered: int = 0

    @property
    def rate(self) -> float:
        """The rate to try next."""
        return self.capacity * (self.low + self.high) / 2

    @property
    def percentile(self) -> float:
        """The highest percentile that one step can support at half of the capacity."""
        arrivals = self.capacity / 2 * self.step_seconds
        return next((p for p in (99.0, 90.0) if arrivals >= needed(p)), 50.0)

    def seen(self, latencies: array[int]) -> None:
        """Take in what :func:`serve` measured at :attr:`rate`."""
        rate = self.rate
        self.answered += len(latencies)
        load = rate / self.capacity
        if float(np.percentile(np.asarray(latencies), self.percentile)) <= self.bound_ms * 1e6:
            self.low, self.best = load, (rate, latencies)
        else:
            self.high = load
