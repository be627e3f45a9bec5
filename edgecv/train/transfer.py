"""Transfer learning: a new head on a trunk that can see already, then the trunk with it.

Yosinski et al., "How transferable are features in deep neural networks?", NeurIPS 2014,
arXiv:1411.1792. First the head learns on frozen features; a fresh head's gradients would
otherwise wreck what the trunk knows. Then the layers from a chosen one on are fine-tuned at a
much lower rate, BatchNorm's statistics staying as they came.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgecv.errors import InputError, RecipeError
from edgecv.train.classify import ClassificationTask, share_of
from edgecv.train.settings import at_least
from edgecv.train.task import Batch, device_of

ALL = "all"


@dataclass(frozen=True)
class TransferSettings:
    """A recipe's [train.transfer] table.

    The flat keys of [train] (``epochs``, ``lr``, ...) are those of the head's training; the keys
    here say what is frozen in it and how the net is fine-tuned afterwards.
    """

    head_layers: int = 1  # how many of the last dense layers start afresh
    freeze: str = ALL  # all but the head; or a module's path: everything up to and including it
    cached: bool = True  # compute the frozen features once; only where all but the head is frozen
    views: int = 4  # of each picture, augmented, among the cached features; 1: as it is
    epochs: int = 10  # of fine-tuning; 0: none
    lr: float = 0.0  # of fine-tuning; 0: a tenth of the head's
    unfreeze_from: str = ALL  # or the path of the first module that is fine-tuned

    def __post_init__(self) -> None:
        at_least("head_layers", self.head_layers, 1)
        at_least("views", self.views, 1)
        at_least("epochs", self.epochs, 0)
        if self.cached and self.freeze != ALL:
            raise RecipeError(
                f"cached: features can be computed once only where all but the head is frozen; "
                f"freeze is {self.freeze!r}: set cached = false"
            )


def head_of(model: nn.Module, layers: int) -> list[str]:
    """The paths of the last ``layers`` dense layers, first to last."""
    dense = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if len(dense) < layers:
        raise InputError(
            f"head_layers = {layers}: {type(model).__name__} has {len(dense)} dense layers"
        )
    return dense[-layers:]


def freeze_up_to(model: nn.Module, last: str, head: list[str]) -> None:
    """Freeze every parameter up to and including the module ``last``; ``all``: all but the head."""
    names = [name for name, _ in model.named_parameters()]
    if last == ALL:
        inside = [_within(name, head) for name in names]
        end = len(names)
    else:
        inside = [False] * len(names)
        end = 1 + max(_positions(names, model, last))
    for i, (_, parameter) in enumerate(model.named_parameters()):
        parameter.requires_grad_(i >= end or inside[i])


def unfreeze_from(model: nn.Module, first: str) -> None:
    """Let every parameter from the module ``first`` on learn, and none before it."""
    names = [name for name, _ in model.named_parameters()]
    start = 0 if first == ALL else min(_positions(names, model, first))
    for i, (_, parameter) in enumerate(model.named_parameters()):
        parameter.requires_grad_(i >= start)


def _positions(names: list[str], model: nn.Module, path: str) -> list[int]:
    found = [i for i, name in enumerate(names) if _within(name, [path])]
    if not found:
        stages = dict.fromkeys(".".join(name.split(".")[:2]) for name in names)
        raise InputError(
            f"{path!r}: {type(model).__name__} has no module of that path with parameters; it has "
            f"{', '.join(stages)}"
        )
    return found


def _within(name: str, paths: list[str]) -> bool:
    return any(name == path or name.startswith(f"{path}.") for path in paths)


def tail_of(model: nn.Module, head: list[str]) -> nn.Module:
    """What turns the frozen features into logits: the head, and what lies between its layers."""
    if len(head) == 1:
        return model.get_submodule(head[0])
    parents = {path.rpartition(".")[0] for path in head}
    parent = model.get_submodule(parents.pop()) if len(parents) == 1 else None
    if not isinstance(parent, nn.Sequential):
        raise InputError(
            f"the layers {', '.join(head)} do not follow each other in one nn.Sequential, so their "
            f"features cannot be computed once; set transfer.cached = false"
        )
    first = model.get_submodule(head[0])
    return parent[list(parent).index(first) :]


@torch.no_grad()
def features_of(model: nn.Module, tail: nn.Module, inputs: Tensor) -> Tensor:
    """What ``tail`` is fed by ``model`` in eval mode: ``[N, C]``."""
    first = next(tail.children(), tail)
    caught: list[Tensor] = []
    hook = first.register_forward_pre_hook(lambda module, given: caught.append(given[0]))
    try:
        model(inputs)
    finally:
        hook.remove()
    return caught[0].cpu()


class FeatureTask:
    """A classifier's head, learned on features that were computed once.

    See :class:`edgecv.train.task.Task`; the model is the tail. The last layers change no picture,
    so each epoch sees one of ``views`` augmented versions of each, the first being the picture as
    it is.
    """

    metric = "top1"

    def __init__(
        self,
        task: ClassificationTask,
        model: nn.Module,
        tail: nn.Module,
        views: int,
        seed: int,
        progress: Callable[[int, int], None],
    ) -> None:
        if views > 1 and task.augmenter.settings.mixes:
            raise RecipeError(
                "train.augment: mixup and cutmix make pictures of two classes, and features that "
                "are computed once keep one class each: set both to 0, or transfer.cached = false"
            )
        self.task = task
        model.eval()
        labels, held_out = task.pictures.labels, task.held_out
        parts = torch.split(torch.arange(len(labels)), 128)
        total, done = len(labels) * views + len(held_out.labels), 0
        device = device_of(model)
        seen: list[Tensor] = []
        for view in range(views):
            generator = torch.Generator().manual_seed(seed * 10_000 + view)
            found = []
            for index in parts:
                inputs = (
                    task.draw(index, slice(None), generator).inputs if view else task.plain(index)
                )
                found.append(features_of(model, tail, inputs.to(device)))
                progress(done := done + len(index), total)
            seen.append(torch.cat(found))
        self.features = torch.stack(seen)  # [views, N, C]
        found = []
        for index in torch.split(torch.arange(len(held_out.labels)), 128):
            inputs = task.held_out_inputs(index)
            found.append(features_of(model, tail, inputs.to(device)))
            progress(done := done + len(index), total)
        self.held_out = torch.cat(found)

    def order(self, generator: torch.Generator) -> Tensor:
        return self.task.order(generator)

    def plain(self, index: Tensor) -> Tensor:
        return self.features[0, index]

    def draw(self, index: Tensor, part: slice, generator: torch.Generator) -> Batch:
        views = torch.randint(len(self.features), (len(index),), generator=generator)
        labels = self.task.pictures.labels[index]
        inputs = self.features[views, index][part]
        return Batch(inputs, labels[part], share_of(labels, part, self.task.weights))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.task.loss(outputs, targets)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        logits = model(self.held_out.to(device_of(model))).cpu()
        labels = self.task.held_out.labels
        return {"top1": (logits.argmax(1) == labels).float().mean().item()}
