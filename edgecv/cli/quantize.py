"""``edgecv quantize``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgecv.cli.options import TARGETS, OutputOption, PixelsColorOption, PixelsOption, pixels_of
from edgecv.cli.output import JsonOption, Output
from edgecv.errors import InputError

if TYPE_CHECKING:
    from edgecv.workflows.quantresult import QuantizeResult


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="An FP32 file.")],
    calibration: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Pictures that give the ranges (required).")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DATASET", help="Pictures, best labelled, that prove the file."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar=TARGETS, help="What will run it; default: this machine's onnxruntime."
        ),
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(metavar="POINTS", help="The most it may lose.")
    ] = None,
    keep_float: Annotated[
        list[str] | None, typer.Option(metavar="NODE", help="A node that stays in float.")
    ] = None,
    pixels: PixelsOption = False,
    pixels_color: PixelsColorOption = None,
    seed: Annotated[int, typer.Option(help="Which pictures calibrate.")] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Write the file though it falls short.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The proof as one self-contained page.")
    ] = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Quantize an FP32 file to INT8, and prove what became of it."""
    from edgecv.workflows.calibration import FEW
    from edgecv.workflows.quantize import quantize

    out = Output(as_json)
    if calibration is None:
        raise InputError(
            "quantize needs --calibration DIR: a folder of pictures like those that the model will "
            f"see, {FEW} or more. Without any, `edgecv export NAME --precision int8` makes "
            "synthetic ones from the BatchNorms of the torch net, which an ONNX file has no more"
        )
    with out.progress() as progress:
        result = quantize(
            model,
            calibration=calibration,
            data=data,
            target=target,
            max_drop=max_drop,
            keep_float=keep_float or [],
            pixels=pixels_of(pixels, pixels_color),
            seed=seed,
            force=force,
            html=html,
            output=output,
            progress=progress,
            warn=out.warn,
        )
    show(result, out)
    out.result(result.to_dict())


def show(result: QuantizeResult, out: Output) -> None:
    """The proof, as a table for people."""
    from edgecv.workflows.quantresult import summary

    out.say(f"wrote {result.path}", "bold")
    out.pairs(summary(result))
    worst = result.proof.layers[:5]
    if worst:
        out.table(
            ("layer", "operator", "SQNR dB", "multiply-adds"),
            [(one.name, one.operator, f"{one.sqnr_db:.1f}", f"{one.macs:,}") for one in worst],
            title=f"worst of {len(result.proof.layers)} layers, each by itself",
        )
