"""Classification: logits to probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import RuntimeFailure
from edgecv.results import Classification, Placement
from edgecv.spec import ModelSpec


def decode(
    outputs: Mapping[str, NDArray[Any]],
    spec: ModelSpec,
    placements: Sequence[Placement],
    conf: float | None = None,
    iou: float | None = None,
) -> list[Classification]:
    """One :class:`Classification` per picture; ``conf`` and ``iou`` are None: no boxes."""
    return classifications(outputs[spec.outputs[0].name], spec.decoding.kind, spec.labels)


def softmax(logits: NDArray[Any]) -> NDArray[np.float32]:
    """Softmax over the last axis, computed in float64 after subtracting the maximum."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    out: NDArray[np.float32] = (exponentials / exponentials.sum(axis=-1, keepdims=True)).astype(
        np.float32
    )
    return out


def classifications(
    scores: NDArray[Any], kind: str, labels: tuple[str, ...]
) -> list[Classification]:
    """One :class:`Classification` per row of ``scores`` ``[N, C]``.

    ``kind`` is the contract's decoding: ``logits`` (a softmax is due) or ``probabilities``.
    """
    if scores.ndim != 2 or scores.shape[1] != len(labels):
        raise RuntimeFailure(f"expected class scores [N, {len(labels)}], got {list(scores.shape)}")
    if not np.isfinite(scores).all():
        raise RuntimeFailure("the model's class scores are NaN or infinite: its file is damaged")
    probabilities = softmax(scores) if kind == "logits" else scores.astype(np.float32)
    return [Classification(row, labels) for row in probabilities]
