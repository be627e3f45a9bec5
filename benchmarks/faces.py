"""INT8 of a face embedder: its vectors against FP32's, and whether pairs are still told apart.

    edgecv export mobilefacenet --weights mobilefacenet.pt -o mobilefacenet.onnx
    edgecv adopt yunet_n.onnx --recipe yunet
    python benchmarks/faces.py yunet.onnx mobilefacenet.onnx --data FACES --others COCO128/images \
        -o benchmarks/faces.json

FACES is a folder of photographs with ``pairs.csv`` (two files, and Yes or No). The pictures that
calibrate are faces found in OTHERS and the mirror images of the first half of the photographs'
faces, all aligned as the pipeline aligns them. Scored are the cosine of each photograph's vector to
its FP32 vector, the two halves apart (a mirror image is not its picture, but it is akin to it), and
the pairs, at the threshold that the FP32 vectors choose.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from record import save

import edgecv
from edgecv.align import align_face
from edgecv.preprocess import list_pictures, open_picture
from edgecv.workflows.quantize import quantize

TARGETS = ("onnxruntime-x86", "tensorrt")
SMALLEST = 24  # pixels: a face in OTHERS that is narrower shows nothing when it is enlarged to 112
CONF = 0.6


def crops(detector: edgecv.Model, path: Path, smallest: float) -> list[Image.Image]:
    """The aligned faces of a picture, the largest first."""
    image = open_picture(path)
    found = detector(image, conf=CONF)
    sides = (found.boxes[:, 2:] - found.boxes[:, :2]).min(axis=1)
    order = np.argsort(-sides)[: (sides >= smallest).sum()]
    return [Image.fromarray(np.asarray(align_face(image, found.landmarks[i]))) for i in order]


def store(faces: list[Image.Image], folder: Path) -> Path:
    folder.mkdir()
    for number, face in enumerate(faces):
        face.save(folder / f"{number:04}.png")
    return folder


def unit(model: Path, faces: list[Image.Image]) -> NDArray[np.float32]:
    """Embeddings ``[N, D]`` of length 1."""
    with edgecv.load(model, backend="onnxruntime") as net:
        vectors = np.stack([net(np.asarray(face)).vector for face in faces])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> dict[str, float]:
    found = (a * b).sum(axis=1)
    return {"mean": round(float(found.mean()), 5), "worst": round(float(found.min()), 5)}


def threshold(scores: NDArray[np.float32], same: NDArray[np.bool_]) -> float:
    """Halfway between the two neighbours that part most pairs rightly."""
    order = np.sort(scores)
    middles = (order[1:] + order[:-1]) / 2
    right = [((scores >= m) == same).sum() for m in middles]
    best = np.flatnonzero(np.array(right) == max(right))
    return float(middles[best].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("detector", type=Path)
    parser.add_argument("embedder", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--others", type=Path, required=True)
    parser.add_argument("-o", type=Path, help="JSON file")
    arguments = parser.parse_args()
    photographs = list_pictures(arguments.data)
    with edgecv.load(arguments.detector, backend="onnxruntime") as detector:
        faces = [crops(detector, path, 0)[0] for path in photographs]
        others = [
            face for path in list_pictures(arguments.others)
            for face in crops(detector, path, SMALLEST)
        ]  # fmt: skip
    half = len(faces) // 2
    with (arguments.data / "pairs.csv").open() as file:
        rows = list(csv.DictReader(file))
    index = {path.name: i for i, path in enumerate(photographs)}
    left, right = (np.array([index[row[key]] for row in rows]) for key in ("file_x", "file_y"))
    same = np.array([row["Decision"] == "Yes" for row in rows])
    truth = unit(arguments.embedder, faces)
    plain = (truth[left] * truth[right]).sum(axis=1)
    limit = threshold(plain, same)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        mirrored = [ImageOps.mirror(face) for face in faces[:half]]
        calibration = store([*others, *mirrored], Path(temporary) / "calibration")
        unseen = store(faces[half:], Path(temporary) / "unseen")
        for target in TARGETS:
            made = Path(temporary) / f"{target}.onnx"
            done = quantize(
                arguments.embedder,
                calibration=calibration,
                data=unseen,
                target=target,
                force=True,
                output=made,
            )
            found = unit(made, faces)
            scores = (found[left] * found[right]).sum(axis=1)
            results[target] = {
                "calibrated_on": done.calibrated_on,
                "cosine_unseen_half": cosines(found[half:], truth[half:]),
                "cosine_mirrored_half": cosines(found[:half], truth[:half]),
                "pairs_right": int(((scores >= limit) == same).sum()),
                "float_nodes": len(done.spec.quantization["kept_float"]),
            }
            print(target, results[target], flush=True)
    save(
        arguments.o,
        "faces/1",
        photographs=len(faces),
        faces_in_others=len(others),
        pairs=len(rows),
        pairs_right_fp32=int(((plain >= limit) == same).sum()),
        threshold=round(limit, 4),
        results=results,
    )


if __name__ == "__main__":
    main()
