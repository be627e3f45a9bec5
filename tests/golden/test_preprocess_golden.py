"""Preparation equals torchvision's Resize and CenterCrop on PIL pictures, bit for bit.

Both call the same Pillow resampling, so there is nothing to be apart in; a difference would be in
the sizes or the crop's corner.
"""

import numpy as np
import pytest

from edgecv.preprocess import fit_pixels, open_picture
from edgecv.spec import Preparation


def test_pixels_equal_torchvisions(assets):
    count = 0
    with np.load(assets / "goldens" / "processing.npz") as goldens:
        for key in goldens.files:
            if not key.startswith("preprocess/"):
                continue
            _, picture, name = key.split("/")
            resize, crop, kernel = name.split("_")
            p = Preparation(
                int(crop[4:]),
                int(crop[4:]),
                resize=int(resize[6:]),
                interpolation=f"pillow-{kernel}-antialias",
            )
            pixels, _ = fit_pixels(open_picture(assets / "coco" / "images" / picture), p)
            np.testing.assert_array_equal(pixels, goldens[key], err_msg=key)
            count += 1
    assert count >= 12


@pytest.mark.parametrize("size", [(451, 300), (300, 451), (100, 5), (7, 7)])
def test_crop_corner_is_rounded_half_to_even(size):
    """torchvision: int(round((h - crop) / 2)); (h - crop) // 2 moves 2 answers in 500."""
    width, height = size
    picture = np.zeros((height, width, 3), np.uint8)
    short = min(width, height)
    p = Preparation(5, 5, resize=short)
    _, placement = fit_pixels(open_picture(picture), p)
    assert placement.offset_x == -round((width - 5) / 2)
    assert placement.offset_y == -round((height - 5) / 2)
