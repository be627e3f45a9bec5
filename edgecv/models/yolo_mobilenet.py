"""One-stage detectors on a MobileNetV2 trunk: with anchors on several strides, and on one grid.

Redmon & Farhadi, "YOLO9000", arXiv:1612.08242 (boxes as changes of anchors), with the maps of
several strides joined from the deepest up, as in Lin et al., "Feature Pyramid Networks",
arXiv:1612.03144, and depthwise-separable convolutions (SSDLite's, arXiv:1801.04381, section 6.2).
The grid is that of Redmon et al., "You Only Look Once", arXiv:1506.02640. ReLU6 throughout: the
integers of a quantized net have one known range. The trunk has torchvision's keys under
``trunk.``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgecv.errors import RecipeError
from edgecv.models.layers import Sizes, conv_norm, initialise
from edgecv.models.mobilenetv2 import mobilenet_v2

TAPS = {8: 6, 16: 13, 32: 17}  # stride -> MobileNetV2's last layer at it
PRIOR = 0.01  # the objectness and class scores that a fresh head gives (RetinaNet's rule)


class MobileTrunk(nn.Module):
    """MobileNetV2 up to stride 32; gives the maps at strides 8, 16 and 32."""

    def __init__(self, width: float) -> None:
        super().__init__()
        # the last 1x1 convolution, to 1280 channels, serves the classifier only
        self.features = nn.Sequential(*list(mobilenet_v2(1, width=width).features)[: TAPS[32] + 1])

    def width(self, stride: int) -> int:
        """The channels of the map at ``stride``."""
        norms = [m for m in self.features[TAPS[stride]].modules() if isinstance(m, nn.BatchNorm2d)]
        return norms[-1].num_features

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        maps = {}
        strides = {layer: stride for stride, layer in TAPS.items()}
        for index, block in enumerate(self.features):
            x = block(x)
            if index in strides:
                maps[strides[index]] = x
        return maps


def separable(in_channels: int, out_channels: int) -> nn.Sequential:
    """Filter per channel (3x3), then mix the channels (1x1)."""
    return nn.Sequential(
        conv_norm(in_channels, in_channels, 3, groups=in_channels),
        conv_norm(in_channels, out_channels, 1),
    )


class YoloMobileNet(nn.Module):
    """See :func:`yolo_mobilenet_v2`."""

    sizes = Sizes(minimum=32, multiple=32)

    def __init__(
        self, num_classes: int, anchors: int, strides: Sequence[int], width: float, channels: int
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.joined = [s for s in sorted(TAPS, reverse=True) if s >= min(strides)]  # deepest first
        self.trunk = MobileTrunk(width)
        self.lateral = nn.ModuleList(
            conv_norm(self.trunk.width(s), channels, 1, activation=None) for s in self.joined
        )
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.smooth = nn.ModuleList(separable(channels, channels) for _ in self.joined)
        self.tower = nn.ModuleList(separable(channels, channels) for _ in self.strides)
        self.predict = nn.ModuleList(
            nn.Conv2d(channels, anchors * (5 + num_classes), 1) for _ in self.strides
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = self.trunk(x)
        joined: dict[int, Tensor] = {}
        above: Tensor | None = None
        for stride, lateral, smooth in zip(self.joined, self.lateral, self.smooth, strict=True):
            level = lateral(maps[stride])
            above = smooth(level if above is None else level + self.up(above))
            joined[stride] = above
        return tuple(
            predict(tower(joined[stride]))  # [N, A * (5 + C), H / stride, W / stride]
            for stride, tower, predict in zip(self.strides, self.tower, self.predict, strict=True)
        )


class YoloGrid(nn.Module):
    """See :func:`yolo_grid_mobilenet_v2`."""

    sizes = Sizes(minimum=32, multiple=32)

    def __init__(self, num_classes: int, boxes: int, width: float, channels: int) -> None:
        super().__init__()
        self.trunk = MobileTrunk(width)
        self.tower = nn.Sequential(
            separable(self.trunk.width(32), channels), separable(channels, channels)
        )
        self.predict = nn.Conv2d(channels, 5 * boxes + num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = self.predict(self.tower(self.trunk(x)[32]))
        return values.sigmoid().permute(0, 2, 3, 1)  # [N, S, S, 5 * boxes + classes]


def yolo_mobilenet_v2(
    num_classes: int = 80,
    *,
    anchors: int = 3,
    strides: Sequence[int] = (8, 16, 32),
    width: float = 1.0,
    channels: int = 96,
) -> YoloMobileNet:
    """A detector with anchors, input ``[N, 3, H, W]``, one map a stride.

    A map is ``[N, A * (5 + C), H / stride, W / stride]``: for each of the ``anchors`` (A) of a
    cell x, y, w, h, objectness and C class scores, none of them through a sigmoid yet (decoding
    ``yolo-anchors``). The anchors' sizes are in the contract, not in the net. ``strides`` are
    some of 8, 16, 32, in rising order; ``width`` is the trunk's, ``channels`` the head's. H and W
    are multiples of 32.
    """
    rising = sorted(set(strides))
    if not rising or rising != list(strides) or not set(rising) <= set(TAPS):
        raise RecipeError(
            f"yolo_mobilenet_v2: strides must be some of {', '.join(map(str, TAPS))}, each once, "
            f"in rising order; got {list(strides)}"
        )
    if anchors < 1:
        raise RecipeError(f"yolo_mobilenet_v2: anchors must be at least 1, got {anchors}")
    model = YoloMobileNet(num_classes, anchors, strides, width, channels)
    initialise(model)
    for predict in model.predict:
        assert isinstance(predict, nn.Conv2d)
        _prior(predict, anchors, 5 + num_classes, 4)
    return model


def yolo_grid_mobilenet_v2(
    num_classes: int = 20, *, boxes: int = 2, width: float = 1.0, channels: int = 256
) -> YoloGrid:
    """The original YOLO's head, input ``[N, 3, H, W]``, output ``[N, S, S, 5 B + C]``.

    S is H / 32. Each cell gives for each of its ``boxes`` (B) x and y from the cell's corner in
    cells, the square roots of the relative width and height, and a confidence; then C class
    probabilities; all from 0 to 1 (decoding ``yolo-grid``, order ``boxes-first``, with
    ``square_root``). H = W, a multiple of 32.
    """
    if boxes < 1:
        raise RecipeError(f"yolo_grid_mobilenet_v2: boxes must be at least 1, got {boxes}")
    model = YoloGrid(num_classes, boxes, width, channels)
    initialise(model)
    _prior(model.predict, boxes, 5, 4)
    return model


@torch.no_grad()
def _prior(layer: nn.Conv2d, groups: int, size: int, first: int) -> None:
    """Start with few objects: the channels of each group from ``first`` on at :data:`PRIOR`.

    Small filters too: a fresh cell's boxes are its anchors, whatever it sees.
    """
    assert layer.bias is not None
    nn.init.normal_(layer.weight, 0.0, 0.01)
    layer.bias[: groups * size].view(groups, size)[:, first:] = -math.log((1 - PRIOR) / PRIOR)
