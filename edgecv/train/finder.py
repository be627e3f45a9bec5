"""A range test for the learning rate.

Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, arXiv:1506.01186: the
rate grows with every batch, and the loss shows from where to where it can be.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import nn

from edgecv.errors import InputError
from edgecv.progress import Progress, silent
from edgecv.train.batchnorm import learning_norms, train_mode, unfold
from edgecv.train.schedule import make_optimizer
from edgecv.train.settings import TrainConfig
from edgecv.train.task import Task

LOWEST, HIGHEST = 1e-6, 1.0
SMOOTHING = 0.9  # of the loss' moving average
DIVERGED = 4.0  # times the best loss: the test is over


@dataclass(frozen=True)
class RangeTest:
    """``losses`` are smoothed; ``proposed`` is a tenth of the rate at which they were least."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    proposed: float


def range_test(
    model: nn.Module, task: Task, config: TrainConfig, steps: int = 100, progress: Progress = silent
) -> RangeTest:
    """Try rates from 1e-6 to 1 on a copy of ``model``, one batch each, on the CPU.

    What is frozen in ``model``, and by ``config``, is frozen here.
    """
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    unfold(model, task, config)
    train_mode(model, config.norms)
    optimizer = make_optimizer(model, config)
    generator = torch.Generator().manual_seed(config.seed * 10_000 + 1)
    torch.manual_seed(config.seed)
    order = task.order(generator)
    smallest = 2 if learning_norms(model, config.norms) else 1
    batches = [b for b in torch.split(order, config.batch) if len(b) >= smallest]
    if not batches:
        raise InputError(
            f"batch = {config.batch}, {len(order)} samples: BatchNorm learns from batches of at "
            f'least {smallest}; set batch higher, or norms = "frozen"'
        )
    rates: list[float] = []
    losses: list[float] = []
    average = 0.0
    for step in range(steps):
        rate = LOWEST * (HIGHEST / LOWEST) ** (step / (steps - 1))
        for group in optimizer.param_groups:
            group["lr"] = group["scale"] * rate
        batch = task.draw(batches[step % len(batches)], slice(None), generator)
        loss = task.loss(model(batch.inputs), batch.targets)
        value = loss.item()
        if not math.isfinite(value):
            break
        average = SMOOTHING * average + (1 - SMOOTHING) * value
        rates.append(rate)
        losses.append(average / (1 - SMOOTHING ** (step + 1)))
        if losses[-1] > DIVERGED * min(losses):
            break
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        progress("learning rates", step + 1, steps)
    if not losses:
        raise InputError("the loss is not finite before the first step: look at the data")
    return RangeTest(tuple(rates), tuple(losses), rates[losses.index(min(losses))] / 10)
