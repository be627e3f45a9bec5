"""``edgecv gallery``: people enrolled and recognized by files on the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from edgecv.errors import InputError
from edgecv.faces import FacePipeline
from edgecv.gallery import Gallery, Settings
from edgecv.gallery.core import exists
from edgecv.model import load
from edgecv.progress import Progress, silent
from edgecv.workflows.pairs import METRIC, evaluate_pairs


def found_threshold(
    embedder: str | os.PathLike[str],
    detector: str | os.PathLike[str] | None,
    pairs: str | os.PathLike[str],
    far: float,
    backend: str = "auto",
    progress: Progress = silent,
) -> tuple[float, dict[str, Any]]:
    """The threshold that labelled ``pairs`` give at the false-accept rate ``far``, and its origin
    for the gallery's settings."""
    with load(embedder, backend=backend) as model:
        score = evaluate_pairs(
            model, pairs, detector=detector, backend=backend, far=far, progress=progress
        )
    origin = {
        "pairs": Path(pairs).name,
        "count": score.count,
        "wanted_far": far,
        "far": score.at_threshold.far,
        "far_bound": score.at_threshold.far_bound,
        "tar": score.at_threshold.tar,
        "accuracy_on_held_out_folds": score.accuracy,
    }
    return score.threshold, origin


def open_or_create(
    where: str | os.PathLike[str],
    pipeline: FacePipeline,
    *,
    threshold: float | None,
    origin: dict[str, Any],
    margin: float | None,
    metric: str | None,
    pooling: str | None,
) -> tuple[Gallery, bool]:
    """The gallery ``where``, made if it is not there, and whether it was.

    What is given is stored in it; a new one needs a threshold, an old one keeps its metric.
    """
    if not exists(where):
        if threshold is None:
            raise InputError(
                f"{where}: a new gallery needs a threshold: --pairs FILE finds it from labelled "
                f"pairs of pictures (--far RATE), or --threshold T states it"
            )
        settings = Settings(
            space=pipeline.space,
            metric=metric or METRIC,
            threshold=threshold,
            margin=margin or 0.0,
            pooling=pooling or "best",
            origin=origin,
        )
        return Gallery.create(where, settings), True
    gallery = Gallery.open(where, pipeline.space)
    if metric is not None and metric != gallery.settings.metric:
        raise InputError(
            f"{where}: this gallery compares by {gallery.settings.metric}; make a new one for "
            f"{metric}"
        )
    given: dict[str, Any] = {"margin": margin, "pooling": pooling}
    if threshold is not None:
        given |= {"threshold": threshold, "origin": origin}
    changes = {key: value for key, value in given.items() if value is not None}
    if changes:
        gallery.configure(**changes)
    return gallery, False
