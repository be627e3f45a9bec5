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
from edgecv.train.job import Job

MEMORY = 4 << 30  # bytes of pixels that are kept; a larger set is read again for every batch


class Kept:
    """Arrays by their numbers, in memory while there is room for all of them."""

    def __init__(self, memory: int = MEMORY) -> None:
        self._room = memory
        self._arrays: list[NDArray[np.uint8]] | None = []

    def add(self, array: NDArray[np.uint8]) -> None:
        self._room -= array.nbytes
        if self._room < 0:
            self._arrays = None
        if self._arrays is not None:
            self._arrays.append(array)

    def get(self, i: int, read: Callable[[int], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Number i; ``read`` gives one that was not kept."""
        return read(i) if self._arrays is None else self._arrays[i]

    def take(self, index: Tensor, read: Callable[[int], NDArray[np.uint8]]) -> Tensor:
        """Those at ``index`` ``[n]``, stacked, which must have one shape."""
        return torch.from_numpy(np.stack([self.get(i, read) for i in index.tolist()]))


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
    ) -> None:
        if preparation.fit == "multiple":
            raise RecipeError(
                'input.fit = "multiple" gives each picture its own size, which cannot be trained '
                'in batches: train with "letterbox", and change the fit for the export'
            )
        self.preparation = preparation
        self.kept: list[int] = []
        self.placements: list[Placement] = []
        self._pixels = Kept()
        skipped = []
        for i, path in enumerate(paths):
            try:
                pixels, placement = _fit(path, preparation)
            except InputError as error:
                if not skip_broken:
                    raise InputError(f"{error}; --set skip_broken=true leaves such out") from error
                skipped.append(str(error))
                continue
            self._pixels.add(pixels)
            self.kept.append(i)
            self.placements.append(placement)
            if i % 100 == 0 or i + 1 == len(paths):
                progress(i + 1, len(paths))
        if not self.kept:
            raise InputError(f"not one of {len(paths)} pictures can be read: {skipped[:1]}")
        self.skipped = tuple(skipped)
        self.paths = tuple(paths[i] for i in self.kept)

    def __len__(self) -> int:
        return len(self.paths)

    def pixels(self, index: Tensor) -> Tensor:
        """uint8 ``[n, H, W, C]`` of the pictures ``index``, int64 ``[n]``."""
        return self._pixels.take(index, lambda i: _fit(self.paths[i], self.preparation)[0])


def fit_pictures(paths: Sequence[Path], job: Job, title: str) -> FittedPictures:
    """``paths`` as ``job`` wants them; what is left out is said."""
    pictures = FittedPictures(
        paths,
        job.preparation,
        job.titled(f"reading {title}"),
        skip_broken=job.files.skip_broken,
    )
    for text in pictures.skipped:
        job.say(f"left out: {text}")
    return pictures


def _fit(path: Path, preparation: Preparation) -> tuple[NDArray[np.uint8], Placement]:
    return fit_pixels(open_picture(path), preparation)
