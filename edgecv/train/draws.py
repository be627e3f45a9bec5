"""Draws of libraries that know only torch's global generator, made to follow one of our own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Inside, the CPU's global generator goes on from a draw of ``generator``; then as before.

    The generators of GPUs are left alone: ``torch.manual_seed`` would seed those too.
    """
    seed = int(torch.randint(2**62, (1,), generator=generator))
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        yield
