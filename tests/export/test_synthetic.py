"""Calibration pictures from BatchNorm statistics: what they match, and when they are refused."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgecv.errors import InputError
from edgecv.export import synthetic
from edgecv.export.overrides import recipe_for
from edgecv.export.recipe import Calibration
from edgecv.export.synthetic import Settings, informative_norms, statistics_loss, synthesize
from edgecv.export.weights import load_model, resolve
from edgecv.preprocess import list_pictures, normalize, prepare
from edgecv.progress import silent
from edgecv.spec import Preparation, read_spec
from edgecv.workflows.synthetic import synthetic_folder

SIZE = 24
P = Preparation(SIZE, SIZE, fit="stretch", mean=(0.5,) * 3, std=(0.25,) * 3)
SETTINGS = Settings(count=8, steps=60)
REPOSITORY = Path(__file__).resolve().parents[2]


def small_net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def net():
    """Its BatchNorms have seen smooth pictures, whose statistics noise does not have."""
    model = small_net().train()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for _ in range(60):
            coarse = torch.from_numpy(rng.uniform(0, 1, (16, 3, 4, 4)).astype(np.float32))
            batch = nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bicubic").clamp(0, 1)
            model((batch - 0.5) / 0.25)
    return model.eval()


@pytest.fixture(scope="module")
def made(net):
    return synthesize(net, P, SETTINGS)


def input_norm(mean, deviation=0.3):
    """A net that normalizes its input: the pictures themselves have to have the statistics."""
    norm = nn.BatchNorm2d(len(mean))
    norm.running_mean.copy_(torch.tensor(mean))
    norm.running_var.fill_(deviation**2)
    return norm.eval()


def test_the_loss_is_what_its_docstring_says():
    """Against NumPy, in float64; 1e-4 is float32's rounding of a few thousand terms."""
    rng = np.random.default_rng(3)
    norm = nn.BatchNorm2d(3)
    norm.running_mean.copy_(torch.tensor([0.2, -0.4, 0.1]))
    norm.running_var.copy_(torch.tensor([0.5, 1.5, 1e-6]))  # the last is as small as eps
    pixels = rng.integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
    x = (pixels / 255 - 0.5) / 0.25
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2), ddof=1)
    scale = np.sqrt(norm.running_var.double().numpy() + norm.eps)
    first = ((mean - norm.running_mean.double().numpy()) / scale) ** 2
    second = (np.sqrt(var + norm.eps) / scale - 1) ** 2
    found = statistics_loss(norm.eval(), P, pixels)
    assert found == pytest.approx((first + second).mean(), rel=1e-4)


def test_pictures_match_the_statistics_that_noise_misses(net, made):
    assert made.loss < 0.1 * made.noise  # 0.012 of it here
    assert made.loss == statistics_loss(net, P, made.pixels)
    assert made.pixels.dtype == np.uint8
    assert made.pixels.shape == (8, SIZE, SIZE, 3)
    assert made.norms == 3
    about = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert (about["made"], about["steps"], about["seed"]) == (8, 60, 0)


def test_no_step_changes_nothing(net):
    none = synthesize(net, P, Settings(count=8, steps=0))
    assert none.loss == none.noise


def test_the_seed_decides_and_the_net_stays(net, made):
    before = copy.deepcopy(net.state_dict())
    np.testing.assert_array_equal(synthesize(net, P, SETTINGS).pixels, made.pixels)
    other = synthesize(net, P, Settings(count=8, steps=60, seed=1)).pixels
    assert (other != made.pixels).mean() > 0.5
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_many_pictures_are_made_in_batches(net, monkeypatch):
    monkeypatch.setattr(synthetic, "BATCH_PIXELS", 3 * SIZE * SIZE)
    seen = []
    result = synthesize(
        net, P, Settings(count=7, steps=2), lambda what, done, total: seen.append((done, total))
    )
    assert len(np.unique(result.pixels, axis=0)) == 7
    assert seen == [(i, 6) for i in range(1, 7)]  # 3 + 2 + 2 pictures, two steps each


@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
def test_files_are_prepared_to_what_was_optimized(tmp_path, color):
    """Channels in their order, the crop's border around them, values within a picture's."""
    mean = (-0.6, 0.0, 0.6) if color != "gray" else (0.3,)
    same = (0.5,) * len(mean)
    p = Preparation(SIZE, SIZE, color=color, resize=29, mean=same, std=same)
    warnings = []
    folder = tmp_path / "made"
    about = synthetic_folder(
        input_norm(mean), p, Calibration(pictures=6, seed=2), folder, silent, warnings.append
    )
    tensors = np.stack([prepare(path, p).tensor for path in list_pictures(folder)])
    # half of a deviation (0.3) apart at most, where the channels' means are two apart
    np.testing.assert_allclose(tensors.mean((0, 2, 3)), mean, atol=0.15)
    assert np.abs(tensors).max() <= 1
    again = synthesize(input_norm(mean), p, Settings(count=6, seed=2))
    np.testing.assert_array_equal(tensors, normalize(again.pixels, p))
    assert about == again.to_dict()
    (warning,) = warnings
    assert "6 synthetic ones" in warning
    assert "--calibration DIR" in warning


def test_statistics_that_no_picture_has_are_said_to_be_missed(tmp_path):
    warnings = []
    net = input_norm((50.0, 50.0, 50.0))
    synthetic_folder(net, P, Calibration(pictures=4), tmp_path / "made", silent, warnings.append)
    assert "fit the net's statistics badly" in warnings[-1]


def blank(net, *, fold):
    """Without statistics: as folding leaves a trained net, or as one is born."""
    for norm in informative_norms(net).values():
        norm.reset_parameters()
        if fold:
            norm.bias.data.fill_(0.3)
    return net


def test_nets_that_remember_no_pictures_are_refused(net):
    def refused(model, message, settings=SETTINGS):
        with pytest.raises(InputError, match=message):
            synthesize(model, P, settings)

    refused(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), "no BatchNorm layers")
    refused(small_net(), "3 of the net's 3 BatchNorms have never seen a picture")
    refused(blank(copy.deepcopy(net), fold=True), "3 of the net's 3 BatchNorms have been folded")
    refused(blank(copy.deepcopy(net), fold=False), "never seen a picture")
    partly = copy.deepcopy(net)
    partly[1].reset_running_stats()
    partly[1].bias.data.fill_(0.3)
    refused(partly, "1 of the net's 3 BatchNorms have been folded")
    broken = copy.deepcopy(net)
    broken[0].weight.data.fill_(torch.nan)
    refused(broken, "NaN or infinite")
    refused(net, "expected 2 synthetic pictures or more, got 1", Settings(count=1))
    idle = nn.Identity()
    idle.spare = input_norm((0.0, 0.0, 0.0))
    refused(idle, "runs none of them")


def test_folded_imagenet_weights_are_refused(assets):
    file = assets / "weights" / "mobilenet_v2_imagenet.pth"
    model = load_model(resolve(recipe_for("mobilenetv2"), str(file)))
    with pytest.raises(InputError, match="52 of the net's 52 BatchNorms have been folded"):
        informative_norms(model)


def test_export_without_pictures_end_to_end(tmp_path):
    """A trained net: real statistics, a file that says what it was made from, and its warning."""
    recipe = (REPOSITORY / "export" / "mobilenetv2-cifar10.toml").read_text()
    assert "pictures = 100\nseed = 0" in recipe
    few = recipe.replace("pictures = 100\nseed = 0", "pictures = 10\nseed = 4")
    few = few.replace('file = "weights/', f'file = "{REPOSITORY}/export/weights/')
    (tmp_path / "few.toml").write_text(few)
    command = [sys.executable, "-m", "edgecv", "export", "few.toml", "--precision", "int8"]
    done = subprocess.run(
        [*command, "--target", "tensorrt", "--json"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING: there are no calibration pictures" in done.stderr
    assert "2 synthetic pictures" in done.stderr  # what the table says the proof was made on
    data = json.loads(done.stdout)
    spec = read_spec(tmp_path / "few-int8-tensorrt.onnx")
    calibration = spec.quantization["calibration"]
    assert data["quantization"]["calibration"] == calibration
    assert calibration["provenance"] == "synthetic"
    assert calibration["pictures"] == 8
    about = calibration["synthetic"]
    assert (about["made"], about["seed"], about["batchnorms"]) == (10, 4, 52)
    assert about["statistics_loss"] < 0.2 * about["statistics_loss_of_noise"]
    assert spec.quantization["proof"]["synthetic"] is True
    assert spec.parity["synthetic"] is True
    # between the 30 dB that these pictures give and the 18 of noise (benchmarks/synthetic.json)
    assert data["proof"]["outputs"]["logits"]["sqnr_db"] > 24
