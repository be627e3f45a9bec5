"""``edgecv build``."""

from __future__ import annotations

from typing import Annotated

import typer

from edgecv.cli.options import ModelArgument, OutputOption
from edgecv.cli.output import JsonOption, Output
from edgecv.errors import InputError


def command(
    model: ModelArgument,
    backend: Annotated[str, typer.Option(metavar="tensorrt|tensorrt-rtx", help="Who builds.")],
    gpu: Annotated[
        str | None, typer.Option(metavar="sm86,...", help="For which GPUs; default: this one.")
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=LEAST,USUAL,MOST", help="The range of a symbolic size."),
    ] = None,
    tf32: Annotated[bool, typer.Option("--tf32", help="Let FP32 products round to TF32.")] = False,
    dla_core: Annotated[int | None, typer.Option(help="A Jetson's DLA core (tensorrt).")] = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compile a model to an engine ahead of time; tensorrt-rtx needs no GPU for it."""
    from edgecv.workflows.build import build

    out = Output(as_json)
    with out.progress() as progress:
        built = build(
            model,
            backend=backend,
            gpus=gpu.split(",") if gpu else (),
            shapes=dict(map(_shape, shape or [])),
            tf32=tf32,
            dla_core=dla_core,
            output=output,
            progress=progress,
        )
    header = built.header
    out.say(f"wrote {built.path}", "bold")
    out.pairs(
        {
            "built by": f"{header.backend} {header.library_version} in {built.seconds:.1f} s",
            "for": ", ".join(header.gpus),
            "file": f"{built.size_bytes:,} bytes",
            "sizes": ", ".join(f"{k} {a} to {c}" for k, (a, _, c) in header.profile.items())
            or "fixed",
            "computes": ", ".join(f"{count} in {name}" for name, count in header.nodes.items()),
        }
    )
    out.result(built.to_dict())


def _shape(text: str) -> tuple[str, tuple[int, int, int]]:
    name, _, sizes = text.partition("=")
    try:
        least, usual, most = map(int, sizes.split(","))
    except ValueError as error:
        raise InputError(f"--shape {text}: expected NAME=LEAST,USUAL,MOST") from error
    return name, (least, usual, most)
