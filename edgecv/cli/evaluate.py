"""``edgecv eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgecv.cli.options import BackendOption
from edgecv.cli.output import JsonOption, Output

if TYPE_CHECKING:
    from edgecv.workflows.pairs import VerificationScore


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx file.")],
    dataset: Annotated[
        Path, typer.Argument(metavar="DATASET", help="A folder per class, or a pairs file.")
    ],
    backend: BackendOption = "auto",
    classes: Annotated[
        Path | None, typer.Option(help="Maps folder names to class indices.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Score this many pictures.")] = None,
    detector: Annotated[
        Path | None, typer.Option("--detector", "-d", help="Finds the faces of a pairs file.")
    ] = None,
    far: Annotated[float, typer.Option(help="False-accept rate wanted of the threshold.")] = 0.001,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A JSON file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Score a model on labelled pictures."""
    from edgecv.files import write_json
    from edgecv.workflows.evaluate import ClassificationScore, evaluate

    out = Output(as_json)
    with out.progress() as progress:
        score = evaluate(
            model,
            dataset,
            backend=backend,
            classes=classes,
            limit=limit,
            detector=detector,
            far=far,
            progress=progress,
        )
    if isinstance(score, ClassificationScore):
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
    else:
        _show_pairs(out, score)
    data = {"model": str(model), "dataset": str(dataset), **score.to_dict()}
    if output is not None:
        write_json(output, data)
    out.result(data)


def _show_pairs(out: Output, score: VerificationScore) -> None:
    chosen = score.at_threshold
    out.table(
        ["pairs", "of one person", f"accuracy, {score.folds} folds", "EER", "backend"],
        [
            [
                score.count,
                score.same,
                f"{score.accuracy:.2%} ({score.correct})",
                f"{score.eer:.2%}",
                score.backend,
            ]
        ],
    )
    folds = f"{min(score.fold_thresholds):.3f} to {max(score.fold_thresholds):.3f}"
    out.pairs(
        {
            "threshold": f"{score.threshold:.4f} ({score.metric}), for FAR {score.far:g}: of all "
            f"pairs it accepts {chosen.far:.2%} of two people (95% sure: under "
            f"{chosen.far_bound:.2%}) and {chosen.tar:.2%} of one",
            "of the folds": f"{folds}, each chosen on the other folds",
            "TAR at FAR": ", ".join(f"{t:.2%} at {f}" for f, t in score.tar_at_far.items()),
        }
    )
    if score.no_face:
        out.warn(
            f"no face was found in {len(score.no_face)} of {score.pictures} pictures, such as "
            f"{score.no_face[0]}; their pairs count as not accepted"
        )
