"""An embedding net on the trunk of any classifier of the zoo.

As in Schroff et al., "FaceNet", CVPR 2015, arXiv:1503.03832: the pooled last map, one linear layer,
and vectors of length 1, to which the contract's decoding scales them (``normalize``). Between the
two is a BatchNorm (as in ArcFace, arXiv:1801.07698) without scale and shift of its own. Without it,
or with a learned scale and shift, triplets stayed at a loss equal to their margin and an AUC of
0.50 to 0.52 on CIFAR-10 (8,000 pictures, 2 to 7 epochs, three ways of mining); with it they learn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from edgecv.errors import RecipeError
from edgecv.models.heads import Trunk
from edgecv.models.layers import initialise


class Embedder(nn.Module):
    """See :func:`embedder`."""

    def __init__(self, dimensions: int, trunk: str, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.trunk = Trunk(trunk, options)
        self.sizes = self.trunk.sizes
        self.embedding = nn.Linear(self.trunk.channels, dimensions)
        self.norm = nn.BatchNorm1d(dimensions, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        vectors: Tensor = self.norm(self.embedding(self.trunk(x)))
        return vectors


def embedder(
    *,
    dimensions: int = 128,
    trunk: str = "mobilenet_v2",
    trunk_options: Mapping[str, Any] | None = None,
) -> Embedder:
    """Embeddings (arXiv:1503.03832), input ``[N, 3, H, W]``, output ``[N, dimensions]``.

    ``trunk`` is any classifier, ``trunk_options`` are its own, such as ``{width = 0.5}``.
    """
    if dimensions < 1:
        raise RecipeError(f"embedder: dimensions must be at least 1, got {dimensions}")
    model = Embedder(dimensions, trunk, trunk_options or {})
    initialise(model.embedding, linear_std=model.trunk.channels**-0.5)
    return model
