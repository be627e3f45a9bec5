"""``edgecv bench``: latency, throughput, load time and memory, each pair in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgecv.errors import BackendUnavailable, CheckFailed, EdgeCVError, InputError, SpecError
from edgecv.measure.machine import environment
from edgecv.measure.ready import READY_MODEL
from edgecv.progress import Progress, silent
from edgecv.spec import read_spec

SCHEMA = "edgecv.bench/1"
SCENARIOS = ("single-stream", "offline")
STARTUP_SECONDS = 300  # a child that has not answered by then hangs


@dataclass(frozen=True)
class Failure:
    """A pair that could not be measured, and why."""

    model: str
    backend: str
    message: str
    exit_code: int


@dataclass(frozen=True)
class BenchReport:
    """``records`` as the children gave them, in order; ``partial``: it was interrupted."""

    environment: dict[str, Any]
    records: tuple[dict[str, Any], ...]
    failures: tuple[Failure, ...] = ()
    partial: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "environment": self.environment,
            "records": list(self.records),
            "failures": [asdict(failure) for failure in self.failures],
            "partial": self.partial,
        }

    def raise_failures(self) -> None:
        """Raise for the failures: their own kind where all share it, else ``CheckFailed``."""
        if not self.failures:
            return
        text = "\n".join(f"{f.model} on {f.backend}: {f.message}" for f in self.failures)
        codes = {f.exit_code for f in self.failures}
        kinds: dict[int, type[EdgeCVError]] = {2: InputError, 3: BackendUnavailable}
        if not self.records and len(codes) == 1:
            raise kinds.get(codes.pop(), CheckFailed)(text)
        raise CheckFailed(f"{len(self.failures)} could not be measured:\n{text}")


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
    progress: Progress = silent,
) -> BenchReport:
    """Measure every model on every backend, one after the other.

    ``scenario``: ``single-stream`` (one batch at a time, latency counts) or ``offline`` (a larger
    batch where the file allows it, throughput counts). ``duration`` is seconds of measuring per
    pair. A pair that fails is in ``failures``; the others go on. Ctrl-C keeps what was measured.
    """
    if scenario not in SCENARIOS:
        raise InputError(f"scenario must be one of {', '.join(SCENARIOS)}, got {scenario!r}")
    if not duration > 0:
        raise InputError(f"duration must be above 0 seconds, got {duration:g}")
    pairs = [(path, backend) for path in find_models(models) for backend in backends]
    records: list[dict[str, Any]] = []
    failures: list[Failure] = []
    partial = False
    for index, (path, backend) in enumerate(pairs):
        progress(f"{path.name} on {backend}", index, len(pairs))
        request = {
            "model": str(path),
            "backend": backend,
            "threads": threads,
            "batch": batch,
            "scenario": scenario,
            "duration": duration,
        }
        try:
            answer = _child(request)
        except KeyboardInterrupt:
            partial = True
            break
        if (error := answer.get("error")) is None:
            records.append(answer)
        else:
            failures.append(Failure(str(path), backend, error["message"], error["exit_code"]))
    return BenchReport(environment(), tuple(records), tuple(failures), partial)


def _child(request: dict[str, Any]) -> dict[str, Any]:
    """Run one request in a fresh process; one that dies gives an error with its last words."""
    try:
        process = subprocess.run(
            [sys.executable, "-m", "edgecv.measure.child"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=STARTUP_SECONDS + 4 * request["duration"],
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": {"message": "the measuring process did not answer", "exit_code": 1}}
    try:
        answer: dict[str, Any] = json.loads(process.stdout)
    except ValueError:
        last = " | ".join(process.stderr.strip().splitlines()[-3:]) or "it said nothing"
        message = f"the measuring process died (exit {process.returncode}): {last}"
        return {"error": {"message": message, "exit_code": 1}}
    return answer
