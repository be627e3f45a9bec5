"""EfficientNet-Lite0 to 4: EfficientNet for integer hardware.

Liu, "Higher accuracy on vision models with EfficientNet-Lite", TensorFlow blog, 2020: no squeeze
and excitation, ReLU6 for SiLU, and stem, head, first and last stage are not scaled. State-dict
keys are those of timm's ``efficientnet_lite0`` and ``tf_efficientnet_lite0`` to ``4``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from edgecv.errors import RecipeError
from edgecv.models.efficientnet import HEAD_CHANNELS, STAGES, STEM_CHANNELS
from edgecv.models.layers import Classifier, initialise, make_divisible


class Scaling(NamedTuple):
    """How a variant differs from Lite0."""

    width: float
    depth: float
    dropout: float


VARIANTS = {
    #                width, depth, dropout
    "lite0": Scaling(1.0, 1.0, 0.2),
    "lite1": Scaling(1.0, 1.1, 0.2),
    "lite2": Scaling(1.1, 1.2, 0.3),
    "lite3": Scaling(1.2, 1.4, 0.3),
    "lite4": Scaling(1.4, 1.8, 0.3),
}


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding.

    The output has ``ceil(size / stride)`` pixels; where the padding is odd, the right and the
    bottom get one more. At stride 2 that differs from PyTorch's for even sizes.
    """

    def forward(self, x: Tensor) -> Tensor:
        (top, bottom), (left, right) = (
            self._padding(size, self.kernel_size[axis], self.stride[axis])
            for axis, size in enumerate(x.shape[-2:])
        )
        if (top, left) == (bottom, right):
            return nn.functional.conv2d(
                x, self.weight, self.bias, self.stride, (top, left), self.dilation, self.groups
            )
        x = nn.functional.pad(x, (left, right, top, bottom))
        return nn.functional.conv2d(
            x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups
        )

    @staticmethod
    def _padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
        total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
        return total // 2, total - total // 2


class Style(NamedTuple):
    """What timm's port of TensorFlow's weights and its own training differ in."""

    conv: Callable[..., nn.Conv2d]
    eps: float


def _torch_conv(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    padding = (kernel - 1) // 2
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)


def _same_conv(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    return SameConv2d(in_channels, out_channels, kernel, stride, groups=groups, bias=False)


STYLES = {"torch": Style(_torch_conv, 1e-5), "tf": Style(_same_conv, 1e-3)}


class DepthwiseSeparable(nn.Module):
    """The block of the first stage: filter per channel, project (1x1, linear)."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, style: Style
    ) -> None:
        super().__init__()
        self.has_skip = stride == 1 and in_channels == out_channels
        self.conv_dw = style.conv(in_channels, in_channels, kernel, stride, in_channels)
        self.bn1 = nn.BatchNorm2d(in_channels, eps=style.eps)
        self.conv_pw = style.conv(in_channels, out_channels, 1)
        self.bn2 = nn.BatchNorm2d(out_channels, eps=style.eps)
        self.act = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv_pw(self.act(self.bn1(self.conv_dw(x)))))
        return x + out if self.has_skip else out


class InvertedResidual(nn.Module):
    """Widen, filter per channel, project (linear); skip if it fits."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int,
        expansion: int,
        style: Style,
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.has_skip = stride == 1 and in_channels == out_channels
        self.conv_pw = style.conv(in_channels, hidden, 1)
        self.bn1 = nn.BatchNorm2d(hidden, eps=style.eps)
        self.conv_dw = style.conv(hidden, hidden, kernel, stride, hidden)
        self.bn2 = nn.BatchNorm2d(hidden, eps=style.eps)
        self.conv_pwl = style.conv(hidden, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels, eps=style.eps)
        self.act = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.act(self.bn1(self.conv_pw(x)))
        out: Tensor = self.bn3(self.conv_pwl(self.act(self.bn2(self.conv_dw(wide)))))
        return x + out if self.has_skip else out


class EfficientNetLite(Classifier):
    """See :func:`efficientnet_lite`."""

    def __init__(self, num_classes: int, scaling: Scaling, style: Style) -> None:
        super().__init__()
        channels = STEM_CHANNELS
        self.conv_stem = style.conv(3, channels, 3, 2)
        self.bn1 = nn.BatchNorm2d(channels, eps=style.eps)
        stages = []
        for index, (t, k, c, n, s) in enumerate(STAGES):
            scaled = 0 < index < len(STAGES) - 1
            out_channels = make_divisible(c * scaling.width)
            blocks: list[nn.Module] = []
            for block in range(math.ceil(n * scaling.depth) if scaled else n):
                stride = s if block == 0 else 1
                blocks.append(
                    InvertedResidual(channels, out_channels, k, stride, t, style)
                    if t > 1
                    else DepthwiseSeparable(channels, out_channels, k, stride, style)
                )
                channels = out_channels
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head = style.conv(channels, HEAD_CHANNELS, 1)
        self.bn2 = nn.BatchNorm2d(HEAD_CHANNELS, eps=style.eps)
        self.act = nn.ReLU6(inplace=True)
        self.dropout = nn.Dropout(scaling.dropout)
        self.classifier = nn.Linear(HEAD_CHANNELS, num_classes)

    def maps(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv_stem(x)))  # [N, 32, H / 2, W / 2]
        x = self.blocks(x)  # [N, C, H / 32, W / 32]
        out: Tensor = self.act(self.bn2(self.conv_head(x)))
        return out  # [N, 1280, H / 32, W / 32]

    def dense(self) -> Sequence[nn.Module]:
        return [self.dropout, self.classifier]


def efficientnet_lite(
    num_classes: int = 1000, *, variant: str = "lite0", style: str = "torch"
) -> EfficientNetLite:
    """EfficientNet-Lite, input ``[N, 3, H, W]``, logits ``[N, num_classes]``.

    ``variant`` is ``lite0`` to ``lite4``; ``style`` is ``torch``, or ``tf`` with TensorFlow's
    padding and BatchNorm epsilon, which the weights that Google published need.
    """
    if variant not in VARIANTS or style not in STYLES:
        raise RecipeError(
            f"efficientnet_lite: variant must be one of {', '.join(VARIANTS)} and style one of "
            f"{', '.join(STYLES)}, got {variant!r} and {style!r}"
        )
    model = EfficientNetLite(num_classes, VARIANTS[variant], STYLES[style])
    initialise(model)
    return model


def _variant(name: str, style: str) -> Callable[..., EfficientNetLite]:
    def build(num_classes: int = 1000) -> EfficientNetLite:
        return efficientnet_lite(num_classes, variant=name, style=style)

    build.__doc__ = f"EfficientNet-{name.capitalize()} ({style}); see :func:`efficientnet_lite`."
    return build


efficientnet_lite0 = _variant("lite0", "torch")
efficientnet_lite1 = _variant("lite1", "torch")
efficientnet_lite2 = _variant("lite2", "torch")
efficientnet_lite3 = _variant("lite3", "torch")
efficientnet_lite4 = _variant("lite4", "torch")
tf_efficientnet_lite0 = _variant("lite0", "tf")
tf_efficientnet_lite1 = _variant("lite1", "tf")
tf_efficientnet_lite2 = _variant("lite2", "tf")
tf_efficientnet_lite3 = _variant("lite3", "tf")
tf_efficientnet_lite4 = _variant("lite4", "tf")
