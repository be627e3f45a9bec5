"""The pictures that calibrate: which are drawn, and how the quantizer is fed with them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgecv.errors import InputError
from edgecv.model import same_shape
from edgecv.preprocess import Picture, list_pictures, stack
from edgecv.quantize.detections import error_for
from edgecv.quantize.pipeline import Prepared, Search
from edgecv.quantize.run import Array, Batches
from edgecv.spec import ModelSpec
from edgecv.workflows.heldout import Seen, Warn
from edgecv.workflows.stream import prepared_chunks

MOST = 100  # pictures that calibrate: more move no range by much, and cost time
SEARCHED = 6  # of them judge ranges and layers by the outputs: each costs a run for each tensor
FEW = 32  # below it the ranges depend on which pictures they are


@dataclass(frozen=True)
class Pool:
    """A folder's pictures: those ``drawn`` to calibrate and the ``rest``, both sorted."""

    folder: Path
    drawn: list[Path]
    rest: list[Path]


def draw(folder: Path, seed: int, spare: bool, warn: Warn) -> Pool:
    """At most :data:`MOST` pictures of ``folder`` by ``seed``; ``spare``: a fifth is not drawn."""
    pictures = list_pictures(folder)
    if not pictures:
        raise InputError(f"{folder}: there are no pictures to calibrate on in this folder")
    share = len(pictures) * 4 // 5 if spare else len(pictures)
    count = min(MOST, max(1, share))
    if count < FEW:
        warn(
            f"{folder}: {count} pictures calibrate the ranges; below {FEW} they depend on which "
            f"pictures those are"
        )
    order = np.random.default_rng(seed).permutation(len(pictures))
    return Pool(
        folder,
        drawn=[pictures[i] for i in sorted(order[:count])],
        rest=[pictures[i] for i in sorted(order[count:])],
    )


def overlap(data: str | os.PathLike[str] | None, calibration: Path) -> bool:
    """Whether the proof is made on pictures of ``calibration``, or may be."""
    if data is None or not Path(data).is_dir():
        return True
    return any(map(Seen(list_pictures(calibration)), list_pictures(data)))


def batches_of(ready: Prepared, pictures: Sequence[Picture], size: int | str) -> Batches:
    """Prepared batches of the graph's batch size (8 where it is free), decoded again each pass."""
    most = size if isinstance(size, int) else 8

    def run() -> Iterator[Array]:
        for chunk in prepared_chunks(pictures, ready.preparation, ready.dtype):
            good = []
            for one in chunk:
                if isinstance(one, InputError):
                    raise one
                good.append(one)
            for group in same_shape(good):
                for start in range(0, len(group), most):
                    batch = stack(group[start : start + most])
                    if isinstance(size, int) and len(batch) < size:
                        # a fixed batch is filled up with its own pictures: zeros are no pictures
                        batch = np.resize(batch, (size, *batch.shape[1:]))
                    yield batch

    return run


def search_for(parent: ModelSpec, ready: Prepared, drawn: Sequence[Path]) -> Search:
    """Detectors are searched for what harms their answers; a classifier forgives more."""
    few = drawn[:: max(1, -(-len(drawn) // SEARCHED))]
    batches = batches_of(ready, few, parent.inputs[0].shape[0])
    return Search(batches, error_for(parent), ranges=parent.task == "detect")
