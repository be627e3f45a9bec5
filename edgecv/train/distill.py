"""Another net's answers as targets beside the labels.

Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv:1503.02531.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from edgecv.train.task import Batch, Task

TEMPERATURE = 2.0

Teacher: TypeAlias = Callable[[Tensor], Tensor]  # a prepared batch to its logits


class DistilledTask:
    """``task`` with the share ``weight`` of its loss taken by the distance to ``teacher``'s logits.

    See :class:`edgecv.train.task.Task`. Both nets give logits ``[N, classes]``. The distance is
    the divergence of the softened answers, times the square of the temperature, by which softening
    makes gradients smaller.
    """

    def __init__(self, task: Task, teacher: Teacher, weight: float) -> None:
        self.task, self.teacher, self.weight = task, teacher, weight
        self.metric = task.metric

    def order(self, generator: torch.Generator) -> Tensor:
        return self.task.order(generator)

    def plain(self, index: Tensor) -> Tensor:
        return self.task.plain(index)

    def draw(self, index: Tensor, part: slice, generator: torch.Generator) -> Batch:
        batch = self.task.draw(index, part, generator)
        with torch.no_grad():
            wanted = self.teacher(batch.inputs)
        return Batch(batch.inputs, (batch.targets, wanted), batch.share)

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        labels, wanted = targets
        main = outputs[0] if isinstance(outputs, tuple) else outputs  # inner heads learn labels
        mine, theirs = (log_softmax(logits / TEMPERATURE, 1) for logits in (main, wanted))
        distance = kl_div(mine, theirs, reduction="batchmean", log_target=True)
        own = (1 - self.weight) * self.task.loss(outputs, labels)
        return own + self.weight * TEMPERATURE**2 * distance

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return self.task.evaluate(model)
