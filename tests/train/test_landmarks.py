"""Landmarks: reading points, the losses, and a net that learns two corners, through ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import edgecv
from edgecv.errors import InputError, RecipeError
from edgecv.evaluate.points import normalized_errors, read_points, summary
from edgecv.export.recipe import read_recipe
from edgecv.train.pointloss import point_loss
from edgecv.workflows.evaluate import evaluate
from edgecv.workflows.train import make_job, prepare, train_recipe

NET = """
from torch import nn

def net(points):
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 12, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(12 * 8 * 8, 2 * points), nn.Unflatten(1, (points, 2)),
    )
"""
RECIPE = """
task = "landmarks"
[model]
source = "tinypoints:net"
options = { points = 2 }
[input]
size = 32
fit = "stretch"
mean = 0.5
std = 0.5
[output]
decode = "points"
options = { normalized = true, scored = false }
[train]
data = "points.csv"
held_out = "points.csv"
epochs = 60
batch = 8
lr = 0.005
zoom = 0.0
shift = 0.05
[train.landmarks]
mirror = [1, 0]
"""


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch):
    """Drawing them takes longer than an epoch of these nets; test_loop.py has them drawn."""
    monkeypatch.setattr("edgecv.train.journal.draw_curves", lambda *_: None)


def write_points(folder: Path, count: int = 24) -> Path:
    """A bar with its left and right end labelled, of one picture the left one only."""
    rng = np.random.default_rng(0)
    lines = ["picture,left_x,left_y,right_x,right_y"]
    for i in range(count):
        picture = Image.new("RGB", (64, 40), (20, 20, 20))
        x, y, w = int(rng.integers(4, 24)), int(rng.integers(4, 28)), int(rng.integers(20, 36))
        ImageDraw.Draw(picture).rectangle((x, y, x + w - 1, y + 7), fill=(250, 220, 90))
        picture.save(folder / f"{i}.png")
        right = ",," if i == 3 else f",{x + w},{y + 4}"
        lines.append(f"{i}.png,{x},{y + 4}{right}")
    (folder / "points.csv").write_text("\n".join(lines) + "\n")
    return folder / "points.csv"


def write_recipe(folder: Path) -> Path:
    (folder / "tinypoints.py").write_text(NET)
    (folder / "points.toml").write_text(RECIPE)
    return folder / "points.toml"


def test_learns_points_and_scores_the_same_through_onnx(tmp_path):
    points = write_points(tmp_path)
    result = train_recipe(str(write_recipe(tmp_path)), tmp_path, [], tmp_path / "run")
    assert result.scores["nme"] < 0.2  # the middle of the picture is off by about 1
    out = edgecv.export(str(result.recipe), output=tmp_path / "m.onnx")
    score = evaluate(out.path, points, backend="onnxruntime")
    assert (score.nme, score.near) == pytest.approx(
        (result.scores["nme"], result.scores["near"]), abs=1e-3
    )


def test_points_and_pictures_are_mirrored_together(tmp_path):
    write_points(tmp_path, 16)
    recipe = read_recipe(write_recipe(tmp_path))
    _, job = make_job(recipe, recipe.train, tmp_path, lambda *_: None, lambda _: None)
    task = prepare("landmarks", job).task
    batch = task.draw(torch.arange(16), slice(None), torch.Generator().manual_seed(0))
    points, count = batch.targets
    assert count == 31  # labelled ones
    whole = ~points.isnan().any(2).any(1)
    assert (points[whole, 0, 0] < points[whole, 1, 0]).all()  # left is left in the mirror too
    for i in torch.nonzero(whole)[:, 0].tolist():
        columns = torch.nonzero((batch.inputs[i, 0] > 0).any(0))[:, 0]
        ends = torch.stack([columns[0], columns[-1] + 1]).clamp(0, 32)
        # a pixel of the source is half one of the input, and the resampling blurs by one
        assert (points[i, :, 0].clamp(0, 32) - ends).abs().max() <= 1.5


def test_wing_meets_itself_and_is_the_papers():
    x = torch.tensor([-20.0, -10, -1, 0, 0.5, 10, 12])
    constant = 10 - 10 * np.log(1 + 10 / 2)
    expected = [20 - constant, 10 * np.log(6), 10 * np.log(1.5), 0, 10 * np.log(1.25)]
    expected += [10 * np.log(6), 12 - constant]
    np.testing.assert_allclose(point_loss(x, "wing", 10, 2), expected, rtol=1e-6)
    smooth = torch.nn.functional.smooth_l1_loss(x, torch.zeros(7), reduction="none")
    torch.testing.assert_close(point_loss(x, "smooth-l1", 10, 2), smooth)
    torch.testing.assert_close(point_loss(x, "squared", 10, 2), x**2)


def test_errors_are_normalized_by_the_diagonal_or_by_two_points():
    truth = np.array([[0.0, 0], [8, 2], [np.nan, np.nan]])
    found = np.array([[3.0, 4], [8, 2], [1, 1]])
    np.testing.assert_allclose(normalized_errors(truth, found), [5 / np.hypot(8, 2), 0])
    truth[2], found[2] = (0, 4), (0, 4)
    length = np.hypot(8, 2)
    np.testing.assert_allclose(normalized_errors(truth, found, (0, 1)), [5 / length, 0, 0])
    np.testing.assert_allclose(normalized_errors(truth, found), [5 / np.hypot(8, 4), 0, 0])
    truth[2] = np.nan
    assert len(normalized_errors(truth, found, (0, 2))) == 0
    assert summary([np.array([0.05, 0.15])]) == (pytest.approx(0.1), 0.5)
    with pytest.raises(InputError, match="nothing to score"):
        summary([np.zeros(0)])


def test_what_a_file_of_points_must_not_be(tmp_path):
    path = write_points(tmp_path, 2)
    lines = path.read_text().splitlines()
    for bad, message in {
        "0.png,1,2,3": "line 2: 4 columns, the header has 5",
        "none.png,1,2,3,4": "there is no picture",
        "0.png,1,x,3,4": "expected numbers",
        "0.png,1,,3,4": "point 1: expected x and y, or two empty cells",
    }.items():
        path.write_text("\n".join([lines[0], bad]))
        with pytest.raises(InputError, match=message):
            read_points(path)
    path.write_text("picture,x1\n0.png,3\n")
    with pytest.raises(InputError, match="two columns for each point"):
        read_points(path)
    path.write_text("\n".join(lines[1:]))
    with pytest.raises(InputError, match="line 1 is a picture; expected a header"):
        read_points(path)
    path.write_text(lines[0] + "\n")
    with pytest.raises(InputError, match="no pictures"):
        read_points(path)
    recipe = str(write_recipe(tmp_path))
    path.write_text("\n".join([lines[0], "0.png,1,2,99,4"]))
    with pytest.raises(InputError, match="point 2 lies outside the picture of 64x40"):
        train_recipe(recipe, tmp_path, [], tmp_path / "run")
    path.write_text("\n".join(lines))
    for setting, message in {
        "landmarks.mirror=[1,2,0]": "partners must be each other's",
        "landmarks.mirror=[0]": "1 points",
        "landmarks.between=[0,5]": "has 2 points",
        "landmarks.loss=wings": "expected one of wing",
    }.items():
        with pytest.raises(RecipeError, match=message):
            train_recipe(recipe, tmp_path, [setting], tmp_path / "run")
