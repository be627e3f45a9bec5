"""``edgecv adopt``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgecv.cli.options import LabelsOption, OutputOption
from edgecv.cli.output import JsonOption, Output


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="A third party's file.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.toml",
            help="What the file is: yolox, yolov8, yunet, ...; files by Ultralytics need none.",
        ),
    ] = None,
    labels: LabelsOption = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a third party's ONNX file its contract; the graph stays as it is."""
    from edgecv.workflows.adopt import adopt

    out = Output(as_json)
    result = adopt(model, recipe=recipe, labels=labels, output=output)
    spec = result.spec
    (tensor,) = spec.inputs
    shown = ", ".join(spec.labels[:5]) + (", ..." if len(spec.labels) > 5 else "")
    out.say(f"wrote {result.path}", "bold")
    out.pairs(
        {
            "model": f"{spec.name}, {spec.task}",
            "licence": result.licence or "not stated",
            "preparation": spec.preparation.describe(),
            "input": f"{tensor.name} {list(tensor.shape)} {tensor.dtype}",
            "outputs": ", ".join(f"{t.name} {list(t.shape)}" for t in spec.outputs),
            "decoding": spec.decoding.kind,
            "labels": f"{len(spec.labels)}: {shown}" if spec.labels else "none",
            "file": f"{result.size_bytes:,} bytes, opset {result.graph.opset}, {spec.precision}",
        }
    )
    if "AGPL" in result.licence:
        out.note(
            "AGPL-3.0: who ships this model, or offers it over a network, has to publish the "
            "source of the whole application, or needs a licence of its makers"
        )
    out.result(result.to_dict())
