"""Several looks at each picture, and several models at once: scores that are averaged.

Ten crops: Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks",
NeurIPS 2012: the four corners and the centre, and all five mirrored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.model import Model
from edgecv.postprocess.classify import probabilities
from edgecv.preprocess import (
    Picture,
    crop_corner,
    fit_pixels,
    open_picture,
    place,
    short_side_size,
    to_tensor,
)
from edgecv.progress import Progress, silent
from edgecv.spec import ModelSpec

CROPS = (1, 2, 5, 10)  # the centre; it and its mirror image; with the corners; all mirrored too


def check_crops(spec: ModelSpec, crops: int) -> None:
    """Whether a model's pictures can be cut in ``crops`` ways."""
    p = spec.preparation
    if crops not in CROPS:
        raise InputError(f"crops: expected one of {', '.join(map(str, CROPS))}, got {crops}")
    if crops > 2 and p.fit != "crop":
        raise InputError(
            f"crops: {spec.name} takes whole pictures (fit {p.fit!r}), there are no corners to "
            f"look at; 2 adds the mirror image"
        )


def crops_of(picture: Picture, spec: ModelSpec, crops: int) -> NDArray[Any]:
    """The ``crops`` inputs of one picture, ``[crops, ...]`` in the input's layout and dtype.

    The order is centre, top left, top right, bottom left, bottom right, then their mirror images.
    """
    p = spec.preparation
    opened = open_picture(picture)
    if p.fit == "crop":
        width, height = short_side_size(*opened.size, p.resize or min(p.height, p.width))
        whole = replace(p, fit="stretch", height=height, width=width, resize=None)
        pixels = fit_pixels(opened, whole)[0]  # once: every crop is a part of it
        corners = [crop_corner(width, height, p)]
        if crops > 2:
            right, bottom = width - p.width, height - p.height
            corners += [(x, y) for y in (0, bottom) for x in (0, right)]
        size = (p.width, p.height)
        parts = [place(pixels, (-x, -y), size, p.pad_value) for x, y in corners]
    else:
        parts = [fit_pixels(opened, p)[0]]
    if crops in (2, 10):
        parts += [part[:, ::-1] for part in parts]
    return to_tensor(np.stack(parts), p, spec.inputs[0].dtype)


def averaged(
    models: Sequence[Model], pictures: Sequence[Picture], crops: int, progress: Progress = silent
) -> NDArray[np.float64]:
    """The mean over models and crops of the class probabilities, ``[N, C]``.

    The models must have the same labels in the same order; each prepares pictures its own way.
    """
    first = models[0].spec
    for model in models:
        check_crops(model.spec, crops)
        if model.spec.task != "classify" or model.spec.labels != first.labels:
            raise InputError(
                f"{model.runtime.path}: an ensemble's models must all classify, with the same "
                f"labels in the same order as {models[0].runtime.path}"
            )
    rows = []
    for done, picture in enumerate(pictures, 1):
        found = []
        for model in models:
            scores = model.infer(crops_of(picture, model.spec, crops))[model.spec.outputs[0].name]
            told = probabilities(scores, model.spec.decoding.kind, first.labels)
            found.append(told.mean(axis=(2, 3)) if told.ndim == 4 else told)
        rows.append(np.mean([one.mean(axis=0, dtype=np.float64) for one in found], axis=0))
        progress("pictures", done, len(pictures))
    return np.stack(rows)
