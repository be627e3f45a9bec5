"""What a task is made from: a recipe's [train] table, the data's folder, the contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from edgecv.errors import InputError, RecipeError
from edgecv.progress import Progress, silent
from edgecv.spec import Decoding, Preparation
from edgecv.train.settings import names_of, typed
from edgecv.train.task import Task

T = TypeVar("T")


@dataclass(frozen=True)
class DataSettings:
    """The files, keys of [train]: paths are relative to ``--data``, which serves where none is."""

    data: str = ""  # what to learn from
    held_out: str = ""  # what is scored after each epoch; none: a part of the data, by ``split``
    split: float = 0.2  # of each class, held out by seed
    initial: str = ""  # weights to start from: a file, auto, imagenet, bundled or random
    trunk: str = ""  # a classifier's weights, for the part of another net that is one: a file
    freeze: str = ""  # a module's path: everything up to and including it stays as it came
    skip_broken: bool = False  # leave out pictures that cannot be read, instead of stopping

    def __post_init__(self) -> None:
        if not 0 < self.split < 1:
            raise RecipeError(f"split: expected a fraction between 0 and 1, got {self.split}")


@dataclass(frozen=True)
class Job:
    """A training run, as the task's module sees it.

    The module asks for its settings by :meth:`flat` and :meth:`table`, once each, and ends with
    :meth:`done`, which refuses what nobody asked for.
    """

    folder: Path  # --data
    files: DataSettings
    settings: Mapping[str, Any]  # [train] without the files and the loop's keys
    preparation: Preparation
    decoding: Decoding
    labels: tuple[str, ...]
    seed: int
    batch: int  # of all processes together
    where: str  # of the table: "mine.toml: train"
    beside: Path = Path()  # the recipe's folder
    fixed_labels: bool = True  # False: other classes in the data take the place of ``labels``
    progress: Progress = silent
    say: Callable[[str], None] = lambda text: None
    asked: list[str] = field(default_factory=list)

    def path(self, name: str) -> Path:
        """A file or folder of ``--data``; that itself where ``name`` is empty."""
        path = self.folder / name
        if not path.exists():
            raise InputError(f"{path}: there is no such file or folder; see {self.where}")
        return path

    def file(self, name: str) -> Path:
        """A file of ``--data``, or beside the recipe."""
        for path in (self.folder / name, self.beside / name):
            if path.is_file():
                return path
        raise InputError(
            f"{name}: there is no such file in {self.folder} or {self.beside}; see {self.where}"
        )

    def flat(self, cls: type[T]) -> T:
        """The task's own keys of the table itself."""
        values = {k: v for k, v in self.settings.items() if not isinstance(v, Mapping)}
        self.asked.extend(values)
        return typed(cls, values, self.where)

    def table(self, key: str, cls: type[T]) -> T:
        """The sub-table ``key``; the defaults where there is none."""
        self.asked.append(key)
        values = self.settings.get(key, {})
        if not isinstance(values, Mapping):
            raise RecipeError(f"{self.where}.{key}: expected a table, got {values!r}")
        return typed(cls, values, f"{self.where}.{key}")

    def has(self, key: str) -> bool:
        """Whether there is a sub-table ``key``."""
        return key in self.settings

    def done(self) -> None:
        """Refuse the keys that have no meaning for this task."""
        if surplus := [key for key in self.settings if key not in self.asked]:
            raise RecipeError(f"{self.where}.{surplus[0]}: unknown key, or not one of this task's")

    def titled(self, title: str) -> Callable[[int, int], None]:
        """Progress of one thing."""
        return lambda done, total: self.progress(title, done, total)


@dataclass(frozen=True)
class Prepared:
    """A task with its data read. ``labels`` are the net's classes, in order, and ``classes`` what
    the numbers among the task's targets mean, where that is something else.

    ``learner`` gives the net the parts that only its loss needs; what it returns is trained, and
    the net in it is the result.
    """

    task: Task
    labels: tuple[str, ...]
    learner: Callable[[nn.Module], nn.Module] = lambda net: net
    classes: tuple[str, ...] = ()
    decoding: Decoding | None = None  # where the data has changed the recipe's


def find_file(folder: Path, name: str, complaint: str) -> Path:
    """The file ``name`` in ``folder``, or by its own path; ``complaint`` says what is missing."""
    for path in (folder / name, Path(name)):
        if path.is_file():
            return path
    raise InputError(f"{folder / name}: {complaint}")


def distribute(
    values: Mapping[str, Any], classes: Sequence[type[Any]], where: str
) -> tuple[list[Any], dict[str, Any]]:
    """Each of the settings ``classes`` from its own keys of one table, and the keys left over."""
    rest = dict(values)
    made = []
    for cls in classes:
        own = {key: rest.pop(key) for key in names_of(cls) if key in rest}
        made.append(typed(cls, own, where))
    return made, rest
