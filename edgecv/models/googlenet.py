"""GoogLeNet (Inception v1), with BatchNorm.

Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, arXiv:1409.4842. State-dict keys are
those of torchvision's ``googlenet``; as there, the branch that the paper gives a 5x5 convolution
has a 3x3 one, because the published weights (ported from TensorFlow) have it so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgecv.models.layers import AdaptivePool, AuxiliaryClassifier, Sizes, initialise


class Widths(NamedTuple):
    one: int  # 1x1
    reduce3: int  # 1x1 before the 3x3
    three: int  # 3x3
    reduce5: int  # 1x1 before the "5x5"
    five: int  # "5x5"
    pool: int  # 1x1 after the pooling

    @property
    def out(self) -> int:
        return self.one + self.three + self.five + self.pool


INCEPTIONS = {  # Table 1 of the paper
    #            1x1, r3, 3x3, r5, 5x5, pool
    "3a": Widths(64, 96, 128, 16, 32, 32),
    "3b": Widths(128, 128, 192, 32, 96, 64),
    "4a": Widths(192, 96, 208, 16, 48, 64),
    "4b": Widths(160, 112, 224, 24, 64, 64),
    "4c": Widths(128, 128, 256, 24, 64, 64),
    "4d": Widths(112, 144, 288, 32, 64, 64),
    "4e": Widths(256, 160, 320, 32, 128, 128),
    "5a": Widths(256, 160, 320, 32, 128, 128),
    "5b": Widths(384, 192, 384, 48, 128, 128),
}
POOL_BEFORE = ("4a", "5a")  # where max pooling of stride 2 comes first
AUXILIARY = {"4a": "aux1", "4d": "aux2"}  # the heads that look at these outputs in training
STEM_CHANNELS = 192


class ConvNormReLU(nn.Module):
    """Convolution without bias, BatchNorm, ReLU, under the keys of torchvision's inceptions."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.bn(self.conv(x)), inplace=True)


class Inception(nn.Module):
    """Four branches side by side, joined by channel."""

    def __init__(self, in_channels: int, w: Widths) -> None:
        super().__init__()
        self.branch1 = ConvNormReLU(in_channels, w.one, 1)
        self.branch2 = nn.Sequential(
            ConvNormReLU(in_channels, w.reduce3, 1), ConvNormReLU(w.reduce3, w.three, 3, padding=1)
        )
        self.branch3 = nn.Sequential(
            ConvNormReLU(in_channels, w.reduce5, 1), ConvNormReLU(w.reduce5, w.five, 3, padding=1)
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(3, 1, padding=1), ConvNormReLU(in_channels, w.pool, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class AuxiliaryHead(nn.Module):
    """A small classifier on an inner map; its loss helps the gradient in training."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.pool = AdaptivePool(4)
        self.conv = ConvNormReLU(in_channels, 128, 1)
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.dropout = nn.Dropout(0.7)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(self.conv(self.pool(x)), 1)  # [N, 2048]
        x = self.dropout(nn.functional.relu(self.fc1(x), inplace=True))
        logits: Tensor = self.fc2(x)
        return logits


class GoogLeNet(AuxiliaryClassifier):
    """See :func:`googlenet`."""

    inner_heads = tuple(AUXILIARY.values())
    sizes = Sizes(minimum=15)  # smaller ones leave nothing after the poolings

    def __init__(self, num_classes: int, auxiliary: bool, dropout: float) -> None:
        super().__init__()
        self.conv1 = ConvNormReLU(3, 64, 7, stride=2, padding=3)
        self.conv2 = ConvNormReLU(64, 64, 1)
        self.conv3 = ConvNormReLU(64, STEM_CHANNELS, 3, padding=1)
        self.pool3 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.pool2 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.auxiliary = auxiliary
        channels = STEM_CHANNELS
        for name, widths in INCEPTIONS.items():
            self.add_module(f"inception{name}", Inception(channels, widths))
            channels = widths.out
            if auxiliary and name in AUXILIARY:
                self.add_module(AUXILIARY[name], AuxiliaryHead(channels, num_classes))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)

    def with_inner(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.pool3(self.conv1(x))  # [N, 64, H / 4, W / 4]
        x = self.pool3(self.conv3(self.conv2(x)))  # [N, 192, H / 8, W / 8]
        auxiliary = []
        for name in INCEPTIONS:
            if name in POOL_BEFORE:
                x = self.pool3(x) if name == "4a" else self.pool2(x)
            x = self.get_submodule(f"inception{name}")(x)
            if self.training and self.auxiliary and name in AUXILIARY:
                auxiliary.append(self.get_submodule(AUXILIARY[name])(x))
        return x, auxiliary  # [N, 1024, H / 32, W / 32]

    def dense(self) -> Sequence[nn.Module]:
        return [self.dropout, self.fc]


def googlenet(
    num_classes: int = 1000, *, auxiliary: bool = True, dropout: float = 0.2
) -> GoogLeNet:
    """GoogLeNet (arXiv:1409.4842), input ``[N, 3, H, W]``, logits ``[N, num_classes]``.

    ``auxiliary`` adds the two heads that only training uses (``training_logits``); they are in
    the published checkpoint and never in an exported file. H and W are at least 15 pixels.
    """
    model = GoogLeNet(num_classes, auxiliary, dropout)
    initialise(model)
    return model
