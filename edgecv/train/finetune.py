"""Training a classifier from weights that exist, or from nothing: the loop.

Reproducible: each epoch draws its order, its augmentation and its dropout from a generator seeded
by (seed, epoch), so a run that was interrupted and resumed goes through the same numbers as one
that was not. The checkpoint is replaced atomically after every epoch.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from edgecv.errors import InputError, WeightsError
from edgecv.files import atomic_write
from edgecv.spec import Preparation
from edgecv.train.batchnorm import is_folded, reestimate
from edgecv.train.data import LabelledPictures


@dataclass(frozen=True)
class TrainConfig:
    """What a run depends on besides the data and the first weights."""

    epochs: int = 10
    batch: int = 128
    # AdamW; cosine to zero after the warm-up. The layers of folded weights have filters of very
    # different size (median norms from 0.17 to 11.6), and no one SGD rate suits them all: on
    # CIFAR-10 SGD at 0.03 had 63.5% after its first epoch, AdamW at 1e-3 78.8%.
    lr: float = 1e-3
    weight_decay: float = 0.02  # on convolutions and matrices, not on biases and BatchNorm
    warmup_epochs: float = 1.0
    # after the cosine a second, lower one (warm restart, Loshchilov & Hutter, arXiv:1608.03983)
    finish_epochs: int = 0
    finish_lr: float = 4e-4
    label_smoothing: float = 0.1
    shift: int = 8  # pixels: random translation, the border reflected
    flip: bool = True
    seed: int = 0


def batches(
    data: LabelledPictures, order: Tensor, size: int, preparation: Preparation
) -> Iterator[tuple[Tensor, Tensor]]:
    """Float batches ``[n, 3, H, W]`` and labels ``[n]``, in ``order``, channels last in memory."""
    for index in torch.split(order, size):
        yield _normalize(data.pixels[index], preparation), data.labels[index]


def _normalize(pixels: Tensor, p: Preparation) -> Tensor:
    x = pixels.permute(0, 3, 1, 2).float()  # a view of NHWC memory: channels_last already
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (p.mean, p.std))
    return (x / p.divisor - mean) / std


def augment(pixels: Tensor, config: TrainConfig, generator: torch.Generator) -> Tensor:
    """Random translation and horizontal flip of uint8 ``[n, H, W, 3]``, each picture its own."""
    n, height, width, _ = pixels.shape
    s = config.shift
    flips = torch.rand(n, generator=generator) < (0.5 if config.flip else 0.0)
    corners = torch.randint(0, 2 * s + 1, (2, n), generator=generator)
    padded = pad(pixels.permute(0, 3, 1, 2).float(), (s, s, s, s), mode="reflect")
    padded = padded.to(torch.uint8).permute(0, 2, 3, 1)
    rows = corners[0][:, None] + torch.arange(height)
    columns = corners[1][:, None] + torch.arange(width)
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    return padded[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


@torch.no_grad()
def accuracy(model: nn.Module, data: LabelledPictures, preparation: Preparation) -> float:
    """Top-1 of ``model`` in eval mode, from 0 to 1."""
    model.eval()
    right = 0
    for x, labels in batches(data, torch.arange(len(data.labels)), 250, preparation):
        right += int((model(x).argmax(1) == labels).sum())
    return right / len(data.labels)


def train(
    model: nn.Module,
    data: LabelledPictures,
    held_out: LabelledPictures,
    preparation: Preparation,
    config: TrainConfig,
    folder: Path,
    report: Callable[[dict[str, Any]], None] = lambda record: None,
) -> list[dict[str, Any]]:
    """Train ``model`` in place; checkpoints and ``log.jsonl`` go to ``folder``.

    A checkpoint of the same configuration that lies there is continued; one of another is an
    error. ``held_out`` is scored after every epoch for the log only: nothing is selected by it,
    and the last epoch's weights are the result. Returns the log, one record per epoch.
    """
    if data.classes != held_out.classes:
        raise InputError(f"classes differ: {data.classes} to train, {held_out.classes} to score")
    torch.use_deterministic_algorithms(True)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(_parameter_groups(model, config.weight_decay), lr=config.lr)
    checkpoint = folder / "checkpoint.pt"
    log = _resume(checkpoint, model, optimizer, config)
    if not log and is_folded(model):
        order = torch.randperm(len(data.labels), generator=_generator(config.seed, -1))[:2048]
        reestimate(model, (x for x, _ in batches(data, order, 256, preparation)))
    steps = math.ceil(len(data.labels) / config.batch)
    for epoch in range(len(log), config.epochs + config.finish_epochs):
        started = time.monotonic()
        loss = _epoch(model, optimizer, data, preparation, config, epoch, steps, report)
        score = accuracy(model, held_out, preparation)
        record = {
            "epoch": epoch + 1,
            "loss": round(loss, 4),
            "top1": round(score, 4),
            "seconds": round(time.monotonic() - started, 1),
        }
        log.append(record)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        with atomic_write(checkpoint) as file:
            torch.save({**state, "log": log, "config": asdict(config)}, file)
        with atomic_write(folder / "log.jsonl") as file:
            file.write("".join(json.dumps(r) + "\n" for r in log).encode())
        report(record)
    return log


def _epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: LabelledPictures,
    preparation: Preparation,
    config: TrainConfig,
    epoch: int,
    steps: int,
    report: Callable[[dict[str, Any]], None],
) -> float:
    generator = _generator(config.seed, epoch)
    torch.manual_seed(config.seed * 10_000 + epoch)  # dropout draws from the global generator
    model.train()
    order = torch.randperm(len(data.labels), generator=generator)
    total = 0.0
    for step, index in enumerate(torch.split(order, config.batch)):
        for group in optimizer.param_groups:
            group["lr"] = _rate(config, epoch * steps + step, steps)
        pixels = augment(data.pixels[index], config, generator)
        logits = model(_normalize(pixels, preparation))
        loss = cross_entropy(logits, data.labels[index], label_smoothing=config.label_smoothing)
        if not torch.isfinite(loss):
            raise InputError(
                f"the loss is {loss.item()} at epoch {epoch + 1}, step {step + 1}; the checkpoint "
                f"of the last epoch is kept; try a lower lr than {config.lr}"
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.item() * len(index)
        report({"epoch": epoch + 1, "step": step + 1, "steps": steps, "loss": loss.item()})
    return total / len(data.labels)


def _rate(config: TrainConfig, step: int, steps: int) -> float:
    """Linear warm-up, half a cosine down to zero, and a second, lower cosine to finish."""
    warmup, end = config.warmup_epochs * steps, config.epochs * steps
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if step < end:
        return config.lr * _half_cosine((step - warmup) / (end - warmup))
    return config.finish_lr * _half_cosine((step - end) / (config.finish_epochs * steps))


def _half_cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 10_000 + epoch + 1)


def _resume(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig
) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    state = torch.load(path, weights_only=True)
    if state["config"] != asdict(config):
        raise WeightsError(
            f"{path}: belongs to a run with {state['config']}, this one has {asdict(config)}; "
            f"choose another output folder, or remove it"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    log: list[dict[str, Any]] = state["log"]
    return log
