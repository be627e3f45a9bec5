"""One model on one backend, in a process of its own: ``python -m edgecv.measure.child``.

A process of its own, because a runtime's memory is given back only at its end (the peak is this
model's, not that of the one before), and because a crash takes nothing else with it. The process
stays and does what it is told, one JSON object per line on stdin and one back on stdout, so that
several of them can be measured in turns without loading anything again:

- ``open``: load, run once, warm up; answers with what really runs and what it took;
- ``time``: one turn of one stage; answers with nanoseconds per call;
- ``serve``: one slice of Poisson arrivals; answers with nanoseconds per picture;
- ``usage``: answers with memory and processor time;
- ``profile``: the runtime's own times per layer (a second copy of the model: after ``usage``);
- ``close``: gives the model back and ends.

The stages: ``inference`` is ``runtime.run`` on prepared batches in memory, ``preprocess`` a uint8
array to the input tensor, ``postprocess`` the output tensors to the answer, ``end_to_end``
``model(picture)``, all three of these for one picture.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from edgecv.errors import EdgeCVError
from edgecv.files import sha256_of
from edgecv.measure import gpu, selftest
from edgecv.measure.memory import peak_rss_mb, reset_peak, rss_mb
from edgecv.measure.scenarios import Plan, plan, serve
from edgecv.measure.seeded import seeded_pictures
from edgecv.measure.timing import WARMUP_RUNS, timed, warm_turn, warm_up
from edgecv.model import Model, load
from edgecv.preprocess import stack
from edgecv.runtimes.base import RuntimeOptions

SEED = 3
PICTURE = (480, 640)  # height, width of the end-to-end picture
STAGES = ("inference", "preprocess", "postprocess", "end_to_end")


class Session:
    """An open model and its stages."""

    def __init__(self, request: dict[str, Any]) -> None:
        reset_peak()
        self.rss_before = rss_mb()
        gpu_before = gpu.used_mb()
        started = time.perf_counter()
        options = RuntimeOptions(threads=request["threads"])
        self.model = load(request["model"], backend=request["backend"], options=options)
        load_ms = (time.perf_counter() - started) * 1e3
        (tensor,) = self.model.spec.inputs
        self.plan = plan(request["scenario"], tensor.shape[0], request["batch"], request["model"])
        self.stages = _stages(self.model, self.plan)
        started = time.perf_counter()
        self.stages["inference"]()
        first_ms = (time.perf_counter() - started) * 1e3
        for stage in self.stages.values():
            warm_up(stage, request["warmup"] / len(self.stages))
        steady = timed(self.stages["inference"], 0, WARMUP_RUNS)
        self.rss_warm = rss_mb()
        self.cpu_ns = self.wall_ns = 0
        self.opened = {
            "steady_s": statistics.median(steady) / 1e9,
            "description": self._describe(request, load_ms, first_ms, gpu_before),
        }

    def _describe(
        self, request: dict[str, Any], load_ms: float, first_ms: float, gpu_before: float | None
    ) -> dict[str, Any]:
        spec, info = self.model.spec, self.model.info
        return _present(
            {
                "model": spec.name,
                "path": request["model"],
                "file": Path(request["model"]).name,
                "sha256": sha256_of(request["model"]),
                "size_bytes": Path(request["model"]).stat().st_size,
                "task": spec.task,
                "backend": info.backend,
                "backend_version": info.version,
                "device": info.device,
                "precision": spec.precision,
                "target": spec.target,
                "threads": info.threads,
                "batch": self.plan.batch,
                "pictures_per_query": self.plan.pictures,
                "scenario": request["scenario"],
                "load_ms": round(load_ms, 3),
                "first_run_ms": round(first_ms, 3),
                "gpu_memory_mb": gpu.growth_mb(gpu_before),
            }
        )

    def time(self, request: dict[str, Any]) -> dict[str, Any]:
        run, before = self.stages[request["stage"]], time.process_time_ns()
        warm_turn(run)
        return self._counted(lambda: timed(run, request["seconds"], request["least"]), before)

    def serve(self, request: dict[str, Any]) -> dict[str, Any]:
        run, before = self.stages["inference"], time.process_time_ns()
        run()
        return self._counted(
            lambda: serve(run, request["rate"], request["seconds"], request["seed"]), before
        )

    def profile(self, request: dict[str, Any]) -> dict[str, Any]:
        # here and not above: reading graphs is not part of a measuring process's memory
        from edgecv.measure.profile import profile

        return profile(self.model, request["runs"], self.plan.batch).to_dict()

    def _counted(self, slice_: Callable[[], array[int]], before: int) -> dict[str, Any]:
        """The slice's times; ``cpu_ns`` is all that this process has used since ``before``, the
        warm-up too: of what the machine was busy with meanwhile, the rest was others'."""
        cpu, wall = time.process_time_ns(), time.perf_counter_ns()
        times = slice_()
        after = time.process_time_ns()
        self.cpu_ns += after - cpu
        self.wall_ns += time.perf_counter_ns() - wall
        return {"times": times.tolist(), "cpu_ns": after - before}

    def close(self, request: dict[str, Any]) -> dict[str, Any]:
        self.model.close()
        return {}

    def usage(self, request: dict[str, Any]) -> dict[str, Any]:
        after = rss_mb()
        peak = peak_rss_mb()
        growth = None if after is None or self.rss_warm is None else after - self.rss_warm
        added = None if peak is None or self.rss_before is None else peak - self.rss_before
        # only the last process is asked: some runtimes answer by loading the model a second time
        info = self.model.info if request["readback"] else None
        return _present(
            {
                "provider": info and info.provider,
                "compute_precision": info and info.precision,
                "rss_before_load_mb": _rounded(self.rss_before),
                "peak_rss_mb": _rounded(peak),
                "model_memory_mb": _rounded(added),
                "rss_growth_mb": _rounded(growth),
                "cpu_cores_used": round(self.cpu_ns / self.wall_ns, 3) if self.wall_ns else None,
            }
        )


def _stages(model: Model, plan: Plan) -> dict[str, Callable[[], object]]:
    spec = model.spec
    (tensor,) = spec.inputs
    feeds = {tensor.name: selftest.inputs(spec.preparation, SEED, plan.batch, tensor.dtype)}
    run, runs = model.runtime.run, range(plan.runs)

    def query() -> None:
        for _ in runs:
            run(feeds)

    picture = seeded_pictures(SEED, 1, *PICTURE)[0]
    prepared = model.prepare(picture)
    outputs = model.infer(stack([prepared]))
    placements = [prepared.placement]
    return {
        "inference": query if plan.runs > 1 else lambda: run(feeds),
        "preprocess": lambda: model.prepare(picture),
        "postprocess": lambda: model.decode(outputs, placements),
        "end_to_end": lambda: model(picture),
    }


def _present(record: dict[str, Any]) -> dict[str, Any]:
    """What could not be read is absent: a zero or a null would be taken for a measurement."""
    return {key: value for key, value in record.items() if value is not None}


def _rounded(megabytes: float | None) -> float | None:
    return None if megabytes is None else round(megabytes, 1)


def answer(session: Session | None, request: dict[str, Any]) -> tuple[Session, dict[str, Any]]:
    """Carry out one request; the first one opens."""
    if session is None:
        session = Session(request)
        return session, session.opened
    method: Callable[[dict[str, Any]], dict[str, Any]] = {
        "time": session.time,
        "serve": session.serve,
        "usage": session.usage,
        "profile": session.profile,
        "close": session.close,
    }[request["do"]]
    return session, method(request)


def _private_stdout() -> TextIO:
    """Keep stdout for the protocol: what libraries print goes to stderr."""
    private = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return private


def _end_with_the_parent() -> None:
    """A parent that is killed leaves no process behind that is stopped for ever."""
    if sys.platform == "linux":
        import ctypes

        set_pdeathsig = 1  # <sys/prctl.h>
        ctypes.CDLL(None).prctl(set_pdeathsig, int(signal.SIGKILL))


def main() -> None:
    _end_with_the_parent()
    out = _private_stdout()
    session: Session | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            session, reply = answer(session, request)
        except EdgeCVError as error:
            reply = {"error": {"message": str(error), "exit_code": error.exit_code}}
        out.write(json.dumps({**reply, "id": request["id"]}) + "\n")
        out.flush()
        if "error" in reply or request["do"] == "close":
            break


if __name__ == "__main__":
    main()
