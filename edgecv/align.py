"""Faces brought to one place by five landmarks, before they are embedded.

The template is the usual one of 112x112 pixels: ArcFace's (Deng et al., arXiv:1801.07698, from the
authors' code), with which MobileFaceNet and most published face embeddings were trained.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from edgecv.errors import InputError

ALIGNMENT = "arcface-5-112"  # the template's name in a gallery's embedding space
SIZE = 112
# x, y in pixels, 0 the centre of the first pixel: the eye at the left of the picture, the one at
# the right, the tip of the nose, the corner of the mouth at the left, the one at the right
TEMPLATE = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
TEMPLATE.setflags(write=False)


def similarity_transform(source: ArrayLike, target: ArrayLike) -> NDArray[np.float64]:
    """The rotation, scale and shift that bring points ``source`` ``[K, 2]`` nearest to ``target``.

    Returns ``[2, 3]``: ``target ~ M[:, :2] @ point + M[:, 2]``, with the least sum of squared
    distances and no reflection. With points as complex numbers it is the line ``w = a z + b``,
    whose least-squares ``a`` is ``sum conj(z) w / sum |z|^2`` over the centred points (the same as
    Umeyama 1991 where that finds no reflection).

    Raises :class:`~edgecv.errors.InputError` for other shapes, values that are not finite, and
    points that all lie in one place.
    """
    points, goals = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or points.shape != goals.shape:
        raise InputError(
            f"expected two lists of points [K, 2], got shapes {list(points.shape)} and "
            f"{list(goals.shape)}"
        )
    if not (np.isfinite(points).all() and np.isfinite(goals).all()):
        raise InputError("landmarks must be finite, and some are NaN or infinite")
    z, w = points @ (1, 1j), goals @ (1, 1j)
    z0, w0 = z.mean(), w.mean()
    spread = float((np.abs(z - z0) ** 2).sum())
    # Relative to where they lie: coordinates of thousands of pixels round at 1e-12
    if spread <= 1e-20 * (1 + abs(z0)) ** 2:
        raise InputError("the landmarks all lie in one place: no face can be aligned by them")
    a = ((z - z0).conj() * (w - w0)).sum() / spread
    b = w0 - a * z0
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def align_face(picture: Image.Image, landmarks: ArrayLike) -> Image.Image:
    """The face at five ``landmarks`` ``[5, 2]`` of an RGB ``picture``, as 112x112 pixels.

    ``landmarks`` are in the order of :data:`TEMPLATE`, in pixels of the picture, 0 at the centre of
    the first pixel. Bilinear (Pillow's); what lies outside the picture is black. A face more than
    twice as large as the template is first reduced by the whole factor (box filter), so that its
    detail does not alias.
    """
    points = np.asarray(landmarks, np.float64)
    matrix = similarity_transform(points, TEMPLATE)
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if scale <= 0:
        raise InputError("the landmarks do not lie like a face's: no similarity brings them there")
    factor = int(1 / scale)
    if factor >= 2:
        picture, points = _reduced(picture, points, factor)
        matrix = similarity_transform(points, TEMPLATE)
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
    # Pillow counts from the pixel's corner: u = x + 0.5 on both sides
    inverse[:, 2] += 0.5 - inverse[:, :2] @ (0.5, 0.5)
    return picture.transform(
        (SIZE, SIZE),
        Image.Transform.AFFINE,
        tuple(inverse.reshape(-1).tolist()),
        Image.Resampling.BILINEAR,
    )


def _reduced(
    picture: Image.Image, points: NDArray[np.float64], factor: int
) -> tuple[Image.Image, NDArray[np.float64]]:
    """The face's surroundings reduced by ``factor``, and the landmarks in them."""
    centre, reach = points.mean(axis=0), np.abs(points - points.mean(axis=0)).max() * 4
    corners = np.concatenate([centre - reach, centre + reach]).round().astype(int)
    left, top = (max(0, int(v) // factor * factor) for v in corners[:2])
    right, bottom = min(picture.width, int(corners[2])), min(picture.height, int(corners[3]))
    if right - left < factor or bottom - top < factor:
        raise InputError("the landmarks lie outside the picture")
    small = picture.crop((left, top, right, bottom)).reduce(factor)
    return small, (points + 0.5 - (left, top)) / factor - 0.5
