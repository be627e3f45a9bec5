"""``edgecv bench``: several models on several backends, in turns, each pair in its own process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgecv.errors import BackendUnavailable, CheckFailed, EdgeCVError, InputError, SpecError
from edgecv.measure.machine import environment
from edgecv.measure.ready import READY_MODEL
from edgecv.measure.record import (
    SCHEMA,
    Verdict,
    comparisons,
    judge_baseline,
    judge_session,
    machine_id,
    read_report,
    record_of,
    same_machine,
)
from edgecv.measure.rounds import CHILD, Pair, Rounds
from edgecv.measure.scenarios import LATENCY_BOUND_MS, SCENARIOS
from edgecv.progress import Progress, silent
from edgecv.spec import read_spec

PROFILE_RUNS = 30
__all__ = ["SCENARIOS", "BenchReport", "Failure", "bench", "find_models"]


@dataclass(frozen=True)
class Failure:
    """A pair that could not be measured, and why."""

    model: str
    backend: str
    message: str
    exit_code: int


@dataclass(frozen=True)
class BenchReport:
    """``records`` one per pair, in order; ``partial``: it was interrupted."""

    environment: dict[str, Any]
    records: tuple[dict[str, Any], ...]
    failures: tuple[Failure, ...] = ()
    partial: bool = False
    verdicts: tuple[Verdict, ...] = ()
    comparisons: tuple[dict[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "environment": self.environment,
            "records": list(self.records),
            "comparisons": list(self.comparisons),
            "verdicts": [verdict.to_dict() for verdict in self.verdicts],
            "failures": [asdict(failure) for failure in self.failures],
            "partial": self.partial,
        }

    @property
    def regressions(self) -> tuple[Verdict, ...]:
        return tuple(v for v in self.verdicts if v.word == "regression")

    def error(self) -> EdgeCVError | None:
        """The failures as one error: of their own kind where all share it and nothing was
        measured, else :class:`~edgecv.errors.CheckFailed`."""
        if not self.failures:
            return None
        text = "\n".join(f"{f.model} on {f.backend}: {f.message}" for f in self.failures)
        codes = {f.exit_code for f in self.failures}
        kinds: dict[int, type[EdgeCVError]] = {2: InputError, 3: BackendUnavailable}
        if not self.records and len(codes) == 1:
            return kinds.get(codes.pop(), CheckFailed)(text)
        return CheckFailed(f"{len(self.failures)} could not be measured:\n{text}")


def find_models(models: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The files named, or those with a contract in the current folder, or the ready one."""
    if models:
        paths = [Path(model) for model in models]
        for path in paths:
            read_spec(path)
        return paths
    found = []
    for path in sorted(Path().glob("*.onnx")):
        try:
            read_spec(path)
        except SpecError:
            continue  # somebody else's file, which nobody asked for
        found.append(path)
    return found or [READY_MODEL]


def bench(
    models: Sequence[str | os.PathLike[str]] = (),
    *,
    backends: Sequence[str] = ("auto",),
    threads: int | None = None,
    batch: int | None = None,
    scenario: str = "single-stream",
    duration: float = 3.0,
    rounds: int | None = None,
    latency_bound_ms: float = LATENCY_BOUND_MS,
    profile: bool = False,
    baseline: str | os.PathLike[str] | None = None,
    compare: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
    child: Sequence[str] = CHILD,
) -> BenchReport:
    """Measure every model on every backend, in turns.

    ``scenario``: see :mod:`edgecv.measure.scenarios`. ``duration`` is seconds of measuring
    inference per pair, spread over ``rounds`` (default: 20, fewer for slow models, up to 60 for a
    longer ``duration``, which pays for new processes in every round as well); the other
    stages take half as much again. ``baseline`` is measured along with the models and each is
    judged against it; ``compare`` judges them against an earlier report of this machine.
    ``child`` is the command that measures one pair.

    A pair that fails is in ``failures``; the others go on. Ctrl-C keeps what was measured and
    sets ``partial``. Raises :class:`~edgecv.errors.InputError` for arguments that mean nothing.
    """
    _check(scenario, duration, latency_bound_ms, judged=baseline is not None or compare is not None)
    here = environment()
    here["machine_id"] = machine_id(here)
    old = None if compare is None else read_report(compare)
    if old is not None:
        same_machine(old, here, os.fspath(compare or ""))
    paths = _with_baseline(find_models(models), baseline)
    request = {"threads": threads, "batch": batch, "scenario": scenario}
    pairs = [
        Pair(str(path), name, {**request, "model": str(path), "backend": name})
        for path in paths
        for name in dict.fromkeys(backends)
    ]
    work = Rounds(
        pairs,
        duration,
        rounds,
        latency_bound_ms=latency_bound_ms if scenario == "server" else None,
        profile_runs=PROFILE_RUNS if profile else 0,
        command=child,
        progress=progress,
    )
    work.run()
    measured = [
        (pair, record)
        for pair in pairs
        if (pair.measured or not pair.failure) and (record := record_of(pair))
    ]
    records = tuple(record for _, record in measured)
    verdicts: list[Verdict] = []
    if baseline is not None:
        verdicts += judge_baseline(measured, str(paths[0]))
    if old is not None and records:
        verdicts += judge_session(records, old, os.fspath(compare or ""))
    compared = tuple(comparisons(measured))
    return BenchReport(here, records, _failures(pairs), work.partial, tuple(verdicts), compared)


def _check(scenario: str, duration: float, latency_bound_ms: float, *, judged: bool) -> None:
    """Refuse what means nothing."""
    if scenario not in SCENARIOS:
        raise InputError(f"scenario must be one of {', '.join(SCENARIOS)}, got {scenario!r}")
    for name, value in (("duration", duration), ("latency bound", latency_bound_ms)):
        if not 0 < value < float("inf"):
            raise InputError(f"{name} must be above 0, got {value:g}")
    if scenario == "server" and judged:
        raise InputError("--baseline and --compare judge times of runs; server searches for a rate")


def _with_baseline(paths: list[Path], baseline: str | os.PathLike[str] | None) -> list[Path]:
    """The baseline is measured first in each round."""
    if baseline is None:
        return paths
    read_spec(baseline)
    if any(path.resolve() == Path(baseline).resolve() for path in paths):
        raise InputError(f"{baseline}: is compared with itself")
    return [Path(baseline), *paths]


def _failures(pairs: Sequence[Pair]) -> tuple[Failure, ...]:
    return tuple(
        Failure(pair.path, pair.backend, str(pair.failure), pair.failure.exit_code)
        for pair in pairs
        if pair.failure is not None
    )
