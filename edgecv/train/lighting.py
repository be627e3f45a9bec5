"""PCA colour shifting: the light's colour and brightness vary along the data's own axes.

Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012,
section 4.1: to every pixel of a picture ``[p1 p2 p3] [a1 l1, a2 l2, a3 l3]^T`` is added, with p and
l the eigenvectors and eigenvalues of the 3 x 3 covariance of the training pictures' RGB values,
and each a drawn once a picture from N(0, 0.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgecv.train.draws import Among

PICTURES = 2000  # at most; the covariance of CIFAR-10 by 2,000 pictures is off by 1%


@dataclass(frozen=True, eq=False)
class ColorStatistics:
    """``values`` ``[3]``, rising, in units of (0..1)^2; ``vectors`` ``[3, 3]``, one a column."""

    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, pixels: Tensor) -> ColorStatistics:
        """Of uint8 pictures ``[N, H, W, 3]``: evenly spaced ones where there are many."""
        picked = pixels[:: -(-len(pixels) // PICTURES)]
        colors = picked.reshape(-1, 3).double() / 255
        centred = colors - colors.mean(0)
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(colors))
        # an eigenvector's sign is arbitrary, and a draw's is too: fixed, so that machines agree
        signs = torch.where(vectors.sum(0) < 0, -1.0, 1.0)
        return cls(values.clamp_min(0).float(), (vectors * signs).float())


def shift_colors(
    x: Tensor,
    statistics: ColorStatistics,
    sigma: float,
    generator: torch.Generator,
    among: Among | None = None,
) -> Tensor:
    """``x`` float ``[n, 3, H, W]`` of 0 to 1, every picture's colours shifted; not clamped.

    ``x`` are the pictures ``among`` a batch, else all of it.
    """
    among = among or Among(len(x), slice(None))
    draws = torch.randn(among.count, 3, generator=generator)[among.part] * sigma  # [n, 3]
    shifts = (draws * statistics.values) @ statistics.vectors.T
    return x + shifts.to(x.device)[:, :, None, None]
