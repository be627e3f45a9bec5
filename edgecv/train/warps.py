"""Two of kornia's warps, set up so that no black border comes in and strengths are in pixels."""

from __future__ import annotations

import math
from typing import Any

from kornia.augmentation import RandomElasticTransform, RandomPerspective
from kornia.geometry.transform import warp_perspective
from torch import Tensor


class ReflectedPerspective(RandomPerspective):  # type: ignore[misc]
    """kornia's random perspective with the picture reflected at its border."""

    def apply_transform(
        self,
        input: Tensor,
        params: dict[str, Tensor],
        flags: dict[str, Any],
        transform: Tensor | None = None,
    ) -> Tensor:
        """``input`` ``[n, 3, H, W]``, each picture by its matrix ``transform`` ``[n, 3, 3]``."""
        assert transform is not None
        size = (input.shape[-2], input.shape[-1])
        return warp_perspective(input, transform, size, padding_mode="reflection")


def elastic(
    displacement: float, smooth: float, height: int, width: int, p: float
) -> RandomElasticTransform:
    """Local warping (Simard et al., "Best Practices for Convolutional Neural Networks", ICDAR 2003)
    by ``displacement`` pixels, root mean square, smoothed by a Gaussian of ``smooth`` pixels.

    Even noise from -1 to 1 has sigma ``1 / sqrt(3)``; the Gaussian leaves ``1 / (2 s sqrt(pi))``
    of it; kornia's alpha counts half sides.
    """
    left = 1 / (math.sqrt(3) * 2 * smooth * math.sqrt(math.pi))
    # the blur reflects at the border, which a kernel must not reach beyond
    kernel = tuple(min(2 * math.ceil(3 * smooth) + 1, 2 * side - 1) for side in (height, width))
    return RandomElasticTransform(
        kernel_size=(kernel[0], kernel[1]),
        sigma=(smooth, smooth),
        alpha=(displacement / left * 2 / width, displacement / left * 2 / height),
        align_corners=True,  # as kornia's grid is; else versions below 0.9 lose half a pixel
        padding_mode="reflection",
        p=p,
    )
