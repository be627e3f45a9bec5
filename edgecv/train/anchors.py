"""Anchors: sizes that the objects of a data set have, by k-means (arXiv:1612.08242, section 2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError

ROUNDS = 300

Sizes = NDArray[np.float64]


def size_iou(a: Sizes, b: Sizes) -> Sizes:
    """IoU ``[n, k]`` of boxes of sizes ``a`` ``[n, 2]`` and ``b`` ``[k, 2]`` on one centre."""
    inter = np.minimum(a[:, None], b[None]).prod(axis=2)
    union = a.prod(axis=1)[:, None] + b.prod(axis=1)[None] - inter
    ious: Sizes = inter / union
    return ious


def kmeans(sizes: Sizes, count: int, seed: int = 0) -> Sizes:
    """``count`` anchors ``[count, 2]`` for objects of ``sizes`` ``[n, 2]``, by rising area.

    The distance is ``1 - IoU``, so that large boxes do not rule; a centre is its members' mean.
    The first centres are drawn by distance from those before (k-means++, Arthur &
    Vassilvitskii, SODA 2007). Objects of no width or height do not count; fewer different sizes
    than anchors are an :class:`~edgecv.errors.InputError`.
    """
    sizes = np.asarray(sizes, np.float64)
    sizes = sizes[(sizes > 0).all(axis=1)]
    distinct = len(np.unique(sizes, axis=0))
    if distinct < count:
        raise InputError(
            f"{count} anchors need objects of at least {count} different sizes, the data has "
            f"{distinct}"
        )
    rng = np.random.default_rng(seed)
    centers = sizes[rng.integers(len(sizes))][None]
    while len(centers) < count:
        distance = 1 - size_iou(sizes, centers).max(axis=1)
        # squared, as the method's authors have it; none where a centre is already
        chosen = rng.choice(len(sizes), p=distance**2 / (distance**2).sum())
        centers = np.concatenate([centers, sizes[chosen][None]])
    member = np.full(len(sizes), -1)
    for _ in range(ROUNDS):
        nearest = size_iou(sizes, centers).argmax(axis=1)
        if (nearest == member).all():
            break
        member = nearest
        for k in range(count):
            if (member == k).any():
                centers[k] = sizes[member == k].mean(axis=0)
    rising: Sizes = centers[np.argsort(centers.prod(axis=1), kind="stable")]
    return rising


def mean_best_iou(sizes: Sizes, anchors: Sizes) -> float:
    """How well anchors fit: the mean over objects of the IoU with the best anchor (Table 1)."""
    return float(size_iou(np.asarray(sizes, np.float64), anchors).max(axis=1).mean())
