"""Losses that put pictures of one class near each other and others far away.

Triplets: Schroff et al., "FaceNet", CVPR 2015, arXiv:1503.03832; batch-hard mining: Hermans et al.,
"In Defense of the Triplet Loss", arXiv:1703.07737; contrastive: Hadsell et al., CVPR 2006; the
learned likeness: Koch et al. 2015 (:mod:`edgecv.models.siamese`). Losses and miners are
pytorch-metric-learning's.

Triplets and pairs that nothing chooses need a margin well above the distances' spread: of unit
vectors 2, for pairs 3.9. Below it, most of what a fresh net loses is that spread, and it learns to
put all pictures equally far apart: embeddings like white noise, which tell no class
(``benchmarks/README.md``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from edgecv.errors import InputError, RecipeError
from edgecv.models.layers import initialise
from edgecv.models.siamese import Siamese
from edgecv.train.settings import at_least, one_of

LOSSES = ("triplet", "contrastive", "softmax", "likeness")
DISTANCES = ("squared-euclidean", "cosine")
MININGS = ("hard", "semi-hard", "random", "all")

Loss = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class MetricSettings:
    """A recipe's [train.metric] table."""

    # softmax: a classifier is learned, its head dropped; likeness: a Siamese pair's learned measure
    loss: str = "triplet"  # or contrastive, softmax, likeness
    distance: str = "squared-euclidean"  # or cosine (1 - cosine); of triplet and contrastive
    # of triplets: hard (each picture with its farthest like and its nearest other), semi-hard (all
    # whose other is farther than the like, but by less than the margin), random (one a picture),
    # all (of the batch)
    mining: str = "semi-hard"
    margin: float = 0.2  # in the distance's unit; of unit vectors the squared one goes from 0 to 4
    per_class: int = 16  # K: pictures of a class in a batch; P is batch / K
    unseen: tuple[str, ...] = ()  # classes that are not learned: their pictures are verified
    pairs: int = 6000  # verified after each epoch, half of them of one class; drawn once, by seed

    def __post_init__(self) -> None:
        one_of("loss", self.loss, LOSSES)
        one_of("distance", self.distance, DISTANCES)
        one_of("mining", self.mining, MININGS)
        if not 0 < self.margin < 4:
            raise RecipeError(f"margin: expected a number between 0 and 4, got {self.margin}")
        at_least("per_class", self.per_class, 2)
        at_least("pairs", self.pairs, 20)
        if not all(isinstance(name, str) for name in self.unseen):
            raise RecipeError(f"unseen: expected names of classes, got {list(self.unseen)}")


class Classified(nn.Module):
    """``net``'s embeddings, told apart by a linear layer: logits ``[N, classes]``."""

    def __init__(self, net: nn.Module, dimensions: int, classes: int) -> None:
        super().__init__()
        self.net = net
        self.head = nn.Linear(dimensions, classes)
        initialise(self.head)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.net(x))
        return logits


class Compared(nn.Module):
    """Each picture of a batch with each other by a Siamese pair: logits of likeness ``[N, N]``.

    Takes memory for N x N x D numbers.
    """

    def __init__(self, net: Siamese) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        vectors = self.net.embed(x)  # [N, D]
        return self.net.head.logits(vectors[:, None], vectors[None]).squeeze(2)


def learner(net: nn.Module, settings: MetricSettings, dimensions: int, classes: int) -> nn.Module:
    """``net`` as it is trained: with what its loss needs besides, which is dropped afterwards."""
    if isinstance(net, Siamese) and settings.loss != "likeness":
        raise RecipeError(
            f"train.metric.loss: {settings.loss} does not teach a Siamese pair its likeness, which "
            f'its file carries: set loss = "likeness", or model.source to the trunk alone'
        )
    if settings.loss == "softmax":
        return Classified(net, dimensions, classes)
    if settings.loss == "likeness":
        if not isinstance(net, Siamese):
            raise RecipeError(
                f"train.metric.loss: likeness is learned by a Siamese pair, and this model is "
                f'{type(net).__name__}: set model.source = "siamese", or another loss'
            )
        return Compared(net)
    return net


def embedder_of(model: nn.Module) -> nn.Module:
    """The net of a :func:`learner` that gives embeddings."""
    return model.net if isinstance(model, Classified | Compared) else model


def make_loss(settings: MetricSettings, *, normalize: bool) -> Loss:
    """The loss of a batch: ``(outputs of the learner, labels [N]) -> scalar``.

    ``normalize`` scales embeddings to length 1 first, as the contract says that users do. Random
    triplets are drawn from torch's global generator.
    """
    if settings.loss == "softmax":
        return cross_entropy
    if settings.loss == "likeness":
        if normalize:
            raise RecipeError(
                "train.metric.loss: likeness compares embeddings as the net gives them: set "
                "output.options = { normalize = false }"
            )
        return _likeness
    if settings.distance == "cosine" and not normalize:
        raise RecipeError(
            "train.metric.distance: cosine compares directions only: set output.options = "
            '{ normalize = true }, or distance = "squared-euclidean"'
        )
    try:
        from pytorch_metric_learning import distances, losses, miners
    except ImportError as error:
        raise InputError(
            "metric learning needs pytorch-metric-learning; install it with: "
            "pip install 'edgecv[train]'"
        ) from error
    cosine = settings.distance == "cosine"
    distance = (
        distances.CosineSimilarity()
        if cosine
        else distances.LpDistance(normalize_embeddings=normalize, p=2, power=2)
    )
    margin = settings.margin
    miner = None
    if settings.loss == "contrastive":
        # of similarities the margins go down from 1: 1 - s is the distance
        near, far = (1.0, 1 - margin) if cosine else (0.0, margin)
        loss = losses.ContrastiveLoss(pos_margin=near, neg_margin=far, distance=distance)
    else:
        each = 1 if settings.mining == "random" else "all"
        loss = losses.TripletMarginLoss(margin, triplets_per_anchor=each, distance=distance)
        if settings.mining == "hard":
            miner = miners.BatchHardMiner(distance=distance)
        elif settings.mining == "semi-hard":
            miner = miners.TripletMarginMiner(margin, "semihard", distance=distance)

    def measure(vectors: Tensor, labels: Tensor) -> Tensor:
        vectors = vectors.float()  # distances of half-precision vectors lose the small ones
        found = None if miner is None else miner(vectors, labels)
        value: Tensor = loss(vectors, labels, found)
        return value

    return measure


def _likeness(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of all pairs ``[N, N]`` but a picture with itself; like and unlike pairs, of
    which there are many more, count half each."""
    like = labels[:, None] == labels[None]
    other = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    losses = binary_cross_entropy_with_logits(logits.float(), like.float(), reduction="none")
    return (losses[like & other].mean() + losses[~like].mean()) / 2
