"""U-Net, plain and on a MobileNetV2 encoder.

Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI
2015, arXiv:1505.04597, with padded convolutions and BatchNorm, so that the mask has the picture's
size. The encoder of the second is MobileNetV2 (arXiv:1801.04381) with torchvision's keys under
``encoder.``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from edgecv.errors import RecipeError
from edgecv.models.layers import Sizes, conv_norm, initialise
from edgecv.models.mobilenetv2 import mobilenet_v2

LEVELS = 5  # maps at strides 1, 2, 4, 8 and 16
UPSAMPLINGS = ("transposed", "bilinear", "nearest")
TAPS = (1, 3, 6, 13, 17)  # MobileNetV2's last layer at strides 2, 4, 8, 16 and 32
DECODER = (96, 64, 32, 24, 16)  # channels of the decoder on MobileNetV2, deepest first

_conv = partial(conv_norm, activation=nn.ReLU)


class Up(nn.Module):
    """Double the size, join the encoder's map of that size, convolve twice."""

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        upsampling: str,
        separable: bool = False,
    ) -> None:
        super().__init__()
        if upsampling not in UPSAMPLINGS:
            raise RecipeError(
                f"unet: upsampling must be one of {', '.join(UPSAMPLINGS)}, got {upsampling!r}"
            )
        # a kernel of the stride's size: no checkerboard of unequal overlaps
        self.up: nn.Module = (
            nn.ConvTranspose2d(in_channels, out_channels, 2, 2)
            if upsampling == "transposed"
            else nn.Sequential(
                nn.Upsample(scale_factor=2, mode=upsampling),
                nn.Conv2d(in_channels, out_channels, 1),
            )
        )
        joined = out_channels + skip_channels
        first = (
            [_conv(joined, joined, 3, groups=joined), _conv(joined, out_channels, 1)]
            if separable
            else [_conv(joined, out_channels, 3)]
        )
        second = (
            [_conv(out_channels, out_channels, 3, groups=out_channels)]
            if separable
            else [_conv(out_channels, out_channels, 3)]
        )
        self.conv = nn.Sequential(*first, *second)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = self.up(x)
        if skip is not None:
            x = torch.cat([skip, x], 1)
        out: Tensor = self.conv(x)
        return out


class UNet(nn.Module):
    """See :func:`unet`."""

    sizes = Sizes(minimum=16, multiple=16)

    def __init__(self, num_classes: int, base: int, upsampling: str) -> None:
        super().__init__()
        widths = [base * 2**level for level in range(LEVELS)]
        self.down = nn.ModuleList(
            nn.Sequential(_conv(a, b, 3), _conv(b, b, 3)) for a, b in pairwise((3, *widths))
        )
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(Up(b, a, a, upsampling) for a, b in reversed([*pairwise(widths)]))
        self.head = nn.Conv2d(base, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(self.pool(x) if level else x)
            maps.append(x)
        for block, skip in zip(self.up, reversed(maps[:-1]), strict=True):
            x = block(x, skip)
        logits: Tensor = self.head(x)
        return logits  # [N, num_classes, H, W]


class MobileUNet(nn.Module):
    """See :func:`unet_mobilenet_v2`."""

    sizes = Sizes(minimum=32, multiple=32)

    def __init__(self, num_classes: int, width: float, upsampling: str) -> None:
        super().__init__()
        trunk = mobilenet_v2(1, width=width)
        # the last 1x1 convolution, to 1280 channels, serves the classifier only
        self.encoder = nn.Module()
        self.encoder.features = trunk.features[: TAPS[-1] + 1]
        taps = [self._width(trunk.features[tap]) for tap in TAPS]
        skips: Sequence[int] = (*taps[-2::-1], 0)
        channels = taps[-1]
        ups = []
        for skip, out_channels in zip(skips, DECODER, strict=True):
            ups.append(Up(channels, skip, out_channels, upsampling, separable=True))
            channels = out_channels
        self.up = nn.ModuleList(ups)
        self.head = nn.Conv2d(channels, num_classes, 1)

    @staticmethod
    def _width(block: nn.Module) -> int:
        norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
        return norms[-1].num_features

    def forward(self, x: Tensor) -> Tensor:
        maps: list[Tensor] = []
        features = self.encoder.features
        assert isinstance(features, nn.Sequential)
        for index, block in enumerate(features):
            x = block(x)
            if index in TAPS:
                maps.append(x)
        skips: Sequence[Tensor | None] = (*maps[-2::-1], None)
        for up, skip in zip(self.up, skips, strict=True):
            x = up(x, skip)
        logits: Tensor = self.head(x)
        return logits  # [N, num_classes, H, W]


def unet(num_classes: int = 2, *, base: int = 64, upsampling: str = "transposed") -> UNet:
    """U-Net (arXiv:1505.04597), input ``[N, 3, H, W]``, logits ``[N, num_classes, H, W]``.

    ``base`` is the width at full size; each of the four levels below doubles it.
    ``upsampling`` is ``transposed`` (convolution), ``bilinear`` or ``nearest``. One class means
    one logit per pixel. H and W are multiples of 16.
    """
    if base < 1:
        raise RecipeError(f"unet: base must be at least 1, got {base}")
    model = UNet(num_classes, base, upsampling)
    initialise(model)
    return model


def unet_mobilenet_v2(
    num_classes: int = 2, *, width: float = 1.0, upsampling: str = "bilinear"
) -> MobileUNet:
    """A U-Net whose encoder is MobileNetV2; input ``[N, 3, H, W]``, logits of the same size.

    The decoder's 3x3 convolutions are depthwise. Options as for :func:`unet` and
    :func:`edgecv.models.mobilenetv2.mobilenet_v2`. H and W are multiples of 32.
    """
    model = MobileUNet(num_classes, width, upsampling)
    initialise(model)
    return model
