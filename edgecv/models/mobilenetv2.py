"""MobileNetV2: inverted residuals with linear bottlenecks.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018,
arXiv:1801.04381. State-dict keys are those of torchvision's ``mobilenet_v2``, so its published
checkpoints load unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from edgecv.models.layers import Classifier, conv_norm, initialise, make_divisible


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


class InvertedResidual(nn.Module):
    """Widen (1x1), filter per channel (3x3 depthwise), project (1x1, linear); skip if it fits."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.has_skip = stride == 1 and in_channels == out_channels
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(conv_norm(in_channels, hidden, 1))
        layers += [
            conv_norm(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.has_skip else out


class MobileNetV2(Classifier):
    """See :func:`mobilenet_v2`."""

    def __init__(self, num_classes: int, width: float, dropout: float) -> None:
        super().__init__()
        channels = make_divisible(STEM_CHANNELS * width)
        features: list[nn.Module] = [conv_norm(3, channels, 3, stride=2)]
        for t, c, n, s in STAGES:
            out_channels = make_divisible(c * width)
            for block in range(n):
                stride = s if block == 0 else 1
                features.append(InvertedResidual(channels, out_channels, stride, t))
                channels = out_channels
        last = make_divisible(HEAD_CHANNELS * max(1.0, width))
        features.append(conv_norm(channels, last, 1))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))

    def maps(self, x: Tensor) -> Tensor:
        out: Tensor = self.features(x)  # [N, last, H / 32, W / 32]
        return out

    def dense(self) -> Sequence[nn.Module]:
        return list(self.classifier)


def mobilenet_v2(
    num_classes: int = 1000, *, width: float = 1.0, dropout: float = 0.2
) -> MobileNetV2:
    """MobileNetV2 (arXiv:1801.04381), input ``[N, 3, H, W]``, logits ``[N, num_classes]``.

    ``width`` scales every layer's channels, rounded to a multiple of 8; the last 1x1
    convolution is never narrower than 1280 channels, as in the paper. Any H and W of at least
    1 pixel work; multiples of 32 waste nothing.
    """
    model = MobileNetV2(num_classes, width, dropout)
    initialise(model)
    return model
