"""INT8 calibrated on synthetic pictures, against real ones and noise, on CIFAR-10.

    python benchmarks/synthetic.py --data CIFAR10 -o benchmarks/synthetic.json
    python benchmarks/synthetic.py --data CIFAR10 --net my.toml=my.safetensors --net ... -o ...

CIFAR10 is a folder with `cifar10_train.zip` and `cifar10_test.zip`. Each NET (a recipe of
CIFAR-10's classes, and the weights where it has none of its own) is calibrated, for every target
and seed, on as many

    real       training pictures, drawn by the seed
    synthetic  pictures made from the net's BatchNorms (edgecv/export/synthetic.py), by the seed
    gaussian   pixels of mid-grey with a deviation of 64 levels, cut off at 0 and 255
    uniform    pixels, each level as likely as any other

and scored on test pictures in onnxruntime: top-1, the share of answers equal to FP32's, and the
SQNR of the logits. No test picture calibrates, and none has had a part in choosing a setting of the
synthesis. `-o` keeps what an existing file says of other nets.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from quantization import logits, ours, score, summary
from record import kept, save, stamp

import edgecv
from edgecv.export.overrides import recipe_for
from edgecv.export.synthetic import Settings, statistics_loss, synthesize
from edgecv.export.weights import load_model, resolve
from edgecv.preprocess import decode, fit_pixels, to_tensor
from edgecv.spec import Preparation, read_spec

TARGETS = ("onnxruntime-x86", "tensorrt")
CALIBRATE = 100
SCORED_SEED = 2026
Pixels = NDArray[np.uint8]


def read(archive: Path, count: int, seed: int, p: Preparation) -> tuple[Pixels, list[str]]:
    """``count`` pictures of ``archive``, drawn by ``seed``, fitted as ``p`` says; and classes."""
    with zipfile.ZipFile(archive) as pictures:
        names = sorted(n for n in pictures.namelist() if n.endswith((".jpg", ".png")))
        drawn = np.sort(np.random.default_rng(seed).permutation(len(names))[:count])
        pixels = []
        for index in drawn:
            with pictures.open(names[index]) as file:
                pixels.append(fit_pixels(decode(file, names[index]), p)[0])
    return np.stack(pixels), [Path(names[index]).parent.name for index in drawn]


def noise(kind: str, seed: int, p: Preparation) -> Pixels:
    rng = np.random.default_rng(seed)
    shape = (CALIBRATE, p.height, p.width, p.channels)
    if kind == "uniform":
        return rng.integers(0, 256, shape, np.uint8)
    return (127.5 + 64 * rng.standard_normal(shape)).round().clip(0, 255).astype(np.uint8)


def compare(name: str, weights: str, data: Path, scored: int, splits: int) -> dict[str, Any]:
    """One net: FP32, then each kind of pictures under each target."""
    resolved = resolve(recipe_for(name), weights)
    net, p = load_model(resolved), resolved.recipe.preparation
    test, truth = read(data / "cifar10_test.zip", scored, SCORED_SEED, p)
    scores: dict[str, dict[str, list[dict[str, float]]]] = {}
    losses: dict[str, list[float]] = {}
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fp32.onnx"
        edgecv.export(name, weights=weights, output=file)
        spec = read_spec(file)
        classes = np.array([spec.labels.index(one) for one in truth])
        pictures = to_tensor(test, p)
        reference = logits(file.read_bytes(), "onnxruntime", pictures)
        for seed in range(splits):
            start = time.perf_counter()
            made = synthesize(net, p, Settings(CALIBRATE, seed))
            seconds.append(round(time.perf_counter() - start, 1))
            calibrating = {
                "real": read(data / "cifar10_train.zip", CALIBRATE, seed, p)[0],
                "synthetic": made.pixels,
                "gaussian": noise("gaussian", seed, p),
                "uniform": noise("uniform", seed, p),
            }
            for kind, pixels in calibrating.items():
                losses.setdefault(kind, []).append(round(statistics_loss(net, p, pixels), 5))
                for target in TARGETS:
                    integers, shift = ours(target)(file, spec, to_tensor(pixels, p))
                    found = logits(integers, "onnxruntime", pictures + shift)
                    one = score(found, reference, classes)
                    scores.setdefault(target, {}).setdefault(kind, []).append(one)
                    print(f"{name} {target} split {seed} {kind:9}: top-1 {one['top1']:.2%}, "
                          f"{one['agreement']:.2%} equal, {one['sqnr_db']:.1f} dB",
                          flush=True)  # fmt: skip
    return {
        "weights": resolved.sha256,
        "scored": scored,
        "calibrated_on": CALIBRATE,
        "fp32_top1": round(float((reference.argmax(1) == classes).mean()), 5),
        "statistics_loss": losses,
        "synthesis": {**vars(Settings(CALIBRATE)), "seed": list(range(splits)), "seconds": seconds},
        "targets": {
            target: {kind: summary(each) for kind, each in kinds.items()}
            for target, kinds in scores.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the CIFAR-10 zips")
    parser.add_argument("--net", action="append", metavar="RECIPE[=WEIGHTS]", help="repeatable")
    parser.add_argument("--scored", type=int, default=2000, help="test pictures")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("-o", type=Path, help="JSON file")
    arguments = parser.parse_args()
    nets = kept(arguments.o, "nets")
    for net in arguments.net or ["mobilenetv2-cifar10"]:
        name, _, weights = net.partition("=")
        result = compare(
            name, weights or "auto", arguments.data, arguments.scored, arguments.splits
        )
        nets[Path(name).stem] = {**result, **stamp()}
        save(arguments.o, "synthetic/1", nets=nets)


if __name__ == "__main__":
    main()
