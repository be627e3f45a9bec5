"""Options that several commands share, and the parsing of their values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgecv.errors import InputError

TARGETS = "onnxruntime-x86|onnxruntime-x86-avx2|onnxruntime-arm|openvino|tensorrt"

ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx file.")]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="The file to write.")]
LabelsOption = Annotated[Path | None, typer.Option(help="Class names, one per line.")]
PixelsOption = Annotated[
    bool, typer.Option("--pixels-in", help="The file takes uint8 pixels, height x width x channel.")
]
PixelsColorOption = Annotated[
    str | None,
    typer.Option(
        metavar="rgb|bgr",
        help="With --pixels-in: the order of the channels, as the camera gives them (OpenCV: bgr); "
        "default: the net's.",
    ),
]
BackendOption = Annotated[
    str, typer.Option("--backend", metavar="NAME", help="A name of `edgecv backends`, or auto.")
]
MetricOption = Annotated[
    str | None,
    typer.Option(
        metavar="METRIC",
        help="cosine, euclidean, squared-euclidean, chi-square, likeness (default: the likeness "
        "that the net has learned, or else cosine).",
    ),
]


def pixels_of(pixels: bool, color: str | None) -> bool | str:
    """What ``--pixels-in`` and ``--pixels-color`` ask for together."""
    if color is not None and not pixels:
        raise InputError("--pixels-color is the order of --pixels-in's channels: give both")
    return color or pixels


def floats(text: str | None, flag: str) -> tuple[float, ...] | None:
    """``0.5`` or ``0.485,0.456,0.406``."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(
            f"{flag} {text}: expected one number, or one per channel with commas between"
        ) from error
