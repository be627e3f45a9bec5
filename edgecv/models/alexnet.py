"""AlexNet, in its one-tower form.

Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014,
arXiv:1404.5997; the net is that of Krizhevsky et al., NIPS 2012, without its split over two GPUs.
State-dict keys are those of torchvision's ``alexnet``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from edgecv.models.layers import Classifier, Sizes


class Layer(NamedTuple):
    channels: int  # c: output channels
    kernel: int  # k
    stride: int  # s
    padding: int  # p
    pool: bool  # whether 3x3 max pooling of stride 2 follows


LAYERS = (
    # c, k, s, p, pool
    Layer(64, 11, 4, 2, True),
    Layer(192, 5, 1, 2, True),
    Layer(384, 3, 1, 1, False),
    Layer(256, 3, 1, 1, False),
    Layer(256, 3, 1, 1, True),
)


class AlexNet(Classifier):
    """See :func:`alexnet`."""

    sizes = Sizes(minimum=63)  # smaller ones leave nothing for the last pooling
    side = 6

    def __init__(self, num_classes: int, dropout: float) -> None:
        super().__init__()
        features: list[nn.Module] = []
        channels = 3
        for c, k, s, p, pool in LAYERS:
            features += [nn.Conv2d(channels, c, k, s, p), nn.ReLU(inplace=True)]
            if pool:
                features.append(nn.MaxPool2d(3, 2))
            channels = c
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(channels * self.side**2, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),
        )

    def maps(self, x: Tensor) -> Tensor:
        out: Tensor = self.features(x)  # [N, 256, 6, 6] of a picture of 224
        return out

    def dense(self) -> Sequence[nn.Module]:
        return list(self.classifier)


def alexnet(num_classes: int = 1000, *, dropout: float = 0.5) -> AlexNet:
    """AlexNet (arXiv:1404.5997), input ``[N, 3, H, W]``, logits ``[N, num_classes]``.

    H and W are at least 63 pixels; the last map is averaged to 6 x 6.
    """
    return AlexNet(num_classes, dropout)
