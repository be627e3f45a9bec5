"""Softer ways than dropping: Soft-NMS lowers scores, weighted box fusion averages boxes.

Candidates are those of :func:`edgecv.postprocess.nms.nms`, and ties, NaN, infinite and empty boxes
mean the same: of equal scores the lower index comes first, broken candidates are never kept, an
empty box overlaps with nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.postprocess.boxes import Floats, iou
from edgecv.postprocess.nms import by_score, check_candidates, check_threshold, finite_rows

METHODS = ("gaussian", "linear")


def soft_nms(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    *,
    method: str = "gaussian",
    sigma: float = 0.5,
    threshold: float = 0.3,
    min_score: float = 0.001,
    classes: NDArray[Any] | None = None,
    max_det: int | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Soft-NMS (Bodla et al. 2017, arXiv:1704.04503): indices ``[K]`` and their lowered scores.

    The best box is taken, and the scores of the others of its class fall by their IoU with it:
    times ``exp(-iou^2 / sigma)`` (``gaussian``), or times ``1 - iou`` where IoU exceeds
    ``threshold`` (``linear``); then the next best, until none has ``min_score`` or more. In the
    order of the lowered scores.
    """
    boxes, scores, groups = check_candidates(boxes, scores, classes)
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    if not sigma > 0:
        raise InputError(f"sigma must be greater than 0, got {sigma}")
    check_threshold(threshold, "threshold")
    rest = np.flatnonzero(finite_rows(boxes, scores))
    current = scores[rest].astype(np.float64)
    kept: list[int] = []
    lowered: list[float] = []
    while len(rest) and (max_det is None or len(kept) < max_det):
        enough = current >= min_score
        rest, current = rest[enough], current[enough]
        if not len(rest):
            break
        best = int(current.argmax())  # the first of equals
        index = int(rest[best])
        kept.append(index)
        lowered.append(float(current[best]))
        rest, current = np.delete(rest, best), np.delete(current, best)
        overlap = iou(boxes[index : index + 1], boxes[rest])[0].astype(np.float64)
        if groups is not None:
            overlap[groups[rest] != groups[index]] = 0
        if method == "gaussian":
            current = current * np.exp(-(overlap**2) / sigma)
        else:
            current = np.where(overlap > threshold, current * (1 - overlap), current)
    return np.array(kept, np.int64), np.array(lowered, np.float64)


def fuse_boxes(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    *,
    threshold: float = 0.55,
    classes: NDArray[Any] | None = None,
    models: int = 1,
    max_det: int | None = None,
) -> tuple[Floats, NDArray[np.float64], NDArray[np.int64]]:
    """Weighted box fusion (Solovyev et al. 2019, arXiv:1910.13302).

    The candidates of all ``models`` nets (or views of one picture), one after the other. From the
    best score down, each joins the fused box of its class that it overlaps most, if IoU exceeds
    ``threshold``, or begins one. A fused box is the mean of its members weighted by their scores
    (which must not be negative); its score is their mean, times ``min(members, models) / models``:
    what only one of three nets sees counts a third.

    Returns boxes ``[K, 4]``, scores ``[K]`` and classes ``[K]`` (0 without ``classes``), best
    score first; of equal ones that with the better first member.
    """
    boxes, scores, groups = check_candidates(boxes, scores, classes)
    check_threshold(threshold, "threshold")
    if models < 1:
        raise InputError(f"models must be at least 1, got {models}")
    usable = finite_rows(boxes, scores)
    if (scores[usable] < 0).any():
        raise InputError("scores are the weights of the mean and must not be negative")
    order = by_score(scores, usable)
    groups = np.zeros(len(boxes), np.int64) if groups is None else groups
    fused = np.empty((len(order), 4), np.float64)
    sums, counts = np.zeros(len(order)), np.zeros(len(order), np.int64)
    weighted = np.zeros((len(order), 4))
    owner = np.empty(len(order), np.int64)
    found = 0
    for index in order:
        box, score = boxes[index].astype(np.float64), float(scores[index])
        same = np.flatnonzero(owner[:found] == groups[index])
        overlap = iou(box[None], fused[same])[0]
        place = found
        if len(same) and overlap.max() > threshold:
            place = int(same[overlap.argmax()])
        else:
            owner[found] = groups[index]
            found += 1
        sums[place] += score
        counts[place] += 1
        weighted[place] += score * box
        fused[place] = weighted[place] / sums[place] if sums[place] > 0 else box
    means = sums[:found] / counts[:found]
    means *= np.minimum(counts[:found], models) / models
    rank = by_score(means)[:max_det]
    return fused[rank].astype(boxes.dtype), means[rank], owner[rank]
