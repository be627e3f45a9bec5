"""Detectors that suppress in the graph: from their finished detections to candidates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from edgecv.errors import RuntimeFailure
from edgecv.postprocess.candidates import Candidates
from edgecv.postprocess.options import Array, Options, expect_shape, no_nan
from edgecv.postprocess.picking import class_numbers, input_size
from edgecv.results import Placement

Outputs = Mapping[str, Array]


def end2end(
    outputs: Outputs, options: Options, conf: float, placements: Sequence[Placement]
) -> Iterator[Candidates]:
    """``yolo-end2end``: YOLOv10 (arXiv:2405.14458) and other heads that need no NMS.

    One output ``[N, n, 6]``: x1, y1, x2, y2 in pixels of the input (relative to it with the
    option ``normalized``), score, class number.
    """
    raw = options.only_output(outputs)
    normalized = options.flag("normalized")
    expect_shape(raw, ("N", "n", 6), f"{options.where}: the output")
    for rows, placement in zip(raw, placements, strict=False):
        no_nan(rows[:, 4], options.where)
        rows = rows[rows[:, 4] > conf]
        boxes = rows[:, :4] * input_size(placement, rows.dtype) if normalized else rows[:, :4]
        yield Candidates(boxes, rows[:, 4], class_numbers(rows[:, 5], options))


def suppressed(
    outputs: Outputs, options: Options, conf: float, placements: Sequence[Placement]
) -> Iterator[Candidates]:
    """``detections``: NMS was done in the graph (EfficientNMS and its like).

    Four outputs, ``num`` ``[N]`` or ``[N, 1]``, ``boxes`` ``[N, n, 4]`` x1, y1, x2, y2 in pixels
    of the input (relative to it with the option ``normalized``), ``scores`` and ``classes`` ``[N,
    n]``; the first ``num`` of each picture count. Option ``outputs`` maps these four to the
    graph's own names.
    """
    num, boxes, scores, classes = (
        options.output(outputs, role) for role in ("num", "boxes", "scores", "classes")
    )
    normalized = options.flag("normalized")
    expect_shape(scores, ("N", "n"), f"{options.where}: output 'scores'")
    expect_shape(boxes, (*scores.shape, 4), f"{options.where}: output 'boxes'")
    expect_shape(classes, scores.shape, f"{options.where}: output 'classes'")
    if num.size != len(scores):
        raise RuntimeFailure(
            f"{options.where}: output 'num': expected one count a picture, got {list(num.shape)}"
        )
    for index, placement in enumerate(placements):
        count = int(num.reshape(-1)[index])
        if not 0 <= count <= scores.shape[1]:
            raise RuntimeFailure(
                f"{options.where}: output 'num' says {count} detections of {scores.shape[1]}"
            )
        no_nan(scores[index, :count], options.where)
        chosen = np.flatnonzero(scores[index, :count] > conf)
        box = boxes[index, chosen]
        yield Candidates(
            box * input_size(placement, box.dtype) if normalized else box,
            scores[index, chosen],
            class_numbers(classes[index, chosen], options),
        )
