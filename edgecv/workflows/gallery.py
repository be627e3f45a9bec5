"""``edgecv gallery``: people enrolled and recognized by files on the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from edgecv.errors import InputError
from edgecv.faces import FacePipeline
from edgecv.gallery import Gallery, Settings, comparison
from edgecv.gallery.core import exists
from edgecv.gallery.engine import check_name, refuse_known
from edgecv.model import load
from edgecv.progress import Progress, silent
from edgecv.workflows.pairs import evaluate_pairs


def found_threshold(
    embedder: str | os.PathLike[str],
    detector: str | os.PathLike[str] | None,
    pairs: str | os.PathLike[str],
    far: float,
    backend: str = "auto",
    metric: str | None = None,
    progress: Progress = silent,
) -> tuple[float, dict[str, Any]]:
    """The threshold that labelled ``pairs`` give at the false-accept rate ``far``, and its origin
    for the gallery's settings. ``metric`` is by default the net's own
    (:func:`~edgecv.gallery.settings.comparison`)."""
    with load(embedder, backend=backend) as model:
        score = evaluate_pairs(
            model,
            pairs,
            detector=detector,
            backend=backend,
            metric=metric,
            far=far,
            progress=progress,
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


def metric_of(where: str | os.PathLike[str], metric: str | None) -> str | None:
    """The metric of the gallery ``where``, if it is there, or else the ``metric`` that is wanted.

    One that the gallery does not have is refused.
    """
    if not exists(where):
        return metric
    with Gallery.open(where) as gallery:
        _check_metric(gallery, metric)
        return gallery.settings.metric


def open_or_create(
    where: str | os.PathLike[str],
    pipeline: FacePipeline,
    name: str,
    *,
    extend: bool,
    threshold: float | None,
    origin: dict[str, Any],
    margin: float | None,
    metric: str | None,
    pooling: str | None,
) -> tuple[Gallery, bool]:
    """The gallery ``where`` to enrol ``name`` in, made if it is not there, and whether it was.

    Who is there already is refused, unless ``extend``, before anything is made or changed: a
    command that fails decides nothing. What is given is stored in it; an old one keeps its
    metric. A new one compares by the likeness that the net has learned, or else by cosine, and
    needs a threshold: also a likeness, whose 0.5 says that both are equally likely where half of
    all pairs are of one person, as in training and at no door.
    """
    name = check_name(name)
    if not exists(where):
        metric, weights = comparison(pipeline.embedder.spec, metric)
        if threshold is None:
            raise InputError(
                f"{where}: a new gallery needs a threshold: --pairs FILE finds it from labelled "
                f"pairs of pictures (--far RATE), or --threshold T states it"
            )
        settings = Settings(
            space=pipeline.space,
            metric=metric,
            threshold=threshold,
            margin=margin or 0.0,
            pooling=pooling or "best",
            weights=weights,
            origin=origin,
        )
        return Gallery.create(where, settings), True
    gallery = Gallery.open(where, pipeline.space)
    _check_metric(gallery, metric)
    if not extend and len(gallery.engine.vectors_of(name)):
        refuse_known([name], [name], gallery.engine.where)
    given: dict[str, Any] = {"margin": margin, "pooling": pooling}
    if threshold is not None:
        given |= {"threshold": threshold, "origin": origin}
    changes = {key: value for key, value in given.items() if value is not None}
    if changes:
        gallery.configure(**changes)
    return gallery, False


def _check_metric(gallery: Gallery, metric: str | None) -> None:
    own = gallery.settings.metric
    if metric is not None and metric != own:
        raise InputError(
            f"{gallery.engine.where}: this gallery compares by {own}; make a new one for {metric}"
        )
