"""Weights that every implementation of a net can make alike: each tensor is seeded by its name.

For tests and benchmarks: nothing in the net is trivial then (BatchNorm's statistics are not the
identity), activations keep their size through deep nets, and no download is needed.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor, nn


def fill_by_name(model: nn.Module) -> nn.Module:
    """Replace every tensor of the state dict by :func:`named_value`, also on the meta device."""
    state = {name: named_value(name, tensor) for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return model


def named_value(name: str, tensor: Tensor) -> Tensor:
    """The value for the entry ``name``, of the shape and type of ``tensor``.

    The generator's seed is the CRC-32 of the name. Variances and scales are 0.5 to 1.5, means and
    biases 0.1 times a normal value, and filters follow He's rule by fan-in.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    shape = tuple(tensor.shape)
    if name.endswith("num_batches_tracked"):
        value = np.zeros(shape)
    elif name.endswith("running_var"):
        value = 0.5 + rng.random(shape)
    elif name.endswith("running_mean"):
        value = 0.1 * rng.standard_normal(shape)
    elif len(shape) >= 2:
        value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    elif name.endswith("weight"):
        value = 0.5 + rng.random(shape)
    else:
        value = 0.1 * rng.standard_normal(shape)
    return torch.from_numpy(np.asarray(value)).to(tensor.dtype)
