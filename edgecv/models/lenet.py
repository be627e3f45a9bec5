"""LeNet-5, with the activations that are usual today.

LeCun et al., "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE 86(11), 1998.
As in most of today's versions ReLU and max pooling stand in for the scaled tanh and the trained
subsampling, every map of C3 sees every map of S2, and the output is dense instead of radial.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from edgecv.errors import RecipeError
from edgecv.models.layers import Classifier, Sizes


class LeNet5(Classifier):
    """See :func:`lenet5`."""

    sizes = Sizes(exact=32)
    side = 5

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, 5),  # C1: [N, 6, 28, 28]
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),  # S2
            nn.Conv2d(6, 16, 5),  # C3: [N, 16, 10, 10]
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),  # S4: [N, 16, 5, 5]
        )
        self.classifier = nn.Sequential(
            nn.Linear(16 * 5 * 5, 120),  # C5
            nn.ReLU(inplace=True),
            nn.Linear(120, 84),  # F6
            nn.ReLU(inplace=True),
            nn.Linear(84, num_classes),
        )

    def maps(self, x: Tensor) -> Tensor:
        out: Tensor = self.features(x)  # [N, 16, 5, 5]
        return out

    def dense(self) -> Sequence[nn.Module]:
        return list(self.classifier)


def lenet5(num_classes: int = 10, *, in_channels: int = 1) -> LeNet5:
    """LeNet-5 (LeCun 1998), input ``[N, in_channels, 32, 32]``, logits ``[N, num_classes]``.

    Digits of 28 x 28 pixels are padded to 32 x 32, as in the paper.
    """
    if in_channels < 1:
        raise RecipeError(f"lenet5: in_channels must be at least 1, got {in_channels}")
    return LeNet5(num_classes, in_channels)
