"""Several crops and several models: what is cut, and that their probabilities are averaged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import edgecv
from edgecv import preprocess
from edgecv.errors import InputError
from edgecv.measure.ready import READY_MODEL
from edgecv.workflows.crops import averaged, crops_of


@pytest.fixture(scope="module")
def model():
    with edgecv.load(READY_MODEL, backend="fake") as opened:
        yield opened


def with_room(spec, resize):
    return replace(spec, preparation=replace(spec.preparation, resize=resize))


def test_what_is_cut(model):
    """Each pixel's value is its place, so a crop says where it was cut."""
    rows, columns = np.mgrid[0:96, 0:128].astype(np.uint8)
    picture = np.stack([rows, columns, rows * 0], axis=-1)
    spec = with_room(model.spec, 96)  # nothing is resized
    p = spec.preparation
    found = crops_of(picture, spec, 10)
    assert found.shape == (10, 3, 64, 64)
    values = found * np.reshape(p.std, (3, 1, 1)) + np.reshape(p.mean, (3, 1, 1))
    corners = (values[:, :2, 0, 0] * 255).round().astype(int).tolist()
    assert corners[:5] == [[16, 32], [0, 0], [0, 64], [32, 0], [32, 64]]
    assert np.array_equal(found[5:], found[:5, :, :, ::-1])
    assert np.array_equal(crops_of(picture, spec, 2), found[[0, 5]])
    assert np.array_equal(crops_of(picture, spec, 1)[0], found[0])
    assert np.array_equal(
        model.prepare(Image.fromarray(picture)).tensor[None].shape, (1, 3, 64, 64)
    )


@pytest.mark.parametrize(
    "change",
    [
        {"resize": 75},
        {"resize": 71, "crop_rounding": "floor"},
        {"resize": 80, "interpolation": "opencv-linear"},
        {"resize": 70, "color": "bgr"},
        {"resize": 66, "color": "gray", "mean": (0.5,), "std": (0.2,)},
        {"resize": 50, "pad_value": 9},  # smaller than the crop, which is padded
        {"resize": 50, "pad_value": 9, "color": "gray", "mean": (0.5,), "std": (0.2,)},
    ],
)
def test_the_picture_is_resized_once_and_its_centre_is_what_eval_sees(
    model, pixels, change, monkeypatch
):
    p = replace(model.spec.preparation, **change)
    (tensor,) = model.spec.inputs
    tensor = replace(tensor, shape=("N", *p.tensor_shape(p.height, p.width)))
    spec = replace(model.spec, preparation=p, inputs=(tensor,))
    expected = preprocess.prepare(pixels, spec.preparation).tensor
    resized = []
    resample = preprocess._resample
    monkeypatch.setattr(
        preprocess, "_resample", lambda *given: resized.append(given[1]) or resample(*given)
    )
    found = crops_of(pixels, spec, 10)
    assert len(resized) == 1
    assert found.shape == (10, *expected.shape)
    assert np.array_equal(found[0], expected)


def test_probabilities_are_averaged(model, pixels):
    one = averaged([model], [pixels], 1)
    assert one.shape == (1, 10)
    assert one.sum() == pytest.approx(1, abs=1e-6)
    assert np.allclose(one[0], model(pixels).probabilities, atol=1e-6)  # float32 answers
    assert np.allclose(averaged([model, model], [pixels], 1), one)
    alone = [averaged([model], [pixels], 2)]
    assert not np.allclose(alone[0], one)


def test_what_cannot_be_done_is_said(model, pixels, tmp_path):
    with pytest.raises(InputError, match="expected one of 1, 2, 5, 10, got 3"):
        averaged([model], [pixels], 3)
    other = edgecv.load(READY_MODEL, backend="fake")
    other.spec = replace(other.spec, labels=tuple(reversed(other.spec.labels)))
    with pytest.raises(InputError, match="same labels in the same order"):
        averaged([model, other], [pixels], 1)
    other.spec = replace(
        model.spec, preparation=replace(model.spec.preparation, fit="stretch", resize=None)
    )
    with pytest.raises(InputError, match=r"takes whole pictures .* 2 adds the mirror image"):
        averaged([other], [pixels], 5)
