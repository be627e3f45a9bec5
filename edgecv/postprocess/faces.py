"""Face detectors: YuNet and Ultra-Light-Fast (RFB-320)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from edgecv.postprocess.activations import exp
from edgecv.postprocess.candidates import Candidates, grid
from edgecv.postprocess.options import Array, Options, expect_shape, no_nan
from edgecv.results import Placement

POINTS = 5  # eye, eye (the one at the picture's left first), nose, mouth corner, mouth corner


def yunet(
    outputs: Mapping[str, Array], options: Options, conf: float, placements: Sequence[Placement]
) -> Iterator[Candidates]:
    """YuNet (Wu et al. 2023, doi:10.1007/s11633-023-1423-y): one class, 5 landmarks.

    Per stride S of the option ``strides``, four outputs over the cells of the grid, row by row:
    ``cls_S`` and ``obj_S`` ``[N, cells, 1]``, whose geometric mean (both cut to 0..1) is the
    score; ``bbox_S`` ``[N, cells, 4]``: centre less cell and log size, in cells; ``kps_S``
    ``[N, cells, 10]``: x and y of five points less cell, in cells.
    """
    strides = options.strides()
    for index, placement in enumerate(placements):
        height, width = placement.input_height, placement.input_width
        parts = []
        for what, channels in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 2 * POINTS)):
            tensors = []
            for stride in strides:
                name = f"{what}_{stride}"
                tensor = options.output(outputs, name)
                cells = (height // stride) * (width // stride)
                expect_shape(tensor, ("N", cells, channels), f"{options.where}: output {name!r}")
                tensors.append(tensor[index])
            parts.append(np.concatenate(tensors))
        cls, obj, bbox, kps = parts
        scores = np.sqrt(np.clip(cls[:, 0], 0, 1) * np.clip(obj[:, 0], 0, 1))
        no_nan(scores, options.where)
        chosen = np.flatnonzero(scores > conf)
        x, y, stride_of = grid(height, width, strides)[:, chosen]
        cell = np.stack([x, y], axis=1)
        scale = stride_of[:, None]
        bbox = bbox[chosen]
        center, half = (bbox[:, :2] + cell) * scale, exp(bbox[:, 2:]) * scale * 0.5
        points = kps[chosen].reshape(-1, POINTS, 2) + cell[:, None]
        yield Candidates(
            np.concatenate([center - half, center + half], axis=1),
            scores[chosen],
            np.zeros(len(chosen), np.int64),
            points * scale[:, None],
        )


def rfb(
    outputs: Mapping[str, Array], options: Options, conf: float, placements: Sequence[Placement]
) -> Iterator[Candidates]:
    """Ultra-Light-Fast-Generic-Face-Detector (RFB-320 and slim): one class, no landmarks.

    Output ``scores`` ``[N, priors, 2]``: probabilities of background and face; output ``boxes``
    ``[N, priors, 4]``: corners relative to the input, decoded in the graph.
    """
    scores, boxes = (options.output(outputs, name) for name in ("scores", "boxes"))
    swapped = "are the two outputs swapped?"
    expect_shape(scores, ("N", "priors", 2), f"{options.where}: output 'scores'", swapped)
    expect_shape(boxes, ("N", scores.shape[1], 4), f"{options.where}: output 'boxes'", swapped)
    for index, placement in enumerate(placements):
        face = scores[index, :, 1]
        no_nan(face, options.where)
        chosen = np.flatnonzero(face > conf)
        sizes = np.array([placement.input_width, placement.input_height] * 2, boxes.dtype)
        yield Candidates(
            boxes[index, chosen] * sizes, face[chosen], np.zeros(len(chosen), np.int64)
        )
