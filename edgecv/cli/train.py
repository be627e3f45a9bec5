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
    preview: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw augmented pictures, and do not train."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")] = Path(
        "run"
    ),
    as_json: JsonOption = False,
) -> None:
    """Train a recipe's model; a run that was interrupted is continued."""
    from edgecv.train.loop import is_first_process
    from edgecv.workflows.train import RateResult, train_recipe
    from edgecv.workflows.trainquantized import QuantizedResult

    out = Output(as_json)
    if preview is not None:
        from edgecv.workflows.preview import preview_recipe

        with out.progress() as progress:
            sheet = preview_recipe(recipe, data, settings or [], preview, progress, out.say)
        out.say(f"wrote {sheet.path} ({sheet.rows} pictures, {sheet.augmented} times)", "bold")
        out.result(sheet.to_dict())
        return
    with out.progress() as progress:
        result = train_recipe(recipe, data, settings or [], output, progress, out.say)
    if not is_first_process():  # of several: the result is told once
        return
    if isinstance(result, RateResult):
        out.pairs({"proposed lr": f"{result.proposed:.2g}", "picture": result.picture})
    elif isinstance(result, QuantizedResult):
        out.say(f"wrote {result.path} ({result.size_bytes:,} bytes)", "bold")
        out.pairs(
            {
                **{
                    key: f"{value:.2%}, before {result.before[key]:.2%}"
                    for key, value in result.scores.items()
                },
                "log": result.log,
            }
        )
    else:
        out.say(f"wrote {result.weights} ({result.size_bytes:,} bytes)", "bold")
        out.pairs(
            {
                **{f"{key} as stored": f"{value:.2%}" for key, value in result.scores.items()},
                "log": result.log,
                "export it": f"edgecv export {result.recipe}",
            }
        )
    out.result(result.to_dict())
