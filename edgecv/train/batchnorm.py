"""BatchNorm of weights that were folded: give it statistics again, or training it diverges.

A checkpoint that was folded for inference has BatchNorms that are the identity plus a bias: mean
0, variance 1, whatever their inputs look like. In eval mode that is right. The first training
step replaces the statistics with the batch's, and the net computes something else.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from edgecv.models.norms import is_blank, is_fresh, norms_of
from edgecv.train.settings import TrainConfig
from edgecv.train.task import Task

STATISTICS = 2048  # samples from which a folded BatchNorm's statistics are measured


def train_mode(model: nn.Module, norms: str) -> None:
    """Training mode, but BatchNorms that are frozen go on using the statistics that they have."""
    model.train()
    for norm in norms_of(model).values():
        if norms == "frozen" or _frozen(norm):
            norm.eval()


def learning_norms(model: nn.Module, norms: str) -> bool:
    """Whether any BatchNorm of ``model`` takes the batches' statistics in :func:`train_mode`."""
    return norms == "train" and any(not _frozen(m) for m in norms_of(model).values())


def unfold(model: nn.Module, task: Task, config: TrainConfig) -> None:
    """Give folded BatchNorms that are about to learn their statistics, by the task's samples."""
    if not (is_folded(model) and learning_norms(model, config.norms)):
        return
    generator = torch.Generator().manual_seed(config.seed * 10_000)
    samples = torch.split(task.order(generator)[:STATISTICS], 256)
    reestimate(model, (task.plain(index) for index in samples))


def _frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)


def is_folded(model: nn.Module) -> bool:
    """Whether every BatchNorm of ``model`` has mean 0 and variance 1: no real statistics.

    That a net that was never trained has them too is told by its scales of 1 and biases of 0; one
    part of a net may be fresh, such as a head on a folded trunk.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    return all(map(is_blank, norms)) and not all(map(is_fresh, norms))


@torch.no_grad()
def reestimate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Measure each BatchNorm's input statistics on ``batches`` and keep the function unchanged.

    With the measured mean m and variance v, ``weight' = weight * sqrt((v + eps) / (v0 + eps))``
    and ``bias' = bias + weight * (m - m0) / sqrt(v0 + eps)`` make the same map as the old
    statistics (m0, v0) did, so the net's eval-mode outputs stay what they were. Fresh BatchNorms
    are not the identity that they seem: they take the batches' statistics, as in training.
    """
    every = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    fresh = [m for m in every if is_fresh(m)]
    norms = [m for m in every if m not in fresh]
    sums = {m: torch.zeros(2, m.num_features, dtype=torch.float64) for m in norms}
    counts = dict.fromkeys(norms, 0)

    def measure(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        x = inputs[0].transpose(0, 1).flatten(1).double()
        sums[norm] += torch.stack([x.sum(1), x.square().sum(1)])
        counts[norm] += x.shape[1]

    hooks = [m.register_forward_pre_hook(measure) for m in norms]
    training = model.training
    model.eval()
    for norm in fresh:
        norm.train()
    try:
        for batch in batches:
            model(batch)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    for norm in filter(counts.get, norms):  # an auxiliary head's sees nothing: it stays
        mean = sums[norm][0] / counts[norm]
        var = (sums[norm][1] / counts[norm] - mean.square()).clamp_min(0)
        old_mean, old_var = _buffer(norm.running_mean).double(), _buffer(norm.running_var).double()
        scale = norm.weight.double() / (old_var + norm.eps).sqrt()
        norm.bias.add_((scale * (mean - old_mean)).float())
        norm.weight.copy_(scale * (var + norm.eps).sqrt())
        _buffer(norm.running_mean).copy_(mean)
        _buffer(norm.running_var).copy_(var)


def _buffer(tensor: Tensor | None) -> Tensor:
    assert tensor is not None  # our nets track running statistics everywhere
    return tensor
