"""``edgecv samples``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgecv.cli.output import JsonOption, Output


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write them.")],
    as_json: JsonOption = False,
) -> None:
    """Write a few real photographs to try things on."""
    from edgecv.workflows.samples import write_samples

    out = Output(as_json)
    written = write_samples(folder)
    for path in written:
        out.say(str(path))
    out.result({"samples": [str(path) for path in written]})
