"""What a backend of EdgeCV costs over the bare runtime, and what it gives back.

python benchmarks/runtimes.py overhead [MODEL]   run() and run_into() against the bare runtime
python benchmarks/runtimes.py memory             RSS after 20,000 runs, and after 200 times open, run, close
python benchmarks/runtimes.py spin [MODEL]       CPU use and latency at 10 pictures a second, by profile
python benchmarks/runtimes.py builds MODEL...    TensorRT-RTX engines by architecture: seconds and bytes
"""  # noqa: E501  # the lines are the help text

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from record import kept, save

from edgecv.errors import EdgeCVError
from edgecv.measure.memory import rss_mb
from edgecv.measure.ready import READY_MODEL
from edgecv.runtimes import CPU_BACKENDS, open_backend, probe_backends
from edgecv.runtimes.base import Backend, RuntimeOptions
from edgecv.runtimes.trt_build import ahead_of_time_gpus, library
from edgecv.workflows.build import build

RUNS, OPENS = 20_000, 200
FPS = 10


def usable() -> list[str]:
    probes = probe_backends()
    return [name for name in CPU_BACKENDS if probes[name].usable]


def feeds_of(runtime: Backend) -> dict[str, Any]:
    """One picture of noise; symbolic sizes other than the batch become 224."""
    rng = np.random.default_rng(0)
    feeds = {}
    for tensor in runtime.inputs:
        shape = [s if isinstance(s, int) else (224 if i else 1) for i, s in enumerate(tensor.shape)]
        feeds[tensor.name] = rng.standard_normal(shape).astype(tensor.dtype)
    return feeds


def bare_call(runtime: Backend, feeds: dict[str, Any]) -> Callable[[], Any]:
    """The same inference by the runtime's own interface, with its own copies, and no EdgeCV, on a
    session that was opened by itself."""
    if runtime.name == "onnxruntime":
        import onnxruntime as ort

        settings = ort.SessionOptions()
        settings.intra_op_num_threads = runtime.options.resolved_threads
        session = ort.InferenceSession(
            str(runtime.path), settings, providers=["CPUExecutionProvider"]
        )
        return ort_call(session, feeds)
    import openvino as ov

    compiled = ov.Core().compile_model(
        str(runtime.path),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": str(runtime.options.resolved_threads),
            "NUM_STREAMS": "1",
        },
    )
    return openvino_call(compiled, feeds)


def own_call(runtime: Any, feeds: dict[str, Any]) -> Callable[[], Any]:
    """The same on the session that EdgeCV has open: two sessions of one file differ by a percent,
    by where their weights came to lie."""
    if runtime.name == "onnxruntime":
        return ort_call(runtime._session, feeds)
    return openvino_call(runtime._compiled, feeds)


def ort_call(session: Any, feeds: dict[str, Any]) -> Callable[[], Any]:
    names = [output.name for output in session.get_outputs()]
    return lambda: session.run(names, feeds)


def openvino_call(compiled: Any, feeds: dict[str, Any]) -> Callable[[], Any]:
    request = compiled.create_infer_request()
    return lambda: request.infer(feeds, share_inputs=True)


def overhead(model: Path, rounds: int) -> dict[str, Any]:
    """Median microseconds of each, interleaved call by call, one thread; and paired differences."""
    results = {}
    for name in usable():
        with open_backend(name, model, RuntimeOptions(threads=1)) as runtime:
            feeds = feeds_of(runtime)
            buffers = {key: array.copy() for key, array in runtime.run(feeds).items()}
            cases: dict[str, Callable[[], Any]] = {
                "another session, bare": bare_call(runtime, feeds),
                "bare": own_call(runtime, feeds),
                "run": lambda r=runtime, f=feeds: r.run(f),
                "run_into": lambda r=runtime, f=feeds, b=buffers: r.run_into(f, b),
            }
            times: dict[str, list[float]] = {key: [] for key in cases}
            order = list(cases.items())
            for index in range(rounds):
                for key, call in order if index % 2 else order[::-1]:
                    start = time.perf_counter_ns()
                    call()
                    times[key].append((time.perf_counter_ns() - start) / 1e3)
        row: dict[str, Any] = {}
        for key, values in times.items():
            low, middle, high = statistics.quantiles(values, n=4)
            row[key] = {"median_us": round(middle, 1), "q1": round(low, 1), "q3": round(high, 1)}
        for key in ("another session, bare", "run", "run_into"):
            pairs = zip(times[key], times["bare"], strict=True)
            row[key]["over_bare_us"] = round(statistics.median(a - b for a, b in pairs), 1)
            row[key]["ratio"] = round(row[key]["median_us"] / row["bare"]["median_us"], 4)
        results[name] = row
        print(name, json.dumps(row))
    return results


def memory(model: Path, runs: int, opens: int) -> dict[str, Any]:
    results = {}
    options = RuntimeOptions(threads=1)
    for name in usable():
        with open_backend(name, model, options) as runtime:
            feeds = feeds_of(runtime)
            for _ in range(200):
                runtime.run(feeds)
            before = rss_mb() or 0.0
            for _ in range(runs):
                runtime.run(feeds)
            after_runs = (rss_mb() or 0.0) - before
        sizes = []
        for _ in range(opens):
            with open_backend(name, model, options) as runtime:
                runtime.run(feeds)
            gc.collect()
            sizes.append(rss_mb() or 0.0)
        results[name] = {
            f"mb_after_{runs}_runs": round(after_runs, 2),
            # the first few fill the allocator's pools
            f"mb_after_{opens}_opens": round(sizes[-1] - sizes[min(5, opens - 1)], 2),
        }
        print(name, json.dumps(results[name]))
    return results


SPIN = """
import sys, time, json, statistics
sys.path.insert(0, {here!r})
from runtimes import feeds_of
from edgecv.runtimes import open_backend
from edgecv.runtimes.base import RuntimeOptions
with open_backend({name!r}, {model!r}, RuntimeOptions(profile={profile!r}, threads={threads})) as r:
    feeds = feeds_of(r)
    for _ in range(5): r.run(feeds)
    wall, cpu, times, due = time.perf_counter(), time.process_time(), [], time.perf_counter()
    for _ in range({frames}):
        start = time.perf_counter(); r.run(feeds); times.append(time.perf_counter() - start)
        due += 1 / {fps}
        time.sleep(max(0, due - time.perf_counter()))
    used = (time.process_time() - cpu) / (time.perf_counter() - wall)
print(json.dumps([used * 100, statistics.median(times) * 1e3]))
"""


def spin(model: Path, seconds: float, threads: int, rounds: int) -> dict[str, Any]:
    """Percent of one core, and median milliseconds of a run, at 10 pictures a second."""
    results: dict[str, Any] = {}
    for name in usable():
        samples: dict[str, list[list[float]]] = {"default": [], "low-power": []}
        for _ in range(rounds):
            for profile, found in samples.items():
                code = SPIN.format(
                    here=str(Path(__file__).parent), name=name, model=str(model), profile=profile,
                    threads=threads, frames=int(seconds * FPS), fps=FPS,
                )  # fmt: skip
                done = subprocess.run(
                    [sys.executable, "-c", code], capture_output=True, text=True, check=True
                )
                found.append(json.loads(done.stdout.splitlines()[-1]))
        results[name] = {
            profile: {
                "cpu_percent": round(statistics.median(row[0] for row in found), 1),
                "latency_ms": round(statistics.median(row[1] for row in found), 3),
            }
            for profile, found in samples.items()
        }
        print(name, json.dumps(results[name]))
    return results


def builds(models: list[Path]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    gpus = ahead_of_time_gpus(library("tensorrt-rtx"))
    for model in models:
        rows: dict[str, Any] = {}
        for gpu in gpus:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    made = build(
                        model, backend="tensorrt-rtx", gpus=[gpu], output=Path(folder) / "e.engine"
                    )
                except EdgeCVError as error:  # published as it is
                    rows[gpu] = {"error": str(error).partition(": ")[2][:300]}
                    continue
                rows[gpu] = {
                    "seconds": round(made.seconds, 2),
                    "bytes": made.size_bytes,
                    "nodes": dict(made.header.nodes),
                }
        results[model.name] = rows
        print(model.name, json.dumps(rows))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("overhead", "memory", "spin", "builds"))
    parser.add_argument("models", nargs="*", type=Path, default=[])
    parser.add_argument("-n", type=int, help="rounds (overhead 1500, spin 3), runs (memory 20000)")
    parser.add_argument("--opens", type=int, default=OPENS)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each spin measurement")
    parser.add_argument("--threads", type=int, default=2, help="for spin")
    parser.add_argument("-o", type=Path, help="JSON file; results of other kinds in it are kept")
    a = parser.parse_args()
    models = a.models or [READY_MODEL]
    if a.what == "overhead":
        results = {path.name: overhead(path, a.n or 1500) for path in models}
    elif a.what == "memory":
        results = {path.name: memory(path, a.n or RUNS, a.opens) for path in models}
    elif a.what == "spin":
        results = {path.name: spin(path, a.seconds, a.threads, a.n or 3) for path in models}
    else:
        results = builds(models)
    save(a.o, "runtimes/1", results={**kept(a.o, "results"), a.what: results})


if __name__ == "__main__":
    main()
