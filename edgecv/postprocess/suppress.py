"""The suppression that a contract names: hard (greedy NMS), soft, or fusion.

Options of the decoding, beside ``iou``, ``max_det``, ``agnostic`` and ``measure``:

- ``nms`` (``hard``, ``soft`` or ``fusion``; ``hard``): drop what a better box overlaps
  (:mod:`~edgecv.postprocess.nms`), lower its score, or average it in
  (:mod:`~edgecv.postprocess.fusion`). For ``fusion``, and for ``soft`` with ``linear``, ``iou`` is
  the threshold.
- ``soft_method`` (``gaussian`` or ``linear``; ``gaussian``), ``sigma`` (number, 0.5; of
  ``gaussian``), ``min_score`` (number; ``conf``): of ``soft``. A lowered score below ``min_score``
  drops its box.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from edgecv.errors import SpecError
from edgecv.postprocess.candidates import Candidates
from edgecv.postprocess.fusion import METHODS, fuse_boxes, soft_nms
from edgecv.postprocess.nms import MEASURES, nms
from edgecv.postprocess.options import Options

HARD, SOFT, FUSION = KINDS = ("hard", "soft", "fusion")

# candidates of one picture -> the detections, best first
Suppression: TypeAlias = Callable[[Candidates], Candidates]


def suppression(options: Options, overlap: float, least: float) -> Suppression:
    """What ``options`` name, at the thresholds ``overlap`` (IoU) and ``least`` (score).

    Raises :class:`~edgecv.errors.SpecError` for a kind or a parameter that means nothing.
    """
    kind = options.choice("nms", KINDS, HARD)
    measure = options.choice("measure", MEASURES, "iou")
    if kind != HARD and measure != "iou":
        raise SpecError(
            f"{options.where}: nms {kind!r} compares iou; measure {measure!r} is for {HARD!r}"
        )
    return {HARD: _hard, SOFT: _soft, FUSION: _fusion}[kind](options, overlap, least)


def _hard(options: Options, overlap: float, least: float) -> Suppression:
    limit, agnostic = options.integer("max_det"), options.flag("agnostic", False)
    measure = options.choice("measure", MEASURES, "iou")

    def run(found: Candidates) -> Candidates:
        classes = None if agnostic else found.classes
        boxes, scores = found.boxes, found.scores
        return found.take(
            nms(boxes, scores, overlap, classes=classes, max_det=limit, measure=measure)
        )

    return run


def _soft(options: Options, overlap: float, least: float) -> Suppression:
    limit, agnostic = options.integer("max_det"), options.flag("agnostic", False)
    method = options.choice("soft_method", METHODS, METHODS[0])
    sigma = options.number("sigma", 0.5)
    if not sigma > 0:
        raise SpecError(f"{options.where}: option 'sigma' must be greater than 0, got {sigma:g}")
    floor = options.threshold("min_score", options.number("min_score", least))

    def run(found: Candidates) -> Candidates:
        keep, lowered = soft_nms(
            found.boxes,
            found.scores,
            method=method,
            sigma=sigma,
            threshold=overlap,
            min_score=floor,
            classes=None if agnostic else found.classes,
            max_det=limit,
        )
        return replace(found.take(keep), scores=lowered)

    return run


def _fusion(options: Options, overlap: float, least: float) -> Suppression:
    limit = options.integer("max_det")
    if options.flag("agnostic", False):
        raise SpecError(
            f"{options.where}: nms 'fusion' averages boxes of one class; it cannot be agnostic"
        )

    def run(found: Candidates) -> Candidates:
        if found.landmarks is not None:
            raise SpecError(
                f"{options.where}: nms 'fusion' averages boxes and leaves no landmarks; use 'hard'"
            )
        boxes, scores, classes = fuse_boxes(
            found.boxes,
            found.scores,
            threshold=overlap,
            classes=np.asarray(found.classes),
            max_det=limit,
        )
        return Candidates(boxes, scores, classes)

    return run
