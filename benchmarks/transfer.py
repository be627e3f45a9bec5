"""Transfer learning against training from scratch, on a hundred pictures a class.

Two classes of CIFAR-10, MobileNetV2 at 128 pixels. The test pictures are never learned from, and no
setting was chosen by them: every epoch's score is of a part of the learned set. Each run is written
as soon as it is done, and is not run again when the same ``-o`` is given on the same machine.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from record import from_here, kept, save

from edgecv import models
from edgecv.export.weights import load_into, read_state_dict
from edgecv.spec import Preparation
from edgecv.train.classify import ClassificationTask, ClassifySettings
from edgecv.train.data import load_pictures
from edgecv.workflows.train import train_recipe

SIZE = 128  # pixels; CIFAR has 32, and the ImageNet filters know larger things
# the [train] table of the runs; the epochs of each are such that all see as many batches or more
COMMON = {"data": "train", "batch": 32, "shift": 12, "split": 0.1}
RUNS: dict[str, dict[str, Any]] = {
    "from scratch": {"epochs": 60, "lr": 2e-3},
    "frozen features": {"epochs": 40, "transfer": {"epochs": 0, "views": 8}},
    "then fine-tuned": {
        "epochs": 40,
        "transfer": {"epochs": 20, "views": 8, "lr": 2e-4, "unfreeze_from": "features.7"},
    },
}


def extract(archive: Path, classes: Sequence[str], count: int | None, folder: Path) -> None:
    """The first ``count`` pictures (all: None) of each of ``classes``."""
    with zipfile.ZipFile(archive) as pictures:
        for name in classes:
            found = sorted(n for n in pictures.namelist() if f"/{name}/" in n and "." in n)
            for path in found[:count]:
                target = folder / name / Path(path).name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(pictures.read(path))


def recipe_file(folder: Path, classes: Sequence[str], table: dict[str, Any]) -> Path:
    import tomli_w

    path = folder / "two.toml"
    content = {
        "task": "classify",
        "model": {"source": "mobilenet_v2"},
        "input": {"size": SIZE, "resize": SIZE, "mean": 0.5, "std": 0.5},
        "labels": {"names": list(classes)},
        "train": table,
    }
    path.write_text(tomli_w.dumps(content))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the CIFAR-10 zips")
    parser.add_argument("--initial", type=Path, required=True, help="ImageNet weights")
    parser.add_argument("--classes", default="cat,dog")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("-o", type=Path, help="JSON file, written after every run")
    arguments = parser.parse_args()
    classes = sorted(arguments.classes.split(","))
    what = {
        "classes": classes,
        "settings": {name: {**COMMON, **settings} for name, settings in RUNS.items()},
    }

    def done() -> dict[tuple[int, str], dict[str, Any]]:
        """The file's runs, by seed and name: those of the same settings on this machine."""
        if not from_here(arguments.o, **what):
            return {}
        return {(run["seed"], run["run"]): run for run in kept(arguments.o, "runs")}

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        extract(arguments.data / "cifar10_train.zip", classes, 100, folder / "train")
        extract(arguments.data / "cifar10_test.zip", classes, None, folder / "test")
        preparation = Preparation(SIZE, SIZE, resize=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3)
        test = load_pictures(folder / "test", preparation)
        scorer = ClassificationTask(test, test, preparation, ClassifySettings())
        for seed in arguments.seeds:
            for name, settings in RUNS.items():
                if (seed, name) in done():
                    continue
                table = {**COMMON, **settings, "seed": seed}
                if "transfer" in table:
                    table["initial"] = str(arguments.initial.resolve())
                recipe = recipe_file(folder, classes, table)
                start = time.perf_counter()
                run = folder / f"{name}-{seed}"
                result = train_recipe(str(recipe), folder, [], run)
                seconds = time.perf_counter() - start
                net = models.create("mobilenet_v2", len(classes))
                load_into(net, read_state_dict(result.weights), str(result.weights))
                with torch.no_grad():
                    top1 = scorer.evaluate(net.eval())["top1"]
                row = {"run": name, "seed": seed, "top1": top1, "seconds": round(seconds, 1)}
                rows = done() | {(seed, name): row}
                pictures = {"learned": 200, "tested": len(test.labels)}
                runs = [rows[key] for key in sorted(rows)]
                save(arguments.o, "transfer/1", **what, pictures=pictures, runs=runs)
                tested = f"{top1:.2%} of {len(test.labels)}"
                print(f"{name:18} seed {seed}: {tested}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
