"""What a decoder hands to suppression: boxes, scores and classes of one picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecv.postprocess.boxes import Floats


@dataclass(frozen=True, eq=False)
class Candidates:
    """``boxes`` ``[N, 4]`` xyxy in pixels of the model's input, ``scores`` ``[N]``, ``classes``
    ``[N]`` integers, ``landmarks`` ``[N, K, 2]`` in pixels of the input or ``None``; no order."""

    boxes: Floats
    scores: Floats
    classes: NDArray[np.intp] | NDArray[np.int64]
    landmarks: Floats | None = None

    def take(self, which: NDArray[Any]) -> Candidates:
        points = None if self.landmarks is None else self.landmarks[which]
        return Candidates(self.boxes[which], self.scores[which], self.classes[which], points)


@lru_cache(maxsize=32)
def grid(height: int, width: int, strides: tuple[int, ...]) -> NDArray[np.float32]:
    """The cells of each stride's grid over an input of ``height`` x ``width`` pixels, row by row,
    the grids one after the other: float32 ``[3, cells]`` of x, y (in cells) and stride.

    A grid has ``height // stride`` rows. Cached, and read-only for that reason.
    """
    parts = []
    for stride in strides:
        rows, columns = np.mgrid[0 : height // stride, 0 : width // stride]
        parts.append([columns.ravel(), rows.ravel(), np.full(rows.size, stride)])
    cells = np.concatenate(parts, axis=1).astype(np.float32)
    cells.setflags(write=False)
    return cells
