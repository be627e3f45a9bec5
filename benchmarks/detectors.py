"""INT8 of a detector, over the quarters of one labelled picture set: what its boxes are worth.

    edgecv adopt ASSETS/weights/yolox_nano_coco.onnx --recipe yolox-nano
    python benchmarks/detectors.py yolox-nano.onnx COCO128 -o benchmarks/detectors.json

COCO128 is a folder with ``images`` and ``labels``. Each quarter of its pictures in turn calibrates
``edgecv quantize``, the other three are scored: the AP of the INT8 file and of its parent on the
same pictures, the share of boxes that are the parent's, and the times one thread is as fast. A file
that falls short is measured all the same. The result file is written after each quarter, keeps
other models' results, and a quarter that is in it is not measured again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from record import kept, save

from edgecv.preprocess import list_pictures
from edgecv.workflows.quantize import quantize

SCHEMA = "edgecv.detectors/1"
QUARTERS = 4


def link(data: Path, pictures: list[Path], folder: Path) -> Path:
    """``pictures`` with their labels as a data set of their own."""
    for picture in pictures:
        inside = picture.relative_to(data / "images")
        for kind, name in (("images", inside), ("labels", inside.with_suffix(".txt"))):
            if (source := data / kind / name).exists():
                target = folder / kind / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(source.resolve())
    return folder


def quarter(model: Path, data: Path, number: int) -> dict[str, Any]:
    """The file that the ``number``-th quarter calibrates, scored on the others."""
    pictures = list_pictures(data / "images")
    size = len(pictures) // QUARTERS
    first = number * size
    calibrating = pictures[first : first + size]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        done = quantize(
            model,
            calibration=link(data, calibrating, folder / "calibration") / "images",
            data=link(data, [p for p in pictures if p not in calibrating], folder / "scored"),
            target="onnxruntime-x86",
            force=True,
            output=folder / "int8.onnx",
        )
    proof, drop = done.proof, done.proof.drop
    if drop.parent is None or drop.candidate is None:
        raise SystemExit(f"{data}: without labels there is no AP")
    latency = proof.latency
    return {
        "calibrated_on": done.calibrated_on,
        "scored_on": drop.pictures,
        "ap_fp32": round(drop.parent, 5),
        "ap": round(drop.candidate, 5),
        "kept": round(drop.candidate / drop.parent, 4),
        "agreement": round(proof.agreement, 4),
        "speedup": latency.speedup.to_dict() if latency and latency.speedup else None,
        "float_nodes": len(done.spec.quantization["kept_float"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="an FP32 file of `edgecv export` or `adopt`")
    parser.add_argument("data", type=Path, help="a folder with images and labels")
    parser.add_argument("-o", type=Path, required=True, help="JSON file; what it has is kept")
    arguments = parser.parse_args()
    models = kept(arguments.o, "models")
    quarters = models.setdefault(arguments.model.stem, {"quarters": []})["quarters"]
    for number in range(len(quarters), QUARTERS):
        quarters.append(quarter(arguments.model, arguments.data, number))
        print(json.dumps(quarters[-1]), flush=True)
        mean = {
            key: round(sum(q[key] for q in quarters) / len(quarters), 4)
            for key in ("ap_fp32", "ap", "kept", "agreement")
        }
        models[arguments.model.stem]["mean"] = mean
        save(arguments.o, "detectors/1", models=models)


if __name__ == "__main__":
    main()
