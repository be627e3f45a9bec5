"""Embeddings: the output vector, of length 1 where the contract says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgecv.errors import RuntimeFailure
from edgecv.postprocess.options import Array, Options
from edgecv.results import Embedding, Placement
from edgecv.spec import ModelSpec


def decode(
    outputs: Mapping[str, Array],
    spec: ModelSpec,
    placements: Sequence[Placement],
    conf: float | None = None,
    iou: float | None = None,
) -> list[Embedding]:
    """One :class:`Embedding` per picture, from one output ``[N, D]`` (or ``[N, D, 1, 1]``).

    Option ``normalize`` (bool): divide each vector by its length. ``conf`` and ``iou`` are None.
    """
    options = Options(spec)
    raw = options.only_output(outputs)
    if raw.ndim < 2 or raw[:1].size != raw.shape[1]:
        raise RuntimeFailure(f"{options.where}: expected vectors [N, D], got {list(raw.shape)}")
    vectors = raw.reshape(raw.shape[:2]).astype(np.float64)
    if not np.isfinite(vectors).all():
        raise RuntimeFailure(f"{options.where}: the vectors are NaN or infinite: a damaged file")
    if options.flag("normalize"):
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if (lengths == 0).any():
            raise RuntimeFailure(f"{options.where}: a vector of zeros has no direction")
        vectors /= lengths
    return [Embedding(vector) for vector in vectors.astype(np.float32)]
