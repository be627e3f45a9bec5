"""One model on one backend, measured in a process of its own: ``python -m edgecv.measure.child``.

JSON comes on stdin, JSON goes to stdout. A process of its own, because a runtime's memory is given
back only at its end: the peak is this model's, not that of the one before. What is timed:

- ``inference``: ``runtime.run`` on a prepared batch, in memory already;
- ``end_to_end``: ``Model(picture)`` from a uint8 array to the answer (one picture).
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from edgecv.errors import EdgeCVError, InputError
from edgecv.files import sha256_of
from edgecv.measure.memory import peak_rss_mb, rss_mb
from edgecv.measure.seeded import seeded_pictures
from edgecv.measure.selftest import inputs
from edgecv.measure.timing import measure, percentiles
from edgecv.model import load
from edgecv.runtimes.base import RuntimeOptions

SEED = 3
PICTURE = (480, 640)  # height, width of the end-to-end picture
OFFLINE_BATCH = 8


def measure_model(request: dict[str, Any]) -> dict[str, Any]:
    """Carry out one request ``{model, backend, threads, batch, scenario, duration}``."""
    before = rss_mb()
    started = time.perf_counter()
    options = RuntimeOptions(threads=request["threads"])
    model = load(request["model"], backend=request["backend"], options=options)
    load_ms = (time.perf_counter() - started) * 1e3
    with model:
        (tensor,) = model.spec.inputs
        batch = _batch(tensor.shape[0], request["batch"], request["scenario"], request["model"])
        feeds = {tensor.name: inputs(model.spec.preparation, SEED, batch, tensor.dtype)}
        started = time.perf_counter()
        model.runtime.run(feeds)
        first_ms = (time.perf_counter() - started) * 1e3
        times = measure(lambda: model.runtime.run(feeds), request["duration"])
        picture = seeded_pictures(SEED, 1, *PICTURE)[0]
        whole = measure(lambda: model(picture), request["duration"] / 2)
        info = model.info
        spec = model.spec
    record = {
        "model": spec.name,
        "path": request["model"],
        "sha256": sha256_of(request["model"]),
        "backend": info.backend,
        "backend_version": info.version,
        "provider": info.provider,
        "precision": spec.precision,
        "compute_precision": info.precision,
        "threads": info.threads,
        "batch": batch,
        "scenario": request["scenario"],
        "count": len(times),
        "latency_ms": percentiles(times),
        "throughput": round(batch * len(times) / (sum(times) / 1e9), 2),
        "end_to_end_ms": percentiles(whole),
        "load_ms": round(load_ms, 2),
        "first_run_ms": round(first_ms, 3),
        "rss_before_load_mb": before,
        "peak_rss_mb": peak_rss_mb(),
    }
    return {key: value for key, value in record.items() if value is not None}


def _batch(size: int | str, asked: int | None, scenario: str, model: str) -> int:
    if isinstance(size, int):
        if asked not in (None, size):
            raise InputError(
                f"{model}: its batch is fixed at {size}, not {asked}; export it with "
                f"--batch dynamic, or --batch {asked}"
            )
        return size
    return asked or (OFFLINE_BATCH if scenario == "offline" else 1)


def main() -> None:
    try:
        answer = measure_model(json.load(sys.stdin))
    except EdgeCVError as error:
        answer = {"error": {"message": str(error), "exit_code": error.exit_code}}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
