"""What several architectures share: small blocks, the frame of a classifier, rules for sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from edgecv.errors import RecipeError


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round a channel count to a multiple of ``divisor``, never down by more than 10%.

    The rule of the TensorFlow reference implementation of MobileNet (slim's
    ``conv_blocks._make_divisible``), which published checkpoints follow.
    """
    if not value > 0:
        raise RecipeError(f"width must be greater than 0: a layer would have {value:g} channels")
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


@dataclass(frozen=True)
class Sizes:
    """The input sizes that a net can take, in pixels; ``exact`` excludes all others."""

    minimum: int = 1
    multiple: int = 1
    exact: int | None = None

    def check(self, name: str, height: int, width: int, remedy: str = "") -> None:
        """Refuse a size that the net cannot have, with a :class:`~edgecv.errors.RecipeError`."""
        sides = (height, width)
        if self.exact is not None:
            wanted = f"exactly {self.exact} x {self.exact} pixels"
            fits = sides == (self.exact, self.exact)
        else:
            wanted = f"at least {self.minimum} pixels on each side"
            wanted += f", in multiples of {self.multiple}" if self.multiple > 1 else ""
            fits = min(sides) >= self.minimum and all(side % self.multiple == 0 for side in sides)
        if not fits:
            raise RecipeError(f"{name} needs an input of {wanted}, got {width} x {height}{remedy}")


class Activation(Protocol):
    """A class of activations that takes ``inplace``."""

    def __call__(self, *, inplace: bool) -> nn.Module: ...


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    *,
    activation: Activation | None = nn.ReLU6,
    eps: float = 1e-5,
    momentum: float = 0.1,
) -> nn.Sequential:
    """Convolution without bias (key 0), BatchNorm (key 1), activation (none where it is None).

    Padding keeps the size at stride 1.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(
            in_channels, out_channels, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False
        ),
        nn.BatchNorm2d(out_channels, eps=eps, momentum=momentum),
    ]
    if activation is not None:
        layers.append(activation(inplace=True))
    return nn.Sequential(*layers)


class SqueezeExcitation(nn.Module):
    """Scale each channel by a gate computed from all channels' means.

    Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018, arXiv:1709.01507.
    """

    def __init__(
        self, channels: int, squeezed: int, activation: Activation, gate: Activation
    ) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.activation = activation(inplace=True)
        self.gate = gate(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        scale = nn.functional.adaptive_avg_pool2d(x, 1)  # [N, C, 1, 1]
        scale = self.gate(self.fc2(self.activation(self.fc1(scale))))
        scaled: Tensor = x * scale
        return scaled


class Sigmoid(nn.Module):
    """``nn.Sigmoid`` with the ``inplace`` that the other gates have."""

    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        return x.sigmoid_() if self.inplace else x.sigmoid()


class StochasticDepth(nn.Module):
    """In training, drop a sample's residual branch with probability ``p``; nothing in eval mode.

    Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016, arXiv:1603.09382.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        keep = torch.empty((x.shape[0], 1, 1, 1), dtype=x.dtype, device=x.device)
        return x * keep.bernoulli_(1 - self.p).div_(1 - self.p)


class AdaptivePool(nn.Module):
    """Average pooling to a fixed ``side`` x ``side``, as ``nn.AdaptiveAvgPool2d``.

    A cell of the result averages rows ``floor(i h / side)`` to ``ceil((i + 1) h / side)``, and
    columns alike. Where the cells are equally large it is plain pooling, otherwise two products
    with matrices of averages: ONNX has no adaptive pooling.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if (height, width) == (self.side, self.side):
            return x
        if self.side == 1:
            return nn.functional.adaptive_avg_pool2d(x, 1)
        if height % self.side == 0 and width % self.side == 0:
            return nn.functional.avg_pool2d(x, (height // self.side, width // self.side))
        rows, columns = (self._averages(size, x) for size in (height, width))
        return rows @ x @ columns.T

    def _averages(self, size: int, like: Tensor) -> Tensor:
        """``[side, size]``: row i averages the pixels of cell i."""
        cells = [[0.0] * size for _ in range(self.side)]
        for i, row in enumerate(cells):
            start, stop = i * size // self.side, -(-(i + 1) * size // self.side)
            row[start:stop] = [1 / (stop - start)] * (stop - start)
        return torch.tensor(cells, dtype=like.dtype, device=like.device)


class Classifier(nn.Module):
    """The frame of every classifier: ``maps``, average pooling to ``side``, ``dense`` layers.

    The parts are named here and the parameters where the published checkpoints have them, so
    that a net can lend its trunk, or be made fully convolutional.
    """

    sizes = Sizes()
    side = 1  # of the pooled map that the dense layers see
    is_trunk = False  # whether the dense layers have been taken off

    def maps(self, x: Tensor) -> Tensor:
        """Pictures ``[N, 3, H, W]`` to the last map ``[N, C, h, w]``."""
        raise NotImplementedError

    def dense(self) -> Sequence[nn.Module]:
        """The layers after pooling and flattening, in order."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.maps(x))

    def logits(self, x: Tensor) -> Tensor:
        """The last map ``[N, C, h, w]`` to ``[N, num_classes]``."""
        x = AdaptivePool(self.side)(x)  # [N, C, side, side]
        x = torch.flatten(x, 1)  # [N, C * side * side]
        for layer in self.dense():
            x = layer(x)
        return x

    @property
    def channels(self) -> int:
        """C of the last map."""
        first = next(layer for layer in self.dense() if isinstance(layer, nn.Linear))
        return first.in_features // self.side**2

    @property
    def in_channels(self) -> int:
        """The channels of a picture."""
        return next(m.in_channels for m in self.modules() if isinstance(m, nn.Conv2d))

    def drop_dense(self) -> None:
        """Take the dense layers off a net that only lends its trunk: its ``maps``."""
        dense = set(self.dense())
        for name, child in list(self.named_children()):
            inner = list(child.children())
            if child in dense or (inner and dense.issuperset(inner)):
                delattr(self, name)
        self.is_trunk = True


class AuxiliaryClassifier(Classifier):
    """A classifier that has smaller ones on its inner maps, for the loss in training alone."""

    auxiliary: bool  # whether this one has them
    inner_heads: tuple[str, ...]  # their modules' names
    inner_sizes = Sizes()  # what they can take: only training runs them

    def with_inner(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The last map, and in training mode the auxiliary heads' logits ``[N, num_classes]``."""
        raise NotImplementedError

    def maps(self, x: Tensor) -> Tensor:
        return self.with_inner(x)[0]

    def training_logits(self, x: Tensor) -> tuple[Tensor, ...]:
        """The logits of the main head, then of the auxiliary ones."""
        x, inner = self.with_inner(x)
        return (self.logits(x), *inner)

    def drop_dense(self) -> None:
        super().drop_dense()
        for name in self.inner_heads if self.auxiliary else ():
            delattr(self, name)
        self.auxiliary = False


def check_input(model: nn.Module, shape: tuple[int, int, int], *, training: bool = False) -> None:
    """Refuse pictures of ``shape`` (C, H, W) that ``model`` cannot take, or learn from.

    A :class:`~edgecv.errors.RecipeError` says what it takes. Nets that do not say are not checked.
    """
    channels, height, width = shape
    name = type(model).__name__
    if isinstance(model, Classifier) and model.in_channels != channels:
        raise RecipeError(
            f"{name} takes pictures of {model.in_channels} channels, and the input has {channels}: "
            f"see input.color (gray has 1, rgb and bgr have 3)"
        )
    if isinstance(sizes := getattr(model, "sizes", None), Sizes):
        sizes.check(name, height, width)
    if training and isinstance(model, AuxiliaryClassifier) and model.auxiliary:
        remedy = "; model.options = { auxiliary = false } leaves them out"
        model.inner_sizes.check(f"{name} with auxiliary heads in training", height, width, remedy)


def initialise(model: nn.Module, linear_std: float = 0.01) -> None:
    """Fresh weights: He's normal rule by fan-out for convolutions, a narrow normal for dense ones.

    He et al., "Delving Deep into Rectifiers", ICCV 2015, arXiv:1502.01852.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, linear_std)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
