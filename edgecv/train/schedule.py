"""Learning rates: over the steps of a run, and over the depth of a net."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import nn

from edgecv.errors import InputError
from edgecv.train.settings import TrainConfig


def rate(config: TrainConfig, step: int, steps: int) -> float:
    """Linear warm-up, half a cosine down to zero, and a second, lower cosine to finish.

    ``step`` counts from the run's start, ``steps`` are those of one epoch.
    """
    warmup, end = config.warmup_epochs * steps, config.epochs * steps
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if step < end:
        return config.lr * _half_cosine((step - warmup) / (end - warmup))
    return config.finish_lr * _half_cosine((step - end) / (config.finish_epochs * steps))


def _half_cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of what is not frozen; each group's ``scale`` multiplies the rate."""
    groups = parameter_groups(model, config)
    if not groups:
        raise InputError("every parameter of the net is frozen: there is nothing to train")
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=config.lr)


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Matrices and filters with weight decay, the rest without; by stage where rates differ."""
    found: dict[tuple[int, bool], list[nn.Parameter]] = {}
    stages = _stages(model) if config.layer_decay != 1.0 else {}
    last = max(stages.values(), default=0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = last - stages.get(name, last), parameter.ndim <= 1
            found.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": 0.0 if plain else config.weight_decay,
            "scale": config.layer_decay**depth,
        }
        for (depth, plain), parameters in sorted(found.items(), key=lambda item: item[0])
    ]


def _stages(model: nn.Module) -> dict[str, int]:
    """Each parameter's stage, counted from the input: its path up to the first number."""
    stages: dict[str, int] = {}
    result = {}
    for name, _ in model.named_parameters():
        path = name.rpartition(".")[0]
        match = re.match(r".*?\d+(?=\.|$)", path)
        stage = match.group() if match else path
        result[name] = stages.setdefault(stage, len(stages))
    return result
