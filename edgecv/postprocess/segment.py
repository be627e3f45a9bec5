"""Segmentation: class maps of the input's size, or smaller, to a mask of the picture's size.

Scores are interpolated and then compared, not the other way round: a mask resized by nearest
neighbours has steps as large as the net's stride. Interpolation is linear between pixel centres
(PyTorch's ``interpolate(mode="bilinear", align_corners=False)``); outside the map, and so outside
what a centre crop kept, the border goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgecv.errors import InputError, RuntimeFailure
from edgecv.postprocess.options import Array, Options
from edgecv.results import Placement, Segmentation
from edgecv.spec import ModelSpec

BAND_VALUES = 1 << 21  # scores interpolated at a time: 8 MB, whatever the picture's size


def decode(
    outputs: Mapping[str, Array],
    spec: ModelSpec,
    placements: Sequence[Placement],
    conf: float | None = None,
    iou: float | None = None,
) -> list[Segmentation]:
    """One :class:`Segmentation` per picture, in its size; ``conf`` and ``iou`` are None.

    One output ``[N, C, h, w]``, or ``[N, h, w, C]`` with the option ``layout`` = ``nhwc``.

    - ``logits``, ``probabilities``: one channel per label, and the highest wins (of equals the
      lower index)
    - ``binary-logits``, or ``probabilities`` of one channel: two labels, of which the second is
      where the probability is at least the option ``threshold`` (0.5)
    """
    options = Options(spec)
    raw = options.only_output(outputs)
    if options.choice("layout", ("nchw", "nhwc"), "nchw") == "nhwc" and raw.ndim == 4:
        raw = raw.transpose(0, 3, 1, 2)
    binary = spec.decoding.kind == "binary-logits" or (
        spec.decoding.kind == "probabilities" and raw.ndim == 4 and raw.shape[1] == 1
    )
    labels = len(spec.labels)
    channels = 1 if binary else labels
    if raw.ndim != 4 or raw.shape[1] != channels or (binary and labels != 2):
        raise RuntimeFailure(
            f"{options.where}: expected a class map [N, {channels}, h, w] for {labels} labels, got "
            f"{list(raw.shape)}"
        )
    if not np.isfinite(raw).all():
        raise RuntimeFailure(f"{options.where}: the class map is NaN or infinite: a damaged file")
    limit = None
    if binary:
        limit = options.threshold("threshold", options.number("threshold", 0.5))
        if spec.decoding.kind == "binary-logits":
            with np.errstate(divide="ignore"):
                limit = float(np.log(limit) - np.log1p(-limit))
    return [
        Segmentation(_mask(one, placement, limit), spec.labels)
        for one, placement in zip(raw, placements, strict=True)
    ]


def _mask(scores: Array, placement: Placement, limit: float | None) -> NDArray[np.int64]:
    """The class of each pixel of the picture from scores ``[C, h, w]`` of the input."""
    channels, height, width = scores.shape
    rows = _taps(
        placement.height,
        placement.scale_y,
        placement.offset_y,
        height / placement.input_height,
        height,
    )
    left, right, along = _taps(
        placement.width, placement.scale_x, placement.offset_x, width / placement.input_width, width
    )
    mask = np.empty((placement.height, placement.width), np.int64)
    band = max(1, BAND_VALUES // (channels * max(placement.width, width)))
    for start in range(0, placement.height, band):
        above, below, down = (values[start : start + band] for values in rows)
        part = scores[:, above]
        part = part + (scores[:, below] - part) * down[:, None]
        first = part[:, :, left]
        values = first + (part[:, :, right] - first) * along
        mask[start : start + band] = values[0] >= limit if limit is not None else values.argmax(0)
    return mask


def _taps(
    count: int, scale: float, offset: float, ratio: float, size: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """For each of ``count`` pixels of the picture: the two places of the map around its centre,
    and the weight of the second."""
    place = ((np.arange(count) + 0.5) * scale + offset) * ratio - 0.5
    place = place.clip(0, size - 1)
    lower = place.astype(np.intp)
    return lower, np.minimum(lower + 1, size - 1), (place - lower).astype(np.float32)


# --- masks as pictures and as text ----------------------------------------------------------------


def palette(count: int) -> NDArray[np.uint8]:
    """Colours of ``count`` classes, uint8 ``[count, 3]`` RGB; class 0 is black.

    Pascal VOC's: the bits of the number are dealt to the three channels in turn, highest first,
    so that the first 256 differ and stay as they are whatever ``count`` is.
    """
    numbers = np.arange(count)
    colors = np.zeros((count, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= (numbers >> channel & 1) << (7 - bit)
        numbers = numbers >> 3
    return colors.astype(np.uint8)


def mask_picture(found: Segmentation) -> Image.Image:
    """The mask as a picture whose values are the classes, as ``edgecv eval`` reads them.

    Of at most 256 classes it is shown in :func:`palette`; of more the values have 16 bits.
    """
    if len(found.labels) > 256:
        return Image.fromarray(found.mask.astype(np.uint16))
    picture = Image.fromarray(found.mask.astype(np.uint8))
    picture.putpalette(palette(256).tobytes())
    return picture


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """A mask ``[H, W]`` as COCO's uncompressed run-length code.

    The lengths of the runs down the columns, column after column, in turn outside and inside; the
    first is outside (0 where the first pixel is inside).
    """
    flat = np.asarray(mask, np.bool_).T.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate([[0], changes, [flat.size]])
    runs: list[int] = np.diff(bounds).tolist()
    return [0, *runs] if flat.size and flat[0] else runs


def to_coco(found: Segmentation, image_id: int = 0) -> list[dict[str, Any]]:
    """COCO's result format: for each class that is there ``image_id``, ``category_id`` (the
    class's index) and ``segmentation``, an uncompressed run-length code."""
    height, width = found.mask.shape
    return [
        {
            "image_id": image_id,
            "category_id": index,
            "segmentation": {"size": [height, width], "counts": run_lengths(found.mask == index)},
        }
        for index in np.unique(found.mask).tolist()
    ]


def from_run_lengths(runs: Sequence[int], height: int, width: int) -> NDArray[np.bool_]:
    """:func:`run_lengths` back: bool ``[height, width]``."""
    if any(run < 0 for run in runs) or sum(runs) != height * width:
        raise InputError(
            f"run lengths must be 0 or more and sum up to {height} x {width} = {height * width}, "
            f"got a sum of {sum(runs)}"
        )
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(width, height).T
