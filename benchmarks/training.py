"""What huge pages do to a training step on the CPU: processes with and without, by turns.

    python benchmarks/training.py efficientnet-cifar10 -o benchmarks/training.json

A net's maps of a batch are tens of megabytes each, far more pages of 4 KB than a processor's
translation buffer holds. PyTorch asks Linux for pages of 2 MB where THP_MEM_ALLOC_ENABLE is set
when it makes its first tensor; `edgecv.train` sets it. A round is one process of each kind; the
ratios of the rounds' medians are given as in `edgecv bench`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from record import save

from edgecv.measure.statistics import ratio

KINDS = {"small pages": "0", "huge pages": "1"}
WARM_UP = 4  # steps


def measure(recipe_name: str, batch: int, steps: int) -> float:
    """The median of a step, in milliseconds: forward, loss, backward, AdamW, on random pixels."""
    import torch
    from torch.nn.functional import cross_entropy

    from edgecv.export.recipe import load_recipe
    from edgecv.export.sources import build

    recipe = load_recipe(recipe_name)
    torch.manual_seed(0)
    net = build(recipe.source, len(recipe.labels) or None, recipe.options, recipe.folder).train()
    net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    height, width = recipe.preparation.height, recipe.preparation.width
    pixels = torch.randn(batch, 3, height, width).to(memory_format=torch.channels_last)
    labels = torch.arange(batch) % len(recipe.labels)
    times = []
    for _ in range(WARM_UP + steps):
        start = time.perf_counter()
        loss = cross_entropy(net(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[WARM_UP:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="of a classifier")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20, help="a process")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if options.one:
        print(measure(options.recipes[0], options.batch, options.steps))
        return
    results = {}
    for recipe in options.recipes:
        command = [sys.executable, __file__, recipe, "--one"]
        command += ["--batch", str(options.batch), "--steps", str(options.steps)]
        medians: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for number in range(options.rounds):
            for kind in list(KINDS)[:: 1 if number % 2 else -1]:
                setting = {"THP_MEM_ALLOC_ENABLE": KINDS[kind]}
                done = subprocess.run(
                    command, env={**os.environ, **setting}, stdout=subprocess.PIPE, check=True
                )
                medians[kind].append(round(float(done.stdout), 1))
        found = ratio(medians["huge pages"], medians["small pages"])
        faster = None if found is None else found.to_dict()
        results[recipe] = {"milliseconds": medians, "ratio": faster}
        print(recipe, medians, faster, flush=True)
    save(options.output, "training/1", batch=options.batch, steps=options.steps, results=results)


if __name__ == "__main__":
    main()
