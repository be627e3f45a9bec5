"""Views: pixels, masks, boxes and points move together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from edgecv.errors import InputError, RecipeError
from edgecv.preprocess import fit_pixels
from edgecv.spec import Preparation
from edgecv.train.augment import AugmentSettings
from edgecv.train.boxes import inside
from edgecv.train.fitted import FittedPictures, Kept
from edgecv.train.segmentation import fit_mask
from edgecv.train.vary import Variation
from edgecv.train.views import Views, ViewSettings


def test_nothing_moves_where_all_is_off():
    pixels = torch.randint(0, 256, (3, 8, 12, 3), dtype=torch.uint8)
    off = ViewSettings(flip=False, zoom=0.0, shift=0.0)
    views = Views.draw(3, 8, 12, off, torch.Generator().manual_seed(0))
    assert torch.equal(views.pixels(pixels, 114), pixels.float())


def test_a_mirrored_view_is_the_mirrored_picture():
    pixels = torch.randint(0, 256, (64, 6, 10, 3), dtype=torch.uint8)
    only = ViewSettings(flip=True, zoom=0.0, shift=0.0)
    views = Views.draw(64, 6, 10, only, torch.Generator().manual_seed(0))
    assert 16 < views.mirrored.sum() < 48  # half of 64, give or take four sigma
    seen = views.pixels(pixels, 0)
    expected = torch.where(views.mirrored[:, None, None, None], pixels.flip(2), pixels).float()
    # grid_sample's places are rounded to 24 bits, and grey levels reach 255
    torch.testing.assert_close(seen, expected, atol=255 * 1e-5, rtol=0)
    box = torch.tensor([[1.0, 2, 4, 5]])
    which = int(views.mirrored.int().argmax())
    assert views.boxes(box, torch.tensor([which])).tolist() == [[6.0, 2.0, 9.0, 5.0]]


def test_boxes_masks_and_points_follow_the_pixels():
    height, width, n = 48, 64, 40
    pixels = torch.zeros((n, height, width, 3), dtype=torch.uint8)
    mask = torch.zeros((n, height, width), dtype=torch.long)
    pixels[:, 20:28, 30:42], mask[:, 20:28, 30:42] = 200, 1
    settings = ViewSettings(flip=True, zoom=0.3, shift=0.1)
    views = Views.draw(n, height, width, settings, torch.Generator().manual_seed(3))
    boxes = views.boxes(torch.tensor([[30.0, 20, 42, 28]]).expand(n, 4), torch.arange(n))
    points = views.points(torch.tensor([[[36.0, 24.0]]]).expand(n, 1, 2))
    seen, masks = views.pixels(pixels, 0), views.masks(mask, 255)
    for i in range(n):
        for bright in (seen[i, :, :, 0] > 100, masks[i] == 1):
            rows, columns = torch.nonzero(bright.any(1))[:, 0], torch.nonzero(bright.any(0))[:, 0]
            edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            # a pixel is in the box where its centre is: half a pixel either way
            assert (boxes[i] - torch.stack(edges)).abs().max() <= 0.51
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    torch.testing.assert_close(points[:, 0], middle)
    assert (masks == 255).any()


def test_a_part_of_a_batch_is_varied_as_in_the_whole_and_read_alone(tmp_path, monkeypatch):
    paths = []
    for i in range(8):
        paths.append(tmp_path / f"{i}.png")
        noise = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(noise).save(paths[-1])
    pictures = FittedPictures(paths, Preparation(16, 16))
    views = ViewSettings(flip=True, zoom=0.0, shift=0.0)  # some parts have no mirrored picture
    vary = Variation(pictures, views, AugmentSettings(brightness=0.3, hue=0.1, pca=0.1))
    index = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])

    def seen(part):
        return vary(index, part, torch.Generator().manual_seed(2))

    whole, every = seen(slice(None))
    taken: list[int] = []
    pixels = pictures.pixels
    monkeypatch.setattr(pictures, "pixels", lambda i: taken.extend(i.tolist()) or pixels(i))
    for start in range(8):
        part = slice(start, start + 1)
        own, views = seen(part)
        assert torch.equal(own, whole[part])
        assert torch.equal(views.scale, every.scale[part])
    assert taken == index.tolist()


def test_objects_that_are_hardly_seen_are_not_looked_for():
    boxes = torch.tensor([[-6.0, 0, 2, 8], [-5.0, 0, 3, 8], [4, 4, 4, 9], [70, 0, 80, 9]])
    cut, kept = inside(boxes, 64, 64)
    # a quarter of the first is inside, three eighths of the second; empty and outside ones go
    assert kept.tolist() == [0, 1]
    assert cut[kept].tolist() == [[0.0, 0, 2, 8], [0, 0, 3, 8]]


@pytest.mark.parametrize("fit", ["letterbox", "stretch", "crop"])
def test_masks_lie_where_their_pictures_do(fit):
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 15:45] = 3
    mask[:5] = 255
    p = Preparation(32, 32, fit=fit, pad_value=7, interpolation="pillow-nearest")
    levels = np.where(mask == 3, 200, 50).astype(np.uint8)
    pixels, placement = fit_pixels(Image.fromarray(levels).convert("RGB"), p)
    fitted = fit_mask(mask, p, placement)
    assert ((pixels[:, :, 0] == 200) == (fitted == 3)).all()
    assert set(np.unique(fitted)) <= {0, 3, 255}
    assert ((pixels[:, :, 0] == 7) <= (fitted == 255)).all()


def test_pictures_beyond_the_memory_are_read_again(tmp_path):
    paths = []
    for i in range(3):
        paths.append(tmp_path / f"{i}.png")
        Image.new("RGB", (8, 8), (i, 2 * i, 3 * i)).save(paths[-1])
    pictures = FittedPictures(paths, Preparation(8, 8))
    pictures._pixels = Kept(memory=100)
    for _ in range(3):
        pictures._pixels.add(np.full((8, 8, 3), 77, np.uint8))  # 192 bytes: there is no room
    assert pictures.pixels(torch.tensor([2, 1]))[:, 0, 0].tolist() == [[2, 4, 6], [1, 2, 3]]


def test_broken_pictures_are_named_or_left_out(tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.new("RGB", (8, 8)).save(good)
    bad.write_bytes(good.read_bytes()[:40])
    with pytest.raises(InputError, match=r"bad\.png.*skip_broken"):
        FittedPictures([good, bad], Preparation(8, 8))
    pictures = FittedPictures([bad, good], Preparation(8, 8), skip_broken=True)
    assert (pictures.kept, len(pictures)) == ([1], 1)
    assert "bad.png" in pictures.skipped[0]
    with pytest.raises(InputError, match="not one of 1 pictures"):
        FittedPictures([bad], Preparation(8, 8), skip_broken=True)
    with pytest.raises(RecipeError, match="multiple"):
        FittedPictures([good], Preparation(8, 8, fit="multiple"))
