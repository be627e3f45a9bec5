"""What the command line makes of a recipe: NAME may be a bare source, flags replace its values."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgecv.errors import RecipeError, SpecError
from edgecv.export.recipe import OUTPUT_NAMES, Recipe, load_recipe, read_labels, spread
from edgecv.spec import Decoding, Preparation, check_preparation


@dataclass(frozen=True)
class InputOverrides:
    """The input flags of the command line; each one given replaces the recipe's value."""

    image_size: int | None = None
    resize: int | None = None
    fit: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    labels: Path | tuple[str, ...] | None = None  # a label file, or the names themselves

    def to_dict(self) -> dict[str, Any]:
        """What was given, as JSON values: kept in the file's provenance."""
        given: dict[str, Any] = {
            "image_size": self.image_size,
            "resize": self.resize,
            "fit": self.fit,
            "mean": None if self.mean is None else list(self.mean),
            "std": None if self.std is None else list(self.std),
        }
        return {key: value for key, value in given.items() if value is not None}


def recipe_for(name: str, overrides: InputOverrides | None = None) -> Recipe:
    """The recipe that the command line's NAME means, with the input flags applied.

    ``module:factory``, ``timm:NAME``, ``torchvision:NAME`` and ``FILE.pt2`` need no recipe when the
    flags say how pictures are prepared and what the classes are called.
    """
    overrides = overrides or InputOverrides()
    if name.endswith(".pt2") or (":" in name and not name.endswith(".toml")):
        return _bare(name, overrides)
    recipe = load_recipe(name)
    if not recipe.source:
        raise RecipeError(f"{name}: this recipe has no [model] to export; it is for `edgecv adopt`")
    return apply_overrides(recipe, overrides)


def _bare(source: str, overrides: InputOverrides) -> Recipe:
    needed = {
        "--image-size": overrides.image_size,
        "--mean": overrides.mean,
        "--std": overrides.std,
        "--labels": overrides.labels,
    }
    if missing := [flag for flag, value in needed.items() if value is None]:
        raise RecipeError(
            f"{source}: a model without a recipe needs {', '.join(missing)}: its input preparation "
            f"and its labels cannot be known; or write a recipe (export/README.md)"
        )
    assert overrides.image_size is not None
    stem = Path(source).stem if source.endswith(".pt2") else source.rpartition(":")[2]
    blank = Recipe(
        name=re.sub(r"[^A-Za-z0-9._-]", "-", stem),
        summary="",
        task="classify",
        source=str(Path(source).resolve()) if source.endswith(".pt2") else source,
        preparation=Preparation(overrides.image_size, overrides.image_size),
        decoding=Decoding("logits"),
        outputs=(OUTPUT_NAMES["classify"],),
    )
    return apply_overrides(blank, overrides)


def apply_overrides(recipe: Recipe, overrides: InputOverrides) -> Recipe:
    """``recipe`` with the input flags in place of its own values."""
    p = recipe.preparation
    if overrides.image_size is not None:
        # the short side keeps its proportion to the crop unless it is given too
        resize = p.resize and round(p.resize * overrides.image_size / min(p.height, p.width))
        p = replace(p, height=overrides.image_size, width=overrides.image_size, resize=resize)
    if overrides.resize is not None:
        p = replace(p, resize=overrides.resize)
    if overrides.fit is not None:
        p = replace(p, fit=overrides.fit)
    if overrides.mean is not None:
        p = replace(p, mean=spread(overrides.mean, p.channels, "--mean"))
    if overrides.std is not None:
        p = replace(p, std=spread(overrides.std, p.channels, "--std"))
    try:
        check_preparation(p)
    except SpecError as error:
        raise RecipeError(f"{recipe.name}: the input flags do not fit together: {error}") from error
    recipe = replace(recipe, preparation=p)
    if isinstance(overrides.labels, Path):
        ids, labels = read_labels(overrides.labels)
        recipe = replace(recipe, labels=labels, label_ids=ids)
    elif overrides.labels is not None and overrides.labels != recipe.labels:
        recipe = replace(recipe, labels=overrides.labels, label_ids=())
    return recipe
