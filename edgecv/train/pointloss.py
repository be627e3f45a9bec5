"""How wrong a predicted point is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

POINT_LOSSES = ("wing", "smooth-l1", "squared")


def point_loss(apart: Tensor, kind: str, wing: float, curvature: float) -> Tensor:
    """The loss of each coordinate's error ``apart``, in pixels; of the same shape.

    - ``wing`` (Feng et al., arXiv:1711.06753): ``w ln(1 + |x| / e)`` up to w pixels, then ``|x| -
      C``, with C such that the two meet; small errors weigh as much as large ones
    - ``smooth-l1`` (arXiv:1504.08083): ``x^2 / 2`` up to a pixel, then ``|x| - 1/2``
    - ``squared``: ``x^2``
    """
    if kind == "squared":
        return apart.square()
    size = apart.abs()
    if kind == "smooth-l1":
        return torch.where(size < 1, size.square() / 2, size - 0.5)
    meeting = wing - wing * math.log(1 + wing / curvature)
    return torch.where(size < wing, wing * (1 + size / curvature).log(), size - meeting)
