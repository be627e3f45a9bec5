"""Weights of a classifier for the trunk of another net: the part of it that sees."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgecv.errors import WeightsError


def load_trunk(model: nn.Module, state: Mapping[str, Tensor], where: str) -> str:
    """Load into ``model`` the largest part of it that ``state`` has whole; returns its path.

    A part fits where every one of its tensors is in ``state`` under its name within that part, in
    its shape: a detector's ``trunk``, say, with a classifier's ``features``. What else ``state``
    holds, its classifier, is left. No part of at least half the net's convolutions is a
    :class:`~edgecv.errors.WeightsError`.
    """
    best, count = "", 0
    for path, module in model.named_modules():
        own = {k: v for k, v in module.state_dict().items() if not k.endswith("_tracked")}
        fits = own and all(k in state and state[k].shape == v.shape for k, v in own.items())
        if fits and len(own) > count:
            best, count = path, len(own)
    filters = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    part = model.get_submodule(best) if count else nn.Module()
    if 2 * sum(isinstance(m, nn.Conv2d) for m in part.modules()) < filters:
        name = type(model).__name__
        raise WeightsError(
            f"{where}: no trunk of {name} has these weights: it has keys such as "
            f"{', '.join(list(model.state_dict())[:2])}, the file has "
            f"{', '.join(list(state)[:2])}; another architecture, or another width?"
        )
    with torch.no_grad():
        part.load_state_dict({k: state.get(k, v) for k, v in part.state_dict().items()})
    return best
