"""What ``edgecv quantize`` costs: seconds and peak memory, with few pictures and with many.

    edgecv export mobilenetv2 --weights W.pth --mean 0.5 --std 0.5 --resize 256 -o mobilenetv2.onnx
    python benchmarks/cost.py mobilenetv2.onnx PICTURES --data OTHERS -o benchmarks/cost.json

50, 100 and all of PICTURES calibrate (the command itself stops at 100: that limit is lifted here),
OTHERS prove the file. Each command has a process of its own; its peak is the kernel's figure of
the ended process and its children (``ru_maxrss``, that of the largest).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from record import save

from edgecv.preprocess import list_pictures

FEW = (50, 100)
CODE = """
import sys
from edgecv.workflows import calibration
calibration.MOST = int(sys.argv.pop(1))
from edgecv.cli.app import main
main()
"""


def run(command: list[str]) -> dict[str, float]:
    started = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {child.returncode}")
    return {
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_rss_mb": round(usage.ru_maxrss * 1024 / 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="an FP32 file of `edgecv export`")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="other pictures")
    parser.add_argument("--target", default="onnxruntime-x86")
    parser.add_argument("-o", type=Path, help="JSON file")
    arguments = parser.parse_args()
    pictures = list_pictures(arguments.pictures)
    drawn = np.random.default_rng(0).permutation(len(pictures))
    results: dict[str, Any] = {}
    for count in (*FEW, len(pictures)):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "pictures"
            folder.mkdir()
            for number, index in enumerate(drawn[:count]):
                name = f"{number:05}{pictures[index].suffix}"
                (folder / name).symlink_to(pictures[index].resolve())
            command = [
                *(sys.executable, "-c", CODE, str(count), "quantize", str(arguments.model)),
                *("--calibration", str(folder), "--data", str(arguments.data)),
                *("--target", arguments.target, "--force", "-o", f"{temporary}/int8.onnx"),
            ]
            results[str(count)] = run(command)
        print(count, results[str(count)], flush=True)
    save(
        arguments.o, "cost/1", model=arguments.model.stem, target=arguments.target, results=results
    )


if __name__ == "__main__":
    main()
