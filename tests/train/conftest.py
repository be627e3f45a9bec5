"""Small pictures drawn for the tests, and a net that learns them in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

SIZE = 16
NET = """
from torch import nn

def tiny(num_classes, norm="batch"):
    layer = nn.BatchNorm2d(8) if norm == "batch" else nn.GroupNorm(2, 8)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), layer, nn.ReLU(),
        nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(8, num_classes),
    )
"""
RECIPE = """
task = "classify"
[model]
source = "tinynet:tiny"
[model.options]
norm = "{norm}"
[input]
size = 16
mean = 0.5
std = 0.5
[labels]
names = ["disc", "square"]
[train]
data = "."
epochs = 3
batch = 8
lr = 0.01
shift = 1
"""


@pytest.fixture(autouse=True)
def _one_thread():
    """Nets this small are slower on more, and the machine's other work is kept out of the way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


COLORS = {"disc": (250, 220, 70), "square": (70, 120, 250)}


def draw(kind: str, rng: np.random.Generator, colored: bool = False) -> Image.Image:
    """A bright disc or square somewhere on a dark, noisy ground, of any color or of its kind's."""
    picture = Image.fromarray(rng.integers(0, 60, (SIZE, SIZE, 3), np.uint8))
    x, y = rng.integers(1, SIZE - 9, 2).tolist()
    shape = ImageDraw.Draw(picture)
    box, color = (x, y, x + 8, y + 8), tuple(rng.integers(120, 255, 3).tolist())
    if colored:
        color = COLORS[kind]
    (shape.ellipse if kind == "disc" else shape.rectangle)(box, fill=color)
    return picture


def write_pictures(folder: Path, count: int = 20, seed: int = 0, colored: bool = False) -> Path:
    """``count`` discs and as many squares, a folder each; by color they are told apart easily."""
    rng = np.random.default_rng(seed)
    for kind in ("disc", "square"):
        (folder / kind).mkdir(parents=True)
        for i in range(count):
            draw(kind, rng, colored).save(folder / kind / f"{i:03}.png")
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "pictures")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe of a tiny net, trained on :func:`pictures`; ``{norm}`` is BatchNorm."""
    (tmp_path / "tinynet.py").write_text(NET)
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE.format(norm="batch"))
    return path
