"""Pictures and tensors from a seed, the same bytes on every machine and NumPy version.

NumPy promises the raw stream of a bit generator for ever (NEP 19), but not what
``Generator.standard_normal`` makes of it. So the pictures are built from raw bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCKS = (1, 8, 32)  # pixels: fine noise alone averages out in the first layers


def seeded_pictures(
    seed: int, count: int, height: int, width: int, channels: int = 3
) -> NDArray[np.uint8]:
    """uint8 ``[count, height, width, channels]``: noise in blocks of 1, 8 and 32 pixels in turn."""
    bits = np.random.PCG64(seed)
    pictures = np.empty((count, height, width, channels), np.uint8)
    for index in range(count):
        block = BLOCKS[index % len(BLOCKS)]
        rows, columns = -(-height // block), -(-width // block)
        raw = np.asarray(bits.random_raw(rows * columns * channels), np.uint64)
        cells = (raw >> np.uint64(56)).astype(np.uint8).reshape(rows, columns, channels)
        pictures[index] = cells.repeat(block, 0).repeat(block, 1)[:height, :width]
    return pictures
