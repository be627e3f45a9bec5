"""What starting EdgeCV costs: fresh processes, interleaved, median and quartiles."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from record import save

from edgecv.measure.ready import READY_MODEL

PEAK = "print([l for l in open('/proc/self/status') if l.startswith('VmHWM')][0].split()[1])"
BARE = """
import numpy as np, onnxruntime as ort
from PIL import Image
from record import save
s = ort.InferenceSession({model!r}, providers=["CPUExecutionProvider"])
p = Image.open({picture!r}).convert("RGB").resize((64, 64))
x = ((np.asarray(p, np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None].copy()
s.run(None, {{"input": x}})
"""
OURS = "import edgecv\nedgecv.load({model!r}, backend='onnxruntime')({picture!r})\n"


def run(code: list[str]) -> tuple[float, str]:
    start = time.perf_counter()
    done = subprocess.run(code, capture_output=True, text=True, check=True)
    return (time.perf_counter() - start) * 1e3, done.stdout


def summary(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 1), "q1": round(low, 1), "q3": round(high, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=15, help="rounds")
    parser.add_argument("-o", type=Path, help="JSON file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        picture = str(Path(folder) / "p.jpg")
        noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
        Image.fromarray(noise).save(picture)
        where = {"model": str(READY_MODEL), "picture": picture}
        python = [sys.executable, "-c"]
        cases = {
            "python -c pass, ms": [*python, "pass"],
            "import numpy, ms": [*python, "import numpy"],
            "import edgecv, ms": [*python, "import edgecv"],
            "import edgecv; edgecv.load, ms": [*python, "import edgecv; edgecv.load"],
            "edgecv --help, ms": [str(Path(sys.executable).parent / "edgecv"), "--help"],
            "bare onnxruntime script, peak MB": [*python, BARE.format(**where) + PEAK],
            "edgecv.load(...)(picture), peak MB": [*python, OURS.format(**where) + PEAK],
        }
        samples: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(arguments.n):
            for name, command in cases.items():
                milliseconds, out = run(command)
                peak = name.endswith("MB")
                samples[name].append(int(out) * 1024 / 1e6 if peak else milliseconds)
    results = {name: summary(values) for name, values in samples.items()}
    for name, values in results.items():
        print(f"{name:36} {values['median']:8.1f}  ({values['q1']} to {values['q3']})")
    save(arguments.o, "process/1", results=results)


if __name__ == "__main__":
    main()
