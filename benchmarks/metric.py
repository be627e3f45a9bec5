"""Metric learning on 8 classes of CIFAR-10, verification on the 2 that were never seen.

    python benchmarks/metric.py --data FOLDER -o benchmarks/metric.json

FOLDER holds cifar10_train.zip and cifar10_test.zip; ``--per-class N`` learns from N pictures of
each class, the first ones. Every row is the recipe `embedder-cifar8` (or, for the learned likeness,
the same net as a Siamese pair) with another loss or another mining, over as many pictures; the test
pictures of the unseen classes are paired and told apart. The rows begin from the same random
weights, those named "softmax, then ..." from the weights of "softmax, head dropped" of their seed,
which must be among ``--rows`` or in ``--work``. ``untrained`` is the net as it begins, with its
BatchNorms' statistics measured on training pictures: without those its score is still lower. A run
that was cut off goes on where it was when the same ``--work`` is given.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from record import save
from torch import nn

from edgecv.export.recipe import load_recipe
from edgecv.export.sources import build
from edgecv.files import atomic_write
from edgecv.workflows.train import make_job, prepare, read_table, train_recipe

RECIPE = "embedder-cifar8"
SEEDS = (0, 1)
# row -> overrides of the recipe's [train] table
ROWS = {
    "triplet, hard": ["metric.mining=hard"],
    "triplet, semi-hard": ["metric.mining=semi-hard"],
    "triplet, random": ["metric.mining=random"],
    "triplet, all, wide margin": ["metric.mining=all", "metric.margin=2.0"],
    "triplet, hard, cosine": ["metric.mining=hard", "metric.distance=cosine"],
    "triplet, semi-hard, cosine": ["metric.mining=semi-hard", "metric.distance=cosine"],
    "contrastive": ["metric.loss=contrastive", "metric.margin=1.0"],
    "contrastive, wide margin": ["metric.loss=contrastive", "metric.margin=3.9"],
    "softmax, head dropped": ["metric.loss=softmax"],
    "siamese likeness": ["metric.loss=likeness"],
}
START = "softmax, head dropped"
# row -> overrides, from START's weights. Hard mining from random weights is known to fail (FaceNet,
# arXiv:1503.03832, 3.2): so the ways of mining are also compared on a net that sees something.
TUNING = ["epochs=3", "lr=5e-4"]
TUNED = {
    "softmax, then hard": [*TUNING, "metric.mining=hard"],
    "softmax, then semi-hard": [*TUNING, "metric.mining=semi-hard"],
    "softmax, then random": [*TUNING, "metric.mining=random"],
    "softmax, then contrastive": [*TUNING, "metric.loss=contrastive", "metric.margin=1.0"],
    "softmax, then softmax": [*TUNING, "metric.loss=softmax"],
}
SCORES = ("auc", "accuracy", "eer", "tar_at_0.1", "tar_at_0.01")


def siamese_recipe(folder: Path) -> Path:
    """The recipe with its net in a Siamese pair, written to ``folder``."""
    import tomli_w

    from edgecv.export.recipe import recipe_table

    recipe = load_recipe(RECIPE)
    pair = replace(
        recipe,
        source="siamese",
        options={"trunk": recipe.source, "trunk_options": dict(recipe.options)},
        decoding=replace(recipe.decoding, options={"normalize": False}),
        weights={},
        parameters=None,
        macs=None,
    )
    path = folder / "siamese.toml"
    table = {**recipe_table(pair), "train": dict(recipe.train)}
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    return path


def cut(data: Path, per_class: int | None, folder: Path) -> Path:
    """A folder with the two zip files: the learned classes in the one, the unseen in the other."""
    table = load_recipe(RECIPE).train
    unseen, folder = set(table["metric"]["unseen"]), folder / f"data-{per_class or 'all'}"
    folder.mkdir(exist_ok=True)
    for name in (table["data"], table["held_out"]):
        if (folder / name).exists():
            continue
        taken: Counter[str] = Counter()
        with (
            atomic_write(folder / name) as file,
            zipfile.ZipFile(data / name) as source,
            zipfile.ZipFile(file, "w") as target,
        ):
            for member in source.namelist():
                owner = PurePosixPath(member).parent.name
                wanted = owner not in unseen if name == table["data"] else owner in unseen
                limit = per_class if name == table["data"] else None
                if member.endswith(".jpg") and wanted and taken[owner] != limit:
                    taken[owner] += 1
                    target.writestr(member, source.read(member))
    return folder


@torch.no_grad()
def untrained(data: Path, settings: Sequence[str]) -> dict[str, float]:
    """The scores before training."""
    recipe = load_recipe(RECIPE)
    config, job = make_job(
        recipe, read_table(recipe, settings), data, lambda *_: None, lambda text: None
    )
    task = prepare(recipe.task, job).task
    torch.manual_seed(config.seed)
    net = build(recipe.source, None, recipe.options, recipe.folder)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.momentum = None  # a plain mean over the batches
    net.train()
    order = task.order(torch.Generator().manual_seed(config.seed))
    for index in torch.split(order[:2048], config.batch):
        net(task.plain(index))
    return task.evaluate(net.eval())


def trained(
    name: str, recipe: str, data: Path, settings: Sequence[str], folder: Path
) -> dict[str, Any]:
    def say(text: str) -> None:
        print(f"{name}: {text}", flush=True)

    result = train_recipe(recipe, data, settings, folder, say=say)
    log = json.loads(result.log.read_text())["epochs"]
    return {"scores": dict(result.scores), "epochs": len(log), "log": log}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the CIFAR-10 zip files")
    parser.add_argument("--work", type=Path, default=Path("run/metric"))
    parser.add_argument("--per-class", type=int, help="pictures; all of them by default")
    parser.add_argument("--rows", nargs="*", choices=[*ROWS, *TUNED], default=[*ROWS, *TUNED])
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS))
    parser.add_argument("--set", action="append", default=[], help="of the [train] table")
    parser.add_argument("--output", "-o", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    data = cut(options.data, options.per_class, options.work)
    pair = str(siamese_recipe(options.work))
    rows = []
    for seed in options.seeds:
        settings = [*options.set, f"seed={seed}"]
        rows.append({"row": "untrained", "seed": seed, "scores": untrained(data, settings)})
        for name in options.rows:
            recipe = pair if "siamese" in name else RECIPE
            folder = _folder(name, options.work, seed)
            start = _folder(START, options.work, seed).resolve() / f"{RECIPE}.safetensors"
            own = ROWS.get(name) or [*TUNED[name], f"initial={start}"]
            run = trained(name, recipe, data, [*settings, *own], folder)
            rows.append({"row": name, "seed": seed, **run})
            _show(rows)
            save(
                options.output,
                "metric/1",
                train={**load_recipe(RECIPE).train, "set": options.set},
                **({"per_class": options.per_class} if options.per_class else {}),
                rows=rows,
            )


def _folder(row: str, work: Path, seed: int) -> Path:
    return work / f"{row.replace(', ', '-').replace(' ', '-')}-{seed}"


def _show(rows: Sequence[dict[str, Any]]) -> None:
    """A table, the mean over seeds."""
    print("| | " + " | ".join(SCORES) + " |\n|" + "---|" * (len(SCORES) + 1))
    for name in dict.fromkeys(row["row"] for row in rows):
        own = [row["scores"] for row in rows if row["row"] == name]
        means = [sum(scores[key] for scores in own) / len(own) for key in SCORES]
        print(f"| {name} | " + " | ".join(f"{mean:.1%}" for mean in means) + " |", flush=True)


if __name__ == "__main__":
    main()
