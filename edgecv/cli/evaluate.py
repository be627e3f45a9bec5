"""``edgecv eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgecv.cli.options import BackendOption
from edgecv.cli.output import JsonOption, Output


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx file.")],
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A folder per class.")],
    backend: BackendOption = "auto",
    classes: Annotated[
        Path | None, typer.Option(help="Maps folder names to class indices.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Score this many pictures.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A JSON file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Score a model on labelled pictures."""
    from edgecv.files import sha256_of, write_json
    from edgecv.measure.report import EVAL_SCHEMA
    from edgecv.workflows.evaluate import evaluate

    out = Output(as_json)
    with out.progress() as progress:
        score = evaluate(
            model, dataset, backend=backend, classes=classes, limit=limit, progress=progress
        )
    out.table(
        ["pictures", "top-1", "top-5", "backend", "computes in"],
        [
            [
                score.count,
                f"{score.top1:.2%} ({score.correct1})",
                f"{score.top5:.2%} ({score.correct5})",
                score.backend,
                score.precision,
            ]
        ],
    )
    data = {
        "schema": EVAL_SCHEMA,
        "model": str(model),
        "sha256": sha256_of(model),
        "dataset": str(dataset),
        **score.to_dict(),
    }
    if output is not None:
        write_json(output, data)
    out.result(data)
