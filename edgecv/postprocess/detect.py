"""Detection: from the output tensors of every kind of detector to :class:`Detections`.

A decoder (in :mod:`~edgecv.postprocess.yolo`, :mod:`~edgecv.postprocess.faces` and
:mod:`~edgecv.postprocess.finished`) turns one
model family's tensors into :class:`Candidates` per picture, in pixels of the model's input. What
follows is the same for all: suppression, the way back to the source picture, clipping.

Options that every kind of the contract has:

- ``conf`` (number): candidates need a score *greater* than this
- ``iou`` (number): NMS threshold; not read where the graph has suppressed already
- ``max_det`` (integer): at most so many detections a picture
- ``agnostic`` (bool, false): suppress across classes
- ``measure`` (``iou`` or ``diou``, ``iou``): what NMS compares, see :mod:`~edgecv.postprocess.nms`
- ``nms`` (``hard``, ``soft`` or ``fusion``; ``hard``) and its parameters: see
  :mod:`~edgecv.postprocess.suppress`
- ``clip`` (bool, true): cut boxes at the picture's borders. YOLOX's own evaluation does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from edgecv.errors import RuntimeFailure
from edgecv.postprocess import faces, finished, yolo
from edgecv.postprocess.boxes import clip, to_picture
from edgecv.postprocess.candidates import Candidates
from edgecv.postprocess.nms import by_score
from edgecv.postprocess.options import Array, Options
from edgecv.postprocess.suppress import suppression
from edgecv.results import Detections, Placement
from edgecv.spec import ModelSpec

Decoder = Callable[[Mapping[str, Array], Options, float, Sequence[Placement]], Iterator[Candidates]]

DECODERS: Mapping[str, Decoder] = {
    "yolo-grid": yolo.grid_v1,
    "yolo-anchors": yolo.anchors,
    "yolox": yolo.yolox,
    "yolo-anchor-free": yolo.anchor_free,
    "yolo-end2end": finished.end2end,
    "fastestdet": yolo.fastestdet,
    "yunet": faces.yunet,
    "rfb": faces.rfb,
    "detections": finished.suppressed,
}
SUPPRESSED = ("yolo-end2end", "detections")  # kinds whose graph has done it

MAX_CANDIDATES = 30_000  # of one picture that go into suppression, the best ones


def decode(
    outputs: Mapping[str, Array],
    spec: ModelSpec,
    placements: Sequence[Placement],
    conf: float | None = None,
    iou: float | None = None,
) -> list[Detections]:
    """The detections of each picture of the batch, best first, in pixels of the source.

    ``conf`` and ``iou`` replace the contract's. Raises :class:`~edgecv.errors.SpecError` for an
    option that is missing or wrong, :class:`~edgecv.errors.RuntimeFailure` for tensors that are
    not what the contract says or hold NaN.
    """
    options = Options(spec)
    kind = spec.decoding.kind
    least = options.threshold("conf", conf)
    overlap = None if kind in SUPPRESSED else options.threshold("iou", iou)
    limit = options.integer("max_det")
    suppress = None if overlap is None else suppression(options, overlap, least)
    inside = options.flag("clip", True)
    results = []
    for found, placement in zip(
        DECODERS[kind](outputs, options, least, placements), placements, strict=True
    ):
        _check(found, options)
        if suppress is None:
            best = found.take(by_score(found.scores)[:limit])
        else:
            if len(found.scores) > MAX_CANDIDATES:
                found = found.take(by_score(found.scores)[:MAX_CANDIDATES])
            best = suppress(found)
        results.append(_place(best, spec.labels, placement, inside))
    return results


def _check(found: Candidates, options: Options) -> None:
    if not np.isfinite(found.boxes).all():
        raise RuntimeFailure(
            f"{options.where}: boxes with NaN or infinite coordinates came out; the contract's "
            f"options do not fit the model, or its precision does not hold its values (try fp32)"
        )


def _place(
    found: Candidates, labels: tuple[str, ...], placement: Placement, inside: bool
) -> Detections:
    boxes = to_picture(found.boxes, placement)
    if inside:
        boxes = clip(boxes, placement.width, placement.height)
    points = found.landmarks
    return Detections(
        boxes=boxes.astype(np.float32, copy=False),
        scores=found.scores.astype(np.float32, copy=False),
        classes=found.classes.astype(np.int64, copy=False),
        labels=labels,
        landmarks=None if points is None else to_picture(points, placement).astype(np.float32),
    )
