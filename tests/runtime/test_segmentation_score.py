"""mIoU against a loop over pixels, and data sets that are not what they should be."""

import json

import numpy as np
import pytest
from PIL import Image

from edgecv.errors import InputError
from edgecv.evaluate.segmentation import confusion, mean_iou, read_mask, read_masks

LABELS = ("sky", "road", "car", "never")


def test_mean_iou_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    truth, found = rng.integers(-1, 3, (40, 50)), rng.integers(0, 3, (40, 50))
    table = confusion(truth[:20], found[:20], 4) + confusion(truth[20:], found[20:], 4)
    miou, per_class = mean_iou(table, LABELS)
    known = truth >= 0
    expected = [
        (known & (truth == c) & (found == c)).sum() / (known & ((truth == c) | (found == c))).sum()
        for c in range(3)
    ]
    np.testing.assert_allclose(list(per_class.values()), expected, rtol=1e-12)
    assert miou == pytest.approx(np.mean(expected), rel=1e-12)
    assert list(per_class) == ["sky", "road", "car"]  # a class that nobody has is left out


def make(folder, value=1, size=(8, 6), name="a"):
    for kind, mode in (("images", "RGB"), ("masks", "L")):
        (folder / kind).mkdir(exist_ok=True)
        Image.new(mode, size, value if mode == "L" else 0).save(folder / kind / f"{name}.png")


def test_masks_are_matched_to_pictures_and_their_values_to_classes(tmp_path):
    make(tmp_path, 7)
    (tmp_path / "map.json").write_text(json.dumps({"7": 2}))
    data = read_masks(tmp_path, 4, tmp_path / "map.json")
    assert (read_mask(data.masks[0], (8, 6), data.classes) == 2).all()
    plain = read_masks(tmp_path, 4)
    with pytest.raises(InputError, match="the value 7 is no class"):
        read_mask(plain.masks[0], (8, 6), plain.classes)
    with pytest.raises(InputError, match="8x6 pixels, its picture has 9x6"):
        read_mask(data.masks[0], (9, 6), data.classes)


def test_ignored_pixels_do_not_count(tmp_path):
    make(tmp_path, 255)
    data = read_masks(tmp_path, 4)
    mask = read_mask(data.masks[0], (8, 6), data.classes)
    with pytest.raises(InputError, match="nothing to score"):
        mean_iou(confusion(mask, np.zeros_like(mask), 4), LABELS)


def test_two_pictures_of_one_name_are_an_error_if_they_have_a_mask(tmp_path):
    make(tmp_path)
    for name in ("b.png", "b.bmp"):  # without a mask: left out
        Image.new("RGB", (8, 6)).save(tmp_path / "images" / name)
    assert [path.name for path in read_masks(tmp_path, 4).pictures] == ["a.png"]
    Image.new("RGB", (8, 6)).save(tmp_path / "images" / "a.bmp")
    with pytest.raises(InputError, match=r"a\.bmp and a\.png are of one name"):
        read_masks(tmp_path, 4)


def test_a_mask_without_a_picture_is_an_error(tmp_path):
    make(tmp_path)
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(InputError, match="1 masks have no picture"):
        read_masks(tmp_path, 4)
