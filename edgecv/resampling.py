"""OpenCV's ``INTER_LINEAR`` on bytes, in NumPy, and by OpenCV where it gives the same bytes.

The rule, as OpenCV's C++ code has computed it since version 2: pixel centres are aligned
(``source = (target + 0.5) * scale - 0.5`` in double, then rounded to float), weights are rounded
to 11 bits, rows are weighed after columns, with the sum of a column pair cut to 15 bits and each
product to its upper 16. Sides exactly halved are the mean of four pixels, rounded half up.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

ONE = 2048  # a weight of 1 in 11 bits


def opencv_linear(pixels: Pixels, width: int, height: int) -> Pixels:
    """``pixels`` uint8 ``[H, W, C]`` resized to ``[height, width, C]``: ``cv2.resize(pixels,
    (width, height), interpolation=cv2.INTER_LINEAR)``, byte for byte, with cv2 or without."""
    if pixels.shape[:2] == (height, width):
        return pixels
    library = opencv()
    return (
        linear(pixels, width, height) if library is None else _call(library, pixels, width, height)
    )


@lru_cache(maxsize=1)
def opencv() -> ModuleType | None:
    """The module cv2 where it is installed and resizes as this module says, else ``None``.

    Builds for other processors use other code paths, so a build is tried on small pictures first.
    """
    try:
        import cv2
    except ImportError:  # also what a cv2 without its system libraries raises
        return None
    noise = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
    sizes = ((37, 29), (83, 20), (200, 150), (166, 122), (41, 30))
    same = all(np.array_equal(_call(cv2, noise, *s), linear(noise, *s)) for s in sizes)
    same &= np.array_equal(_call(cv2, noise[:60, :82], 41, 30), linear(noise[:60, :82], 41, 30))
    return cv2 if same else None


def _call(library: Any, pixels: Pixels, width: int, height: int) -> Pixels:
    # cv2 takes rows of any stride, but not a reversed channel order
    source = pixels if pixels.strides[2] == 1 else np.ascontiguousarray(pixels)
    resized: Pixels = library.resize(
        source, (width, height), interpolation=library.INTER_LINEAR
    ).reshape(height, width, pixels.shape[2])
    return resized


def linear(pixels: Pixels, width: int, height: int) -> Pixels:
    """:func:`opencv_linear` in NumPy."""
    if pixels.shape[:2] == (2 * height, 2 * width):
        quarters = pixels.reshape(height, 2, width, 2, -1).astype(np.uint16)
        halved: Pixels = ((quarters.sum(axis=(1, 3)) + 2) >> 2).astype(np.uint8)
        return halved
    columns, _, right = _taps(width, pixels.shape[1])
    rows, top, bottom = _taps(height, pixels.shape[0])
    # Past the border OpenCV takes the border's pixel alone in a row, and weighs the border's row
    # twice in a column: the rounding differs.
    right = np.where((columns < 0) | (columns >= pixels.shape[1] - 1), 0, right)[:, None]
    left = np.clip(columns, 0, pixels.shape[1] - 1)
    above, below = (np.clip(rows + k, 0, pixels.shape[0] - 1) for k in (0, 1))
    used, where = np.unique(np.concatenate([above, below]), return_inverse=True)
    source = pixels[used]
    first = source[:, left].astype(np.int32)
    second = source[:, np.minimum(left + 1, pixels.shape[1] - 1)].astype(np.int32)
    second -= first
    second *= right
    first *= ONE
    first += second  # first * (ONE - right) + second * right
    first >>= 4
    where = where.reshape(2, -1)
    upper, lower = first[where[0]], first[where[1]]
    upper *= top[:, None, None]
    lower *= bottom[:, None, None]
    upper >>= 16
    lower >>= 16
    upper += lower
    upper += 2
    upper >>= 2
    resized: Pixels = upper.astype(np.uint8)
    return resized


def _taps(target: int, source: int) -> tuple[NDArray[np.intp], Any, Any]:
    """For each target place the lower source place, and the weights of it and of the next."""
    scale = 1.0 / (target / source)  # OpenCV inverts its inverse
    place = ((np.arange(target) + 0.5) * scale - 0.5).astype(np.float32)
    lower = np.floor(place)
    share = place - lower
    weights = (np.rint(w * np.float32(ONE)).astype(np.int32) for w in (1 - share, share))
    return (lower.astype(np.intp), *weights)
