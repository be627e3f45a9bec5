"""Masks: losses against plain arithmetic, and a net that learns two shapes, through ONNX."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch.nn.functional import cross_entropy

import edgecv
from edgecv.errors import InputError, RecipeError
from edgecv.evaluate.segmentation import read_mask, read_masks
from edgecv.export.recipe import read_recipe
from edgecv.train import segmentation
from edgecv.train.segmentation import dice_loss
from edgecv.workflows.evaluate import evaluate
from edgecv.workflows.train import make_job, prepare, train_recipe

NET = """
from torch import nn
from torch.nn.functional import interpolate

class Net(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12),
                                  nn.ReLU(), nn.Conv2d(12, 12, 3, 1, 1), nn.ReLU())
        self.head = nn.Conv2d(12, channels, 1)

    def forward(self, x):  # half the input's size
        return self.head(self.body(x))

def net(num_classes):
    return Net(num_classes)

def binary():
    return Net(1)
"""
RECIPE = """
task = "segment"
[model]
source = "tinyseg:{net}"
[input]
size = 32
fit = "letterbox"
mean = 0.5
std = 0.5
[output]
decode = "{decode}"
[labels]
names = {names}
[train]
data = "shapes"
held_out = "shapes"
epochs = 8
batch = 4
lr = 0.02
zoom = 0.1
shift = 0.1
{rest}
"""


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch):
    """Drawing them takes longer than an epoch of these nets; test_loop.py has them drawn."""
    monkeypatch.setattr("edgecv.train.journal.draw_curves", lambda *_: None)


def write_masks(folder: Path, count: int = 24) -> Path:
    """A warm and a cold shape on dark ground: values 7 and 9 in the masks, 0 elsewhere."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        picture = Image.fromarray(rng.integers(0, 50, (40, 48, 3), np.uint8))
        mask = Image.new("L", (48, 40))
        for place, value in enumerate(rng.permutation([7, 9]).tolist()):
            side = int(rng.integers(12, 19))
            x, y = int(rng.integers(1, 5)) + 24 * place, int(rng.integers(0, 40 - side))
            box, fill = (x, y, x + side, y + side), {7: (255, 200, 60), 9: (60, 160, 255)}[value]
            ImageDraw.Draw(picture).ellipse(box, fill=fill)
            ImageDraw.Draw(mask).ellipse(box, fill=value)
        picture.save(folder / "images" / f"{i:02}.png")
        mask.save(folder / "masks" / f"{i:02}.png")
    return folder


def write_recipe(folder: Path, binary: bool = False, rest: str = "") -> Path:
    (folder / "tinyseg.py").write_text(NET)
    names = ["ground", "shape"] if binary else ["ground", "warm", "cold"]
    mapping = {"rest": 0, "7": 1, "9": 1 if binary else 2}
    (folder / "classes.json").write_text(json.dumps(mapping))
    path = folder / "seg.toml"
    text = RECIPE.format(
        net="binary" if binary else "net",
        decode="binary-logits" if binary else "logits",
        names=json.dumps(names),
        rest=f'classes = "classes.json"\n{rest}',
    )
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("binary", "rest"),
    [(False, '[train.segment]\nclass_weights = "balanced"'), (True, "[train.segment]\ndice = 2.0")],
)
def test_learns_masks_and_scores_the_same_through_onnx(binary, rest, tmp_path):
    write_masks(tmp_path / "shapes")
    recipe = write_recipe(tmp_path, binary, rest)
    result = train_recipe(str(recipe), tmp_path, [], tmp_path / "run")
    # all ground: 1/3 (1/2 binary) at most; the maps have half the pictures' resolution
    assert result.scores["miou"] > 0.8
    out = edgecv.export(str(result.recipe), output=tmp_path / "m.onnx")
    score = evaluate(
        out.path, tmp_path / "shapes", backend="onnxruntime", classes=tmp_path / "classes.json"
    )
    # the same weights and code; a pixel in a thousand may lie between two classes
    assert score.miou == pytest.approx(result.scores["miou"], abs=1e-3)


def test_dice_is_two_overlaps_by_both_areas():
    classes = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1]]])
    known = torch.ones_like(classes, dtype=torch.bool)
    sure = torch.nn.functional.one_hot(classes, 3).permute(0, 3, 1, 2).float() * 60
    # the third class is not there, and does not count
    assert dice_loss(sure, classes, known).item() == pytest.approx(0, abs=1e-6)
    # everything said to be class 0: 2 * 4 / (8 + 4) of it is right, nothing of class 1
    wrong = torch.zeros_like(sure)
    wrong[:, 0] = 60
    expected = 1 - (2 * 4 / 12 + 0) / 2
    assert dice_loss(wrong, classes, known).item() == pytest.approx(expected, abs=1e-6)
    known[:, :, 3] = False
    expected = 1 - (2 * 4 / (6 + 4) + 0) / 2
    assert dice_loss(wrong, classes, known).item() == pytest.approx(expected, abs=1e-6)


def make_task(tmp_path: Path, rest: str = "") -> object:
    recipe = read_recipe(write_recipe(tmp_path, rest=rest))
    _, job = make_job(recipe, recipe.train, tmp_path, lambda *_: None, lambda _: None)
    return prepare("segment", job).task


def test_cross_entropy_is_that_of_pixels_that_count(tmp_path):
    write_masks(tmp_path / "shapes", 4)
    task = make_task(tmp_path, '[train.segment]\ndice = 0.0\nclass_weights = "balanced"')
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn((2, 3, 8, 8), generator=generator)
    targets = torch.randint(0, 3, (2, 8, 8), generator=generator)
    targets[:, :3] = 255
    each = [
        cross_entropy(outputs[i : i + 1], targets[i : i + 1], task.weights, ignore_index=255)
        for i in range(2)
    ]
    torch.testing.assert_close(task.loss(outputs, targets), torch.stack(each).mean())
    counts = np.bincount(torch.cat([task.data.masks(torch.arange(4)).flatten()]), minlength=256)[:3]
    np.testing.assert_allclose(task.weights, counts.sum() / (3 * counts), rtol=1e-6)
    nothing = torch.full_like(targets, 255)
    assert task.loss(outputs, nothing).item() == 0


def test_masks_are_augmented_with_their_pictures(tmp_path):
    write_masks(tmp_path / "shapes", 8)
    task = make_task(tmp_path)
    batch = task.draw(torch.arange(8), slice(2, 7), torch.Generator().manual_seed(0))
    warm, cold = batch.inputs[:, 0] > 0.2, batch.inputs[:, 2] > 0.6
    for value, bright in ((1, warm), (2, cold)):
        same = ((batch.targets == value) & bright).sum() / (batch.targets == value).sum()
        assert same > 0.8  # borders are blurred
    assert (batch.targets == 255).any()  # the letterbox's bars
    assert batch.share == 5 / 8


def test_masks_are_read_once_and_scored_from_memory(tmp_path, monkeypatch):
    write_masks(tmp_path / "shapes", 6)
    read: list[Path] = []
    monkeypatch.setattr(
        segmentation, "read_mask", lambda path, *rest: read.append(path) or read_mask(path, *rest)
    )
    task = make_task(tmp_path)
    net = torch.nn.Conv2d(3, 3, 1).eval()
    scores = task.evaluate(net)
    assert task.evaluate(net) == scores
    assert len(read) == len(set(read)) == 6
    monkeypatch.setattr(segmentation, "OWN", 100)  # no room for them
    small = make_task(tmp_path)
    assert small.evaluate(net) == scores
    assert len(read) == 6 + 6 + 6


def test_what_the_masks_must_not_be(tmp_path):
    data = write_masks(tmp_path / "shapes", 3)
    recipe = str(write_recipe(tmp_path))
    mask = data / "masks" / "01.png"

    def train(*settings: str) -> None:
        train_recipe(recipe, tmp_path, ["epochs=1", *settings], tmp_path / "run")

    before = mask.read_bytes()
    Image.new("L", (20, 20)).save(mask)
    with pytest.raises(InputError, match=r"01\.png: 20x20 pixels, its picture has 48x40"):
        train()
    Image.new("RGB", (48, 40)).save(mask)
    with pytest.raises(InputError, match=r"01\.png: a mask of mode RGB"):
        train()
    mask.write_bytes(before[:60])
    with pytest.raises(InputError, match=r"01\.png"):
        train()
    mask.write_bytes(before)
    with pytest.raises(InputError, match="the value 7 is no class of the model"):
        train("classes=")
    with pytest.raises(InputError, match=r"none\.json: there is no such file in"):
        train("classes=none.json")
    with pytest.raises(RecipeError, match="cross_entropy: it and dice are both 0"):
        train("segment.dice=0.0", "segment.cross_entropy=0.0")
    with pytest.raises(RecipeError, match=r"augment\.crop: moves or mixes"):
        train("augment.crop=0.5")


def test_rest_stands_for_the_values_that_are_not_named(tmp_path):
    data = write_masks(tmp_path / "shapes", 1)
    (tmp_path / "c.json").write_text('{"rest": 2, "7": 1, "0": 0}')
    table = read_masks(data, 3, tmp_path / "c.json").classes
    assert (table[0], table[7], table[9], table[200], table[255]) == (0, 1, 2, 2, -1)
