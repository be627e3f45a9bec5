"""YOLOX-Nano and YOLOX-Tiny: an anchor-free detector on a CSPDarknet trunk.

Ge et al., "YOLOX: Exceeding YOLO Series in 2021", arXiv:2107.08430. State-dict keys are those of
the authors' implementation, so that their checkpoints can be transplanted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgecv.models.layers import Sizes, initialise

STRIDES = (8, 16, 32)
BASE_CHANNELS = 64  # of the stem, before the width multiplier
PRIOR = 0.01  # the objectness and class scores that a fresh head gives (RetinaNet's rule)


class Variant(NamedTuple):
    depth: float  # multiplies the blocks of a CSP layer
    width: float  # multiplies the channels
    depthwise: bool  # 3x3 convolutions are depthwise-separable


VARIANTS = {
    #                depth, width, depthwise
    "nano": Variant(1 / 3, 0.25, True),
    "tiny": Variant(1 / 3, 0.375, False),
}


class BaseConv(nn.Module):
    """Convolution without bias, BatchNorm, SiLU; padding keeps the size at stride 1."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        padding = (kernel - 1) // 2
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001, momentum=0.03)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out


class DWConv(nn.Module):
    """Filter per channel, then mix the channels."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.dconv = BaseConv(in_channels, in_channels, kernel, stride, groups=in_channels)
        self.pconv = BaseConv(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pconv(self.dconv(x))
        return out


def conv(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, depthwise: bool
) -> nn.Module:
    """A k x k convolution of the variant's kind."""
    kind = DWConv if depthwise else BaseConv
    return kind(in_channels, out_channels, kernel, stride)


class Bottleneck(nn.Module):
    """1x1, then 3x3; with a skip where ``shortcut`` says so."""

    def __init__(self, channels: int, shortcut: bool, depthwise: bool) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.conv1 = BaseConv(channels, channels, 1)
        self.conv2 = conv(channels, channels, 3, depthwise=depthwise)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(self.conv1(x))
        return out + x if self.shortcut else out


class CSPLayer(nn.Module):
    """Half of the channels through bottlenecks, half past them, then joined."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        blocks: int,
        *,
        depthwise: bool,
        shortcut: bool = True,
    ) -> None:
        super().__init__()
        hidden = out_channels // 2
        self.conv1 = BaseConv(in_channels, hidden, 1)
        self.conv2 = BaseConv(in_channels, hidden, 1)
        self.conv3 = BaseConv(2 * hidden, out_channels, 1)
        self.m = nn.Sequential(*(Bottleneck(hidden, shortcut, depthwise) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        through, past = self.conv1(x), self.conv2(x)
        out: Tensor = self.conv3(torch.cat([self.m(through), past], 1))
        return out


class SPPBottleneck(nn.Module):
    """Spatial pyramid pooling: maxima over 5, 9 and 13 pixels beside the map itself."""

    KERNELS = (5, 9, 13)

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // 2
        self.conv1 = BaseConv(channels, hidden, 1)
        self.m = nn.ModuleList(nn.MaxPool2d(k, 1, padding=k // 2) for k in self.KERNELS)
        self.conv2 = BaseConv(hidden * (len(self.KERNELS) + 1), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        out: Tensor = self.conv2(torch.cat([x, *(pool(x) for pool in self.m)], 1))
        return out


class Focus(nn.Module):
    """Each 2x2 block of pixels becomes four times the channels; then a 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = BaseConv(4 * in_channels, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
        out: Tensor = self.conv(torch.cat(corners, 1))
        return out


class CSPDarknet(nn.Module):
    """The trunk; gives the maps at strides 8, 16 and 32."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        c = int(BASE_CHANNELS * variant.width)
        n = max(round(3 * variant.depth), 1)
        step = partial(conv, kernel=3, stride=2, depthwise=variant.depthwise)
        csp = partial(CSPLayer, depthwise=variant.depthwise)
        self.stem = Focus(3, c)
        self.dark2 = nn.Sequential(step(c, 2 * c), csp(2 * c, 2 * c, n))
        self.dark3 = nn.Sequential(step(2 * c, 4 * c), csp(4 * c, 4 * c, 3 * n))
        self.dark4 = nn.Sequential(step(4 * c, 8 * c), csp(8 * c, 8 * c, 3 * n))
        self.dark5 = nn.Sequential(
            step(8 * c, 16 * c), SPPBottleneck(16 * c), csp(16 * c, 16 * c, n, shortcut=False)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        eighth = self.dark3(self.dark2(self.stem(x)))
        sixteenth = self.dark4(eighth)
        return eighth, sixteenth, self.dark5(sixteenth)


class PAFPN(nn.Module):
    """Path aggregation: the deep maps go up to the shallow ones, and down again."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        c = int(
            4 * BASE_CHANNELS * variant.width
        )  # at stride 8; twice that at 16, four times at 32
        n = round(3 * variant.depth)
        csp = partial(CSPLayer, blocks=n, shortcut=False, depthwise=variant.depthwise)
        step = partial(conv, kernel=3, stride=2, depthwise=variant.depthwise)
        self.backbone = CSPDarknet(variant)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.lateral_conv0 = BaseConv(4 * c, 2 * c, 1)
        self.C3_p4 = csp(4 * c, 2 * c)
        self.reduce_conv1 = BaseConv(2 * c, c, 1)
        self.C3_p3 = csp(2 * c, c)
        self.bu_conv2 = step(c, c)
        self.C3_n3 = csp(2 * c, 2 * c)
        self.bu_conv1 = step(2 * c, 2 * c)
        self.C3_n4 = csp(4 * c, 4 * c)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        eighth, sixteenth, deepest = self.backbone(x)
        top = self.lateral_conv0(deepest)  # stride 32
        middle = self.C3_p4(torch.cat([self.upsample(top), sixteenth], 1))
        middle = self.reduce_conv1(middle)  # stride 16
        fine = self.C3_p3(torch.cat([self.upsample(middle), eighth], 1))  # stride 8
        medium = self.C3_n3(torch.cat([self.bu_conv2(fine), middle], 1))
        coarse = self.C3_n4(torch.cat([self.bu_conv1(medium), top], 1))
        return fine, medium, coarse


class Head(nn.Module):
    """Decoupled: classes on one branch, boxes and objectness on another, per stride."""

    def __init__(self, num_classes: int, variant: Variant) -> None:
        super().__init__()
        c = int(4 * BASE_CHANNELS * variant.width)
        k = partial(conv, c, c, 3, depthwise=variant.depthwise)
        levels = range(len(STRIDES))
        self.stems = nn.ModuleList(BaseConv(c * 2**level, c, 1) for level in levels)
        self.cls_convs = nn.ModuleList(nn.Sequential(k(), k()) for _ in levels)
        self.reg_convs = nn.ModuleList(nn.Sequential(k(), k()) for _ in levels)
        self.cls_preds = nn.ModuleList(nn.Conv2d(c, num_classes, 1) for _ in levels)
        self.reg_preds = nn.ModuleList(nn.Conv2d(c, 4, 1) for _ in levels)
        self.obj_preds = nn.ModuleList(nn.Conv2d(c, 1, 1) for _ in levels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        cells = []
        for level, x in enumerate(maps):
            x = self.stems[level](x)
            classes = self.cls_preds[level](self.cls_convs[level](x))
            x = self.reg_convs[level](x)
            box, objectness = self.reg_preds[level](x), self.obj_preds[level](x)
            if not self.training:
                classes, objectness = classes.sigmoid(), objectness.sigmoid()
            cells.append(torch.flatten(torch.cat([box, objectness, classes], 1), 2))
        return torch.cat(cells, 2).transpose(1, 2)


class YOLOX(nn.Module):
    """See :func:`yolox_nano` and :func:`yolox_tiny`."""

    sizes = Sizes(minimum=32, multiple=32)

    def __init__(self, num_classes: int, variant: Variant) -> None:
        super().__init__()
        self.backbone = PAFPN(variant)
        self.head = Head(num_classes, variant)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.backbone(x))
        return out


def _yolox(num_classes: int, name: str) -> YOLOX:
    model = YOLOX(num_classes, VARIANTS[name])
    initialise(model)
    prior = -math.log((1 - PRIOR) / PRIOR)
    for predictor in (*model.head.cls_preds, *model.head.obj_preds):
        assert isinstance(predictor, nn.Conv2d)
        assert predictor.bias is not None
        nn.init.constant_(predictor.bias, prior)
    return model


def yolox_nano(num_classes: int = 80) -> YOLOX:
    """YOLOX-Nano (arXiv:2107.08430), input ``[N, 3, H, W]``, output ``[N, cells, 5 + classes]``.

    The cells are those of strides 8, 16 and 32, row by row. Each gives the box's centre and the
    logarithm of its size (cx, cy, log w, log h, in cells), the objectness and a score per class
    (logits in training, probabilities in eval mode). The input is BGR from 0 to 255; H and W are
    multiples of 32.
    """
    return _yolox(num_classes, "nano")


def yolox_tiny(num_classes: int = 80) -> YOLOX:
    """YOLOX-Tiny, with ordinary convolutions and half as many channels again.

    See :func:`yolox_nano`.
    """
    return _yolox(num_classes, "tiny")
