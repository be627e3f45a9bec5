"""Recipes: what ``edgecv export NAME`` does, as one TOML file per model.

``export/README.md`` documents every key for people who write their own. Reading a recipe needs no
torch.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgecv import models
from edgecv.errors import RecipeError, SpecError
from edgecv.export.table import Table
from edgecv.spec import DECODINGS, TASKS, Decoding, Preparation, check_preparation

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


ADOPTED = "adopt"  # the folder, among the recipes, of those for others' ONNX files
OUTPUT_NAMES = {"classify": "logits", "embed": "embedding"}  # where a recipe names none


@dataclass(frozen=True)
class WeightsSource:
    """Where one set of weights comes from: a URL, a file, or another recipe's bundled ones."""

    licence: str = ""
    url: str = ""
    sha256: str = ""  # all 64 hex digits, or the first 8 and more, as torch.hub's file names have
    file: Path | None = None
    recipe: str = ""
    top1: float | None = None  # as published, 0 to 1
    source: str = ""

    @property
    def origin(self) -> str:
        """Who made them and where they are, for people."""
        place = self.url or (f"the recipe {self.recipe}" if self.recipe else "")
        return "; ".join(filter(None, (self.source, self.licence, place)))


@dataclass(frozen=True)
class Calibration:
    """How many synthetic pictures `export --precision int8` makes where it is given none, and by
    which seed."""

    pictures: int = 100
    seed: int = 0


@dataclass(frozen=True)
class Recipe:
    """One model: how it is built, fed, and read. ``path`` is None for a bare source.

    ``source`` is empty for a recipe that only gives ONNX files their contract (`edgecv adopt`);
    such a one may leave the input's size to the file, and is then not ``sized``.
    """

    name: str
    summary: str
    task: str
    source: str  # zoo name, module:factory, timm:NAME, torchvision:NAME, or FILE.pt2
    preparation: Preparation
    decoding: Decoding
    outputs: tuple[str, ...] = ("output",)  # the graph's outputs, in the order the net returns them
    labels: tuple[str, ...] = ()
    label_ids: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments of the factory
    parameters: int | None = None  # of the net at the recipe's size, as `models --layers` counts
    macs: int | None = None  # multiply-adds for one picture
    weights: Mapping[str, WeightsSource] = field(default_factory=dict)
    calibration: Calibration = Calibration()
    train: Mapping[str, Any] = field(default_factory=dict)
    licence: str = ""  # of the weights that others publish for it
    sized: bool = True
    path: Path | None = None
    home: str = ""  # where the source's module lies, relative to the recipe's folder

    @property
    def folder(self) -> Path:
        return (self.path.parent if self.path else Path.cwd()) / self.home


def recipes_folder() -> Path:
    """Where the shipped recipes lie: package data in a wheel, ``export/`` in a checkout."""
    packaged = Path(__file__).parents[1] / "_recipes"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "export"


def list_recipes() -> list[str]:
    """The names of the shipped recipes, sorted."""
    return sorted(path.stem for path in recipes_folder().glob("*.toml"))


def list_adoptable() -> list[str]:
    """The names of the shipped recipes for ONNX files that others made, sorted."""
    return sorted(path.stem for path in (recipes_folder() / ADOPTED).glob("*.toml"))


def load_recipe(name: str | Path, *, adopted: bool = False) -> Recipe:
    """The shipped recipe ``name``, or the user's own where ``name`` ends in ``.toml``.

    ``adopted`` looks among the recipes for others' ONNX files first.
    """
    if str(name).endswith(".toml"):
        return read_recipe(Path(name))
    known = {models.canonical(recipe): recipe for recipe in list_recipes()}
    if adopted:
        known |= {models.canonical(recipe): f"{ADOPTED}/{recipe}" for recipe in list_adoptable()}
    for alias, zoo_name in models.ALIASES.items():
        if (recipe := known.get(models.canonical(zoo_name))) is not None:
            known.setdefault(models.canonical(alias), recipe)
    key = models.canonical(str(name))
    if key in known:
        return read_recipe(recipes_folder() / f"{known[key]}.toml")
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    known_ones = f"they are {', '.join(list_adoptable())}." if adopted else "see `edgecv models`."
    names = ", ".join(known[n].rpartition("/")[2] for n in near)
    hint = f"did you mean {names}?" if near else known_ones
    raise RecipeError(
        f"there is no recipe named {str(name)!r}; {hint} A file of your own must end in .toml"
    )


def spread(values: tuple[float, ...], channels: int, what: str) -> tuple[float, ...]:
    """One value serves all channels; otherwise there must be one each."""
    if len(values) not in (1, channels):
        raise RecipeError(f"{what}: expected 1 or {channels} values, got {len(values)}")
    return values * channels if len(values) == 1 else values


def read_labels(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Ids and names from a text file, one class per line in index order.

    A line is ``name``, or ``id<TAB>name`` on every line (then ids has one per class, else none).
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: there is no such label file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not a readable UTF-8 text file ({error})") from error
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines or not all(line.strip() for line in lines):
        raise RecipeError(f"{path}: expected one label per line, found empty lines or nothing")
    if all("\t" in line for line in lines):
        ids, names = zip(*(line.strip().split("\t", 1) for line in lines), strict=True)
        return tuple(ids), tuple(names)
    return (), tuple(line.strip() for line in lines)


def read_recipe(path: Path) -> Recipe:
    """Read one TOML file; whatever is wrong is an error with the file, the key and the remedy."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: there is no such recipe") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from error
    top = Table(data, path)
    task = top.choice("task", TASKS, "classify")
    model = top.table("model", required=False)
    source = _source(model) if model.data else ""
    entry = top.table("input")
    sized = bool(source) or entry.has("size")
    labels = top.table("labels", required=False)
    ids, names = _labels(labels)
    decoding, outputs = _output(top.table("output", required=False), task)
    recipe = Recipe(
        name=path.stem,
        summary=top.text("summary", ""),
        task=task,
        source=source,
        options=model.mapping("options"),
        home=model.text("folder", ""),
        parameters=model.integer("parameters", None),
        macs=model.integer("macs", None),
        preparation=_preparation(entry, sized, adopted=not source),
        decoding=decoding,
        outputs=outputs,
        labels=names,
        label_ids=ids,
        weights={
            name: _weights(section) for name, section in top.tables("weights", required=False)
        },
        calibration=_calibration(top.table("calibration", required=False)),
        train=top.mapping("train"),
        licence=top.text("licence", ""),
        sized=sized,
        path=path.resolve(),
    )
    model.done()
    top.done()
    return recipe


def recipe_table(recipe: Recipe) -> dict[str, Any]:
    """``recipe`` as the table of a TOML file that stands by itself, without its weights.

    The labels are written out, since a file of them may be elsewhere; counts that hold for
    another number of classes are left out. The decoding's options may be other than the file's.
    """
    assert recipe.path is not None
    table = tomllib.loads(recipe.path.read_text(encoding="utf-8"))
    table.pop("weights", None)
    table["model"] = {"source": recipe.source}
    if recipe.options:
        table["model"]["options"] = dict(recipe.options)
    if recipe.labels:
        table["labels"] = {"names": list(recipe.labels)}
    if recipe.decoding.options:
        table.setdefault("output", {})["options"] = dict(recipe.decoding.options)
    return table


def _source(model: Table) -> str:
    source = model.text("source")
    if source.endswith(".pt2"):
        return str(model.file("source"))
    if ":" not in source:
        try:
            return models.resolve(source)
        except RecipeError as error:
            raise model.error("source", str(error)) from error
    return source


def _labels(table: Table) -> tuple[tuple[str, ...], tuple[str, ...]]:
    names = table.strings("names", ())
    if not table.has("file"):
        table.done()
        return (), names
    if names:
        raise table.error("file", "give either names or file, not both")
    read = read_labels(table.file("file"))
    table.done()
    return read


def _preparation(table: Table, sized: bool, adopted: bool) -> Preparation:
    size = table.sizes("size") if sized else (1, 1)  # 1: until the file says what it takes
    blank = Preparation(*size)
    color = table.text("color", blank.color)
    channels = 1 if color == "gray" else 3

    def values(key: str, default: float) -> tuple[float, ...]:
        try:
            return spread(table.floats(key, (default,)), channels, key)
        except RecipeError as error:
            raise table.error(key, str(error)) from error

    preparation = Preparation(
        height=size[0],
        width=size[1],
        color=color,
        fit=table.text("fit", blank.fit),
        resize=table.integer("resize", None),
        interpolation=table.text("interpolation", blank.interpolation),
        crop_rounding=table.text("crop_rounding", blank.crop_rounding),
        pad_value=table.integer("pad_value", blank.pad_value) or 0,
        pad_position=table.text("pad_position", blank.pad_position),
        size_rounding=table.text("size_rounding", blank.size_rounding),
        multiple=table.integer("multiple", blank.multiple) or 1,
        # the zoo's nets take NCHW, as PyTorch's do; others' files may not
        layout=table.text("layout", blank.layout) if adopted else blank.layout,
        divisor=table.number("divisor", blank.divisor),
        mean=values("mean", 0.0),
        std=values("std", 1.0),
    )
    table.done()
    try:
        check_preparation(preparation)
    except SpecError as error:
        raise RecipeError(f"{table.path}: [{table.name}]: {error}") from error
    return preparation


def _output(table: Table, task: str) -> tuple[Decoding, tuple[str, ...]]:
    kind = table.choice("decode", DECODINGS[task], DECODINGS[task][0])
    names = table.strings("names", (OUTPUT_NAMES.get(task, "output"),))
    options = dict(table.mapping("options"))
    table.done()
    return Decoding(kind, options), names


def _calibration(table: Table) -> Calibration:
    default = Calibration()
    calibration = Calibration(
        pictures=table.integer("pictures", default.pictures) or 0,
        seed=table.integer("seed", default.seed) or 0,
    )
    table.done()
    return calibration


def _weights(table: Table) -> WeightsSource:
    kinds = [key for key in ("url", "file", "recipe") if table.has(key)]
    if len(kinds) != 1:
        raise table.error("url", f"expected one of url, file, recipe; got {kinds or 'none'}")
    sha256 = table.text("sha256", "").lower()
    if table.has("url") and not re.fullmatch(r"[0-9a-f]{8,64}", sha256):
        raise table.error(
            "sha256", "expected 8 to 64 hex digits: a download is never taken on trust"
        )
    source = WeightsSource(
        licence=table.text("licence", ""),
        url=table.text("url", ""),
        sha256=sha256,
        file=table.file("file") if table.has("file") else None,
        recipe=table.text("recipe", ""),
        top1=table.number("top1", None) if table.has("top1") else None,
        source=table.text("source", ""),
    )
    table.done()
    return source
