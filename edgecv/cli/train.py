"""``edgecv train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgecv.cli.output import JsonOption, Output


def command(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe with a [train] table.")],
    data: Annotated[Path, typer.Option(help="The folder that the recipe's files lie in.")] = Path(),
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override the recipe.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")] = Path(
        "run"
    ),
    as_json: JsonOption = False,
) -> None:
    """Train a recipe's model; a run that was interrupted is continued."""
    from edgecv.workflows.train import train_recipe

    out = Output(as_json)
    with out.progress() as progress:
        result = train_recipe(recipe, data, settings or [], output, progress, out.say)
    out.say(f"wrote {result.weights} ({result.size_bytes:,} bytes)", "bold")
    out.pairs({"top-1 of the stored weights": f"{result.top1:.2%}", "log": result.log})
    out.result(result.to_dict())
