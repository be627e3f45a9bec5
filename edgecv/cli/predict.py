"""``edgecv predict``."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgecv.cli.options import BackendOption, ModelArgument
from edgecv.cli.output import JsonOption, Output
from edgecv.errors import InputError

if TYPE_CHECKING:
    from edgecv.workflows.predict import Prediction
    from edgecv.workflows.saving import Saver

INTERRUPTED = 130


def command(
    model: ModelArgument,
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
        typer.Option(
            help="Write drawn pictures and videos, segmenters' masks of pictures, and "
            "results.jsonl, to this folder."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Answer pictures, videos and cameras, in order. Exit 0 only if all could be read.

    Ctrl-C ends a camera; what is done is kept, and the exit code is 130.
    """
    from edgecv.model import load
    from edgecv.runtimes.base import RuntimeOptions
    from edgecv.workflows.predict import predict
    from edgecv.workflows.saving import Saver
    from edgecv.workflows.sources import find_sources

    out = Output(as_json)
    found, others = find_sources(sources, save)
    if others:
        out.note(f"left out {len(others)} files that are no pictures, such as {others[0]}")
    told = _Told()
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(out.progress())  # an engine that has to be built is heard of
        options = RuntimeOptions(progress=progress)
        opened = stack.enter_context(load(model, backend=backend, options=options))
        saver = stack.enter_context(Saver(save, found)) if save is not None else None
        backend_name = opened.info.backend
        answers = predict(opened, found, progress, conf=conf, iou=iou, note=out.note)
        _tell(answers, saver, told, out)
    out.result(
        {
            "results": told.results,
            "failed": told.failed,
            "left_out": len(others),
            "interrupted": told.interrupted,
            "backend": backend_name,
        }
    )
    if told.interrupted:
        raise typer.Exit(INTERRUPTED)
    if told.failed and not as_json:
        raise InputError(
            f"{len(told.failed)} of {told.count} pictures could not be read (named above)"
        )
    if told.failed:
        raise typer.Exit(InputError.exit_code)


@dataclass
class _Told:
    """What was answered so far; the ``results`` are kept for programs only."""

    results: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    count: int = 0
    interrupted: bool = False


def _tell(
    answers: Generator[Prediction, None, None], saver: Saver | None, told: _Told, out: Output
) -> None:
    """Say, and save, each answer as it comes, until the last or Ctrl-C."""
    try:
        with contextlib.closing(answers):
            for prediction in answers:
                told.count += 1
                entry = saver.save(prediction) if saver is not None else prediction.to_dict()
                if prediction.result is None:
                    told.failed.append(entry)
                    out.errors.print(f"not read: {prediction.error}", style="red", markup=False)
                elif out.as_json:
                    told.results.append(entry)
                else:
                    typer.echo(str(prediction))
    except KeyboardInterrupt:
        told.interrupted = True
        out.note(f"interrupted after {told.count} pictures; what is done is kept")
