"""``edgecv models``: what the zoo has, and what each layer of a net costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgecv.export.overrides import recipe_for
from edgecv.export.recipe import Recipe, list_recipes, load_recipe

if TYPE_CHECKING:
    from edgecv.models.count import Layer, Saving


@dataclass(frozen=True)
class Layers:
    """A net's layers in the order in which they run, and what its depthwise pairs save."""

    recipe: Recipe
    layers: list[Layer]
    savings: list[Saving]

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        p = self.recipe.preparation
        return {
            "name": self.recipe.name,
            "input": [p.height, p.width],
            "parameters": self.parameters,
            "macs": self.macs,
            "layers": [layer.to_dict() for layer in self.layers],
            "depthwise_separable": [saving.to_dict() for saving in self.savings],
        }


def list_models() -> list[Recipe]:
    """The shipped recipes, by name. Needs no torch."""
    return [load_recipe(name) for name in list_recipes()]


def layers_of(name: str) -> Layers:
    """The layers of the net that ``edgecv export NAME`` would build, at the recipe's size."""
    from edgecv.export.sources import build
    from edgecv.models import count

    recipe = recipe_for(name)
    p = recipe.preparation
    found = count.layers(
        lambda: build(recipe.source, len(recipe.labels) or None, recipe.options, recipe.folder),
        (p.channels, p.height, p.width),
    )
    return Layers(recipe, found, count.savings(found))
