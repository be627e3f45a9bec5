"""opencv-linear is cv2.resize(..., INTER_LINEAR), byte for byte, and needs no cv2."""

import sys

import numpy as np
import pytest

from edgecv import resampling
from edgecv.preprocess import fit_pixels, prepare
from edgecv.spec import Preparation

RNG = np.random.default_rng(11)


def slow_linear(pixels, width, height):
    """The rule, one value at a time in plain integers; see the module's docstring."""
    source_height, source_width, channels = pixels.shape
    if (source_height, source_width) == (2 * height, 2 * width):
        return np.array(
            [
                [
                    (pixels[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].sum((0, 1), dtype=int) + 2) // 4
                    for x in range(width)
                ]
                for y in range(height)
            ]
        )

    def tap(target, count, source):
        place = np.float32((target + 0.5) * (1 / (count / source)) - 0.5)
        low = int(np.floor(place))
        share = np.float32(place - np.float32(low))
        return low, round(float((1 - share) * 2048)), round(float(share * 2048))

    out = np.zeros((height, width, channels), int)
    for y in range(height):
        row, above, below = tap(y, height, source_height)
        for x in range(width):
            column, left, right = tap(x, width, source_width)
            if column < 0 or column >= source_width - 1:
                column, left, right = min(max(column, 0), source_width - 1), 2048, 0
            for c in range(channels):
                sums = []
                for r in (row, row + 1):
                    line = pixels[min(max(r, 0), source_height - 1)]
                    beside = min(column + 1, source_width - 1)
                    sums.append(int(line[column, c]) * left + int(line[beside, c]) * right)
                weighed = ((sums[0] >> 4) * above >> 16) + ((sums[1] >> 4) * below >> 16)
                out[y, x, c] = (weighed + 2) >> 2
    return out


SIZES = [(1, 1), (1, 9), (9, 1), (7, 5), (14, 10), (13, 22), (30, 40)]


@pytest.mark.parametrize("source", SIZES)
@pytest.mark.parametrize("target", SIZES)
def test_linear_equals_the_slow_reference(source, target):
    pixels = RNG.integers(0, 256, (*source, 3), dtype=np.uint8)
    got = resampling.linear(pixels, *target[::-1])
    np.testing.assert_array_equal(got, slow_linear(pixels, *target[::-1]))
    assert got.dtype == np.uint8


def test_linear_equals_opencv():
    cv2 = pytest.importorskip("cv2")
    for trial in range(300):
        height, width, new_height, new_width = (int(v) for v in RNG.integers(1, 130, 4))
        if trial % 5 == 0:
            new_height, new_width = max(1, height // 2), max(1, width // 2)
        pixels = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
        want = cv2.resize(pixels, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
        want = want.reshape(new_height, new_width, 3)
        np.testing.assert_array_equal(resampling.linear(pixels, new_width, new_height), want)


class Wrong:
    """An OpenCV whose build rounds otherwise."""

    INTER_LINEAR = 1

    @staticmethod
    def resize(pixels, size, interpolation):
        return np.zeros((size[1], size[0], pixels.shape[2]), np.uint8)


@pytest.mark.parametrize("module", [None, Wrong])
def test_without_opencv_or_with_one_that_differs_the_bytes_are_the_same(monkeypatch, module):
    frame = RNG.integers(0, 256, (108, 192, 3), dtype=np.uint8)
    fits = [
        Preparation(64, 64, fit=fit, interpolation="opencv-linear", pad_value=114, color=color)
        for fit in ("letterbox", "stretch", "crop", "multiple")
        for color in ("rgb", "bgr")
    ]
    with_it = [prepare(frame, p, color="bgr").tensor for p in fits]
    monkeypatch.setitem(sys.modules, "cv2", module)
    resampling.opencv.cache_clear()
    try:
        assert resampling.opencv() is None
        for p, want in zip(fits, with_it, strict=True):
            np.testing.assert_array_equal(prepare(frame, p, color="bgr").tensor, want)
    finally:
        resampling.opencv.cache_clear()


def test_a_frame_in_either_order_or_as_a_picture_gives_the_same():
    """The paths for arrays and for PIL pictures meet."""
    from PIL import Image

    frame = RNG.integers(0, 256, (50, 80, 3), dtype=np.uint8)
    for interpolation in ("opencv-linear", "pillow-bilinear-antialias"):
        for color in ("rgb", "bgr", "gray"):
            p = Preparation(32, 32, fit="letterbox", interpolation=interpolation, color=color)
            if color == "gray":
                p = Preparation(32, 32, interpolation=interpolation, color=color,
                                mean=(0.0,), std=(1.0,))  # fmt: skip
            want = prepare(Image.fromarray(frame), p).tensor
            flipped = np.ascontiguousarray(frame[..., ::-1])
            for array, order in ((frame, "rgb"), (flipped, "bgr"), (frame[..., ::-1], "bgr")):
                np.testing.assert_array_equal(prepare(array, p, color=order).tensor, want)


@pytest.mark.parametrize(
    ("size", "scaled", "canvas"),
    [
        ((320, 320), (320, 320), (320, 320)),  # fits as it is
        ((100, 33), (100, 33), (128, 64)),  # never up
        ((1280, 640), (640, 320), (640, 320)),
        ((1000, 700), (640, 448), (640, 448)),
        ((999, 333), (640, 213), (640, 224)),
        ((1, 2000), (1, 480), (32, 480)),
    ],
)
def test_fit_multiple(size, scaled, canvas):
    p = Preparation(480, 640, fit="multiple", multiple=32, pad_value=9)
    pixels, at = fit_pixels(np.full((size[1], size[0], 3), 200, np.uint8), p)
    assert pixels.shape == (canvas[1], canvas[0], 3)
    assert (at.input_width, at.input_height) == canvas
    assert (at.offset_x, at.offset_y) == (0, 0)
    assert at.scale_x == at.scale_y == min(1, 640 / size[0], 480 / size[1])
    assert (pixels[: scaled[1], : scaled[0]] == 200).all()
    assert (pixels == 200).sum() == scaled[0] * scaled[1] * 3
    assert (pixels[scaled[1] :] == 9).all()


def test_size_rounding():
    frame = np.full((333, 500, 3), 200, np.uint8)  # 416 / 500 * 333 = 277.056, 416 / 333 * ...
    for rounding, rows in (("round-half-even", 67), ("floor", 66)):
        p = Preparation(100, 100, fit="letterbox", size_rounding=rounding, pad_position="top-left")
        pixels, at = fit_pixels(frame, p)
        assert (pixels[:, 0, 0] == 200).sum() == rows  # 100 / 500 * 333 = 66.6
        assert at.scale_y == 0.2


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16"])
def test_layout_and_dtype_of_the_tensor(layout, dtype):
    frame = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    p = Preparation(20, 30, fit="stretch", layout=layout, color="bgr", divisor=255.0)
    tensor = prepare(frame, p, dtype=dtype).tensor
    assert tensor.dtype == dtype
    assert tensor.flags.c_contiguous
    pixels = tensor if layout == "nhwc" else tensor.transpose(1, 2, 0)
    want = frame[..., ::-1] if dtype == "uint8" else (frame[..., ::-1] / 255).astype(np.float32)
    np.testing.assert_array_equal(pixels, want.astype(dtype))
