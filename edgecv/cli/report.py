"""``edgecv report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgecv.cli.output import JsonOption, Output


def command(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE.json...", help="Of bench -o and eval -o.")
    ],
    html: Annotated[Path | None, typer.Option(help="One self-contained page.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Tables for a README.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Merge benchmarks and scores of several machines, by the model's sha256."""
    from edgecv.measure.report import COLUMNS, cells, machine_name
    from edgecv.workflows.report import report, write_html, write_markdown

    out = Output(as_json)
    merged = report(files)
    if html is not None:
        write_html(merged, html)
    if markdown is not None:
        write_markdown(merged, markdown)
    for index, environment in enumerate(merged.machines):
        rows = [cells(row) for row in merged.rows if row.machine == index]
        used = [name for name in COLUMNS if any(row[name] for row in rows)]
        out.table(used, [[row[name] for name in used] for row in rows], machine_name(environment))
    for note in merged.notes:
        out.say(note)
    out.result(
        {
            "machines": [dict(environment) for environment in merged.machines],
            "rows": [
                {
                    "machine": merged.machines[row.machine]["machine_id"],
                    **cells(row),
                    "sha256": row.record["sha256"],
                }
                for row in merged.rows
            ],
            "notes": list(merged.notes),
        }
    )
