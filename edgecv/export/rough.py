"""A torch net whose weights are off by as much as rounding to FP16 could bring them."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from edgecv.measure.rounding import roughened


def rough_net(net: nn.Module, rng: np.random.Generator) -> nn.Module:
    """A copy of ``net`` with the weights and biases of its layers roughened by ``rng``."""
    rough = copy.deepcopy(net)
    with torch.no_grad():
        for module in rough.modules():
            if isinstance(module, _ConvNd | nn.Linear):
                for values in module.parameters(recurse=False):
                    values.copy_(torch.from_numpy(roughened(values.numpy(), rng)))
    return rough
