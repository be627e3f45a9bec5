"""Pictures for calibration where there are none: distilled from the net's own BatchNorms.

A BatchNorm remembers the mean and the variance of its input over all the training pictures. From
noise on, pictures are moved by gradient descent until the net's layers see those statistics again
(ZeroQ, Cai et al., CVPR 2020, arXiv:2001.00281), kept smooth and moderate by a total-variation and
an L2 prior (DeepInversion, Yin et al., CVPR 2020, arXiv:1912.08795). What the layers then compute
has about the ranges that it has on real pictures; pictures to look at they are not.

The loss of one BatchNorm with running mean m0 and variance v0, of whose input a batch has the mean
m and the variance v, is the mean over channels of

    ((m - m0) / s0)^2 + (s / s0 - 1)^2,    s0 = sqrt(v0 + eps), s = sqrt(v + eps)

that is how far its normalized input is from mean 0 and deviation 1. (The papers compare the raw
statistics; in units of the deviation no layer outweighs another by its scale.)
:func:`statistics_loss` is the mean over the net's BatchNorms: 0 is a match, and 1 a mean that is
off by one deviation.

The free variables are pixels, moved in the range of grey levels that a picture has and rounded to
levels at the end: all values are 0 to 255, the losses reported are those of rounded pictures, and
the preparation makes a tensor of them as it does of any other picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgecv.errors import InputError
from edgecv.models.norms import Norm, is_blank, is_fresh, norms_of
from edgecv.progress import Progress, silent
from edgecv.spec import Preparation

BATCH_PIXELS = 2**20  # of one batch: 20 pictures of 224 x 224 and about 2 GB for MobileNetV2
SMALLEST_BATCH = 2  # below it a BatchNorm behind the pooling has no variance
Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Settings:
    """How the pictures are made. The priors are means over pixels, of grey levels from 0 to 1.

    Chosen on MobileNetV2 of CIFAR-10 at 64 pixels, 40 pictures, by the SQNR of its logits on 500
    training pictures (``onnxruntime-x86``; 31.8 dB after real pictures, 18.4 after noise): 50 steps
    30.4 dB without priors, 31.2 with a variation of 1; 100 steps with 0.1 of it 31.1. Longer buys a
    smaller loss (0.020 for 0.055) and no signal.
    """

    count: int = 100
    seed: int = 0
    steps: int = 50
    rate: float = 0.05  # of Adam, in the range of grey levels; it falls to 0 along a cosine
    variation: float = 1.0  # of squared differences between neighbours
    norm: float = 0.01  # of squared distances from mid-grey


@dataclass(frozen=True, eq=False)
class Synthetic:
    """``pixels`` uint8 ``[N, H, W, C]``, channels in the preparation's order, and how they came.

    ``loss`` is their :func:`statistics_loss` and ``noise`` that of the noise before the first step,
    the mean over batches; ``norms`` BatchNorms were listened to.
    """

    pixels: NDArray[np.uint8]
    settings: Settings
    norms: int
    noise: float
    loss: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "made": len(self.pixels),
            "steps": self.settings.steps,
            "seed": self.settings.seed,
            "batchnorms": self.norms,
            "statistics_loss_of_noise": round(self.noise, 6),
            "statistics_loss": round(self.loss, 6),
        }


def synthesize(
    model: nn.Module,
    preparation: Preparation,
    settings: Settings | None = None,
    progress: Progress = silent,
) -> Synthetic:
    """Pictures of ``preparation``'s size on which ``model`` sees the statistics of its training.

    ``model`` is in eval mode and stays as it is. The same settings give the same pictures on the
    same machine and number of threads. Raises :class:`~edgecv.errors.InputError` where a BatchNorm
    has no statistics to go by (see :func:`informative_norms`).
    """
    settings = settings or Settings()
    norms = informative_norms(model)
    p = preparation
    sizes = _parts(settings.count, max(SMALLEST_BATCH, BATCH_PIXELS // (p.height * p.width)))
    draw = torch.Generator().manual_seed(settings.seed)
    made: list[NDArray[np.uint8]] = []
    losses: list[tuple[float, float]] = []
    for number, size in enumerate(sizes):
        noise = 0.5 + 0.25 * torch.randn((size, p.channels, p.height, p.width), generator=draw)

        def told(step: int, number: int = number) -> None:
            done, total = number * settings.steps + step, len(sizes) * settings.steps
            progress("synthetic pictures", done, total)

        with _listening(model, norms) as heard:
            found = _descend(noise.clamp_(0, 1), lambda x: heard(_prepared(x, p)), settings, told)
        before, after = _bytes(noise), _bytes(found)
        losses.append((statistics_loss(model, p, before), statistics_loss(model, p, after)))
        made.append(after)
    whole, end = np.average(losses, axis=0, weights=sizes)
    if not math.isfinite(end):
        raise InputError(
            "the net gives NaN or infinite values on noise: it overflows, and no synthetic "
            "calibration pictures can be made from it; give real ones, --calibration DIR"
        )
    return Synthetic(np.concatenate(made), settings, len(norms), float(whole), float(end))


def statistics_loss(model: nn.Module, preparation: Preparation, pixels: NDArray[np.uint8]) -> float:
    """How far the batch ``pixels`` (uint8 ``[N, H, W, C]``) is from what the BatchNorms remember.

    ``model`` is in eval mode. Raises as :func:`informative_norms` does.
    """
    levels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 1))).float() / 255
    with torch.no_grad(), _listening(model, informative_norms(model)) as heard:
        return float(heard(_prepared(levels, preparation)))


def informative_norms(model: nn.Module) -> dict[str, Norm]:
    """The BatchNorms of ``model``, by name, each with statistics that come from pictures.

    Raises :class:`~edgecv.errors.InputError` where there are none, or where some have none: what
    such a layer sees would be left to chance.
    """
    norms = norms_of(model)
    blank = {name: norm for name, norm in norms.items() if is_blank(norm)}
    if norms and not blank:
        return norms
    if not norms:
        why = "the net has no BatchNorm layers, whose statistics they are made from"
    elif all(map(is_fresh, blank.values())):
        why = f"{len(blank)} of the net's {len(norms)} BatchNorms have never seen a picture"
    else:
        why = (
            f"{len(blank)} of the net's {len(norms)} BatchNorms have been folded into its weights "
            f"(mean 0, variance 1), and say nothing of pictures any more"
        )
    raise InputError(
        f"synthetic calibration pictures cannot be made: {why}; give real ones, --calibration DIR"
    )


def _parts(count: int, most: int) -> list[int]:
    """``count`` in as few nearly equal parts of at most ``most`` as can be."""
    if count < SMALLEST_BATCH:
        raise InputError(
            f"expected {SMALLEST_BATCH} synthetic pictures or more, got {count}; see "
            f"calibration.pictures in the recipe"
        )
    parts = min(math.ceil(count / most), count // SMALLEST_BATCH)
    return [count // parts + (i < count % parts) for i in range(parts)]


def _prepared(pixels: Tensor, p: Preparation) -> Tensor:
    """Grey levels 0 to 1 ``[N, C, H, W]`` as the net takes them."""
    mean, std = (torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (p.mean, p.std))
    return (pixels * (255 / p.divisor) - mean) / std


def _bytes(levels: Tensor) -> NDArray[np.uint8]:
    """Grey levels 0 to 1 ``[N, C, H, W]`` as uint8 ``[N, H, W, C]``."""
    return np.asarray(levels.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())


def _descend(start: Tensor, loss: Loss, settings: Settings, told: Callable[[int], None]) -> Tensor:
    x = start.clone().requires_grad_()
    adam = torch.optim.Adam([x], lr=settings.rate, betas=(0.9, 0.99))
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(adam, settings.steps)
    for step in range(1, settings.steps + 1):
        with torch.enable_grad():
            whole = loss(x) + settings.variation * _variation(x)
            whole = whole + settings.norm * (x - 0.5).square().mean()
        # of the pixels alone: the weights need no gradients, and get none
        (x.grad,) = torch.autograd.grad(whole, [x])
        adam.step()
        fall.step()
        with torch.no_grad():
            x.clamp_(0, 1)
        told(step)
    return x.detach()


def _variation(x: Tensor) -> Tensor:
    down, across = x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]
    return down.square().mean() + across.square().mean()


@contextmanager
def _listening(model: nn.Module, norms: Mapping[str, Norm]) -> Iterator[Loss]:
    """A function from a batch to its statistics loss, while the hooks are on."""
    losses: list[Tensor] = []

    def hear(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        losses.append(_distance(inputs[0], norm))

    def loss(batch: Tensor) -> Tensor:
        losses.clear()
        model(batch)
        if not losses:
            raise InputError(
                "synthetic calibration pictures cannot be made: the net has BatchNorms, and runs "
                "none of them; give real ones, --calibration DIR"
            )
        return torch.stack(losses).mean()

    hooks = [norm.register_forward_pre_hook(hear) for norm in norms.values()]
    try:
        yield loss
    finally:
        for hook in hooks:
            hook.remove()


def _distance(x: Tensor, norm: Any) -> Tensor:
    """Of the input ``x`` ``[N, C, ...]`` from the statistics that ``norm`` keeps."""
    values = x.transpose(0, 1).flatten(1)  # [C, N * positions]
    scale = (norm.running_var + norm.eps).sqrt()
    var, mean = torch.var_mean(values, 1)
    # the root's slope at 0 has no bound: a channel of one value is left to the mean
    deviation = (var + norm.eps).sqrt()
    apart: Tensor = ((mean - norm.running_mean) / scale).square() + (deviation / scale - 1).square()
    return apart.mean()
