"""Whose draws they are: of which pictures of a batch, and of which generator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Among:
    """The pictures ``part`` of a batch of ``count``.

    What is random is drawn for the whole batch and cut to the part: a picture gets the same draws
    whichever part it is in, and whatever becomes of the others is left to their own process.
    """

    count: int
    part: slice

    @property
    def whole(self) -> bool:
        return len(range(self.count)[self.part]) == self.count


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Inside, the CPU's global generator goes on from a draw of ``generator``; then as before.

    The generators of GPUs are left alone: ``torch.manual_seed`` would seed those too.
    """
    seed = int(torch.randint(2**62, (1,), generator=generator))
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        yield
