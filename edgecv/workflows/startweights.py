"""What a training starts from: whole weights, another net's trunk, and what stays frozen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from edgecv.errors import RecipeError, WeightsError
from edgecv.export.recipe import Recipe
from edgecv.export.weights import CHOICES, load_into, read_state_dict, resolve
from edgecv.files import sha256_of
from edgecv.models.layers import AuxiliaryClassifier
from edgecv.train.job import Job, find_file
from edgecv.train.transfer import TransferSettings, freeze_up_to, head_of
from edgecv.train.trunk import load_trunk


def begin(model: nn.Module, recipe: Recipe, job: Job, transfer: TransferSettings | None) -> str:
    """Load what ``job`` names into ``model`` and freeze what it says; the weights' names."""
    initial = _initial(model, recipe, job, transfer)
    if job.files.trunk:
        path = _found(job, job.files.trunk, "trunk")
        part = load_trunk(model, read_state_dict(path), str(path))
        initial = f"{initial}; {part}: {path.name} {sha256_of(path)}"
    if job.files.freeze:
        if transfer is not None:
            raise RecipeError(f"{job.where}.freeze: beside a table transfer it is a key of that")
        freeze_up_to(model, job.files.freeze, [])
    return initial


def _initial(model: nn.Module, recipe: Recipe, job: Job, transfer: TransferSettings | None) -> str:
    initial = job.files.initial
    if initial in ("", "random"):
        return "random"
    if initial in CHOICES:
        try:
            weights = resolve(recipe, initial, job.progress)
        except WeightsError as error:
            raise WeightsError(
                f"{error}\nTo start training from a file of yours: --set initial=FILE"
            ) from error
        if weights.warning:
            job.say(f"WARNING: {weights.warning}")
        assert weights.path is not None  # "random" is the one choice without a file
        path = weights.path
    else:
        path = _found(job, initial, "initial")
    start_from(model, path, head_of(model, transfer.head_layers) if transfer else [])
    return f"{path.name} {sha256_of(path)}"


def _found(job: Job, name: str, key: str) -> Path:
    """The weights ``name``; ``key`` is the setting that names them."""
    complaint = f"there are no such weights to start from; see train.{key}"
    return find_file(job.folder, name, complaint)


def start_from(model: nn.Module, path: Path, fresh: Sequence[str] = ()) -> None:
    """Load the weights ``path`` into ``model``.

    A head of another class count keeps its own, auxiliary ones too, and so do the modules at the
    paths ``fresh``.
    """
    own, state = model.state_dict(), read_state_dict(path)
    head = [k for k in own if k in state and own[k].shape != state[k].shape]
    owners = {key.rpartition(".")[0] for key in head} - set(fresh)
    if isinstance(model, AuxiliaryClassifier):
        owners = {path for path in owners if path.partition(".")[0] not in model.inner_heads}
    if len(owners) > 1:
        raise RecipeError(
            f"{path}: more than the last layer has another shape ({', '.join(sorted(owners))}); "
            f"these weights are another variant's"
        )
    head += [key for key in own if key.rpartition(".")[0] in fresh]
    load_into(model, {**state, **{key: own[key] for key in head}}, str(path))
