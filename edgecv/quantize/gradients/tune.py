"""Learning from calibration pictures alone: the answers of the integers towards the float net's.

No labels: the parent's outputs are the targets (Hinton et al., arXiv:1503.02531), and what is
learned are the steps and zero points of activations (LSQ, arXiv:1902.08153), biases, and the
weights on their grid, all at once (as QAT by distillation does with a training set; with 100
pictures the rates are small and the pictures are cut and mirrored anew each time). Part of the
pictures is not learned from: it says whether anything was gained, and nothing is where not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from edgecv.errors import QuantizeError
from edgecv.progress import Progress, silent
from edgecv.quantize.gradients.net import QuantizedNet
from edgecv.quantize.ranges import Range
from edgecv.quantize.run import Array, Batches, Probe
from edgecv.quantize.targets import Policy

Loss = Callable[[dict[str, Tensor], dict[str, Tensor]], Tensor]  # (parent's, ours)


@dataclass(frozen=True)
class Settings:
    """How long and how fast. Rates are per step of Adam, in the units named."""

    steps: int = 300
    batch: int = 8
    crop: float = 1.0  # share of each side that a picture is cut to
    weights: float = 0.006  # weight steps
    biases: float = 1e-4  # root mean squares of the layer's biases
    grids: float = 1e-4  # of the step itself
    zeros: float = 1e-5  # of the range
    held_out: float = 0.2  # share of the pictures that judge
    seed: int = 0


@dataclass(frozen=True)
class Tuned:
    """``model`` is the one that learned, or the one that came where that is no worse.

    ``before`` and ``after`` are what the judge said of both on the ``pictures`` held out, as
    onnxruntime computes; ``ranges`` are those of the one that learned.
    """

    model: ir.Model
    ranges: Mapping[str, Range]
    before: float
    after: float
    pictures: int

    @property
    def gained(self) -> bool:
        return self.after < self.before

    def to_dict(self) -> dict[str, Any]:
        return {
            "loss_before": round(self.before, 8),
            "loss_after": round(self.after, 8),
            "held_out": self.pictures,
            "taken": self.gained,
        }


def relative_noise(parents: dict[str, Tensor], ours: dict[str, Tensor]) -> Tensor:
    """The squared difference as a share of the parent's square, the mean of the outputs."""
    shares = [
        (ours[name] - wanted).square().sum() / wanted.square().sum().clamp_min(1e-20)
        for name, wanted in parents.items()
    ]
    return torch.stack(shares).mean()


def divergence(parents: dict[str, Tensor], ours: dict[str, Tensor]) -> Tensor:
    """How far our answers are from the parent's: Kullback-Leibler, of the softmax of logits.

    It judges a classifier, whose logits may come closer while its answers do not. As a loss it is
    too noisy to learn from: MobileNetV2 lost 0.3 dB by it.
    """
    parts = []
    for name, wanted in parents.items():
        mine, theirs = (log_softmax(logits, 1) for logits in (ours[name], wanted))
        parts.append((theirs.exp() * (theirs - mine)).sum(1).mean())
    return torch.stack(parts).mean()


def tune(
    model: ir.Model,
    parent: ir.Model,
    policy: Policy,
    batches: Batches,
    settings: Settings = Settings(),
    judge: Loss = relative_noise,
    progress: Progress = silent,
) -> Tuned:
    """``model``, which was made of the float graph ``parent``, with what was learned.

    It learns by :func:`relative_noise`; ``judge`` decides whether that was a gain.

    The same pictures, seed and thread count give the same bytes.
    """
    pictures = np.concatenate(list(batches()))
    generator = torch.Generator().manual_seed(settings.seed)
    order = torch.randperm(len(pictures), generator=generator)
    judges = max(1, round(len(pictures) * settings.held_out))
    if len(pictures) - judges < 2:
        raise QuantizeError(f"{len(pictures)} pictures are too few to learn from; give 32 or more")
    learned, judged = order[judges:], order[:judges].numpy()
    data = torch.from_numpy(pictures)
    ours, theirs = QuantizedNet(model, policy, parent), QuantizedNet(parent, policy)
    ours.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    theirs.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(_rates(ours, settings), betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _share(step, settings.steps)
    )
    for step in range(settings.steps):
        index = learned[torch.randint(len(learned), (settings.batch,), generator=generator)]
        batch = _cut(data[index], settings.crop, generator)
        with torch.no_grad():
            wanted = theirs(batch)
        found = ours(batch)
        error = relative_noise(wanted, found)
        if not bool(torch.isfinite(error)):
            raise QuantizeError(f"the loss is {error.item()} at step {step + 1}; lower the rates")
        optimizer.zero_grad()
        error.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        progress("learning", step + 1, settings.steps)
    result = ours.write()
    few, probe = _with_mirrors(pictures[judged]), Probe(parent)
    answers = [_answers(probe, batch) for batch in few]
    before, after = (_judged(one, few, answers, judge) for one in (model, result))
    return Tuned(result if after < before else model, ours.ranges(), before, after, judges)


def _share(step: int, steps: int) -> float:
    """Of the rates: a linear warm-up over a tenth of the steps, and half a cosine."""
    return min(1.0, (step + 1) / (0.1 * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _rates(net: QuantizedNet, settings: Settings) -> list[dict[str, Any]]:
    groups = []
    for weight in net.integer_weights():
        unit = float(weight.steps.detach().mean())
        groups.append({"params": [weight.latent], "lr": settings.weights * unit})
    found = net.groups()
    for bias in found["biases"]:
        unit = float(bias.detach().square().mean().sqrt())
        groups.append({"params": [bias], "lr": settings.biases * max(unit, 1e-6)})
    groups.append({"params": found["steps"], "lr": settings.grids})
    groups.append({"params": found["zeros"], "lr": settings.zeros})
    return [group for group in groups if group["params"] and group["lr"]]


def _cut(batch: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A part of each picture, half of them mirrored.

    Its sides are multiples of 32, so that the layers' positions lie as in a whole picture. Floats
    are ``[N, C, H, W]`` (channels last in memory), pixels ``[N, H, W, C]``.
    """
    top = 2 if batch.is_floating_point() else 1
    sides = batch.shape[top : top + 2]
    kept = [min(side, max(32, 32 * round(side * share / 32))) for side in sides]
    corners = [
        torch.randint(side - part + 1, (len(batch),), generator=generator).tolist()
        for side, part in zip(sides, kept, strict=True)
    ]
    mirrored = (torch.rand(len(batch), generator=generator) < 0.5).tolist()
    parts = []
    for picture, row, column, flip in zip(batch, *corners, mirrored, strict=True):
        part = picture.narrow(top - 1, row, kept[0]).narrow(top, column, kept[1])
        parts.append(part.flip(top) if flip else part)
    found = torch.stack(parts)
    return found.contiguous(memory_format=torch.channels_last) if top == 2 else found


def _with_mirrors(pictures: Array) -> list[Array]:
    """Each picture and its mirror image: what one adds is much by chance, one rounding more or
    less."""
    width = 3 if pictures.dtype == np.float32 else 2
    return [b for one in pictures for b in (one[None], np.flip(one[None], width))]


def _answers(net: Probe, batch: Array) -> dict[str, Tensor]:
    """In onnxruntime."""
    return {name: torch.from_numpy(value) for name, value in net(batch).items()}


def _judged(
    model: ir.Model, batches: Sequence[Array], wanted: Sequence[dict[str, Tensor]], judge: Loss
) -> float:
    """The mean distance of the answers of ``model`` from those ``wanted``."""
    net = Probe(model)
    pairs = zip(batches, wanted, strict=True)
    return float(np.mean([float(judge(theirs, _answers(net, batch))) for batch, theirs in pairs]))
