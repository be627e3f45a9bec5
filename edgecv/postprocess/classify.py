"""Classification: class scores to probabilities, for whole pictures and for each place of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import RuntimeFailure
from edgecv.postprocess.activations import sigmoid, softmax
from edgecv.postprocess.boxes import to_picture
from edgecv.postprocess.options import Array, Options
from edgecv.results import Classification, Placement
from edgecv.spec import ModelSpec


def decode(
    outputs: Mapping[str, Array],
    spec: ModelSpec,
    placements: Sequence[Placement],
    conf: float | None = None,
    iou: float | None = None,
) -> list[Classification]:
    """One :class:`Classification` per picture; ``conf`` and ``iou`` are None: no boxes.

    The output is ``[N, C]``, or ``[N, C, h, w]`` of a fully convolutional net: then a class's
    probability is the mean over the places, as VGG's dense evaluation has it (arXiv:1409.1556).
    """
    scores = outputs[spec.outputs[0].name]
    found = probabilities(scores, spec.decoding.kind, spec.labels)
    if found.ndim == 4:
        found = found.mean(axis=(2, 3))
    return [Classification(row, spec.labels) for row in found]


def probabilities(scores: Array, kind: str, labels: tuple[str, ...]) -> NDArray[np.float32]:
    """Class scores ``[N, C]`` or ``[N, C, h, w]`` as probabilities, float32, of the same shape.

    ``kind`` is the contract's decoding: ``logits`` (a softmax over the classes is due),
    ``multilabel-logits`` (a sigmoid for each class: they do not exclude each other), or
    ``probabilities``, which must lie from 0 to 1.
    """
    _check(scores, labels)
    if kind == "logits":
        return softmax(scores.astype(np.float64), axis=1).astype(np.float32)
    if kind == "multilabel-logits":
        return sigmoid(scores.astype(np.float64)).astype(np.float32)
    found = scores.astype(np.float32)
    if found.size and not (found.min() >= -1e-3 and found.max() <= 1 + 1e-3):  # fp16, int8
        raise RuntimeFailure(
            f"the contract says that the output holds probabilities, and its values run from "
            f"{found.min():g} to {found.max():g}; its decoding should be 'logits'"
        )
    return found


def ranking(scores: Array, kind: str, labels: tuple[str, ...]) -> Array:
    """Numbers ``[N, C]`` that rank each picture's classes as :func:`decode` does.

    Class scores ``[N, C]`` do so as they are, with no ties of a sigmoid's or softmax's rounding.
    NaN, which would rank before and behind everything, is a
    :class:`~edgecv.errors.RuntimeFailure` as in :func:`probabilities`.
    """
    if scores.ndim == 4:
        return np.asarray(probabilities(scores, kind, labels).mean(axis=(2, 3)))
    _check(scores, labels)
    return scores


def _check(scores: Array, labels: tuple[str, ...]) -> None:
    if scores.ndim not in (2, 4) or scores.shape[1] != len(labels):
        raise RuntimeFailure(f"expected class scores [N, {len(labels)}], got {list(scores.shape)}")
    if not np.isfinite(scores).all():
        raise RuntimeFailure("the model's class scores are NaN or infinite: its file is damaged")


@dataclass(frozen=True, eq=False)
class HeatMap:
    """What a fully convolutional classifier says at each place of a picture.

    ``probabilities``: float32 ``[C, h, w]``; ``windows``: float32 ``[h, w, 4]``, the part of the
    source picture that each place looks at, x1, y1, x2, y2 in its pixels (it may hang over);
    ``labels``: the C names.
    """

    probabilities: NDArray[np.float32]
    windows: NDArray[np.float32]
    labels: tuple[str, ...]


def heat_maps(
    outputs: Mapping[str, Array], spec: ModelSpec, placements: Sequence[Placement]
) -> list[HeatMap]:
    """The convolutional sliding window (Sermanet et al. 2014, arXiv:1312.6229): one map a picture.

    A classifier whose dense layers are convolutions gives ``[N, C, h, w]``: its answers for every
    window of ``window`` pixels, each ``stride`` pixels from the last (options of the contract,
    in pixels of the input), for the price of one run.
    """
    options = Options(spec)
    window, stride = options.integer("window"), options.integer("stride")
    scores = outputs[spec.outputs[0].name]
    if scores.ndim != 4:
        raise RuntimeFailure(
            f"{options.where}: a heat map needs an output [N, {len(spec.labels)}, h, w], got "
            f"{list(scores.shape)}: this classifier is not fully convolutional"
        )
    found = probabilities(scores, spec.decoding.kind, spec.labels)
    rows, columns = np.mgrid[0 : scores.shape[2], 0 : scores.shape[3]] * float(stride)
    windows = np.stack([columns, rows, columns + window, rows + window], axis=-1)
    return [
        HeatMap(one, to_picture(windows, placement).astype(np.float32), spec.labels)
        for one, placement in zip(found, placements, strict=True)
    ]
