"""MobileNetV2: inverted residuals with linear bottlenecks.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018,
arXiv:1801.04381. State-dict keys are those of torchvision's ``mobilenet_v2``, so its published
checkpoints load unchanged.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgecv.models.layers import make_divisible


class Stage(NamedTuple):
    expansion: int  # t: how far the pointwise convolution widens the input
    channels: int  # c: output channels before the width multiplier
    blocks: int  # n: blocks in the stage
    stride: int  # s: stride of the stage's first block


STAGES = (  # Table 2 of the paper
    # t, c, n, s
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280


def conv_bn_relu6(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution without bias, BatchNorm, ReLU6; padding keeps the size at stride 1."""
    return nn.Sequential(
        nn.Conv2d(
            in_channels, out_channels, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """Widen (1x1), filter per channel (3x3 depthwise), project (1x1, linear); skip if it fits."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.has_skip = stride == 1 and in_channels == out_channels
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(conv_bn_relu6(in_channels, hidden, 1))
        layers += [
            conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.has_skip else out


class MobileNetV2(nn.Module):
    """See :func:`mobilenet_v2`."""

    def __init__(self, num_classes: int, width: float, dropout: float) -> None:
        super().__init__()
        channels = make_divisible(STEM_CHANNELS * width)
        features: list[nn.Module] = [conv_bn_relu6(3, channels, 3, stride=2)]
        for t, c, n, s in STAGES:
            out_channels = make_divisible(c * width)
            for block in range(n):
                stride = s if block == 0 else 1
                features.append(InvertedResidual(channels, out_channels, stride, t))
                channels = out_channels
        last = make_divisible(HEAD_CHANNELS * max(1.0, width))
        features.append(conv_bn_relu6(channels, last, 1))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)  # [N, last, H / 32, W / 32]
        x = nn.functional.adaptive_avg_pool2d(x, (1, 1))
        x = torch.flatten(x, 1)  # [N, last]
        logits: Tensor = self.classifier(x)
        return logits  # [N, num_classes]


def mobilenet_v2(
    num_classes: int = 1000, *, width: float = 1.0, dropout: float = 0.2
) -> MobileNetV2:
    """MobileNetV2 (arXiv:1801.04381), input ``[N, 3, H, W]``, logits ``[N, num_classes]``.

    ``width`` scales every layer's channels, rounded to a multiple of 8; the last 1x1
    convolution is never narrower than 1280 channels, as in the paper. Any H and W of at least
    1 pixel work; multiples of 32 waste nothing.
    """
    model = MobileNetV2(num_classes, width, dropout)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
            nn.init.zeros_(module.bias)
    return model
