"""Answers of a net in training, through the code that answers for it when it is deployed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgecv.model import decoder
from edgecv.results import Placement, Result
from edgecv.spec import Decoding, ModelSpec, Preparation, TensorSpec
from edgecv.train.fitted import FittedPictures
from edgecv.train.pixels import normalize
from edgecv.train.task import device_of

SCORED = 32  # pictures at a time


def contract(
    name: str,
    task: str,
    preparation: Preparation,
    decoding: Decoding,
    labels: tuple[str, ...],
) -> ModelSpec:
    """The contract that the exported file will carry, but for its outputs' shapes."""
    shape = preparation.tensor_shape(preparation.height, preparation.width)
    return ModelSpec(
        name=name,
        task=task,
        inputs=(TensorSpec("input", ("N", *shape)),),
        outputs=(TensorSpec("output", ("N",)),),
        preparation=preparation,
        decoding=decoding,
        labels=labels,
    )


@torch.no_grad()
def answers(
    model: nn.Module, spec: ModelSpec, pictures: FittedPictures, conf: float | None = None
) -> Iterator[tuple[Result, Placement]]:
    """The result of each picture, in order; ``model`` is in eval mode."""
    decode, device = decoder(spec, spec.name), device_of(model)
    for index in torch.split(torch.arange(len(pictures)), SCORED):
        inputs = normalize(pictures.pixels(index), pictures.preparation).to(device)
        outputs = named(model(inputs))
        placements = [pictures.placements[i] for i in index.tolist()]
        shaped = tuple(TensorSpec(key, ("N",)) for key in outputs)
        results = decode(outputs, replace(spec, outputs=shaped), placements, conf, None)
        yield from zip(results, placements, strict=True)


def named(outputs: Tensor | Sequence[Tensor]) -> dict[str, NDArray[Any]]:
    """A net's output or outputs as arrays, in its order."""
    tensors = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    return {f"output{i}": t.float().cpu().numpy() for i, t in enumerate(tensors)}
