"""What is learned from and what is held out, where the data does not say it itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from edgecv.errors import InputError
from edgecv.train.job import Job

T = TypeVar("T")


def two_parts(
    job: Job, read: Callable[[Path], Sequence[T]]
) -> tuple[Sequence[T], Sequence[T] | None]:
    """The samples of the job's ``data``, and those of its ``held_out``.

    Without ``held_out`` a part of the data is held out by seed. None: it is the data itself, which
    tells how well that is fitted.
    """
    source = job.path(job.files.data)
    first = read(source)
    if not job.files.held_out:
        return divide(first, job)
    held = job.path(job.files.held_out)
    return first, None if held.resolve() == source.resolve() else read(held)


def divide(samples: Sequence[T], job: Job) -> tuple[list[T], list[T]]:
    """Two parts by the job's seed, its ``split`` of the samples in the second."""
    if len(samples) < 2:
        raise InputError(
            f"{job.folder}: one picture cannot be both learned from and held out; name held_out"
        )
    order = np.random.default_rng(job.seed).permutation(len(samples))
    count = min(max(1, round(job.files.split * len(samples))), len(samples) - 1)
    held = set(order[:count].tolist())
    parts: tuple[list[T], list[T]] = ([], [])
    for i, sample in enumerate(samples):
        parts[i in held].append(sample)
    return parts
