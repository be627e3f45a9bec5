"""MobileFaceNet: MobileNetV2's blocks with a global depthwise convolution, for face embeddings.

Chen et al., "MobileFaceNets: Efficient CNNs for Accurate Real-Time Face Verification on Mobile
Devices", CCBR 2018, arXiv:1804.07573. State-dict keys are those of the widespread PyTorch
implementation with ReLU6 in place of the paper's PReLU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgecv.errors import RecipeError
from edgecv.models.layers import Sizes, conv_norm, initialise
from edgecv.models.mobilenetv2 import InvertedResidual, Stage

STAGES = (  # Table 1 of the paper
    # t, c, n, s
    Stage(2, 64, 5, 2),
    Stage(4, 128, 1, 2),
    Stage(2, 128, 6, 1),
    Stage(4, 128, 1, 2),
    Stage(2, 128, 2, 1),
)
STEM_CHANNELS = 64
HEAD_CHANNELS = 512
STRIDE = 16  # of the trunk


class DepthwiseSeparable(nn.Module):
    """Filter per channel (3x3 depthwise), mix the channels (1x1), each with BatchNorm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False
        )
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.depthwise(x)))
        out: Tensor = self.relu(self.bn2(self.pointwise(x)))
        return out


class GlobalDepthwise(nn.Module):
    """One filter per channel, as large as the map: pooling with learned weights; linear."""

    def __init__(self, channels: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.depthwise(x))
        return out


class MobileFaceNet(nn.Module):
    """See :func:`mobilefacenet`."""

    def __init__(self, embedding: int, image_size: int) -> None:
        super().__init__()
        self.sizes = Sizes(exact=image_size)
        channels = STEM_CHANNELS
        self.conv1 = conv_norm(3, channels, 3, stride=2)
        self.dw_conv = DepthwiseSeparable(channels, channels)
        blocks: list[nn.Module] = []
        for t, c, n, s in STAGES:
            for block in range(n):
                blocks.append(InvertedResidual(channels, c, s if block == 0 else 1, t))
                channels = c
        self.features = nn.Sequential(*blocks)
        self.conv2 = conv_norm(channels, HEAD_CHANNELS, 1)
        side = -(-image_size // STRIDE)
        self.gdconv = GlobalDepthwise(HEAD_CHANNELS, (side, side))
        self.conv3 = nn.Conv2d(HEAD_CHANNELS, embedding, 1)
        self.bn = nn.BatchNorm2d(embedding)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dw_conv(self.conv1(x))  # [N, 64, H / 2, W / 2]
        x = self.conv2(self.features(x))  # [N, 512, H / 16, W / 16]
        x = self.conv3(self.gdconv(x))  # [N, embedding, 1, 1]
        return torch.flatten(self.bn(x), 1)  # [N, embedding]


def mobilefacenet(*, embedding: int = 128, image_size: int = 112) -> MobileFaceNet:
    """MobileFaceNet (arXiv:1804.07573), input ``[N, 3, S, S]``, embedding ``[N, embedding]``.

    The embedding is not normalised: comparing by cosine does that. The global depthwise
    convolution is as large as the last map, so the net is built for one ``image_size`` S.
    """
    if embedding < 1 or image_size < STRIDE:
        raise RecipeError(
            f"mobilefacenet: expected embedding of at least 1 and image_size of at least {STRIDE} "
            f"pixels, got {embedding} and {image_size}"
        )
    model = MobileFaceNet(embedding, image_size)
    initialise(model)
    return model
