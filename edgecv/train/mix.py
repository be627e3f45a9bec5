"""Mixup and CutMix: two pictures in one, and the labels in the same proportion.

Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv:1710.09412. Yun et al.,
"CutMix", ICCV 2019, arXiv:1905.04899. kornia draws mixup's share evenly where the paper has a Beta
distribution, so both are here.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from edgecv.train.draws import seeded


def mix(
    x: Tensor,
    labels: Tensor,
    classes: int,
    mixup: float,
    cutmix: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Mix every picture of ``x`` ``[n, 3, H, W]`` with another of the batch, each by its own share.

    Returns the pictures and float shares of classes ``[n, classes]``, which add up to 1. ``mixup``
    and ``cutmix`` are the alphas of their Beta distributions; where both are above 0, each picture
    gets one of them, as likely as the other.
    """
    n, _, height, width = x.shape
    other = torch.randperm(n, generator=generator)
    cut = torch.rand(n, generator=generator) < (0.5 if mixup else 1.0) if cutmix else None
    keep = torch.ones(n)  # the share of the picture itself
    mask = torch.ones(n, 1, height, width)
    if mixup:
        keep = _beta(mixup, n, generator)
        mask = keep[:, None, None, None].expand_as(mask)
    if cut is not None:
        patch, area = _patches(_beta(cutmix, n, generator), height, width, generator)
        mask = torch.where(cut[:, None, None, None], 1 - patch, mask)
        keep = torch.where(cut, 1 - area, keep)
    mask = mask.to(x.device)
    mixed = torch.lerp(x[other], x, mask)
    hot = one_hot(labels, classes).float()
    shares = keep.to(labels.device)[:, None]
    return mixed, shares * hot + (1 - shares) * hot[other]


def _patches(
    keep: Tensor, height: int, width: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Rectangles of the area ``1 - keep`` around even random centres, cut off at the border.

    Returns the patches ``[n, 1, H, W]`` of 0 and 1 and the share ``[n]`` that they really cover.
    """
    side = (1 - keep).sqrt() / 2
    centres = torch.rand(2, len(keep), generator=generator)
    inside = []
    for centre, size in zip(centres, (height, width), strict=True):
        start = ((centre - side) * size).round().clamp(0, size)[:, None]
        stop = ((centre + side) * size).round().clamp(0, size)[:, None]
        position = torch.arange(size)
        inside.append((position >= start) & (position < stop))
    patch = (inside[0][:, :, None] & inside[1][:, None, :]).float()  # [n, H, W]
    return patch[:, None], patch.mean((1, 2))


def _beta(alpha: float, n: int, generator: torch.Generator) -> Tensor:
    """The larger of a draw of Beta(alpha, alpha) and its rest: each picture stays mostly itself.

    The pairs are the same ones either way, and so every picture of an epoch is seen.
    """
    with seeded(generator):
        share = torch.distributions.Beta(alpha, alpha).sample((n,))
    return torch.maximum(share, 1 - share)
