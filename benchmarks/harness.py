"""Does the measuring hold? The harness measured with itself.

``--mode short`` (two minutes) shows that it works; ``--mode full`` (two hours) is the
proof: 20 pairs of runs of the same model, two minutes apart, and between them 20 with 5% planted. A
run that was cut off goes on where it was when the same ``-o`` is given.

- ``same``: the same file against a copy of itself; the interval of the ratio should hold 1;
- ``slower``: the copy's runs are made 5% longer by spinning; a regression should be found;
- ``bare``: the same session in a bare onnxruntime loop; the ratio of the medians should be 1;
- ``openvino``: single-stream p50 against OpenVINO's own benchmark_app, in turns of two seconds;
- ``overhead``: what the timed loop adds to a run, in nanoseconds.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record import from_here, kept, save

from edgecv.measure import child, selftest
from edgecv.measure.machine import environment
from edgecv.measure.ready import READY_MODEL
from edgecv.measure.record import machine_id
from edgecv.measure.scenarios import Plan
from edgecv.measure.timing import timed
from edgecv.model import Model
from edgecv.runtimes import probe_backends
from edgecv.spec import read_spec
from edgecv.workflows.bench import bench

PLANTED = 0.05
PLANTED_FILE, BARE_FILE = "planted.onnx", "bare.onnx"  # the child plays these roles by file name
PEER_FILE = "peer.onnx"
TURN_SECONDS = 2.0  # of benchmark_app and `edgecv bench`, in turn


def planted_child() -> None:
    """A measuring process in which the files above are slowed, or run without EdgeCV."""
    real = child._stages

    def stages(model: Model, plan: Plan) -> dict[str, Callable[[], object]]:
        found = real(model, plan)
        run = found["inference"]
        if model.runtime.path.name == PLANTED_FILE:
            found["inference"] = lambda: slowed(run)
        if model.runtime.path.name == BARE_FILE:
            found["inference"] = bare(model)
        return found

    child._stages = stages
    child.main()


def slowed(run: Callable[[], object]) -> None:
    """``run``, and 5% of what it took on top. Spinning: a sleep of 50 microseconds takes 100."""
    clock = time.perf_counter_ns
    start = clock()
    run()
    end = clock()
    end += int((end - start) * PLANTED)
    while clock() < end:
        pass


def bare(model: Model) -> Callable[[], object]:
    """What onnxruntime_perf_test does: ``session.run`` on a tensor in memory, nothing else."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = model.info.threads
    settings.inter_op_num_threads = 1
    session = ort.InferenceSession(
        str(model.runtime.path), settings, providers=["CPUExecutionProvider"]
    )
    (tensor,) = model.spec.inputs
    batch = tensor.shape[0] if isinstance(tensor.shape[0], int) else 1
    # the same values as ours: power, and so the clock, depends on the bits that change
    feeds = {tensor.name: selftest.inputs(model.spec.preparation, child.SEED, batch)}
    return lambda: session.run(None, feeds)


def trial(model: Path, role: str, backend: str, duration: float) -> dict[str, Any]:
    """One comparison of ``model`` with its copy in ``role``."""
    report = bench(
        [model.with_name(role)],
        baseline=model,
        backends=[backend],
        threads=1,
        duration=duration,
        child=(sys.executable, __file__, "--child"),
    )
    (verdict,) = report.verdicts
    noisy = any(record["noise"]["noisy"] for record in report.records)
    return {
        **verdict.to_dict(),
        "noisy": noisy,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def openvino_trial(model: Path, duration: float) -> dict[str, Any]:
    """`edgecv bench` over benchmark_app: the ratio of the medians of turns next to each other."""
    ratios, theirs = [], []
    for _ in range(max(1, round(duration / TURN_SECONDS))):
        theirs.append(openvino_app(model, TURN_SECONDS))
        report = bench([model], backends=["openvino"], threads=1, duration=TURN_SECONDS)
        ratios.append(report.records[0]["latency_ms"]["p50"] / theirs[-1])
    value = statistics.median(ratios)
    return {"ratio": {"value": round(value, 5)}, "benchmark_app_ms": statistics.median(theirs)}


def openvino_app(model: Path, duration: float) -> float:
    """The median latency, in ms, that OpenVINO's benchmark_app reports on one thread."""
    app = Path(sys.executable).with_name("benchmark_app")
    command = [str(app)] if app.exists() else [sys.executable, "-m", "openvino.tools.benchmark"]
    (tensor,) = read_spec(model).inputs
    shape = [size if isinstance(size, int) else 1 for size in tensor.shape]
    flags = {
        "-m": model, "-data_shape": f"{tensor.name}{shape}".replace(" ", ""),
        "-d": "CPU", "-api": "sync", "-nireq": 1, "-nthreads": 1, "-nstreams": 1,
        "-hint": "none", "-infer_precision": "f32", "-t": round(duration),
    }  # fmt: skip
    words = [str(word) for flag in flags.items() for word in flag]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if "Median:" in line)
    value, unit = line.split("Median:")[1].split()  # microseconds, where it takes less than one ms
    return float(value) * {"ms": 1.0, "us": 1e-3}[unit]


def overhead_ns() -> dict[str, float]:
    """The time of a run that does nothing: the loop, the call and the clock."""
    medians = [statistics.median(timed(lambda: None, 0.05)) for _ in range(20)]
    return {"median": statistics.median(medians), "worst_of_20": max(medians)}


class Results:
    """The file of results; every trial is written as soon as it is done."""

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        here = machine_id(environment())
        self.path = path
        self.data: dict[str, Any] = {"machine_id": here, "settings": settings, "trials": {}}
        if from_here(path, settings=settings):
            self.data["trials"] = trials = kept(path, "trials")
            print(f"going on with {sum(map(len, trials.values()))} trials of {path}")

    def of(self, name: str) -> list[Any]:
        found: list[Any] = self.data["trials"].setdefault(name, [])
        return found

    def add(self, name: str, value: Any) -> None:
        self.of(name).append(value)
        self.write()

    def write(self) -> None:
        save(self.path, "harness/1", **self.data)


def summarize(results: Results) -> dict[str, Any]:
    """The figures that the trials come to."""
    found: dict[str, Any] = {}
    same = [t["ratio"] for t in results.of("same") if "ratio" in t]
    if same:
        widths = [(r["high"] - r["low"]) / 2 for r in same]
        found["same"] = {
            "trials": len(same),
            "interval_holds_1": sum(r["low"] <= 1 <= r["high"] for r in same),
            "half_width_median": round(statistics.median(widths), 5),
            "half_width_worst": round(max(widths), 5),
            "called_a_regression": sum(t["verdict"] == "regression" for t in results.of("same")),
        }
    slower = [t for t in results.of("slower") if "ratio" in t]
    if slower:
        found["slower"] = {
            "trials": len(slower),
            "found": sum(t["verdict"] == "regression" for t in slower),
            "ratio_median": round(statistics.median(t["ratio"]["value"] for t in slower), 4),
        }
    for name in ("bare", "openvino"):
        ratios = [t["ratio"]["value"] for t in results.of(name) if "ratio" in t]
        if ratios:
            found[name] = {
                "trials": len(ratios),
                "ratio_median": round(statistics.median(ratios), 4),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--mode", choices=("short", "full"), default="short")
    parser.add_argument("--duration", type=float, help="seconds a pair; default: 3 or 20")
    parser.add_argument("--trials", type=int, help="of same and slower; default: 3 or 20")
    parser.add_argument("--gap", type=float, help="seconds from one of same to the next; 0 or 120")
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument(
        "--peer-model",
        type=Path,
        default=READY_MODEL,
        help="what bare and openvino run; default: the ready model, of 64 pixels",
    )
    parser.add_argument("-o", type=Path, help="JSON file, written after every trial")
    arguments = parser.parse_args()
    full = arguments.mode == "full"
    trials = arguments.trials or (20 if full else 3)
    gap = (120.0 if full else 0.0) if arguments.gap is None else arguments.gap
    duration = arguments.duration or (20.0 if full else 3.0)
    others = max(1, trials // 6)
    openvino = probe_backends().get("openvino")
    usable = openvino is not None and openvino.usable
    jobs = ["same"] * trials + ["slower"] * trials + ["bare"] * others
    jobs += ["openvino"] * (others if usable else 0)
    settings = {
        "trials": trials,
        "gap_s": gap,
        "duration_s": duration,
        "backend": arguments.backend,
        "peer_model": arguments.peer_model.name,
    }
    results = Results(arguments.o, settings)
    results.data["overhead_ns"] = overhead_ns()
    # same and slower by turns: an hour of noise does not fall on one of them alone
    jobs.sort(key=lambda name: name in ("bare", "openvino"))
    order = [
        name for pair in zip(jobs[:trials], jobs[trials : 2 * trials], strict=True) for name in pair
    ]
    order += jobs[2 * trials :]
    roles = {"same": "copy.onnx", "slower": PLANTED_FILE, "bare": BARE_FILE}
    with tempfile.TemporaryDirectory(prefix="edgecv-harness-") as name:
        folder = Path(name)
        for file in ("model.onnx", roles["same"], roles["slower"]):
            shutil.copy(READY_MODEL, folder / file)
        for file in (PEER_FILE, BARE_FILE):
            shutil.copy(arguments.peer_model, folder / file)
        seen: dict[str, int] = {}
        began = -math.inf  # the last trial of the file against itself
        for job in order:
            seen[job] = seen.get(job, 0) + 1
            if len(results.of(job)) >= seen[job]:
                continue  # done in an earlier run
            if job == "openvino":
                results.add(job, openvino_trial(folder / PEER_FILE, duration))
            else:
                if job == "same":
                    time.sleep(max(0.0, began + gap - time.monotonic()))
                    began = time.monotonic()
                against = folder / (PEER_FILE if job == "bare" else "model.onnx")
                results.add(job, trial(against, roles[job], arguments.backend, duration))
            last = results.of(job)[-1]
            print(job, json.dumps(last.get("ratio")), last.get("verdict", ""), flush=True)
    results.data["summary"] = summarize(results)
    results.write()
    print(
        json.dumps(
            {"overhead_ns": results.data["overhead_ns"], **results.data["summary"]}, indent=1
        )
    )


if __name__ == "__main__":
    if sys.argv[1:] == ["--child"]:
        planted_child()
    else:
        main()
