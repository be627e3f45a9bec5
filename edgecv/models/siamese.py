"""A Siamese pair: one embedding net for both pictures, and a learned measure of likeness.

Koch et al., "Siamese Neural Networks for One-shot Image Recognition", ICML Deep Learning Workshop
2015: ``sigmoid(sum_k w_k |f_k(x) - f_k(y)| + b)``; the chi-square form
``(f_k(x) - f_k(y))^2 / (f_k(x) + f_k(y))`` is that of Taigman et al., "DeepFace", CVPR 2014. The
file that is exported gives embeddings, and carries the measure in its contract
(:mod:`edgecv.gallery.likeness`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgecv.errors import RecipeError
from edgecv.gallery.likeness import EPSILON, MEASURES, Likeness
from edgecv.models.embedder import Embedder
from edgecv.models.layers import AdaptivePool, Classifier
from edgecv.models.mobilefacenet import MobileFaceNet


class LikenessHead(nn.Module):
    """The probability that two embeddings ``[N, D]`` show the same: ``[N, 1]``."""

    def __init__(self, dimensions: int, measure: str) -> None:
        super().__init__()
        if measure not in MEASURES:
            raise RecipeError(
                f"siamese: measure must be one of {', '.join(MEASURES)}, got {measure!r}"
            )
        self.measure = measure
        self.weigh = nn.Linear(dimensions, 1)

    def logits(self, x: Tensor, y: Tensor) -> Tensor:
        """The likeness ``[..., 1]`` before the sigmoid, of ``[..., D]`` and ``[..., D]``."""
        difference = x - y
        if self.measure == "l1":
            distance = difference.abs()
        else:  # of non-negative features, as behind a ReLU; a sigmoid makes any features so
            distance = difference.square() / (x + y + EPSILON)
        weighed: Tensor = self.weigh(distance)
        return weighed

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.logits(x, y).sigmoid()


class Siamese(nn.Module):
    """See :func:`siamese`."""

    def __init__(self, trunk: nn.Module, dimensions: int, measure: str) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = LikenessHead(dimensions, measure)
        self.sizes = getattr(trunk, "sizes", Classifier.sizes)

    def embed(self, x: Tensor) -> Tensor:
        """Pictures ``[N, 3, H, W]`` to embeddings ``[N, D]``; chi-square ones are in 0 to 1."""
        out: Tensor
        if isinstance(self.trunk, Classifier):
            out = torch.flatten(AdaptivePool(1)(self.trunk.maps(x)), 1)
        else:
            out = self.trunk(x)
        return out.sigmoid() if self.head.measure == "chi-square" else out

    def likeness(self) -> Likeness:
        """What the head has learned, as the exported file carries it."""
        linear = self.head.weigh
        weights = tuple(linear.weight.detach()[0].tolist())
        return Likeness(self.head.measure, weights, float(linear.bias.detach()))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Likeness ``[N, 1]`` of the pictures x and y pair by pair; without y, x's embeddings."""
        embedding = self.embed(x)
        if y is None:
            return embedding
        likeness: Tensor = self.head(embedding, self.embed(y))
        return likeness


def siamese(
    *,
    trunk: str = "mobilefacenet",
    measure: str = "l1",
    image_size: int | None = None,
    trunk_options: Mapping[str, Any] | None = None,
) -> Siamese:
    """A Siamese pair (Koch 2015) on any net of the zoo that gives an embedding.

    ``trunk`` is ``mobilefacenet``, ``embedder`` or a classifier, whose pooled last map is then the
    embedding. ``measure`` is ``l1`` or ``chi-square``. ``image_size`` is for trunks that are built
    for one, ``trunk_options`` are the trunk's own.
    """
    from edgecv import models

    options = {} if image_size is None else {"image_size": image_size}
    net = models.create(trunk, **options, **(trunk_options or {}))
    if isinstance(net, MobileFaceNet):
        return Siamese(net, net.conv3.out_channels, measure)
    if isinstance(net, Embedder):
        return Siamese(net, net.embedding.out_features, measure)
    if not isinstance(net, Classifier):
        raise RecipeError(f"siamese: the trunk {trunk!r} gives no embedding; choose a classifier")
    dimensions = net.channels
    net.drop_dense()
    return Siamese(net, dimensions, measure)
