"""Embeddings: the net's vector, scaled to length 1 where the contract says so."""

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
    """One :class:`Embedding` per picture, from an output ``[N, D]`` or ``[N, D, 1, 1]``.

    The option ``normalize`` (false where it is absent) scales each vector to length 1. ``conf`` and
    ``iou`` are None: no boxes. A vector that is NaN, infinite or, to be normalized, zero is a
    :class:`~edgecv.errors.RuntimeFailure`.
    """
    options = Options(spec)
    values = options.only_output(outputs)
    vectors = values.reshape(len(values), -1).astype(np.float64)
    if values.size != vectors.shape[0] * values.shape[1]:
        raise RuntimeFailure(
            f"{options.where}: expected one vector per picture, got a tensor {list(values.shape)}"
        )
    if options.flag("normalize", False):
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not lengths.all():
            raise RuntimeFailure(f"{options.where}: the model gave a zero vector for a picture")
        vectors /= lengths
    return [Embedding(vector) for vector in vectors.astype(np.float32)]
