"""Parameters and multiply-adds, layer by layer, without computing anything."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from edgecv.errors import RecipeError
from edgecv.models.layers import check_input


@dataclass(frozen=True)
class Layer:
    """One layer with weights: its module path, output shape (without batch), and costs.

    ``macs`` are multiply-adds for one picture. ``kernel``, ``groups`` and the channels are 0 for
    layers that are no convolution.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    in_channels: int = 0
    out_channels: int = 0
    kernel: int = 0  # height x width of the filter
    groups: int = 0

    @property
    def depthwise(self) -> bool:
        return self.groups > 1 and self.groups == self.in_channels

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "shape": list(self.shape),
            "parameters": self.parameters,
            "macs": self.macs,
        }


@dataclass(frozen=True)
class Saving:
    """What splitting a convolution into depthwise and 1x1 saves: costs of both forms, in MACs."""

    depthwise: Layer
    pointwise: Layer

    @property
    def separable(self) -> int:
        return self.depthwise.macs + self.pointwise.macs

    @property
    def full(self) -> int:
        """One convolution with the same filter size, from the same channels to the same."""
        positions = math.prod(self.pointwise.shape[1:])
        channels = self.depthwise.in_channels * self.pointwise.out_channels
        return positions * channels * self.depthwise.kernel

    @property
    def share(self) -> float:
        return self.separable / self.full

    @property
    def formula(self) -> float:
        """``1 / C_out + 1 / f^2`` (arXiv:1704.04861, section 3.1): what ``share`` comes to."""
        return 1 / self.pointwise.out_channels + 1 / self.depthwise.kernel

    def to_dict(self) -> dict[str, Any]:
        return {
            "depthwise": self.depthwise.name,
            "pointwise": self.pointwise.name,
            "macs": self.separable,
            "macs_full": self.full,
            "share": self.share,
            "formula": self.formula,
        }


def layers(build: Callable[[], nn.Module], shape: tuple[int, int, int]) -> list[Layer]:
    """The layers of ``build()`` that run in eval mode on a picture of ``shape`` (C, H, W).

    They come in the order in which they run. The net is built and run on torch's meta device: no
    memory, no arithmetic. Parameters of layers that do not run (auxiliary heads) are not
    counted; those of BatchNorm are: it is part of the net, though not of an exported file. A net
    that cannot take such a picture is a :class:`~edgecv.errors.RecipeError`.
    """
    with torch.device("meta"):
        model = build().eval()
        check_input(model, shape)
        found: list[Layer] = []
        handles = [
            module.register_forward_hook(_recorder(name, found))
            for name, module in model.named_modules()
            if next(module.parameters(recurse=False), None) is not None
        ]
        try:
            with torch.no_grad():
                model(torch.empty((1, *shape)))
        except Exception as error:  # a user's net may raise anything
            raise RecipeError(
                f"{type(model).__name__} cannot be counted for an input of {list(shape)}: on "
                f"torch's meta device it fails with {type(error).__name__}: {error}"
            ) from error
    for handle in handles:
        handle.remove()
    return found


def savings(found: list[Layer]) -> list[Saving]:
    """Each depthwise convolution with the 1x1 convolution that follows it.

    The gates of squeeze and excitation, on maps of 1x1, may stand between the two.
    """
    convolutions = [layer for layer in found if layer.kernel and layer.shape[1:] != (1, 1)]
    return [
        Saving(first, second)
        for first, second in pairwise(convolutions)
        if first.depthwise
        and second.kernel == 1
        and second.groups == 1
        and second.in_channels == first.out_channels
        and second.shape[1:] == first.shape[1:]
    ]


def _recorder(name: str, found: list[Layer]) -> Callable[[nn.Module, object, Any], None]:
    def record(module: nn.Module, _: object, out: Tensor | tuple[Tensor, ...]) -> None:
        shape = tuple((out if isinstance(out, Tensor) else out[0]).shape[1:])
        parameters = sum(p.numel() for p in module.parameters(recurse=False))
        kind = type(module).__name__
        if isinstance(module, nn.ConvTranspose2d):
            # every input pixel meets every weight once: the stride spreads the result
            positions = math.prod(shape[1:]) // math.prod(module.stride)
            found.append(Layer(name, kind, shape, parameters, positions * module.weight.numel()))
        elif isinstance(module, nn.Conv2d):
            found.append(
                Layer(
                    name,
                    kind,
                    shape,
                    parameters,
                    math.prod(shape[1:]) * module.weight.numel(),
                    module.in_channels,
                    module.out_channels,
                    math.prod(module.kernel_size),
                    module.groups,
                )
            )
        elif isinstance(module, nn.Linear):
            positions = math.prod(shape[:-1])
            found.append(Layer(name, kind, shape, parameters, positions * module.weight.numel()))
        else:
            found.append(Layer(name, kind, shape, parameters, 0))

    return record
