"""Landmarks: points of the model's input to points of the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgecv.errors import RuntimeFailure
from edgecv.postprocess.boxes import to_picture
from edgecv.postprocess.options import Array, Options
from edgecv.results import Landmarks, Placement
from edgecv.spec import ModelSpec


def decode(
    outputs: Mapping[str, Array],
    spec: ModelSpec,
    placements: Sequence[Placement],
    conf: float | None = None,
    iou: float | None = None,
) -> list[Landmarks]:
    """One :class:`Landmarks` per picture, from one output; ``conf`` and ``iou`` are None.

    ``[N, K, 2]`` or ``[N, 2 K]`` of x and y in turn, or with the option ``scored`` (bool)
    ``[N, K, 3]`` or ``[N, 3 K]``, a score from 0 to 1 behind each pair. Option ``normalized``
    (bool): x and y are relative to the input, else in its pixels. The labels name the K points; a
    model without labels may have any number.
    """
    options = Options(spec)
    raw = options.only_output(outputs)
    normalized, width = options.flag("normalized"), 3 if options.flag("scored") else 2
    count = len(spec.labels)
    values = raw[0].size if len(raw) else 0
    fits = values % width == 0 and (raw.ndim == 2 or (raw.ndim == 3 and raw.shape[2] == width))
    if not fits or (count and values != count * width):
        raise RuntimeFailure(
            f"{options.where}: expected points [N, {count or 'K'}, {width}], got {list(raw.shape)}"
        )
    results = []
    for values, placement in zip(raw.reshape(len(raw), -1, width), placements, strict=True):
        points = values[:, :2]
        if normalized:
            points = points * np.array([placement.input_width, placement.input_height])
        results.append(
            Landmarks(
                to_picture(points, placement).astype(np.float32),
                spec.labels,
                values[:, 2].astype(np.float32) if width == 3 else None,
            )
        )
    return results
