"""What a BatchNorm knows of its input: the running statistics, and whether they say anything."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Norm: TypeAlias = _BatchNorm  # of any dimension, synchronized or not


def norms_of(model: nn.Module) -> dict[str, Norm]:
    """The BatchNorms of ``model`` by name, in the order of its modules."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Norm)}


def is_blank(norm: Norm) -> bool:
    """Whether its mean is 0 and its variance 1 (or it keeps none): folded away, or never trained.

    See :func:`is_fresh` for which of both.
    """
    return _all(norm.running_mean, 0) and _all(norm.running_var, 1)


def is_fresh(norm: Norm) -> bool:
    """Whether its scales are 1 and its biases 0, as before the first step of training."""
    return _all(norm.weight, 1) and _all(norm.bias, 0)


def _all(tensor: Tensor | None, value: float) -> bool:
    return tensor is None or bool(torch.all(tensor == value))
