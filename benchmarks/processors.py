"""INT8 files on processors that are not here, emulated by QEMU: are the answers the same?

    edgecv export mobilenetv2 --weights W.pth --mean 0.5 --std 0.5 --resize 256 -o mobilenetv2.onnx
    sudo python benchmarks/processors.py mobilenetv2.onnx PICTURES \
        --arm64-root ROOT -o benchmarks/processors.json

PICTURES is a folder per class: 100 calibrate, 100 others are scored. EdgeCV's file of each target
and onnxruntime's per-channel one run in onnxruntime here, as an x86-64 of 2013 (``Haswell``: AVX2
without VNNI, where sums of 16 bits may saturate) and as the Cortex-A72 and A76 of Raspberry Pi 4
and 5. ROOT is what ``tests/emulation/arm64.sh`` makes (without it only Haswell is run); chroot
needs root, and ``qemu-user-static`` has to be installed. Emulation proves answers, never speed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from quantization import CALIBRATE, Pictures, logits, ours, per_channel
from record import save

from edgecv.evaluate.imagenet import read_folder
from edgecv.measure.saturation import saturation
from edgecv.preprocess import prepare
from edgecv.spec import read_spec

SCORED = 100
TARGETS = ("onnxruntime-x86", "onnxruntime-x86-avx2", "onnxruntime-arm")
CORTEX = ("cortex-a72", "cortex-a76")
CHILD = """
import sys, numpy as np, onnxruntime as ort
pictures, model, out = sys.argv[1:]
session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
rows = [session.run(None, {name: p[None]})[0][0] for p in np.load(pictures, mmap_mode="r")]
np.save(out, np.stack(rows))
"""


def emulated(cpu: str, root: Path | None, data: bytes, pictures: Pictures) -> NDArray[np.float32]:
    """Logits of ``pictures`` as processor ``cpu``: of this architecture, or of ``root``'s."""
    environ = {**os.environ, "QEMU_CPU": cpu}
    inside = root or Path("/")
    with tempfile.TemporaryDirectory(dir=inside / "tmp") as folder:
        files = [Path(folder) / name for name in ("pictures.npy", "model.onnx", "out.npy")]
        np.save(files[0], pictures)
        files[1].write_bytes(data)
        named = ["/" + str(file.relative_to(inside)) for file in files]
        if root is None:
            command = ["qemu-x86_64-static", sys.executable]
        else:
            paths = "/usr/sbin:/usr/bin:/sbin:/bin"
            environ = {"QEMU_CPU": cpu, "PYTHONPATH": "/edgecv/site", "PATH": paths}
            command = ["chroot", str(root), "/usr/bin/python3"]
        # QEMU's warnings, of features that it does not emulate, are shown where the run fails
        done = subprocess.run([*command, "-c", CHILD, *named], env=environ, capture_output=True)
        if done.returncode:
            raise SystemExit(f"{cpu}: exit {done.returncode}\n{done.stderr.decode()[-2000:]}")
        rows: NDArray[np.float32] = np.load(files[2])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--arm64-root", type=Path)
    parser.add_argument("-o", type=Path, help="JSON file")
    arguments = parser.parse_args()
    if shutil.which("qemu-x86_64-static") is None:
        raise SystemExit("apt-get install qemu-user-static")
    root = arguments.arm64_root and arguments.arm64_root.resolve()
    processors: list[tuple[str, Path | None]] = [("Haswell", None)]
    if root is not None:
        processors += [(cpu, root) for cpu in CORTEX]
    spec = read_spec(arguments.model)
    data = read_folder(arguments.pictures, spec)
    order = np.random.default_rng(0).permutation(len(data.pictures))
    calibrate, scored = (
        np.stack([prepare(data.pictures[i], spec.preparation).tensor for i in sorted(part)])
        for part in (order[:CALIBRATE], order[CALIBRATE : CALIBRATE + SCORED])
    )
    classes = data.classes[np.sort(order[CALIBRATE : CALIBRATE + SCORED])]
    makers = {f"edgecv {target}": ours(target) for target in TARGETS}
    makers["onnxruntime per-channel"] = per_channel()
    results: dict[str, Any] = {}
    for name, make in makers.items():
        made, shift = make(arguments.model, spec, calibrate)
        here = logits(made, "onnxruntime", scored + shift)
        entry: dict[str, Any] = {
            "saturating_layers_without_vnni": len(saturation(made)),
            "here": {"right": int((here.argmax(1) == classes).sum())},
        }
        for cpu, where in processors:
            found = emulated(cpu, where, made, scored + shift)
            entry[cpu] = {
                "right": int((found.argmax(1) == classes).sum()),
                "answers_as_here": int((found.argmax(1) == here.argmax(1)).sum()),
                "largest_difference": round(float(np.abs(found - here).max()), 4),
                "of_largest": round(float(np.abs(here).max()), 4),
            }
        results[name] = entry
        print(name, entry, flush=True)
    save(
        arguments.o,
        "processors/1",
        model=spec.name,
        calibrated_on=CALIBRATE,
        scored_on=SCORED,
        results=results,
    )


if __name__ == "__main__":
    main()
