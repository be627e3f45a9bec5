"""Every net of the zoo, on every runtime: export, parity, engines, latency.

Weights are filled by name from a seed, BatchNorm's statistics too, so that nothing in a graph is
trivial and no download is needed. One process per net; the result file is written after each, and
a run that was stopped goes on where it was. A step that fails is a row's "error", never a gap.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from record import kept, save
from torch import nn

GPUS = ("sm80", "sm86", "sm89", "sm120")
BATCH_SIZE = "N"  # the symbolic size of a dynamic file
PROFILE = (1, 1, 8)  # smallest, best, largest batch of the engines
BATCH = 2  # of the comparison: not one that the export saw
LIMIT = 1e-4  # of the largest output: the project's bound for equal FP32 programs

# Run by the interpreter of each set of runtimes; needs NumPy and the runtimes alone.
COMPARE = """
import json, sys, time
import numpy as np
model, data, seconds = sys.argv[1], np.load(sys.argv[2]), float(sys.argv[3])
x, expected = data["x"], [data[k] for k in sorted(data.files) if k != "x"]
out = {}
def rel(got):
    return max(float(np.abs(g - e).max() / np.abs(e).max()) for g, e in zip(got, expected))
def attempt(name, run):
    try:
        out[name] = run()
    except Exception as error:
        out[name] = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
def ort():
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: x}
    row = {"version": onnxruntime.__version__, "max_rel": rel(session.run(None, feeds))}
    if seconds:
        one = {session.get_inputs()[0].name: np.ascontiguousarray(x[:1])}
        for _ in range(3):
            session.run(None, one)
        times, end = [], time.perf_counter() + seconds
        while len(times) < 10 or time.perf_counter() < end:
            start = time.perf_counter()
            session.run(None, one)
            times.append((time.perf_counter() - start) * 1e3)
        low, middle, high = np.percentile(times, [25, 50, 75])
        row["latency_ms"] = {"p50": round(middle, 3), "q1": round(low, 3), "q3": round(high, 3)}
    return row
def ov():
    import openvino
    core = openvino.Core()
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(model, "CPU", config)
    result = compiled(x)
    got = [result[o] for o in compiled.outputs]
    return {"version": openvino.__version__.split("-")[0], "max_rel": rel(got)}
attempt("onnxruntime", ort)
attempt("openvino", ov)
print(json.dumps(out))
"""


def compare(python: str, model: Path, data: Path, seconds: float) -> dict[str, Any]:
    """What the runtimes of the interpreter ``python`` make of the file."""
    command = [python, "-c", COMPARE, str(model), str(data), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1][:300]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def engines(model: Path, folder: Path) -> dict[str, Any]:
    """Seconds to build an engine of TensorRT-RTX for each GPU, or the error."""
    from edgecv.workflows.build import build

    found: dict[str, Any] = {}
    for gpu in GPUS:
        try:
            built = build(
                model,
                backend="tensorrt-rtx",
                gpus=[gpu],
                shapes={BATCH_SIZE: PROFILE},
                output=folder / f"{gpu}.engine",
            )
            found[gpu] = {"seconds": round(built.seconds, 2), "size_bytes": built.size_bytes}
        except Exception as error:
            found[gpu] = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    return found


def _tame(net: nn.Module) -> None:
    """Halve the gain of every BatchNorm.

    With gains around 1 a deep residual net of random weights is chaotic: EfficientNet-B4's own
    float32 and float64 answers differ by 67% of the largest logit, and no parity can be told. With
    the half they differ by 4e-7, as those of trained nets do.
    """
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.mul_(0.5)


def measure(name: str, old_python: str | None, seconds: float) -> dict[str, Any]:
    """One row of the table."""
    import torch

    import edgecv
    from edgecv.export.recipe import load_recipe
    from edgecv.export.sources import build
    from edgecv.models.seeded import fill_by_name
    from edgecv.workflows.models import layers_of

    recipe = load_recipe(name)
    p = recipe.preparation
    counted = layers_of(name)
    row: dict[str, Any] = {
        "name": name,
        "task": recipe.task,
        "input": [p.channels, p.height, p.width],
        "parameters": counted.parameters,
        "macs": counted.macs,
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        net = build(recipe.source, len(recipe.labels) or None, recipe.options, recipe.folder)
        fill_by_name(net)
        _tame(net)
        weights = folder / "weights.pth"
        torch.save(net.state_dict(), weights)
        for kind, batch in (("static", 1), ("dynamic", None)):
            start = time.perf_counter()
            result = edgecv.export(
                name, weights=str(weights), batch=batch, output=folder / f"{kind}.onnx"
            )
            row[kind] = {
                "export_seconds": round(time.perf_counter() - start, 2),
                "max_rel": result.spec.parity["max_rel"],
                "batches": result.spec.parity["batches"],
            }
        row["nodes"] = result.nodes
        row["size_bytes"] = result.size_bytes
        x = np.random.default_rng(1).standard_normal((BATCH, *row["input"])).astype(np.float32)
        with torch.inference_mode():
            out = net.eval()(torch.from_numpy(x))
        outputs = out if isinstance(out, tuple) else (out,)
        data = folder / "data.npz"
        np.savez(data, x=x, **{f"y{i}": y.numpy() for i, y in enumerate(outputs)})
        row["newest"] = compare(sys.executable, folder / "dynamic.onnx", data, seconds)
        row["oldest"] = (
            compare(old_python, folder / "dynamic.onnx", data, 0)
            if old_python
            else {"error": "no --old-python was given"}
        )
        row["tensorrt_rtx"] = engines(folder / "dynamic.onnx", folder)
    return row


def child(name: str, old_python: str | None, seconds: float) -> dict[str, Any]:
    """:func:`measure` in a process of its own: its memory goes with it."""
    command = [sys.executable, __file__, "--row", name, "--seconds", str(seconds)]
    if old_python:
        command += ["--old-python", old_python]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        return {"name": name, "error": last[:300]}
    row: dict[str, Any] = json.loads(lines[-1])
    return row


def failures(row: dict[str, Any]) -> list[str]:
    """What is wrong in a row, in words."""
    if "error" in row:
        return [row["error"]]
    found = []
    for age in ("newest", "oldest"):
        if "error" in row[age]:
            found.append(f"{age}: {row[age]['error']}")
            continue
        for runtime, result in row[age].items():
            if "error" in result:
                found.append(f"{runtime}, {age}: {result['error']}")
            elif not result["max_rel"] <= LIMIT:
                found.append(f"{runtime} {result['version']}: off by {result['max_rel']:.1e}")
    found += [f"{g}: {r['error']}" for g, r in row["tensorrt_rtx"].items() if "error" in r]
    return found


def caption(environment: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """What the table shows, and where it was made."""
    ages = {
        f"{age} {name}": row[age][name].get("version")
        for row in rows
        if "error" not in row
        for age in ("newest", "oldest")
        for name in ("onnxruntime", "openvino")
        if name in row[age]
    }
    versions = ", ".join(f"{name} {version}" for name, version in ages.items())
    packages = environment["packages"]
    return (
        "# The zoo on every runtime\n\n"
        "Made by `python benchmarks/zoo.py` (`zoo.json` has every figure). Weights are seeded by "
        "name. Export: the dynamic batch, parity proof included. Parity: the largest difference "
        f"to PyTorch by the largest output, at a batch of {BATCH} (allowed {LIMIT:g}). Engines: "
        "TensorRT-RTX, built without a GPU, batch "
        f"{', '.join(map(str, PROFILE))}: seconds and megabytes. Latency: FP32, batch 1, "
        "onnxruntime.\n\n"
        f"{environment['cpu']}, {environment['physical_cores']} cores; {versions}; torch "
        f"{packages['torch']}, tensorrt-rtx {packages.get('tensorrt-rtx', 'not installed')}.\n\n"
    )


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table for people."""
    head = (
        "net", "input", "parameters, M", "MACs, M", "export, s", "nodes", "ms, 1 thread",
        "ORT newest", "ORT oldest", "OpenVINO newest", "OpenVINO oldest", *GPUS,
    )  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['name']} | {row['error']} |" + " |" * (len(head) - 2))
            continue

        def cell(age: str, runtime: str, row: dict[str, Any] = row) -> str:
            found = row[age].get(runtime, row[age])
            return "failed" if "error" in found else f"{found['max_rel']:.1e}"

        kinds = ", ".join(f"{count} {kind}" for kind, count in row["nodes"].items())
        latency = row["newest"].get("onnxruntime", {}).get("latency_ms", {}).get("p50", "failed")
        built = [
            "failed"
            if "error" in found
            else f"{found['seconds']} s, {found['size_bytes'] / 1e6:.1f} MB"
            for found in row["tensorrt_rtx"].values()
        ]
        cells = [
            row["name"],
            "x".join(map(str, row["input"])),
            f"{row['parameters'] / 1e6:.2f}",
            f"{row['macs'] / 1e6:,.1f}",
            str(row["dynamic"]["export_seconds"]),
            kinds,
            str(latency),
            cell("newest", "onnxruntime"),
            cell("oldest", "onnxruntime"),
            cell("newest", "openvino"),
            cell("oldest", "openvino"),
            *built,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    from edgecv.measure.machine import environment
    from edgecv.workflows.models import list_models

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="recipes; none means all of them")
    parser.add_argument(
        "--old-python", help="an interpreter with onnxruntime 1.17.3 and OpenVINO 2024.0"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="of latency, per net")
    parser.add_argument("--redo", action="store_true", help="measure rows again that are there")
    parser.add_argument("-o", type=Path, help="JSON file; what it has is kept")
    parser.add_argument("--markdown", type=Path, help="the table for people")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        print(json.dumps(measure(arguments.row, arguments.old_python, arguments.seconds)))
        return
    recipes = sorted(list_models(), key=lambda recipe: recipe.macs or 0)
    names = [r.name for r in recipes if not arguments.names or r.name in arguments.names]
    done = kept(arguments.o, "rows")
    for name in names:
        have = done.get(name)
        if have and not failures(have) and not arguments.redo:
            continue
        row = child(name, arguments.old_python, arguments.seconds)
        done[name] = row
        wrong = failures(row)
        print(f"{name:24} {'; '.join(wrong) if wrong else 'ok'}", flush=True)
        save(arguments.o, "zoo/1", rows=done)
    rows = [done.get(r.name, {"name": r.name, "error": "not measured"}) for r in recipes]
    if arguments.markdown:
        arguments.markdown.write_text(caption(environment(), rows) + markdown(rows))
    bad = {row["name"]: failures(row) for row in rows if failures(row)}
    print(f"{len(rows) - len(bad)} of {len(rows)} nets pass everywhere")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
