"""MobileNetV1: depthwise-separable convolutions.

Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
Applications", arXiv:1704.04861. State-dict keys are those of timm's ``mobilenetv1_100``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from edgecv.models.layers import Classifier, initialise, make_divisible


class Stage(NamedTuple):
    channels: int  # c: output channels before the width multiplier
    blocks: int  # n
    stride: int  # s: of the stage's first block


STAGES = (  # Table 1 of the paper
    # c, n, s
    Stage(64, 1, 1),
    Stage(128, 2, 2),
    Stage(256, 2, 2),
    Stage(512, 6, 2),
    Stage(1024, 2, 2),
)
STEM_CHANNELS = 32


class DepthwiseSeparable(nn.Module):
    """Filter per channel (3x3 depthwise), then mix the channels (1x1)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(
            in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False
        )
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv_pw = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.act = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv_dw(x)))
        out: Tensor = self.act(self.bn2(self.conv_pw(x)))
        return out


class MobileNetV1(Classifier):
    """See :func:`mobilenet_v1`."""

    def __init__(self, num_classes: int, width: float, dropout: float) -> None:
        super().__init__()
        channels = make_divisible(STEM_CHANNELS * width)
        self.conv_stem = nn.Conv2d(3, channels, 3, 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act = nn.ReLU6(inplace=True)
        stages = []
        for c, n, s in STAGES:
            blocks: list[nn.Module] = []
            out_channels = make_divisible(c * width)
            for block in range(n):
                blocks.append(DepthwiseSeparable(channels, out_channels, s if block == 0 else 1))
                channels = out_channels
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, num_classes)

    def maps(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv_stem(x)))  # [N, 32, H / 2, W / 2]
        out: Tensor = self.blocks(x)  # [N, 1024, H / 32, W / 32]
        return out

    def dense(self) -> Sequence[nn.Module]:
        return [self.dropout, self.classifier]


def mobilenet_v1(
    num_classes: int = 1000, *, width: float = 1.0, dropout: float = 0.2
) -> MobileNetV1:
    """MobileNetV1 (arXiv:1704.04861), input ``[N, 3, H, W]``, logits ``[N, num_classes]``.

    ``width`` scales every layer's channels, rounded to a multiple of 8.
    """
    model = MobileNetV1(num_classes, width, dropout)
    initialise(model)
    return model
