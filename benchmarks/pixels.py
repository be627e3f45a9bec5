"""From a uint8 array to the answer: FP32, INT8, and INT8 that takes pixels, on one thread.

    edgecv export mobilenetv2 --weights W.pth --mean 0.5 --std 0.5 --resize 256 -o mobilenetv2.onnx
    python benchmarks/pixels.py mobilenetv2.onnx PICTURES -o benchmarks/pixels.json

100 of PICTURES calibrate. Timed is the whole call ``edgecv.load(FILE)(array)``, by turns: for an
array whose short side is what the contract resizes to (a camera that delivers what is asked for:
nothing is resized, the centre is cut out), and for a frame of 640x480, which is resized first.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from record import kept, save

import edgecv
from edgecv.measure.statistics import ratio
from edgecv.measure.timing import by_turns
from edgecv.workflows.quantize import quantize

SECONDS = 0.2  # of one turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="an FP32 file of `edgecv export`")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--target", default="onnxruntime-x86")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("-o", type=Path, help="JSON file; what it has of other backends is kept")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        files = {"fp32": arguments.model}
        for name, pixels in (("int8", False), ("int8, pixels in", True)):
            files[name] = Path(folder) / f"{name}.onnx"
            quantize(
                arguments.model,
                calibration=arguments.pictures,
                target=arguments.target,
                pixels=pixels,
                force=True,
                output=files[name],
            )
        one = edgecv.RuntimeOptions(threads=1)
        nets = {
            name: stack.enter_context(edgecv.load(file, backend=arguments.backend, options=one))
            for name, file in files.items()
        }
        p = nets["fp32"].spec.preparation
        side = p.resize or min(p.height, p.width)
        for size in ((side, side), (480, 640)):
            array = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
            calls = [partial(net, array) for net in nets.values()]
            medians = dict(zip(nets, by_turns(calls, arguments.rounds, SECONDS), strict=True))
            results[f"{size[1]}x{size[0]}"] = {
                name: {
                    "median_ms": round(float(np.median(values)), 4),
                    "speedup": found.to_dict()
                    if (found := ratio(medians["fp32"], values))
                    else None,
                }
                for name, values in medians.items()
            }
    for size_name, rows in results.items():
        for name, row in rows.items():
            print(
                f"{size_name:8} {name:16} {row['median_ms']:7.3f} ms  {row['speedup']['value']:.2f}"
            )
    found = {"target": arguments.target, "arrays": results}
    backends = {**kept(arguments.o, "backends"), arguments.backend: found}
    save(arguments.o, "pixels/1", model=arguments.model.stem, backends=backends)


if __name__ == "__main__":
    main()
