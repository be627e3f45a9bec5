"""Landmarks: points, or heat maps of points, of the model's input to points of the picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from edgecv.errors import RuntimeFailure
from edgecv.postprocess.activations import sigmoid, softmax
from edgecv.postprocess.boxes import to_picture
from edgecv.postprocess.options import Array, Options, expect_shape, no_nan
from edgecv.results import Landmarks, Placement
from edgecv.spec import ModelSpec

REFINEMENTS = ("none", "quarter", "mean")
VALUES = ("logits", "probabilities")


def decode(
    outputs: Mapping[str, Array],
    spec: ModelSpec,
    placements: Sequence[Placement],
    conf: float | None = None,
    iou: float | None = None,
) -> list[Landmarks]:
    """One :class:`Landmarks` per picture, from one output; ``conf`` and ``iou`` are None.

    The labels name the K points; a model without labels may have any number. By the kind of the
    decoding, :func:`points` or :func:`heat_maps`.
    """
    options = Options(spec)
    rule = heat_maps if spec.decoding.kind == "heatmaps" else points
    return [
        Landmarks(to_picture(where, placement).astype(np.float32), spec.labels, scores)
        for (where, scores), placement in zip(
            rule(options.only_output(outputs), options, placements), placements, strict=True
        )
    ]


def points(
    raw: Array, options: Options, placements: Sequence[Placement]
) -> Iterator[tuple[Array, Array | None]]:
    """``points``: the net gives x and y. Points ``[K, 2]`` in pixels of the input, and scores.

    ``[N, K, 2]`` or ``[N, 2 K]`` of x and y in turn, or with the option ``scored`` (bool)
    ``[N, K, 3]`` or ``[N, 3 K]``, a score from 0 to 1 behind each pair. Option ``normalized``
    (bool): x and y are relative to the input, else in its pixels.
    """
    normalized, width = options.flag("normalized"), 3 if options.flag("scored") else 2
    count = len(options.spec.labels)
    values = raw[0].size if len(raw) else 0
    fits = values % width == 0 and (raw.ndim == 2 or (raw.ndim == 3 and raw.shape[2] == width))
    if not fits or (count and values != count * width):
        raise RuntimeFailure(
            f"{options.where}: expected points [N, {count or 'K'}, {width}], got {list(raw.shape)}"
        )
    for rows, placement in zip(raw.reshape(len(raw), -1, width), placements, strict=True):
        where = rows[:, :2]
        if normalized:
            where = where * np.array([placement.input_width, placement.input_height])
        yield where, rows[:, 2].astype(np.float32) if width == 3 else None


def heat_maps(
    raw: Array, options: Options, placements: Sequence[Placement]
) -> Iterator[tuple[Array, Array | None]]:
    """``heatmaps``: ``[N, K, h, w]``, a map per point that is highest where the point is.

    The map lies over the whole input, so a cell is ``input / map`` pixels wide. Options:

    - ``values``: ``probabilities`` (0 to 1) or ``logits`` (a sigmoid is due). The score is the
      highest one's; of equal cells the first, row by row, is the highest.
    - ``refine``: ``none``, the highest cell; ``quarter``, a quarter of a cell towards the higher
      neighbour along each axis, none where they are equal or at the border (Newell et al. 2016,
      arXiv:1603.06937); ``mean``, the mean of all cells, weighted by the map (its softmax, for
      logits), as integral regression trains it (Sun et al. 2018, arXiv:1711.08229)
    - ``offset`` (number, 0.5): where in its cell a point lies. 0.5 is the middle; nets whose
      targets were rounded from ``x / stride`` give 0.
    """
    values = options.choice("values", VALUES)
    refine, offset = options.choice("refine", REFINEMENTS), options.number("offset", 0.5)
    count = len(options.spec.labels) or "K"
    expect_shape(raw, ("N", count, "h", "w"), f"{options.where}: the heat maps")
    height, width = raw.shape[2:]
    if not height or not width:
        raise RuntimeFailure(f"{options.where}: heat maps of no cells, {list(raw.shape)}")
    for maps, placement in zip(raw, placements, strict=True):
        no_nan(maps, options.where)
        flat = maps.reshape(len(maps), -1)
        best = flat.argmax(axis=1)
        peak = flat[np.arange(len(flat)), best]
        if refine == "mean":
            cells = _mean_cells(flat, width, values)
        else:
            cells = np.stack([best % width, best // width], axis=1).astype(np.float64)
            if refine == "quarter":
                cells += 0.25 * _slope(maps, best)
        size = np.array([placement.input_width / width, placement.input_height / height])
        score = sigmoid(peak) if values == "logits" else np.clip(peak, 0, 1)
        yield (cells + offset) * size, score.astype(np.float32)


def _mean_cells(flat: Array, width: int, values: str) -> Array:
    """x, y ``[K, 2]`` in cells: the mean by the map's weights; of an empty map its middle."""
    weights = flat.astype(np.float64)
    if values == "logits":
        weights = softmax(weights)
    else:
        weights = np.maximum(weights, 0)
        weights[weights.sum(axis=1) == 0] = 1
        weights /= weights.sum(axis=1, keepdims=True)
    index = np.arange(flat.shape[1])
    return np.asarray(weights @ np.stack([index % width, index // width], axis=1))


def _slope(maps: Array, best: Array) -> Array:
    """-1, 0 or 1 along x and y ``[K, 2]``: which neighbour of the highest cell is the higher."""
    padded = np.pad(maps, ((0, 0), (1, 1), (1, 1)), mode="edge")
    k, y, x = np.arange(len(maps)), best // maps.shape[2] + 1, best % maps.shape[2] + 1
    along_x = np.sign(padded[k, y, x + 1] - padded[k, y, x - 1])
    along_y = np.sign(padded[k, y + 1, x] - padded[k, y - 1, x])
    inner_x = (x > 1) & (x < maps.shape[2])
    inner_y = (y > 1) & (y < maps.shape[1])
    return np.stack([along_x * inner_x, along_y * inner_y], axis=1)
