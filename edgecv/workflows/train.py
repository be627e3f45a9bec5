"""``edgecv train``: a recipe's [train] table, carried out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgecv import __version__
from edgecv.errors import InputError, RecipeError
from edgecv.export.recipe import Recipe, load_recipe
from edgecv.export.sources import build
from edgecv.export.weights import load_into, read_state_dict, write_safetensors
from edgecv.files import sha256_of, write_json
from edgecv.progress import Progress, silent
from edgecv.train.data import load_pictures
from edgecv.train.finetune import TrainConfig, accuracy, train

FILES = ("data", "held_out", "initial")


@dataclass(frozen=True)
class TrainResult:
    """``top1`` (0 to 1) is that of the weights as they are stored, in FP16."""

    weights: Path
    log: Path
    size_bytes: int
    top1: float

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "weights": str(self.weights), "log": str(self.log)}


def train_recipe(
    name: str,
    data: Path,
    settings: Sequence[str],
    folder: Path,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda text: None,
) -> TrainResult:
    """Train recipe ``name`` on the files that its [train] table names, relative to ``data``.

    ``settings`` are ``key=value`` overrides of that table. ``folder`` gets the checkpoint, the log
    and ``NAME.safetensors``; a run that lies there unfinished is continued.
    """
    recipe = load_recipe(name)
    config, files = read_settings(recipe, settings)
    pictures, held_out = (
        load_pictures(data / files[key], recipe.preparation, _titled(progress, f"reading {key}"))
        for key in ("data", "held_out")
    )
    if pictures.classes != tuple(sorted(recipe.labels)):
        raise InputError(
            f"{data / files['data']}: its classes {list(pictures.classes)} are not the recipe's "
            f"labels {list(recipe.labels)}"
        )
    torch.manual_seed(config.seed)
    model = build(recipe.source, len(recipe.labels), recipe.options, recipe.folder)
    initial = data / files["initial"] if files["initial"] else None
    if initial is not None:
        start_from(model, initial)

    def report(record: dict[str, Any]) -> None:
        if "step" in record:
            progress(f"epoch {record['epoch']}", record["step"], record["steps"])
        else:
            say(
                f"epoch {record['epoch']}: loss {record['loss']}, top-1 {record['top1']:.2%}, "
                f"{record['seconds']:.0f} s"
            )

    log = train(model, pictures, held_out, recipe.preparation, config, folder, report)
    weights = folder / f"{recipe.name}.safetensors"
    about = {
        "recipe": recipe.name,
        "edgecv": __version__,
        "torch": torch.__version__,
        "initial": f"{initial.name} {sha256_of(initial)}" if initial else "random",
        "config": json.dumps(asdict(config)),
    }
    write_safetensors(model.state_dict(), weights, about, torch.float16)
    stored = build(recipe.source, len(recipe.labels), recipe.options, recipe.folder)
    load_into(stored, read_state_dict(weights), str(weights))
    stored.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    top1 = accuracy(stored, held_out, recipe.preparation)
    log_path = folder / f"{recipe.name}.log.json"
    record = {**about, "config": asdict(config), "epochs": log, "stored_top1": top1}
    write_json(log_path, record)
    return TrainResult(weights, log_path, weights.stat().st_size, top1)


def read_settings(recipe: Recipe, settings: Sequence[str]) -> tuple[TrainConfig, dict[str, str]]:
    """The recipe's [train] table with ``key=value`` overrides: configuration, and files."""
    if not recipe.train:
        raise RecipeError(f"{recipe.path or recipe.name}: has no [train] table")
    values: dict[str, Any] = dict(recipe.train)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting}: expected key=value")
        values[key] = _parse(text)
    files = {key: str(values.pop(key, "")) for key in FILES}
    for key in ("data", "held_out"):
        if not files[key]:
            raise RecipeError(f"{recipe.path}: train.{key}: is missing; expected a folder or a zip")
    return TrainConfig(**_typed(values, str(recipe.path))), files


def _typed(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    known = {f.name: type(f.default) for f in fields(TrainConfig)}
    typed = {}
    for key, value in values.items():
        if key not in known:
            names = ", ".join([*FILES, *known])
            raise RecipeError(f"{where}: train.{key}: unknown key; known here are {names}")
        if known[key] is float and type(value) is int:
            value = float(value)
        if type(value) is not known[key]:
            raise RecipeError(
                f"{where}: train.{key}: expected {known[key].__name__}, got {value!r}"
            )
        typed[key] = value
    return typed


def start_from(model: nn.Module, path: Path) -> None:
    """Load the weights ``path`` into ``model``, all but a head of another class count."""
    if not path.is_file():
        raise InputError(f"{path}: there are no such weights to start from; see train.initial")
    own, state = model.state_dict(), read_state_dict(path)
    head = [k for k in own if k in state and own[k].shape != state[k].shape]
    owners = {key.rpartition(".")[0] for key in head}
    if len(owners) > 1:
        raise RecipeError(
            f"{path}: more than the last layer has another shape ({', '.join(sorted(owners))}); "
            f"these weights are another variant's"
        )
    load_into(model, {**state, **{key: own[key] for key in head}}, str(path))


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _titled(progress: Progress, title: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(title, done, total)
