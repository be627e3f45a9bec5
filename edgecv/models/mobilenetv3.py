"""MobileNetV3, small and large.

Howard et al., "Searching for MobileNetV3", ICCV 2019, arXiv:1905.02244. State-dict keys are those
of torchvision's ``mobilenet_v3_small`` and ``mobilenet_v3_large``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from edgecv.models.layers import (
    Activation,
    Classifier,
    SqueezeExcitation,
    conv_norm,
    initialise,
    make_divisible,
)

ReLU, Hardswish = nn.ReLU, nn.Hardswish


class Block(NamedTuple):
    kernel: int  # k
    expanded: int  # exp: channels of the depthwise convolution, before the width multiplier
    channels: int  # c: output channels, before the width multiplier
    squeeze: bool  # SE
    activation: Activation  # NL
    stride: int  # s


LARGE = (  # Table 1 of the paper
    # k, exp, c, SE, NL, s
    Block(3, 16, 16, False, ReLU, 1),
    Block(3, 64, 24, False, ReLU, 2),
    Block(3, 72, 24, False, ReLU, 1),
    Block(5, 72, 40, True, ReLU, 2),
    Block(5, 120, 40, True, ReLU, 1),
    Block(5, 120, 40, True, ReLU, 1),
    Block(3, 240, 80, False, Hardswish, 2),
    Block(3, 200, 80, False, Hardswish, 1),
    Block(3, 184, 80, False, Hardswish, 1),
    Block(3, 184, 80, False, Hardswish, 1),
    Block(3, 480, 112, True, Hardswish, 1),
    Block(3, 672, 112, True, Hardswish, 1),
    Block(5, 672, 160, True, Hardswish, 2),
    Block(5, 960, 160, True, Hardswish, 1),
    Block(5, 960, 160, True, Hardswish, 1),
)
SMALL = (  # Table 2 of the paper
    # k, exp, c, SE, NL, s
    Block(3, 16, 16, True, ReLU, 2),
    Block(3, 72, 24, False, ReLU, 2),
    Block(3, 88, 24, False, ReLU, 1),
    Block(5, 96, 40, True, Hardswish, 2),
    Block(5, 240, 40, True, Hardswish, 1),
    Block(5, 240, 40, True, Hardswish, 1),
    Block(5, 120, 48, True, Hardswish, 1),
    Block(5, 144, 48, True, Hardswish, 1),
    Block(5, 288, 96, True, Hardswish, 2),
    Block(5, 576, 96, True, Hardswish, 1),
    Block(5, 576, 96, True, Hardswish, 1),
)
STEM_CHANNELS = 16
LAST_EXPANSION = 6  # of the last 1x1 convolution
HEAD_LARGE, HEAD_SMALL = 1280, 1024

_conv = partial(conv_norm, eps=0.001, momentum=0.01)


class InvertedResidual(nn.Module):
    """Widen, filter per channel, gate (squeeze and excitation), project; skip if it fits."""

    def __init__(self, in_channels: int, out_channels: int, hidden: int, block: Block) -> None:
        super().__init__()
        self.has_skip = block.stride == 1 and in_channels == out_channels
        layers: list[nn.Module] = []
        if hidden != in_channels:
            layers.append(_conv(in_channels, hidden, 1, activation=block.activation))
        layers.append(
            _conv(
                hidden,
                hidden,
                block.kernel,
                block.stride,
                groups=hidden,
                activation=block.activation,
            )
        )
        if block.squeeze:
            squeezed = make_divisible(hidden // 4)
            layers.append(SqueezeExcitation(hidden, squeezed, nn.ReLU, nn.Hardsigmoid))
        layers.append(_conv(hidden, out_channels, 1, activation=None))
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return x + out if self.has_skip else out


class MobileNetV3(Classifier):
    """See :func:`mobilenet_v3_small` and :func:`mobilenet_v3_large`."""

    def __init__(
        self, num_classes: int, table: Sequence[Block], head: int, width: float, dropout: float
    ) -> None:
        super().__init__()
        channels = make_divisible(STEM_CHANNELS * width)
        features: list[nn.Module] = [_conv(3, channels, 3, stride=2, activation=nn.Hardswish)]
        for block in table:
            out_channels = make_divisible(block.channels * width)
            hidden = make_divisible(block.expanded * width)
            features.append(InvertedResidual(channels, out_channels, hidden, block))
            channels = out_channels
        last = LAST_EXPANSION * channels
        features.append(_conv(channels, last, 1, activation=nn.Hardswish))
        self.features = nn.Sequential(*features)
        head = make_divisible(head * width)
        self.classifier = nn.Sequential(
            nn.Linear(last, head),
            nn.Hardswish(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(head, num_classes),
        )

    def maps(self, x: Tensor) -> Tensor:
        out: Tensor = self.features(x)  # [N, last, H / 32, W / 32]
        return out

    def dense(self) -> Sequence[nn.Module]:
        return list(self.classifier)


def mobilenet_v3_large(
    num_classes: int = 1000, *, width: float = 1.0, dropout: float = 0.2
) -> MobileNetV3:
    """MobileNetV3-Large (arXiv:1905.02244), input ``[N, 3, H, W]``, logits ``[N, num_classes]``.

    ``width`` scales every layer's channels, rounded to a multiple of 8.
    """
    model = MobileNetV3(num_classes, LARGE, HEAD_LARGE, width, dropout)
    initialise(model)
    return model


def mobilenet_v3_small(
    num_classes: int = 1000, *, width: float = 1.0, dropout: float = 0.2
) -> MobileNetV3:
    """MobileNetV3-Small (arXiv:1905.02244), input ``[N, 3, H, W]``, logits ``[N, num_classes]``.

    ``width`` scales every layer's channels, rounded to a multiple of 8.
    """
    model = MobileNetV3(num_classes, SMALL, HEAD_SMALL, width, dropout)
    initialise(model)
    return model
