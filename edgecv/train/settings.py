"""What a run depends on besides the data: typed tables, read from a recipe's [train]."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from edgecv.errors import RecipeError

PRECISIONS = ("fp32", "bf16", "fp16")
OPTIMIZERS = ("adamw", "sgd")
NORMS = ("train", "frozen")
KEEP = ("last", "best")
NOT_NEGATIVE = (
    *("lr", "finish_lr", "weight_decay", "warmup_epochs", "finish_epochs"),
    *("clip_norm", "patience", "save_minutes", "seed"),
)

T = TypeVar("T")


@dataclass(frozen=True)
class TrainConfig:
    """The loop's settings. ``batch`` is that of all processes together."""

    epochs: int = 10
    batch: int = 128
    # AdamW; cosine to zero after the warm-up. The layers of folded weights have filters of very
    # different size (median norms from 0.17 to 11.6), and no one SGD rate suits them all: on
    # CIFAR-10 SGD at 0.03 had 63.5% after its first epoch, AdamW at 1e-3 78.8%.
    optimizer: str = "adamw"  # or sgd, with Nesterov's momentum of 0.9
    lr: float = 1e-3
    weight_decay: float = 0.02  # on convolutions and matrices, not on biases and BatchNorm
    warmup_epochs: float = 1.0
    # after the cosine a second, lower one (warm restart, Loshchilov & Hutter, arXiv:1608.03983)
    finish_epochs: int = 0
    finish_lr: float = 4e-4
    # discriminative rates (Howard & Ruder, arXiv:1801.06146): each stage's rate is this times that
    # of the stage behind it
    layer_decay: float = 1.0
    clip_norm: float = 0.0  # of all gradients together; 0: not clipped
    ema: float = 0.0  # decay of the weights' moving average, which is then the result; 0: none
    precision: str = "fp32"  # or bf16, fp16: mixed, where the device has it
    norms: str = "train"  # or frozen: BatchNorm keeps the statistics that it came with
    patience: int = 0  # epochs without a better score after which to stop; 0: never
    keep: str = "last"  # or best: the weights of the epoch with the best score on held-out data
    save_minutes: float = 5.0  # between checkpoints within an epoch; there is one after each
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("precision", self.precision, PRECISIONS)
        one_of("optimizer", self.optimizer, OPTIMIZERS)
        one_of("norms", self.norms, NORMS)
        one_of("keep", self.keep, KEEP)
        at_least("epochs", self.epochs, 1)
        at_least("batch", self.batch, 1)
        for key in NOT_NEGATIVE:
            at_least(key, getattr(self, key), 0)
        if not 0 < self.layer_decay <= 1:
            raise RecipeError(f"layer_decay: expected above 0, up to 1, got {self.layer_decay}")
        if not 0 <= self.ema < 1:
            raise RecipeError(f"ema: expected a decay from 0 to below 1, got {self.ema}")


def one_of(key: str, value: str, allowed: Iterable[str]) -> None:
    """Refuse a setting that is none of the words it may be."""
    if value not in allowed:
        raise RecipeError(f"{key}: expected one of {', '.join(allowed)}; got {value!r}")


def at_least(key: str, value: float, minimum: float) -> None:
    """Refuse a setting below its least value."""
    if not value >= minimum:
        raise RecipeError(f"{key}: expected at least {minimum}, got {value}")


def names_of(cls: type[Any]) -> list[str]:
    """The keys of a settings table."""
    return [field.name for field in dataclasses.fields(cls)]


def typed(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """The settings ``cls`` from ``values``; ``where`` names the table: ``mine.toml: train.metric``.

    A key that ``cls`` does not have, or a value of another type than its default's, is a
    :class:`~edgecv.errors.RecipeError`. A whole number serves as a float, a list as a tuple.
    """
    known = {f.name: type(f.default) for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    result: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here are {', '.join(known)}"
            raise RecipeError(f"{where}.{key}: unknown key; {hint}")
        if known[key] is float and type(value) is int:
            value = float(value)
        if known[key] is tuple and type(value) is list:
            value = tuple(value)
        if type(value) is not known[key]:
            raise RecipeError(f"{where}.{key}: expected {known[key].__name__}, got {value!r}")
        result[key] = value
    try:
        return cls(**result)
    except RecipeError as error:
        raise RecipeError(f"{where}.{error}") from error
