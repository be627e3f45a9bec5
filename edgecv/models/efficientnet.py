"""EfficientNet B0 to B7: one net, scaled in depth, width and resolution at once.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019,
arXiv:1905.11946. State-dict keys are those of torchvision's ``efficientnet_b0`` to ``b7``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from edgecv.errors import RecipeError
from edgecv.models.layers import (
    Classifier,
    Sigmoid,
    SqueezeExcitation,
    StochasticDepth,
    conv_norm,
    initialise,
    make_divisible,
)


class Stage(NamedTuple):
    expansion: int  # t
    kernel: int  # k
    channels: int  # c: before scaling
    blocks: int  # n: before scaling
    stride: int  # s: of the stage's first block


STAGES = (  # Table 1 of the paper
    # t, k, c, n, s
    Stage(1, 3, 16, 1, 1),
    Stage(6, 3, 24, 2, 2),
    Stage(6, 5, 40, 2, 2),
    Stage(6, 3, 80, 3, 2),
    Stage(6, 5, 112, 3, 1),
    Stage(6, 5, 192, 4, 2),
    Stage(6, 3, 320, 1, 1),
)
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
DEPTH, WIDTH, RESOLUTION = 1.2, 1.1, 1.15  # alpha, beta, gamma: section 3.3 of the paper
BASE_SIZE = 224  # pixels, of B0
DROP_PATH = 0.2  # after the last block; the earlier ones' share grows with depth


class Scaling(NamedTuple):
    """How a variant differs from B0. ``size`` is in pixels."""

    width: float
    depth: float
    size: int
    dropout: float
    eps: float = 1e-5  # of BatchNorm: the published B5 to B7 come from TensorFlow with another
    momentum: float = 0.1
    drop_path: float = DROP_PATH


VARIANTS = {  # the authors rounded the law's numbers by hand; phi is where it comes closest
    #             width, depth, size, dropout
    "b0": Scaling(1.0, 1.0, 224, 0.2),  # phi = 0
    "b1": Scaling(1.0, 1.1, 240, 0.2),  # 0.5
    "b2": Scaling(1.1, 1.2, 260, 0.3),  # 1
    "b3": Scaling(1.2, 1.4, 300, 0.3),  # 2
    "b4": Scaling(1.4, 1.8, 380, 0.4),  # 3.5
    "b5": Scaling(1.6, 2.2, 456, 0.4, 1e-3, 0.01),  # 5
    "b6": Scaling(1.8, 2.6, 528, 0.5, 1e-3, 0.01),  # 6
    "b7": Scaling(2.0, 3.1, 600, 0.5, 1e-3, 0.01),  # 7
}


def compound_scaling(phi: float) -> Scaling:
    """The law of section 3.3: depth ``1.2^phi``, width ``1.1^phi``, size ``224 * 1.15^phi``.

    Each step of phi doubles the multiply-adds, about. The size is rounded to a multiple of 8.
    """
    size = 8 * round(BASE_SIZE * RESOLUTION**phi / 8)
    return Scaling(WIDTH**phi, DEPTH**phi, size, 0.2 + min(0.3, 0.05 * phi))


class MBConv(nn.Module):
    """Widen, filter per channel, gate (squeeze and excitation), project; skip if it fits."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stage: Stage,
        stride: int,
        drop_path: float,
        conv: Callable[..., nn.Sequential],
    ) -> None:
        super().__init__()
        hidden = in_channels * stage.expansion
        self.has_skip = stride == 1 and in_channels == out_channels
        layers: list[nn.Module] = []
        if stage.expansion != 1:
            layers.append(conv(in_channels, hidden, 1))
        layers += [
            conv(hidden, hidden, stage.kernel, stride, groups=hidden),
            SqueezeExcitation(hidden, max(1, in_channels // 4), nn.SiLU, Sigmoid),
            conv(hidden, out_channels, 1, activation=None),
        ]
        self.block = nn.Sequential(*layers)
        self.stochastic_depth = StochasticDepth(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return x + self.stochastic_depth(out) if self.has_skip else out


class EfficientNet(Classifier):
    """See :func:`efficientnet`."""

    def __init__(self, num_classes: int, scaling: Scaling) -> None:
        super().__init__()
        conv = partial(conv_norm, activation=nn.SiLU, eps=scaling.eps, momentum=scaling.momentum)
        channels = make_divisible(STEM_CHANNELS * scaling.width)
        features: list[nn.Module] = [conv(3, channels, 3, stride=2)]
        repeats = [math.ceil(stage.blocks * scaling.depth) for stage in STAGES]
        position = 0
        for stage, count in zip(STAGES, repeats, strict=True):
            blocks: list[nn.Module] = []
            out_channels = make_divisible(stage.channels * scaling.width)
            for block in range(count):
                stride = stage.stride if block == 0 else 1
                drop_path = scaling.drop_path * position / sum(repeats)
                blocks.append(MBConv(channels, out_channels, stage, stride, drop_path, conv))
                channels = out_channels
                position += 1
            features.append(nn.Sequential(*blocks))
        last = 4 * channels
        features.append(conv(channels, last, 1))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(scaling.dropout), nn.Linear(last, num_classes))

    def maps(self, x: Tensor) -> Tensor:
        out: Tensor = self.features(x)  # [N, 1280 * width, H / 32, W / 32]
        return out

    def dense(self) -> Sequence[nn.Module]:
        return list(self.classifier)


def efficientnet(
    num_classes: int = 1000,
    *,
    variant: str = "b0",
    phi: float | None = None,
    width: float = 1.0,
    dropout: float | None = None,
    drop_path: float = DROP_PATH,
) -> EfficientNet:
    """EfficientNet (arXiv:1905.11946), input ``[N, 3, H, W]``, logits ``[N, num_classes]``.

    ``variant`` is ``b0`` to ``b7`` with the published numbers; ``phi`` (0 or more) takes the
    compound law's own instead (:func:`compound_scaling`, which also names the size to train at).
    ``width`` scales that net's channels once more, rounded to a multiple of 8. ``dropout`` (the
    variant's where None) and ``drop_path`` count in training only.
    """
    if variant not in VARIANTS:
        raise RecipeError(f"efficientnet: variant must be b0 to b7, got {variant!r}")
    if phi is not None and not 0 <= phi <= 10:
        raise RecipeError(f"efficientnet: phi must be 0 to 10, got {phi}")
    if not width > 0:
        raise RecipeError(f"efficientnet: width must be greater than 0, got {width}")
    for name, value in (("dropout", dropout), ("drop_path", drop_path)):
        if value is not None and not 0 <= value < 1:
            raise RecipeError(f"efficientnet: {name} must be from 0 to below 1, got {value}")
    scaling = VARIANTS[variant] if phi is None else compound_scaling(phi)
    scaling = scaling._replace(
        width=scaling.width * width,
        dropout=scaling.dropout if dropout is None else dropout,
        drop_path=drop_path,
    )
    model = EfficientNet(num_classes, scaling)
    initialise(model)
    return model


def _variant(name: str) -> Callable[..., EfficientNet]:
    def build(num_classes: int = 1000) -> EfficientNet:
        return efficientnet(num_classes, variant=name)

    build.__doc__ = f"EfficientNet-{name.upper()}; see :func:`efficientnet`."
    return build


efficientnet_b0 = _variant("b0")
efficientnet_b1 = _variant("b1")
efficientnet_b2 = _variant("b2")
efficientnet_b3 = _variant("b3")
efficientnet_b4 = _variant("b4")
efficientnet_b5 = _variant("b5")
efficientnet_b6 = _variant("b6")
efficientnet_b7 = _variant("b7")
