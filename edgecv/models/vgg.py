"""VGG-16: 3x3 convolutions only, two or three between poolings.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
ICLR 2015, arXiv:1409.1556. State-dict keys are those of torchvision's ``vgg16``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from edgecv.models.layers import Classifier, Sizes, initialise


class Stage(NamedTuple):
    channels: int  # c
    convolutions: int  # n: before the 2x2 max pooling


STAGES = (  # configuration D, Table 1 of the paper
    # c, n
    Stage(64, 2),
    Stage(128, 2),
    Stage(256, 3),
    Stage(512, 3),
    Stage(512, 3),
)


class VGG(Classifier):
    """See :func:`vgg16`."""

    sizes = Sizes(minimum=32)  # five poolings halve it to one pixel
    side = 7

    def __init__(self, num_classes: int, dropout: float) -> None:
        super().__init__()
        features: list[nn.Module] = []
        channels = 3
        for c, n in STAGES:
            for _ in range(n):
                features += [nn.Conv2d(channels, c, 3, padding=1), nn.ReLU(inplace=True)]
                channels = c
            features.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(
            nn.Linear(channels * self.side**2, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, num_classes),
        )

    def maps(self, x: Tensor) -> Tensor:
        out: Tensor = self.features(x)  # [N, 512, H / 32, W / 32]
        return out

    def dense(self) -> Sequence[nn.Module]:
        return list(self.classifier)


def vgg16(num_classes: int = 1000, *, dropout: float = 0.5) -> VGG:
    """VGG-16 (arXiv:1409.1556), input ``[N, 3, H, W]``, logits ``[N, num_classes]``.

    H and W are at least 32 pixels; the last map is averaged to 7 x 7.
    """
    model = VGG(num_classes, dropout)
    initialise(model)
    return model
