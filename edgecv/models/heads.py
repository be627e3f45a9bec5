"""Heads for places in a picture, on the trunk of any classifier of the zoo.

Landmarks: one regression to K points, as in Sun et al., "Deep Convolutional Network Cascade for
Facial Point Detection", CVPR 2013. Localization: one box and one class per picture, as in Sermanet
et al., "OverFeat", ICLR 2014, arXiv:1312.6229.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgecv.errors import RecipeError
from edgecv.models.layers import AdaptivePool, Classifier, initialise


class Trunk(nn.Module):
    """A classifier's last map, pooled: ``[N, 3, H, W]`` to ``[N, channels]``."""

    def __init__(self, name: str, options: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        from edgecv import models

        net = models.create(name, **(options or {}))
        if not isinstance(net, Classifier):
            raise RecipeError(f"the trunk {name!r} is not a classifier; `edgecv models` lists them")
        self.sizes, self.channels = net.sizes, net.channels
        net.drop_dense()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(AdaptivePool(1)(self.net.maps(x)), 1)


class Landmarks(nn.Module):
    """See :func:`landmarks`."""

    def __init__(self, points: int, trunk: str) -> None:
        super().__init__()
        self.trunk = Trunk(trunk)
        self.sizes = self.trunk.sizes
        self.points = points
        self.head = nn.Linear(self.trunk.channels, 2 * points)

    def forward(self, x: Tensor) -> Tensor:
        points: Tensor = self.head(self.trunk(x)).unflatten(1, (self.points, 2))
        return points


class Localizer(nn.Module):
    """See :func:`localizer`."""

    def __init__(self, num_classes: int, trunk: str) -> None:
        super().__init__()
        self.trunk = Trunk(trunk)
        self.sizes = self.trunk.sizes
        self.box = nn.Linear(self.trunk.channels, 4)
        self.classes = nn.Linear(self.trunk.channels, num_classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        features = self.trunk(x)
        box, logits = self.box(features).sigmoid(), self.classes(features)
        if self.training:
            return box, logits
        centre, half = box[:, :2], box[:, 2:] / 2
        corners = torch.cat([centre - half, centre + half], 1)  # [N, 4] of 0 to 1
        height, width = x.shape[-2:]
        corners = corners * corners.new_tensor([width, height, width, height])
        # not max(): OpenVINO 2024.0 fails on its ReduceMax or ArgMax
        score, index = logits.softmax(1).topk(1)
        return torch.cat([corners, score, index.to(box.dtype)], 1).unsqueeze(1)


def landmarks(*, points: int = 5, trunk: str = "mobilenet_v2") -> Landmarks:
    """Regression to ``points`` landmarks, input ``[N, 3, H, W]``, output ``[N, points, 2]``.

    A point is (x, y) as shares of the input's width and height. ``trunk`` is any classifier.
    """
    if points < 1:
        raise RecipeError(f"landmarks: points must be at least 1, got {points}")
    model = Landmarks(points, trunk)
    initialise(model.head)
    nn.init.constant_(model.head.bias, 0.5)  # a fresh net answers with the middle
    return model


def localizer(num_classes: int = 1000, *, trunk: str = "mobilenet_v2") -> Localizer:
    """One object per picture, input ``[N, 3, H, W]``, output ``[N, 1, 6]``.

    The six are x1, y1, x2, y2 in pixels of the input, the best class's probability, and its
    index: the layout of detectors that need no NMS. In training mode the output is the box
    ``[N, 4]`` (cx, cy, w, h from 0 to 1) and the classes' logits ``[N, C]``. ``trunk`` is any
    classifier.
    """
    model = Localizer(num_classes, trunk)
    initialise(model.box)
    initialise(model.classes)
    return model
