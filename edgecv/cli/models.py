"""``edgecv models``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from edgecv.cli.output import JsonOption, Output
from edgecv.errors import InputError

if TYPE_CHECKING:
    from edgecv.models.count import Saving
    from edgecv.workflows.models import Layers


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A recipe; with --layers.")
    ] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Each layer's shape, parameters and multiply-adds.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the models that `edgecv export` knows by name, or the layers of one."""
    out = Output(as_json)
    if layers and name is None:
        raise InputError("--layers needs the name of a model; `edgecv models` lists them")
    if layers and name is not None:
        _layers(name, out)
    else:
        _list(name, out)


def _list(name: str | None, out: Output) -> None:
    from edgecv.export.recipe import load_recipe
    from edgecv.workflows.models import list_models

    recipes = list_models() if name is None else [load_recipe(name)]
    rows, data = [], []
    for recipe in recipes:
        p = recipe.preparation
        published = {name: w.top1 for name, w in recipe.weights.items() if w.top1 is not None}
        rows.append(
            [
                recipe.name,
                _short(recipe.parameters),
                _short(recipe.macs),
                f"{p.width}x{p.height}",
                ", ".join(recipe.weights),
                ", ".join(f"{top1:.2%}" for top1 in published.values()),
            ]
        )
        data.append(
            {
                "name": recipe.name,
                "summary": recipe.summary,
                "model": recipe.source,
                "task": recipe.task,
                "input": [p.height, p.width],
                "parameters": recipe.parameters,
                "macs": recipe.macs,
                "classes": len(recipe.labels),
                "weights": list(recipe.weights),
                "sources": {
                    name: w.url or w.source or w.recipe for name, w in recipe.weights.items()
                },
                "published_top1": published,
            }
        )
    out.table(["name", "parameters", "MACs", "input", "weights", "stated top-1"], rows)
    if name is not None:
        out.say(recipes[0].summary)
        out.pairs({name: weights.origin for name, weights in recipes[0].weights.items()})
    out.result({"models": data})


def _short(count: int | None) -> str:
    """``3.50 M``, ``37.75 G``."""
    if count is None:
        return ""
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.2f} M"


def _layers(name: str, out: Output) -> None:
    from edgecv.workflows.models import layers_of

    found = layers_of(name)
    _show_costs(found, out)
    if found.savings:
        _show_savings(found.savings, out)
    out.result(found.to_dict())


def _show_costs(found: Layers, out: Output) -> None:
    rows = [
        [
            layer.name,
            layer.kind,
            "x".join(map(str, layer.shape)),
            f"{layer.parameters:,}",
            f"{layer.macs:,}" if layer.macs else "",
        ]
        for layer in found.layers
    ]
    out.table(["layer", "kind", "output", "parameters", "MACs"], rows)
    p = found.recipe.preparation
    out.say(
        f"{found.recipe.name}, {p.width}x{p.height}: {found.parameters:,} parameters, "
        f"{found.macs:,} multiply-adds for one picture",
        "bold",
    )


def _show_savings(savings: Sequence[Saving], out: Output) -> None:
    out.say(
        "\nDepthwise-separable convolutions: f x f per channel, then 1x1, instead of one f x f "
        "convolution:\n1 / C_out + 1 / f^2 of its multiply-adds."
    )
    rows = [
        [
            saving.depthwise.name,
            saving.pointwise.name,
            f"{saving.separable:,}",
            f"{saving.full:,}",
            f"{saving.share:.4f}",
            f"{saving.formula:.4f}",
        ]
        for saving in savings
    ]
    columns = ["depthwise", "1x1", "both, MACs", "one f x f, MACs", "share", "1/C_out + 1/f^2"]
    out.table(columns, rows)
