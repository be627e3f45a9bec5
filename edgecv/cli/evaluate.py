"""``edgecv eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgecv.cli.options import BackendOption, MetricOption, ModelArgument
from edgecv.cli.output import JsonOption, Output

WORST = 5  # classes of which the figure is shown


def command(
    model: ModelArgument,
    dataset: Annotated[
        Path,
        typer.Argument(
            metavar="DATASET",
            help="A folder per class; data.yaml, or its folder, or COCO JSON; images and masks; "
            "a CSV file of points; a pairs file.",
        ),
    ],
    backend: BackendOption = "auto",
    split: Annotated[
        str | None, typer.Option(help="Which one of a data.yaml: train, val (default), test.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Maps the data set's class names to indices.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Score this many pictures, always the same ones.")
    ] = None,
    detector: Annotated[
        Path | None, typer.Option("--detector", "-d", help="Finds the faces of a pairs file.")
    ] = None,
    metric: MetricOption = None,
    far: Annotated[
        float, typer.Option(help="False-accept rate wanted of a pairs file's threshold.")
    ] = 0.001,
    crops: Annotated[
        int, typer.Option(help="Looks at each picture, averaged: 1, 2 (mirrored), 5 or 10.")
    ] = 1,
    ensemble: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Another model whose probabilities are averaged in."),
    ] = None,
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
            model,
            dataset,
            backend=backend,
            split=split,
            classes=classes,
            limit=limit,
            detector=detector,
            metric=metric,
            far=far,
            crops=crops,
            ensemble=ensemble or (),
            progress=progress,
        )
    data = {
        "schema": EVAL_SCHEMA,
        "model": str(model),
        "sha256": sha256_of(model),
        "dataset": str(dataset),
        **score.to_dict(),
    }
    _show(data, out)
    if output is not None:
        write_json(output, data)
    out.result(data)


def _show(data: dict[str, Any], out: Output) -> None:
    from edgecv.evaluate.coco import MIN_SCORE

    columns = {**_columns(data), "ran on": f"{data['backend']}, {data['precision']}"}
    out.pairs(columns, f"{data['model']} on {data['dataset']}")
    if data.get("conf", 0) > MIN_SCORE:
        out.note(
            f"NMS in this file's graph drops what scores {data['conf']:g} or less, so this is the "
            f"AP of that operating point; the file without NMS in its graph scores higher"
        )
    if per_class := data.get("per_class"):
        worst = sorted(per_class.items(), key=lambda item: item[1])[:WORST]
        out.say("worst classes: " + ", ".join(f"{name} {value:.2%}" for name, value in worst))
    if data.get("no_face"):
        out.warn(
            f"no face was found in {len(data['no_face'])} of {data['pictures']} pictures, such as "
            f"{data['no_face'][0]}; their pairs count as not accepted"
        )


def _columns(data: dict[str, Any]) -> dict[str, str | int]:
    """The figures of one task's score, as they are shown."""

    def rate(key: str) -> str:
        return "none" if data[key] is None else f"{data[key]:.2%}"

    if data["task"] == "classify":
        return {
            "pictures": data["count"],
            "top-1": f"{rate('top1')} ({data['correct1']})",
            "top-5": f"{rate('top5')} ({data['correct5']})",
        }
    if data["task"] == "detect":
        return {
            "pictures": data["count"],
            "objects": data["objects"],
            "AP": rate("ap"),
            "AP50": rate("ap50"),
            "AP75": rate("ap75"),
            "small": rate("ap_small"),
            "medium": rate("ap_medium"),
            "large": rate("ap_large"),
        }
    if data["task"] == "embed":
        chosen, folds = data["at_threshold"], data["fold_thresholds"]
        return {
            "pairs": f"{data['count']}, {data['same']} of one person",
            f"accuracy, {data['folds']} folds": f"{rate('accuracy')} ({data['correct']} right)",
            "their thresholds": f"{min(folds):.3f} to {max(folds):.3f}, each of the other folds",
            "EER": rate("eer"),
            "area under the ROC": rate("auc"),
            "TAR at FAR": ", ".join(f"{t:.2%} at {f}" for f, t in data["tar_at_far"].items()),
            f"threshold for FAR {data['far']:g}": f"{data['threshold']:.4f} ({data['metric']}); of "
            f"all pairs it accepts {chosen['far']:.2%} of two people (95% sure: under "
            f"{chosen['far_bound']:.2%}) and {chosen['tar']:.2%} of one",
        }
    if data["task"] == "landmarks":
        return {
            "pictures": data["count"],
            "points": data["points"],
            "normalized mean error": rate("nme"),
            "nearer than a tenth": rate("near"),
        }
    return {"pictures": data["count"], "mIoU": rate("miou"), "pixels right": rate("accuracy")}
