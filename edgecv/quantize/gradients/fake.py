"""Grids of integers that gradients pass: what is rounded forwards is the identity backwards.

The straight-through estimator (Bengio et al., arXiv:1308.3432; Jacob et al., arXiv:1712.05877):
inside the range the gradient passes as it is, outside it is zero. The gradient of the step is that
of LSQ (Esser et al., arXiv:1902.08153): ``(rounded - x) / step`` inside, the integer outside.

A step is learned as the logarithm of a factor, ``step = first * exp(f)``: the rate then means the
same for every tensor, and no step becomes negative.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgecv.quantize.ranges import Affine


class _Fake(torch.autograd.Function):
    """``x`` rounded to the grid of ``step`` and ``zero`` (both scalars, ``zero`` whole)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
        y: Tensor
        y, inside = torch.ops.aten.fake_quantize_per_tensor_affine_cachemask(
            x, float(step), int(zero), low, high
        )
        ctx.save_for_backward(x, y, inside, step)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, y, inside, step = ctx.saved_tensors
        (gradient,) = gradients
        passed = gradient * inside
        to_step = to_zero = None
        if ctx.needs_input_grad[1]:  # y is step * integer: inside (y - x) / step, outside y / step
            to_step = (_dot(gradient, y) - _dot(passed, x)) / step
        if ctx.needs_input_grad[2]:
            to_zero = -step * (gradient.sum() - passed.sum())
        return passed, to_step, to_zero, None, None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The sum of ``a * b``, without a tensor for the products where their layouts are one."""
    if a.ndim == 4 and a.stride() == b.stride():
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return torch.dot(a.reshape(-1), b.reshape(-1))


def _whole(x: Tensor) -> Tensor:
    """``x`` rounded, half to even, with the gradient of ``x``."""
    return x + (x.round() - x).detach()


class Grid(nn.Module):
    """The integers of an activation, from ``first`` on.

    What is learned are ``factor``, the logarithm of the step's, and ``shift``, by which the zero
    point moves, as a share of the range. Grids that end where the tensor does (zero points at an
    end of the integers, as behind a ReLU) and symmetric ones keep their zero point.
    """

    def __init__(self, first: Affine, symmetric: bool) -> None:
        super().__init__()
        info = np.iinfo(first.dtype)
        self.low, self.high, self.first = int(info.min), int(info.max), first
        self.shifts = not symmetric and self.low < first.zero_point < self.high
        self.fixed = False
        self.factor = nn.Parameter(torch.zeros(()))
        self.shift = nn.Parameter(torch.zeros(()), self.shifts)

    def fix(self) -> None:
        """Learn nothing here: the grid is the pixels'."""
        self.fixed, self.shifts = True, False
        self.requires_grad_(False)

    @property
    def step(self) -> Tensor:
        return self.factor.exp() * float(self.first.scale)

    @property
    def zero(self) -> Tensor:
        """The zero point, a whole number."""
        zero = self.first.zero_point + (self.high - self.low) * self.shift
        return _whole(zero.clamp(self.low, self.high))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = _Fake.apply(x, self.step, self.zero, self.low, self.high)  # type: ignore[no-untyped-call]
        return result

    def affine(self) -> Affine:
        """The grid as it is now."""
        step = np.float32(self.step.detach().numpy())
        return Affine(step, int(self.zero.detach()), self.first.dtype)


class Weight(nn.Module):
    """A float weight and the symmetric grid that it is rounded to, one step per channel."""

    def __init__(
        self,
        latent: NDArray[np.float32],
        scales: NDArray[np.float32],
        axis: int,
        largest: int,
    ) -> None:
        super().__init__()
        self.axis, self.largest = axis, largest
        self.latent = nn.Parameter(torch.from_numpy(latent.copy()))
        self.first: Tensor
        self.register_buffer("first", torch.from_numpy(scales.copy()))
        self.factor = nn.Parameter(torch.zeros(scales.shape))

    @property
    def steps(self) -> Tensor:
        """One per channel, ``[C]``."""
        return self.first * self.factor.exp()

    def forward(self) -> Tensor:
        steps = self._broadcast(self.steps)
        return _whole((self.latent / steps).clamp(-self.largest, self.largest)) * steps

    @torch.no_grad()
    def integers(self, steps: Tensor) -> NDArray[np.int8]:
        """The weight in units of ``steps`` ``[C]``."""
        q = (self.latent / self._broadcast(steps)).round().clamp(-self.largest, self.largest)
        return np.asarray(q.to(torch.int8).numpy())

    def _broadcast(self, steps: Tensor) -> Tensor:
        shape = [1] * self.latent.ndim
        shape[self.axis] = -1
        return steps.reshape(shape)
