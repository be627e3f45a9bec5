"""INT8 of a detector, over the quarters of one picture set: what its boxes are worth.

    edgecv adopt ASSETS/weights/yolox_nano_coco.onnx --recipe yolox-nano
    python benchmarks/detectors.py yolox-nano.onnx PICTURES -o benchmarks/detectors.json

PICTURES is a folder of them, or one with ``images`` and ``labels``. Each quarter in turn calibrates
``edgecv quantize``, the other three are scored: the share of boxes with a score of 0.5 or more that
match the parent's at an IoU of 0.7, with labels the AP of the INT8 file and of its parent, and the
times one thread is as fast. A file that falls short is measured all the same. The result file is
written after each quarter, keeps other models' results, and a quarter that is in it is not measured
again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from record import kept, save

import edgecv
from edgecv.measure.agreement import box_agreement
from edgecv.preprocess import list_pictures
from edgecv.workflows.quantize import quantize

QUARTERS = 4
CONF, IOU = 0.5, 0.7  # of the boxes that have to match


def root(data: Path) -> Path:
    """Where the pictures of ``data`` lie."""
    return data / "images" if (data / "images").is_dir() else data


def link(data: Path, pictures: list[Path], folder: Path) -> Path:
    """``pictures`` with their labels, where there are some, as a data set of their own."""
    for picture in pictures:
        inside = picture.relative_to(root(data))
        for kind, name in (("images", inside), ("labels", inside.with_suffix(".txt"))):
            source = (root(data) if kind == "images" else data / kind) / name
            if source.exists():
                target = folder / kind / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(source.resolve())
    return folder if (data / "labels").exists() else folder / "images"


def matched(candidate: Path, parent: Path, pictures: list[Path]) -> float:
    """Twice the boxes that match over all boxes, of both files on all ``pictures``."""
    matching, boxes = 0.0, 0
    with (
        edgecv.load(candidate, backend="onnxruntime") as one,
        edgecv.load(parent, backend="onnxruntime") as other,
    ):
        for picture in pictures:
            a, b = (net(picture, conf=CONF) for net in (one, other))
            matching += box_agreement(a, b, IOU) * (len(a) + len(b))
            boxes += len(a) + len(b)
    return matching / boxes if boxes else 1.0


def quarter(model: Path, data: Path, number: int) -> dict[str, Any]:
    """The file that the ``number``-th quarter calibrates, scored on the others."""
    pictures = list_pictures(root(data))
    size = len(pictures) // QUARTERS
    first = number * size
    calibrating = pictures[first : first + size]
    scored = [picture for picture in pictures if picture not in calibrating]
    with tempfile.TemporaryDirectory() as temporary:
        folder, file = Path(temporary), Path(temporary) / "int8.onnx"
        link(data, calibrating, folder / "calibration")
        done = quantize(
            model,
            calibration=folder / "calibration/images",
            data=link(data, scored, folder / "scored"),
            target="onnxruntime-x86",
            force=True,
            output=file,
        )
        alike = matched(file, model, scored)
    proof, drop = done.proof, done.proof.drop
    found = {
        "calibrated_on": done.calibrated_on,
        "scored_on": drop.pictures,
        "matched": round(alike, 4),
        "agreement": round(proof.agreement, 4),
    }
    if drop.parent is not None and drop.candidate is not None:
        found |= {
            "ap_fp32": round(drop.parent, 5),
            "ap": round(drop.candidate, 5),
            "kept": round(drop.candidate / drop.parent, 4),
        }
    speedup = proof.latency.speedup if proof.latency else None
    return {
        **found,
        "speedup": speedup.to_dict() if speedup else None,
        "float_nodes": len(done.spec.quantization["kept_float"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="an FP32 file of `edgecv export` or `adopt`")
    parser.add_argument("data", type=Path, help="a folder of pictures, or with images and labels")
    parser.add_argument("-o", type=Path, required=True, help="JSON file; what it has is kept")
    arguments = parser.parse_args()
    models = kept(arguments.o, "models")
    quarters = models.setdefault(arguments.model.stem, {"quarters": []})["quarters"]
    for number in range(len(quarters), QUARTERS):
        quarters.append(quarter(arguments.model, arguments.data, number))
        print(json.dumps(quarters[-1]), flush=True)
        mean = {
            key: round(sum(q[key] for q in quarters) / len(quarters), 4)
            for key in ("ap_fp32", "ap", "kept", "matched", "agreement")
            if key in quarters[0]
        }
        models[arguments.model.stem]["mean"] = mean
        save(arguments.o, "detectors/1", models=models)


if __name__ == "__main__":
    main()
