"""``edgecv predict``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer

from edgecv.cli.options import BackendOption
from edgecv.cli.output import JsonOption, Output
from edgecv.errors import InputError

INTERRUPTED = 130


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx file.")],
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...", help="Pictures, folders, video files, camera:0, camera:csi."
        ),
    ],
    backend: BackendOption = "auto",
    conf: Annotated[float | None, typer.Option(help="Least score of a box (detectors).")] = None,
    iou: Annotated[float | None, typer.Option(help="NMS overlap (detectors).")] = None,
    save: Annotated[
        Path | None,
        typer.Option(help="Write drawn pictures and videos, and results.jsonl, to this folder."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Answer pictures, videos and cameras, in order. Exit 0 only if all could be read.

    Ctrl-C ends a camera; what is done is kept, and the exit code is 130.
    """
    from edgecv.model import load
    from edgecv.workflows.predict import predict
    from edgecv.workflows.saving import Saver
    from edgecv.workflows.sources import find_sources

    out = Output(as_json)
    found, others = find_sources(sources)
    if others:
        out.note(f"left out {len(others)} files that are no pictures, such as {others[0]}")
    results: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    count, interrupted = 0, False
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(load(model, backend=backend))
        saver = stack.enter_context(Saver(save, found)) if save is not None else None
        progress = stack.enter_context(out.progress())
        backend_name = opened.info.backend
        answers = predict(opened, found, progress, conf=conf, iou=iou, note=out.note)
        try:
            with contextlib.closing(answers):
                for prediction in answers:
                    count += 1
                    path = saver.save(prediction) if saver is not None else None
                    entry = prediction.to_dict() | ({"saved": str(path)} if path else {})
                    if prediction.result is None:
                        failed.append(entry)
                        out.errors.print(f"not read: {prediction.error}", style="red", markup=False)
                    elif as_json:
                        results.append(entry)
                    else:
                        typer.echo(str(prediction))
        except KeyboardInterrupt:
            interrupted = True
            out.note(f"interrupted after {count} pictures; what is done is kept")
    out.result(
        {
            "results": results,
            "failed": failed,
            "left_out": len(others),
            "interrupted": interrupted,
            "backend": backend_name,
        }
    )
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if failed and not as_json:
        raise InputError(f"{len(failed)} of {count} pictures could not be read (named above)")
    if failed:
        raise typer.Exit(InputError.exit_code)
