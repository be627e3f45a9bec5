"""What the training loop asks of a task: pictures by index, a loss, and scores.

A task knows its data and its loss; the loop (:mod:`edgecv.train.loop`) knows devices, processes,
rates, checkpoints and logs. Neither knows the other's part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from edgecv.results import Result


@dataclass(frozen=True)
class Batch:
    """One process' part of a batch.

    ``inputs`` is float ``[n, 3, H, W]``, channels last in memory. ``targets`` is a tensor, or a
    (nested) tuple or list of tensors, in whatever form the task's loss reads. ``share`` is this
    part's weight in the loss of the whole batch: the shares of all processes add up to 1.
    """

    inputs: Tensor
    targets: Any
    share: float = 1.0


class Task(Protocol):
    """One thing to learn, from one data set."""

    metric: str  # the key of :meth:`evaluate` that tells the better epoch; more is better

    def order(self, generator: torch.Generator) -> Tensor:
        """The samples of one epoch, int64 ``[n]``, in the order in which they are seen."""
        ...

    def draw(self, index: Tensor, part: slice, generator: torch.Generator) -> Batch:
        """The samples ``index[part]``, augmented.

        ``index`` is the whole batch, the same in every process, and so is ``generator``: what is
        drawn for the whole batch and then cut to ``part`` does not depend on how many processes
        there are (:class:`~edgecv.train.draws.Among`). Only the part's pictures are computed.
        """
        ...

    def plain(self, index: Tensor) -> Tensor:
        """The inputs of the samples ``index`` as at inference: nothing augmented."""
        ...

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The mean loss, a scalar, of what ``model(inputs)`` gave for one :class:`Batch`."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Scores of ``model``, which is in eval mode and on its device, on the held-out samples."""
        ...


@runtime_checkable
class Drawable(Protocol):
    """A task whose targets are places in the pictures, which can be drawn on them."""

    def results(self, batch: Batch) -> list[Result]:
        """What ``batch`` teaches the net to answer, for each picture, in pixels of the input."""
        ...


def device_of(model: nn.Module) -> torch.device:
    """Where the parameters of ``model`` are."""
    return next(model.parameters()).device
