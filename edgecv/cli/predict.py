"""``edgecv predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgecv.cli.options import BackendOption
from edgecv.cli.output import JsonOption, Output
from edgecv.errors import InputError


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx file.")],
    sources: Annotated[list[Path], typer.Argument(metavar="SOURCE...", help="Pictures, folders.")],
    backend: BackendOption = "auto",
    conf: Annotated[float | None, typer.Option(help="Least score of a box (detectors).")] = None,
    iou: Annotated[float | None, typer.Option(help="NMS overlap (detectors).")] = None,
    save: Annotated[Path | None, typer.Option(help="Write drawn pictures to this folder.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Answer pictures, in order. Exit 0 only if every one could be read."""
    from edgecv.model import load
    from edgecv.workflows.predict import find_sources, predict, save_drawn, saved_names

    out = Output(as_json)
    paths = find_sources(sources)
    names = saved_names(paths)
    results, failed = [], []
    with load(model, backend=backend) as opened, out.progress() as progress:
        opened.check_thresholds(conf, iou)
        answers = predict(opened, paths, progress, conf=conf, iou=iou)
        for index, prediction in enumerate(answers):
            if prediction.result is None:
                failed.append(prediction)
                out.errors.print(f"not read: {prediction.error}", style="red", markup=False)
                continue
            entry = {"source": str(prediction.source), **prediction.result.to_dict()}
            if save is not None:
                entry["saved"] = str(save_drawn(prediction, save, names[index]))
            results.append(entry)
            if not as_json:
                typer.echo(f"{prediction.source}: {prediction.result}")
        backend_name = opened.info.backend
    out.result(
        {
            "results": results,
            "failed": [{"source": str(p.source), "error": str(p.error)} for p in failed],
            "backend": backend_name,
        }
    )
    if failed and not as_json:
        raise InputError(f"{len(failed)} of {len(paths)} pictures could not be read (named above)")
    if failed:
        raise typer.Exit(InputError.exit_code)
