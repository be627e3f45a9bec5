"""ResNet-18, 34 and 50.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385. State-dict
keys are those of torchvision's ``resnet18``, ``resnet34`` and ``resnet50``; as there, a
bottleneck's stride is that of its 3x3 convolution.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from edgecv.models.layers import Classifier, initialise

BLOCKS = {  # Table 1 of the paper
    #    conv2, conv3, conv4, conv5
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
}
CHANNELS = (64, 128, 256, 512)


class Residual(nn.Module):
    """The frame of both blocks: ``relu(branch(x) + skip(x))``; the skip is 1x1 where it must be."""

    expansion = 1  # output channels by inner channels

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(self.branch(x) + skip)
        return out


class BasicBlock(Residual):
    """Two 3x3 convolutions."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__(in_channels, channels, stride)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def branch(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.bn2(self.conv2(x))
        return out


class Bottleneck(Residual):
    """Narrow (1x1), filter (3x3), widen (1x1)."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__(in_channels, channels, stride)
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)

    def branch(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        out: Tensor = self.bn3(self.conv3(x))
        return out


class ResNet(Classifier):
    """See :func:`resnet18`, :func:`resnet34` and :func:`resnet50`."""

    def __init__(self, num_classes: int, depth: int) -> None:
        super().__init__()
        block = Bottleneck if depth >= 50 else BasicBlock
        channels = CHANNELS[0]
        self.conv1 = nn.Conv2d(3, channels, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        stages = []
        for index, (c, n) in enumerate(zip(CHANNELS, BLOCKS[depth], strict=True)):
            blocks: list[nn.Module] = []
            for position in range(n):
                stride = 2 if index > 0 and position == 0 else 1
                blocks.append(block(channels, c, stride))
                channels = c * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(channels, num_classes)

    def maps(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))  # [N, 64, H / 4, W / 4]
        x = self.layer2(self.layer1(x))  # [N, 128 e, H / 8, W / 8]
        out: Tensor = self.layer4(self.layer3(x))  # [N, 512 e, H / 32, W / 32]
        return out

    def dense(self) -> Sequence[nn.Module]:
        return [self.fc]


def _resnet(num_classes: int, depth: int) -> ResNet:
    model = ResNet(num_classes, depth)
    initialise(model)
    return model


def resnet18(num_classes: int = 1000) -> ResNet:
    """ResNet-18 (arXiv:1512.03385), input ``[N, 3, H, W]``, logits ``[N, num_classes]``."""
    return _resnet(num_classes, 18)


def resnet34(num_classes: int = 1000) -> ResNet:
    """ResNet-34 (arXiv:1512.03385), input ``[N, 3, H, W]``, logits ``[N, num_classes]``."""
    return _resnet(num_classes, 34)


def resnet50(num_classes: int = 1000) -> ResNet:
    """ResNet-50 (arXiv:1512.03385), input ``[N, 3, H, W]``, logits ``[N, num_classes]``."""
    return _resnet(num_classes, 50)
