"""``edgecv eval`` of an embedding net: does it tell people apart, and from which score on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgecv.errors import InputError
from edgecv.evaluate.faces import read_pairs
from edgecv.faces import FacePipeline
from edgecv.gallery.folds import fold_hits
from edgecv.gallery.metrics import Vectors, check_vectors, pair_scores, worst_score
from edgecv.gallery.settings import comparison
from edgecv.gallery.thresholds import Choice, at_far, most_accurate, roc
from edgecv.model import Model
from edgecv.progress import Progress, silent
from edgecv.workflows.score import Score, common

FAR = 0.001  # the false-accept rate wanted where none is given
FARS = (0.1, 0.01, 0.001, 0.0001)


@dataclass(frozen=True)
class VerificationScore(Score):
    """How well pairs of pictures are told apart; rates from 0 to 1.

    ``accuracy`` and ``correct``: over ``folds`` folds, each judged by a threshold chosen on the
    others. ``threshold``: the one to use, the loosest whose false-accept rate on all pairs is at
    most ``far``; ``at_threshold`` and ``most_accurate`` say what the pairs themselves give there,
    which flatters both. ``auc``: the area under ``roc``, of which the points where it turns are
    kept (:meth:`edgecv.gallery.thresholds.Roc.corners`). ``no_face``: pictures without one,
    whose pairs count as not accepted.
    """

    same: int
    pictures: int
    accuracy: float
    accuracy_std: float
    correct: int
    folds: int
    fold_thresholds: tuple[float, ...]
    metric: str
    threshold: float
    far: float
    at_threshold: Choice
    most_accurate: Choice
    eer: float
    auc: float
    roc: Mapping[str, list[float]]
    tar_at_far: Mapping[str, float]
    same_mean: float
    different_mean: float
    no_face: tuple[str, ...]


def evaluate_pairs(
    embedder: Model,
    dataset: str | os.PathLike[str],
    *,
    detector: str | os.PathLike[str] | None = None,
    backend: str = "auto",
    metric: str | None = None,
    far: float = FAR,
    limit: int | None = None,
    progress: Progress = silent,
) -> VerificationScore:
    """Score the open model ``embedder`` on a pairs file (:func:`edgecv.evaluate.faces.read_pairs`).

    ``detector`` finds the faces, of which the largest is taken, and gives the landmarks that they
    are aligned by; without one the pictures are taken for aligned crops. ``metric`` is by default
    the likeness that the net has learned, or else cosine.
    """
    metric, weights = comparison(embedder.spec, metric)
    pairs = read_pairs(Path(dataset), limit)
    vectors: dict[int, Vectors] = {}
    no_face = []
    with FacePipeline(detector, embedder, backend=backend) as pipeline:
        for index, picture in enumerate(pairs.pictures):
            faces = pipeline(picture)
            if faces:
                vectors[index] = max(faces, key=lambda face: face.area).vector
            else:
                no_face.append(picture.name)
            progress("pictures", index + 1, len(pairs.pictures))
    has_face = np.array([index in vectors for index in range(len(pairs.pictures))])
    known = np.flatnonzero(has_face[pairs.left] & has_face[pairs.right])
    if not len(known):
        raise InputError(f"{dataset}: no face was found in any picture")
    left, right = (
        check_vectors(
            np.stack([vectors[int(side[i])] for i in known]), metric, None, str(dataset), weights
        )
        for side in (pairs.left, pairs.right)
    )
    found = pair_scores(left, right, metric, weights)
    scores = np.full(len(pairs.same), worst_score(metric, found))  # no face: not accepted
    scores[known] = found
    hits, thresholds = fold_hits(scores, pairs.same, pairs.folds, metric)
    by_fold = [float(hits[pairs.folds == fold].mean()) for fold in np.unique(pairs.folds)]
    curve = roc(scores, pairs.same, metric)
    chosen = at_far(curve, far)
    return VerificationScore(
        **common(embedder, len(scores)),
        same=int(pairs.same.sum()),
        pictures=len(pairs.pictures),
        accuracy=float(np.mean(by_fold)),
        accuracy_std=float(np.std(by_fold)),
        correct=int(hits.sum()),
        folds=len(by_fold),
        fold_thresholds=tuple(thresholds),
        metric=metric,
        threshold=chosen.threshold,
        far=far,
        at_threshold=chosen,
        most_accurate=most_accurate(curve),
        eer=curve.eer,
        auc=curve.auc,
        roc=curve.corners(),
        tar_at_far={f"{rate:g}": curve.tar_at(rate) for rate in FARS},
        same_mean=float(scores[pairs.same].mean()),
        different_mean=float(scores[~pairs.same].mean()),
        no_face=tuple(no_face),
    )
