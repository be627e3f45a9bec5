"""Pictures fitted to the net's input, each by its number: in memory where they have room there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgecv.errors import InputError, RecipeError
from edgecv.preprocess import fit_pixels, open_picture
from edgecv.results import Placement
from edgecv.spec import Preparation

MEMORY = 4 << 30  # bytes of pixels that are kept; a larger set is read again for every batch


class FittedPictures:
    """``paths`` prepared as at inference. ``placements[i]`` says where picture i lies in the input.

    Each is read once here, so that one that is broken is found before the first epoch: an
    :class:`~edgecv.errors.InputError` that names it. With ``skip_broken`` such pictures are left
    out, and ``kept`` holds the places in ``paths`` of those that are there; ``skipped`` says why.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        preparation: Preparation,
        progress: Callable[[int, int], None] = lambda done, total: None,
        *,
        skip_broken: bool = False,
        memory: int = MEMORY,
    ) -> None:
        if preparation.fit == "multiple":
            raise RecipeError(
                'input.fit = "multiple" gives each picture its own size, which cannot be trained '
                'in batches: train with "letterbox", and change the fit for the export'
            )
        self.preparation = preparation
        shape = (len(paths), preparation.height, preparation.width, preparation.channels)
        store = np.empty(shape, np.uint8) if np.prod(shape) <= memory else None
        self.kept: list[int] = []
        self.placements: list[Placement] = []
        skipped = []
        for i, path in enumerate(paths):
            try:
                pixels, placement = _fit(path, preparation)
            except InputError as error:
                if not skip_broken:
                    raise InputError(f"{error}; --set skip_broken=true leaves such out") from error
                skipped.append(str(error))
                continue
            if store is not None:
                store[len(self.kept)] = pixels
            self.kept.append(i)
            self.placements.append(placement)
            if i % 100 == 0 or i + 1 == len(paths):
                progress(i + 1, len(paths))
        if not self.kept:
            raise InputError(f"not one of {len(paths)} pictures can be read: {skipped[:1]}")
        self.skipped = tuple(skipped)
        self.paths = tuple(paths[i] for i in self.kept)
        self._store = None if store is None else torch.from_numpy(store[: len(self.kept)])

    def __len__(self) -> int:
        return len(self.paths)

    def pixels(self, index: Tensor) -> Tensor:
        """uint8 ``[n, H, W, C]`` of the pictures ``index``, int64 ``[n]``."""
        if self._store is not None:
            return self._store[index]
        read = [_fit(self.paths[i], self.preparation)[0] for i in index.tolist()]
        return torch.from_numpy(np.stack(read))


def _fit(path: Path, preparation: Preparation) -> tuple[NDArray[np.uint8], Placement]:
    return fit_pixels(open_picture(path), preparation)
