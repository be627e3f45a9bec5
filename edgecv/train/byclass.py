"""Batches of P classes with K pictures each: every picture has others of its class beside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgecv.errors import InputError


def check_classes(labels: Tensor, classes: Sequence[str], per_batch: int, per_class: int) -> None:
    """Refuse labels ``[N]`` that give no batch of ``per_batch`` classes, ``per_class`` each."""
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    if len(classes) < 2:
        raise InputError(
            f"metric learning needs pictures of at least 2 classes, got {list(classes)}: what is "
            f"different cannot be learned from one"
        )
    if per_batch > len(classes):
        raise InputError(
            f"a batch of {per_batch} classes with {per_class} pictures each, but there are "
            f"{len(classes)} classes: set batch to at most {len(classes) * per_class}, or raise "
            f"metric.per_class"
        )
    few = [(name, n) for name, n in zip(classes, counts, strict=True) if n < per_class]
    if few:
        raise InputError(
            f"class {few[0][0]} has {few[0][1]} pictures and a batch takes {per_class} of each of "
            f"its classes ({len(few)} of {len(classes)} classes have too few): set "
            f"metric.per_class to {max(min(n for _, n in few), 2)}, or add pictures"
        )


def by_class(labels: Tensor, per_batch: int, per_class: int, generator: torch.Generator) -> Tensor:
    """The samples of one epoch: indices of ``labels`` ``[N]``, as long as whole batches fit in N.

    Each batch has ``per_batch`` classes, all different, in blocks of ``per_class`` samples, all
    different. Classes come round equally often however unequal they are; a class' samples are all
    seen before one is seen again, but for the rest that fills no block.
    """
    queues = [torch.nonzero(labels == c)[:, 0] for c in torch.unique(labels)]
    members, taken = list(queues), [len(q) for q in queues]  # used up: shuffled when first needed
    batches = max(1, len(labels) // (per_batch * per_class))
    blocks: list[Tensor] = []
    waiting: list[int] = []
    for _ in range(batches):
        if len(waiting) < per_batch:
            # a new round of all classes; those left of the last one come first, and so last in it
            order = torch.randperm(len(members), generator=generator).tolist()
            waiting += [c for c in order if c not in waiting] + waiting
        for c in waiting[:per_batch]:
            if taken[c] + per_class > len(queues[c]):
                shuffled = torch.randperm(len(members[c]), generator=generator)
                queues[c], taken[c] = members[c][shuffled], 0
            blocks.append(queues[c][taken[c] : taken[c] + per_class])
            taken[c] += per_class
        waiting = waiting[per_batch:]
    return torch.cat(blocks)
