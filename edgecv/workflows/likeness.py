"""What a pair of nets has learned of likeness goes into its file, compared with PyTorch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from edgecv.errors import ExportError
from edgecv.export.to_onnx import INPUT
from edgecv.gallery.likeness import OPTION, Likeness, probabilities
from edgecv.measure import selftest
from edgecv.runtimes.base import Backend
from edgecv.spec import Decoding, ModelSpec, Preparation

PAIR_SEEDS = (21, 22)  # of the pictures on either side; none that others were compared on
PAIRS = 3  # at least; whole batches
# How far a term moves with a value of either side, at most: |x - y| by 1; (x - y)^2 / (x + y) of
# values from 0 up by (x + 3y)|x - y| / (x + y)^2, which nears 3 at x = 0
SLOPES = {"l1": 1.0, "chi-square": 3.0}
U = 2.0**-24  # float32's unit of rounding


@runtime_checkable
class Pair(Protocol):
    """A net of one input that has learned how alike two embeddings are. The exporter asks any net
    that has these two, of the zoo or a user's own."""

    def likeness(self) -> Likeness: ...

    def __call__(self, *pictures: Tensor) -> Tensor:
        """Of one batch the embeddings ``[N, D]``; of two the likeness ``[N, 1]``, pair by pair."""


def with_likeness(decoding: Decoding, model: nn.Module) -> Decoding:
    """``decoding``, with the likeness that ``model`` has learned, if it has learned any."""
    if not isinstance(model, Pair):
        return decoding
    if OPTION in decoding.options:
        raise ExportError(
            f"the recipe's output.options give a {OPTION}, and the net has learned one itself: "
            f"leave it out of the recipe"
        )
    return replace(decoding, options={**decoding.options, OPTION: model.likeness().to_dict()})


def prove_likeness(
    candidate: Backend, spec: ModelSpec, preparation: Preparation, model: nn.Module
) -> dict[str, Any]:
    """Compare the likeness of the file's embeddings, by its contract, with what PyTorch says.

    What may differ follows from the embeddings, which are held to their own tolerance: by at most
    e in each value, a likeness moves by at most ``slope * sum |w| * 2e / 4`` (the sigmoid's slope
    is at most 1/4); PyTorch sums ``D`` terms in float32 besides. Nothing where none was learned.
    """
    likeness = Likeness.of(spec)
    if likeness is None or not isinstance(model, Pair):
        return {}
    size = spec.inputs[0].shape[0]
    batches = -(-PAIRS // size) if isinstance(size, int) else 1
    count = batches * size if isinstance(size, int) else PAIRS
    found, expected, given = [], [], []
    with torch.inference_mode():
        for seed in PAIR_SEEDS:
            pictures = selftest.inputs(spec.preparation, seed, count, spec.inputs[0].dtype)
            outputs = [
                next(iter(candidate.run({INPUT: batch}).values())).reshape(len(batch), -1).copy()
                for batch in np.split(pictures, batches)
            ]
            found.append(np.concatenate(outputs).astype(np.float64))
            given.append(torch.from_numpy(selftest.inputs(preparation, seed, count)))
            expected.append(model(given[-1]).flatten(1).double().numpy())
        theirs = model(*given)[:, 0].double().numpy()
    ours = probabilities(likeness.logits(*found))
    apart = sum(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
    weights = np.abs(likeness.vector).astype(np.float64)
    sums = likeness.terms(*expected) @ weights + abs(likeness.bias)
    rounding = (len(weights) + 8) * U * float(sums.max()) / 4 + 4 * U  # 4: of the sigmoid itself
    tolerance = SLOPES[likeness.measure] * float(weights.sum()) * apart / 4 + rounding
    max_abs = float(np.abs(ours - theirs).max())
    if not max_abs <= tolerance:
        raise ExportError(
            f"the likeness that the file's contract gives is not what PyTorch computes: they "
            f"differ by {max_abs:.2e} (allowed {tolerance:.2e}); nothing was written"
        )
    return {OPTION: {"pairs": count, "max_abs": max_abs, "tolerance": tolerance}}
