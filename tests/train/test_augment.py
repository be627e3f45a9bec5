"""Augmentation: every one changes the picture, none the meaning, and all follow one generator."""

import sys

import kornia
import numpy as np
import pytest
import torch

from edgecv.errors import InputError, RecipeError
from edgecv.spec import Preparation
from edgecv.train.augment import Augmenter, AugmentSettings
from edgecv.train.draws import Among
from edgecv.train.lighting import ColorStatistics, shift_colors
from edgecv.train.pixels import normalize, shift_and_flip

EACH = [
    {"hflip": 0.5},
    {"vflip": 0.5},
    {"crop": 0.5},
    {"rotation": 20.0},
    {"shear": 15.0},
    {"perspective": 0.5},
    {"elastic": 1.5},
    {"brightness": 0.4},
    {"contrast": 0.4},
    {"saturation": 0.6},
    {"hue": 0.2},
    {"pca": 0.3},
    {"solarize": 0.5},
    {"mixup": 0.4},
    {"cutmix": 1.0},
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """uint8 ``[6, 24, 32, 3]``: smooth, coloured, each its own."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:24, 0:32] / 8
    phase, speed = rng.uniform(0, 6, (6, 1, 1, 3)), rng.uniform(0.5, 1.5, (2, 6, 1, 1, 3))
    waves = np.sin(phase + speed[0] * x[None, :, :, None] + speed[1] * y[None, :, :, None])
    return torch.from_numpy((127.5 + 120 * waves).astype(np.uint8))


def augment(pictures, seed=0, **settings):
    augmenter = Augmenter.of(AugmentSettings(**settings), pictures, classes=3)
    return augmenter(pictures, torch.tensor([0, 1, 2, 0, 1, 2]), generator(seed))


def plain(pictures):
    return pictures.permute(0, 3, 1, 2) / 255


def test_nothing_on_is_nothing_done(pictures):
    x, labels = augment(pictures)
    assert torch.equal(x, plain(pictures))
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]
    preparation = Preparation(24, 32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    inputs, _ = Augmenter(AugmentSettings()).inputs(pictures, labels, generator(), preparation)
    assert torch.equal(inputs, normalize(pictures, preparation))


@pytest.mark.parametrize("settings", EACH, ids=lambda s: next(iter(s)))
def test_each_changes_pictures_and_follows_the_generator(pictures, settings):
    before = torch.get_rng_state()
    x, labels = augment(pictures, **settings)
    assert torch.equal(torch.get_rng_state(), before)  # dropout's draws are not ours
    assert x.shape == (6, 3, 24, 32)
    assert x.dtype == torch.float32
    assert 0 <= x.min() <= x.max() <= 1
    changed = (x - plain(pictures)).abs().amax((1, 2, 3)) > 2 / 255
    assert changed.sum() >= 2
    if labels.ndim == 1:
        assert labels.tolist() == [0, 1, 2, 0, 1, 2]
    torch.rand(3)  # what others draw in between does not matter
    again, same_labels = augment(pictures, **settings)
    assert torch.equal(x, again)
    assert torch.equal(labels, same_labels)
    other, _ = augment(pictures, seed=1, **settings)
    assert not torch.equal(x, other)


@pytest.mark.parametrize(
    "settings",
    [
        *(one for one in EACH if not one.keys() & {"mixup", "cutmix"}),
        {k: v for one in EACH for k, v in one.items() if k not in ("mixup", "cutmix")},
    ],
    ids=lambda s: "all" if len(s) > 1 else next(iter(s)),
)
@pytest.mark.parametrize("count", [4, 6])  # 4: as many as there are colours' changes in an order
def test_a_part_of_a_batch_gets_what_it_gets_in_the_whole(pictures, settings, count):
    """However many processes share a batch, they see the same pictures."""
    augmenter = Augmenter.of(AugmentSettings(probability=0.6, **settings), pictures)
    pixels, labels = pictures[:count], torch.arange(count)

    def seen(part):
        drawn, among = generator(3), Among(count, part)
        moved = shift_and_flip(pixels[part], 3, True, drawn, among)
        return augmenter(moved, labels[part], drawn, among)[0], drawn.get_state()

    whole, state = seen(slice(None))
    drawn = generator(3)
    plainly = augmenter(shift_and_flip(pixels, 3, True, drawn), labels, drawn)[0]
    assert torch.equal(whole, plainly)
    for part in (slice(0, 1), slice(1, 4), slice(count - 2, count)):
        own, after = seen(part)
        if "elastic" in settings:
            # its blur is a convolution, whose sums may take another order for another batch: a
            # displacement's last bits, 1e-7 of half a side, times the ramps between grey levels
            assert (own - whole[part]).abs().max() < 1e-5
        else:
            assert torch.equal(own, whole[part])
        assert torch.equal(after, state)  # the next batch is the same one too


@pytest.mark.parametrize(
    "settings",
    [
        {"crop": 1e-6, "crop_aspect": 1.0},
        {"rotation": 1e-3},
        {"shear": 1e-3},
        {"perspective": 1e-4},
        {"elastic": 1e-3},
        {"brightness": 1e-4, "contrast": 1e-4, "saturation": 1e-4, "hue": 1e-5},
        {"pca": 1e-4},
    ],
    ids=lambda s: next(iter(s)),
)
def test_next_to_no_strength_leaves_the_picture(pictures, settings):
    """No half pixel is lost on the way, and no grey level."""
    if "crop" in settings and kornia.__version__.startswith("0.8."):
        pytest.skip("kornia below 0.9 (Python 3.10 has no other) cuts whole pixels")
    x, _ = augment(pictures, **settings)
    assert (x - plain(pictures)).abs().max() < 1 / 255


def test_flips_are_exact(pictures):
    assert torch.equal(augment(pictures, hflip=1.0)[0], plain(pictures).flip(3))
    assert torch.equal(augment(pictures, vflip=1.0)[0], plain(pictures).flip(2))


@pytest.mark.parametrize(
    "settings",
    [{"rotation": 40.0}, {"shear": 30.0}, {"perspective": 0.8}, {"elastic": 3.0}, {"crop": 0.8}],
    ids=lambda s: next(iter(s)),
)
def test_no_border_comes_in(settings):
    white = torch.full((6, 24, 32, 3), 255, dtype=torch.uint8)
    x, _ = augment(white, **settings)
    assert x.min() > 1 - 1e-5  # float32 weights of four neighbours add up to 1


def test_elastic_moves_by_the_pixels_asked_for():
    """On a ramp the change of brightness is the displacement along it."""
    ramp = torch.arange(64).mul(4).to(torch.uint8).expand(64, 64)
    pictures = ramp[None, :, :, None].expand(32, 64, 64, 3)
    settings = AugmentSettings(elastic=2.0, elastic_smooth=3.0)
    x, _ = Augmenter(settings)(pictures, torch.zeros(32, dtype=torch.int64), generator())
    moved = (x * 255 - pictures.permute(0, 3, 1, 2)) / 4
    inner = moved[..., 14:-14, 14:-14]  # 4 sigma from the border, and further than any move
    # 32 pictures of (36 / (3 * 2 sqrt(pi)))^2 = 11 independent moves: 4% of spread, times 3
    assert inner.square().mean().sqrt().item() == pytest.approx(2.0, rel=0.12)


def test_probability_leaves_pictures_out(pictures):
    many = pictures[:1].expand(200, -1, -1, -1)
    augmenter = Augmenter(AugmentSettings(rotation=30.0, probability=0.3))
    x, _ = augmenter(many, torch.zeros(200, dtype=torch.int64), generator())
    same = (x == plain(many)).all(3).all(2).all(1).float().mean().item()
    assert same == pytest.approx(0.7, abs=0.1)  # 3 sigma of a share of 200


def test_solarize_inverts_what_is_bright(pictures):
    x, _ = augment(pictures, solarize=1.0, solarize_from=0.6)
    bright = plain(pictures) >= 0.6
    expected = torch.where(bright, 1 - plain(pictures), plain(pictures))
    assert torch.allclose(x, expected, atol=1e-6)


def test_pca_shifts_along_the_axes_of_the_colours(pictures):
    statistics = ColorStatistics.of(pictures)
    colors = pictures.reshape(-1, 3).numpy() / 255
    covariance = np.cov(colors.T, bias=True)
    vectors, values = statistics.vectors.double().numpy(), statistics.values.double().numpy()
    np.testing.assert_allclose(vectors @ np.diag(values) @ vectors.T, covariance, atol=1e-6)
    x = plain(pictures)
    shifts = (shift_colors(x, statistics, 0.1, generator()) - x).numpy()
    assert np.abs(shifts - shifts[:, :, :1, :1]).max() < 1e-6  # one for all pixels of a picture
    draws = torch.randn(6, 3, generator=generator()).numpy() * 0.1
    for shift, draw in zip(shifts[:, :, 0, 0], draws, strict=True):
        np.testing.assert_allclose(shift, vectors @ (draw * values), atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [{"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0}],
    ids=["mixup", "cutmix", "both"],
)
def test_labels_say_what_is_in_a_mixed_picture(settings):
    """Pictures of class c are all of brightness c / 4: their mean tells the shares."""
    labels = torch.arange(200) % 5
    pictures = (labels * 63).to(torch.uint8)[:, None, None, None].expand(-1, 20, 30, 3)
    augmenter = Augmenter(AugmentSettings(**settings), classes=5)
    x, shares = augmenter(pictures, labels, generator())
    assert shares.shape == (200, 5)
    assert torch.allclose(shares.sum(1), torch.ones(200))
    told = shares @ (torch.arange(5) * 63 / 255)
    assert torch.allclose(x.mean((1, 2, 3)), told, atol=1e-5)
    assert (shares[torch.arange(200), labels] >= 0.5 - 0.06).all()  # patches end on whole pixels
    assert (shares.max(1).values < 0.95).float().mean() > 0.3


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"hflip": 1.5}, "hflip: expected a number from 0 to 1, got 1.5"),
        ({"rotation": -3.0}, "rotation: expected a number from 0 to 180"),
        ({"hue": 0.7}, "hue: expected a number from 0 to 0.5"),
        ({"mixup": float("nan")}, "mixup: expected a number at least 0, got nan"),
        ({"crop": 1.0}, "crop: 1 leaves nothing"),
        ({"crop_aspect": 0.5}, "crop_aspect: expected a number at least 1"),
        ({"elastic": 1.0, "elastic_smooth": 0.1}, "elastic_smooth: expected at least 0.5"),
    ],
)
def test_settings_that_mean_nothing(settings, text):
    with pytest.raises(RecipeError, match=text):
        AugmentSettings(**settings)


def test_what_is_needed_besides(pictures, monkeypatch):
    with pytest.raises(InputError, match="statistics of the pictures' colours"):
        Augmenter(AugmentSettings(pca=0.1))
    with pytest.raises(RecipeError, match="at least 2 classes"):
        Augmenter(AugmentSettings(mixup=0.1))
    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(InputError, match=r"pip install 'edgecv\[train\]'"):
        augment(pictures, rotation=5.0)
