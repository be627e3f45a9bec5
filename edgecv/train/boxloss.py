"""How wrong a predicted box is. Boxes are xyxy ``[n, 4]`` in pixels, matched pairwise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

KINDS = ("squared", "iou", "giou", "diou", "ciou")
SMALL = 1e-7


def pair_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU ``[...]`` of boxes ``[..., 4]`` that broadcast; 0 where one is empty."""
    inter, union = _areas(a, b)
    return inter / union.clamp_min(SMALL)


def box_loss(found: Tensor, truth: Tensor, kind: str, size: Tensor) -> Tensor:
    """The loss ``[n]`` of each box; ``size`` is the input's width and height ``[2]``, in pixels.

    - ``squared``: the first YOLO's (arXiv:1506.02640, equation 3), of centres and of the square
      roots of width and height, all relative to the input: an error of 5 pixels weighs more in a
      small box
    - ``iou``: ``1 - IoU^2``, YOLOX's (arXiv:2107.08430); no gradient where boxes do not meet
    - ``giou``: ``1 - GIoU`` (arXiv:1902.09630): less the share of the hull that neither covers
    - ``diou``, ``ciou``: ``1 - DIoU``, ``1 - CIoU`` (arXiv:1911.08287): less the squared distance
      of the centres by the hull's diagonal; and less how far the aspect ratios are apart
    """
    if kind == "squared":
        a, b = _relative(found, size), _relative(truth, size)
        return (a - b).square().sum(-1)
    inter, union = _areas(found, truth)
    iou = inter / union.clamp_min(SMALL)
    if kind == "iou":
        return 1 - iou.square()
    low, high = (
        torch.minimum(found[..., :2], truth[..., :2]),
        torch.maximum(found[..., 2:], truth[..., 2:]),
    )
    hull = (high - low).clamp_min(0)
    if kind == "giou":
        area = hull.prod(-1).clamp_min(SMALL)
        return 1 - iou + (area - union) / area
    apart = ((found[..., :2] + found[..., 2:] - truth[..., :2] - truth[..., 2:]) / 2).square()
    loss = 1 - iou + apart.sum(-1) / hull.square().sum(-1).clamp_min(SMALL)
    if kind == "diou":
        return loss
    angles = [torch.atan2(w, h.clamp_min(SMALL)) for w, h in (_sides(found), _sides(truth))]
    v = 4 / math.pi**2 * (angles[1] - angles[0]).square()
    with torch.no_grad():  # the paper's trade-off is a weight, not a path for gradients
        alpha = v / (1 - iou + v).clamp_min(SMALL)
    return loss + alpha * v


def _areas(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and union."""
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    inter = sides.clamp_min(0).prod(-1)
    own = [(x[..., 2:] - x[..., :2]).clamp_min(0).prod(-1) for x in (a, b)]
    return inter, own[0] + own[1] - inter


def _sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]


def _relative(boxes: Tensor, size: Tensor) -> Tensor:
    """Centre, and square roots of width and height, relative to the input."""
    center = (boxes[..., :2] + boxes[..., 2:]) / 2 / size
    # the root's slope is infinite at 0
    sides = ((boxes[..., 2:] - boxes[..., :2]) / size).clamp_min(SMALL).sqrt()
    return torch.cat([center, sides], -1)
