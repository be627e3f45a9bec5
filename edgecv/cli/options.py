"""Options that several commands share, and the parsing of their values."""

from __future__ import annotations

from typing import Annotated

import typer

from edgecv.errors import InputError

TARGETS = "onnxruntime-x86|onnxruntime-x86-avx2|onnxruntime-arm|openvino|tensorrt"

BackendOption = Annotated[
    str, typer.Option("--backend", metavar="NAME", help="A name of `edgecv backends`, or auto.")
]


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
