"""The state of a run on the disk: written whole or not at all, read back to the last digit."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgecv.errors import WeightsError
from edgecv.files import atomic_write

# what an identity says since these were added: older checkpoints are not refused for want of it
LATER = ("model", "input", "labels", "pictures")


@dataclass
class Position:
    """Where a run stands: ``step`` batches of epoch ``epoch`` (from 0) are done.

    Within an epoch the random numbers' states are kept too; at its start they are derived from
    the seed.
    """

    epoch: int = 0
    step: int = 0
    total: float = 0.0  # the losses of the epoch's samples so far, added up
    generator: Tensor | None = None
    global_rng: Tensor | None = None
    device_rng: Tensor | None = None


@dataclass
class State:
    """Everything that a run needs to go on as if it had not been stopped."""

    model: dict[str, Any]
    optimizer: dict[str, Any]
    average: dict[str, Any] | None  # of the weights, with its count of updates
    best: dict[str, Any] | None  # the weights of the best epoch
    scaler: dict[str, Any] | None  # of FP16's losses
    position: Position
    log: list[dict[str, Any]] = field(default_factory=list)


def save(path: Path, state: State, identity: Mapping[str, Any]) -> None:
    """Replace ``path``; ``identity`` says which run it belongs to."""
    content = {**vars(state), "position": vars(state.position), "identity": dict(identity)}
    with atomic_write(path) as file:
        torch.save(content, file)


def load(path: Path, identity: Mapping[str, Any]) -> State | None:
    """The state at ``path``, None where there is none.

    A :class:`~edgecv.errors.WeightsError` says so where it is another run's or damaged.
    """
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found = content.pop("identity")
        state = State(**{**content, "position": Position(**content["position"])})
    except (
        pickle.UnpicklingError,
        RuntimeError,
        OSError,
        EOFError,
        LookupError,
        TypeError,
    ) as error:
        raise WeightsError(
            f"{path}: not a checkpoint of this version of EdgeCV, or a damaged one; choose another "
            f"output folder, or remove it"
        ) from error
    found = {**{key: identity[key] for key in LATER if key in identity}, **found}
    if found != dict(identity):
        keys = sorted(found.keys() | identity.keys())
        other = [
            f"{key} was {found.get(key)!r} and is {identity.get(key)!r}"
            for key in keys
            if found.get(key) != identity.get(key)
        ]
        raise WeightsError(
            f"{path}: belongs to another run: {'; '.join(other)}; choose another output folder, "
            f"or remove it"
        )
    return state
