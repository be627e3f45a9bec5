"""``edgecv train``: a recipe's [train] table, carried out."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w
import torch
from torch import nn

from edgecv import __version__
from edgecv.errors import InputError, RecipeError
from edgecv.export.recipe import Recipe, load_recipe, recipe_table
from edgecv.export.sources import build, is_users
from edgecv.export.weights import load_into, read_state_dict, write_safetensors
from edgecv.files import atomic_write, sha256_of, write_json
from edgecv.models.layers import check_input
from edgecv.progress import Progress, silent
from edgecv.train.classify import ClassificationTask
from edgecv.train.finder import range_test
from edgecv.train.job import DataSettings, Job, Prepared, distribute
from edgecv.train.journal import draw_rates
from edgecv.train.loop import Report, is_first_process, train
from edgecv.train.settings import TrainConfig
from edgecv.train.task import Task
from edgecv.train.transfer import (
    FeatureTask,
    TransferSettings,
    freeze_up_to,
    head_of,
    tail_of,
    unfreeze_from,
)
from edgecv.workflows.startweights import begin
from edgecv.workflows.teacher import DistillSettings, distilled, teacher_file
from edgecv.workflows.trainquantized import (
    QuantizedResult,
    QuantizedSettings,
    read_start,
    train_quantized,
)

# task -> "module:function" that reads the data
TASKS = {
    "classify": "edgecv.train.classify:prepare",
    "detect": "edgecv.train.detection:prepare",
    "embed": "edgecv.train.embed:prepare",
    "landmarks": "edgecv.train.places:prepare_landmarks",
    "segment": "edgecv.train.segmentation:prepare",
}
# tables that are about the run, whatever the task
TABLES = {
    "transfer": TransferSettings,
    "distill": DistillSettings,
    "quantized": QuantizedSettings,
}
FILES = ("data", "held_out", "initial", "trunk")  # left out of the log
DIGESTED = 64  # samples, evenly spread, by which a run knows its pictures again
FIND_LR = "find_lr"  # --set find_lr=true: try rates instead of training


@dataclass(frozen=True)
class TrainResult:
    """``scores`` (0 to 1) are those of the weights as they are stored, in FP16."""

    weights: Path
    recipe: Path
    log: Path
    size_bytes: int
    scores: Mapping[str, float]

    @classmethod
    def expected(cls, folder: Path, name: str) -> TrainResult:
        """What will be in ``folder``, before it is written and scored."""
        weights, recipe, log = (
            folder / f"{name}{end}" for end in (".safetensors", ".toml", ".log.json")
        )
        return cls(weights, recipe, log, 0, {})

    def to_dict(self) -> dict[str, Any]:
        files = {"weights": self.weights, "recipe": self.recipe, "log": self.log}
        return {
            **{key: str(path) for key, path in files.items()},
            "size_bytes": self.size_bytes,
            **self.scores,
        }


@dataclass(frozen=True)
class RateResult:
    """What the range test found; ``picture`` shows it."""

    picture: Path
    proposed: float

    def to_dict(self) -> dict[str, Any]:
        return {"picture": str(self.picture), "proposed": self.proposed}


def train_recipe(
    name: str,
    data: Path,
    settings: Sequence[str],
    folder: Path,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda text: None,
) -> TrainResult | RateResult | QuantizedResult:
    """Train recipe ``name`` on the files that its [train] table names, relative to ``data``.

    A recipe without such a table is taken as weights to learn from: ``data`` holds a folder per
    class, and a new head learns them (transfer learning). With a table ``quantized`` the run
    starts from an INT8 file and ends with one (:mod:`edgecv.workflows.trainquantized`).
    ``settings`` are ``key=value`` overrides of the table, ``table.key=value`` of a table in it.
    ``folder`` gets the checkpoint, the log, the weights ``NAME.safetensors`` and the recipe
    ``NAME.toml`` that exports them; a run that lies there unfinished is continued.
    """
    first = is_first_process()
    if not first:  # the same work in every process, told once
        progress, say = silent, lambda text: None
    recipe = load_recipe(name)
    table = read_table(recipe, settings)
    find = bool(table.pop(FIND_LR, False))
    given = dict(table)
    config, job = make_job(recipe, table, data, progress, say)
    if job.has("quantized"):
        if find:
            raise RecipeError(f"{job.where}: {FIND_LR} is not for a training of an INT8 file")
        beginning = read_start(recipe, job.table("quantized", QuantizedSettings), data)
        task = prepare(recipe.task, replace(job, preparation=beginning.preparation)).task
        report = _reporter(job)
        about = {"recipe": recipe.name, "pictures": _digest(task), **given}
        return train_quantized(beginning, task, config, folder, about, report, write=first)
    transfer = job.table("transfer", TransferSettings) if job.has("transfer") else None
    distill = job.table("distill", DistillSettings) if job.has("distill") else None
    if distill is not None and (transfer is not None or recipe.task != "classify"):
        raise RecipeError(f"{job.where}.distill: is for classifiers, and not beside transfer")
    prepared = prepare(recipe.task, job)
    recipe = _of_the_data(recipe, prepared, job)
    known: dict[str, str] = {}
    if distill is not None:
        task = distilled(prepared.task, distill, job, prepared.labels)
        prepared = replace(prepared, task=task)
        teacher = teacher_file(distill, job)
        given["distill"] = {**vars(distill), "teacher": teacher.name}
        known["teacher"] = sha256_of(teacher)
    torch.manual_seed(config.seed)
    model = build(recipe.source, len(recipe.labels) or None, recipe.options, recipe.folder)
    p = recipe.preparation
    check_input(model, (p.channels, p.height, p.width), training=True)
    initial = begin(model, recipe, job, transfer)
    if find:
        if transfer is not None:  # the flat lr is the head's
            freeze_up_to(model, transfer.freeze, head_of(model, transfer.head_layers))
        return _find_rate(prepared.learner(model), prepared.task, config, folder, progress)
    identity = {**_subject(recipe, prepared), "initial": initial, **known, **given}
    run = Run(config, folder, _reporter(job), identity)
    if transfer is None:
        log = run.train(prepared.learner(model), prepared.task)
    else:
        log = _transfer(model, prepared.task, transfer, run, job)
    kept = {key: value for key, value in given.items() if key not in FILES}
    about = {
        "edgecv": __version__,
        "config": json.dumps(kept),
        "torch": torch.__version__,
        "initial": initial,
        "recipe": recipe.name,
        **known,
    }
    result = TrainResult.expected(folder, recipe.name)
    return _store(result, model, recipe, prepared, about, kept, log) if first else result


@dataclass(frozen=True)
class Run:
    """What every call of the loop in one training has in common."""

    config: TrainConfig
    folder: Path
    report: Report
    identity: Mapping[str, Any]

    def train(self, model: nn.Module, task: Task) -> list[dict[str, Any]]:
        return train(model, task, self.config, self.folder, self.report, self.identity)


def make_job(
    recipe: Recipe,
    table: Mapping[str, Any],
    data: Path,
    progress: Progress,
    say: Callable[[str], None],
) -> tuple[TrainConfig, Job]:
    """The loop's settings in the [train] ``table``, and what the task's module is given."""
    where = f"{recipe.path}: train"
    (config, files), rest = distribute(table, (TrainConfig, DataSettings), where)
    job = Job(
        folder=data,
        files=files,
        settings=rest,
        preparation=recipe.preparation,
        decoding=recipe.decoding,
        labels=recipe.labels,
        seed=config.seed,
        batch=config.batch,
        where=where,
        beside=recipe.folder,
        fixed_labels=bool(recipe.train.get("data")),
        progress=progress,
        say=say,
    )
    return config, job


def prepare(task: str, job: Job) -> Prepared:
    """The task of that name, with its data."""
    if task not in TASKS:
        raise RecipeError(f"{job.where}: there is no training for the task {task!r}")
    module, _, function = TASKS[task].partition(":")
    made: Prepared = getattr(importlib.import_module(module), function)(job)
    return made


def read_table(recipe: Recipe, settings: Sequence[str]) -> dict[str, Any]:
    """The recipe's [train] table with ``key=value`` overrides.

    A classifier's recipe without one is transfer learning by its defaults, unless ``settings`` have
    a file to start from or a teacher.
    """
    if not recipe.source:
        raise RecipeError(f"{recipe.path or recipe.name}: has no [model] to train")
    table: dict[str, Any] = dict(recipe.train)
    if not table and recipe.task == "classify":
        table = {"initial": "imagenet", "epochs": 20, "batch": 32}
        if not any(setting.startswith(("quantized.", "distill.")) for setting in settings):
            table["transfer"] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting}: expected key=value")
        *parents, last = key.split(".")
        inner = table
        for parent in parents:
            outer = inner.get(parent, {})
            if not isinstance(outer, Mapping):
                raise InputError(f"--set {setting}: {parent} is {outer!r}, and no table")
            inner[parent] = dict(outer)
            inner = inner[parent]
        inner[last] = _parse(text)
    return table


def _of_the_data(recipe: Recipe, prepared: Prepared, job: Job) -> Recipe:
    """``recipe`` with the labels and the decoding that the data has; other labels, other name."""
    if prepared.labels != recipe.labels:
        job.say(f"classes: {', '.join(prepared.labels)}")
        name = f"{recipe.name}-{job.folder.resolve().stem}"
        recipe = replace(recipe, labels=prepared.labels, label_ids=(), name=name)
    if prepared.decoding is not None:
        recipe = replace(recipe, decoding=prepared.decoding)
    return recipe


def _subject(recipe: Recipe, prepared: Prepared) -> dict[str, str]:
    """What is trained on what: a run goes on only where none of it has changed."""
    return {
        "recipe": recipe.name,
        "model": f"{recipe.source} {json.dumps(dict(recipe.options), sort_keys=True)}",
        "input": json.dumps(asdict(recipe.preparation)),
        "labels": ", ".join(recipe.labels),
        "pictures": _digest(prepared.task),
    }


def _digest(task: Task) -> str:
    """How many samples there are to learn from, and a digest of some of them."""
    order = task.order(torch.Generator().manual_seed(0))
    some = task.plain(order[:: -(-len(order) // DIGESTED)])
    return f"{len(order)}, {hashlib.sha256(some.numpy().tobytes()).hexdigest()[:16]}"


def _transfer(
    model: nn.Module, task: Task, settings: TransferSettings, run: Run, job: Job
) -> list[dict[str, Any]]:
    """The head on frozen features, then the net from the chosen layer on."""
    if not isinstance(task, ClassificationTask):
        raise RecipeError(f"{job.where}.transfer: is for classifiers")
    head = head_of(model, settings.head_layers)
    freeze_up_to(model, settings.freeze, head)
    job.say(f"the head {', '.join(head)}, on frozen features")
    first = replace(run, folder=run.folder / "head")
    if settings.cached:
        tail = tail_of(model, head)
        seen = job.titled("features")
        features = FeatureTask(task, model, tail, settings.views, run.config.seed, seen)
        log = first.train(tail, features)
    else:
        log = first.train(model, task)
    if not settings.epochs:
        return log
    unfreeze_from(model, settings.unfreeze_from)
    tuning = replace(
        run.config,
        epochs=settings.epochs,
        lr=settings.lr or run.config.lr / 10,
        finish_epochs=0,
        norms="frozen",
    )
    job.say(f"fine-tuning from {settings.unfreeze_from} at {tuning.lr:g}")
    return log + replace(run, config=tuning, folder=run.folder / "tune").train(model, task)


def _store(
    result: TrainResult,
    model: nn.Module,
    recipe: Recipe,
    prepared: Prepared,
    about: Mapping[str, str],
    config: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]],
) -> TrainResult:
    """Weights, log and recipe; the scores are those of the weights read back."""
    write_safetensors(model.state_dict(), result.weights, about, torch.float16)
    stored = build(recipe.source, len(recipe.labels) or None, recipe.options, recipe.folder)
    load_into(stored, read_state_dict(result.weights), str(result.weights))
    stored.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    with torch.no_grad():
        scores = prepared.task.evaluate(stored)
    write_json(result.log, {**about, "config": config, "epochs": list(log), "stored": scores})
    table = {**recipe_table(recipe), "train": config}
    table["weights"] = {"bundled": {"file": result.weights.name, "source": "edgecv train"}}
    if is_users(recipe.source):
        table["model"]["folder"] = _relative(recipe.folder, result.recipe.parent)
    with atomic_write(result.recipe) as file:
        file.write(tomli_w.dumps(table).encode())
    return replace(result, size_bytes=result.weights.stat().st_size, scores=scores)


def _relative(path: Path, start: Path) -> str:
    """``path`` as seen from the folder ``start``: both may move together."""
    try:
        return Path(os.path.relpath(path, start.resolve())).as_posix()
    except ValueError:  # on another drive of Windows
        return path.as_posix()


def _find_rate(
    model: nn.Module, task: Task, config: TrainConfig, folder: Path, progress: Progress
) -> RateResult:
    test = range_test(model, task, config, progress=progress)
    picture = folder / "lr.png"
    draw_rates(picture, test.rates, test.losses, test.proposed)
    return RateResult(picture, test.proposed)


def _reporter(job: Job) -> Report:
    def report(record: dict[str, Any]) -> None:
        if "step" in record:
            steps, epoch = record["steps"], record["epoch"]
            done, total = (epoch - 1) * steps + record["step"], record["epochs"] * steps
            job.progress("training", done, total)
            return
        scores = ", ".join(
            f"{key} {value:.2%}" if 0 <= value <= 1 else f"{key} {value:g}"
            for key, value in record.items()
            if key not in ("epoch", "loss", "seconds")
        )
        job.say(
            f"epoch {record['epoch']}: loss {record['loss']}, {scores}, {record['seconds']:.0f} s"
        )

    return report


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
