"""A Siamese pair's learned likeness: in the file, and in NumPy what PyTorch computes."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

import edgecv
from edgecv import models
from edgecv.errors import ExportError, SpecError
from edgecv.export.to_onnx import INPUT
from edgecv.gallery import Likeness, Space, scores
from edgecv.measure import selftest
from edgecv.models.siamese import Siamese
from edgecv.runtimes import open_backend
from edgecv.workflows.adopt import adopt

RECIPE = """
task = "embed"
[model]
source = "siamese"
options = { trunk = "lenet5", measure = "MEASURE", trunk_options = { in_channels = 3 } }
[input]
size = 32
mean = 0.5
std = 0.5
[output]
options = { normalize = false }
"""


def recipe(folder, measure="l1", change=("", "")):
    path = folder / f"{measure}.toml"
    path.write_text(RECIPE.replace("MEASURE", measure).replace(*change))
    return str(path)


def net(measure):
    """The net that `--weights random` makes, its head far enough from 0 to tell pairs apart."""
    torch.manual_seed(0)
    made = models.create(
        "siamese", trunk="lenet5", measure=measure, trunk_options={"in_channels": 3}
    )
    nn.init.normal_(made.head.weigh.weight, std=20.0)
    nn.init.constant_(made.head.weigh.bias, -0.3)
    return made.eval()


@pytest.fixture(scope="module", params=["l1", "chi-square"])
def pair(request, tmp_path_factory):
    """The net, and its FP32 file."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("pair")
    made = net(request.param)
    save_file(made.state_dict(), folder / "net.safetensors")
    exported = edgecv.export(
        recipe(folder, request.param),
        weights=str(folder / "net.safetensors"),
        output=folder / "net.onnx",
        batch=None,
    )
    return made, exported


def vectors(exported, pictures):
    with open_backend("onnxruntime", exported.path) as backend:
        (output,) = backend.run({INPUT: pictures}).values()
    return output.copy()


def test_the_file_says_what_the_net_says(pair):
    made, exported = pair
    learned = Likeness.of(exported.spec)
    assert np.array_equal(learned.vector, made.head.weigh.weight.detach()[0].numpy())
    assert learned.bias == made.head.weigh.bias.item()
    x, y = (selftest.inputs(exported.spec.preparation, seed, 16) for seed in (1, 2))
    found = scores(vectors(exported, x), vectors(exported, y), "likeness", learned)
    with torch.inference_mode():
        expected = made(torch.from_numpy(x), torch.from_numpy(y))[:, 0].numpy()
    # embeddings are equal to 1e-6 (the file's own parity says so), the sigmoid's slope is at most
    # 1/4, and chi-square's terms move by at most 3 times either value
    assert exported.spec.parity["max_abs"] < 1e-6
    tolerance = np.abs(learned.vector).sum() * 3 * 2e-6 / 4
    assert np.abs(found - expected).max() < tolerance
    assert np.ptp(expected) > 20 * tolerance  # these pairs are told apart
    proof = exported.spec.parity["likeness"]
    assert proof["max_abs"] <= proof["tolerance"] < 1e-3
    assert proof["pairs"] == 3


@pytest.mark.parametrize("pair", ["l1"], indirect=True)
def test_smaller_files_keep_it(pair, tmp_path):
    made, exported = pair
    half = edgecv.export(
        recipe(tmp_path, made.head.measure),
        weights=str(exported.path.parent / "net.safetensors"),
        precision="fp16",
        pixels="bgr",
        output=tmp_path / "half.onnx",
    )
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    whole = edgecv.quantize(
        exported.path, calibration=tmp_path, force=True, output=tmp_path / "int8.onnx"
    )
    assert half.spec.preparation.color == "bgr"  # and the same space yet
    for smaller in (half, whole):
        assert Likeness.of(smaller.spec) == Likeness.of(exported.spec)
        assert Space.of(smaller.spec) == Space.of(exported.spec)
    assert whole.spec.preparation.mean == (128 / 255,) * 3  # a whole level, and the same space yet
    proof = half.spec.parity["likeness"]
    assert 0 < proof["max_abs"] <= proof["tolerance"]


def test_a_contract_that_lies_is_not_written(tmp_path, monkeypatch):
    honest = Siamese.likeness

    def swapped(self):
        told = honest(self)
        return replace(told, weights=tuple(reversed(told.weights)))

    monkeypatch.setattr(Siamese, "likeness", swapped)
    with pytest.raises(ExportError, match=r"likeness .* is not what PyTorch computes"):
        edgecv.export(recipe(tmp_path), weights="random", output=tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ("normalize = true", SpecError, "'normalize' must be false beside it"),
        ("likeness = { bias = 1.0 }", ExportError, "leave it out of the recipe"),
    ],
)
def test_recipes_that_contradict_the_net(tmp_path, options, error, text):
    with pytest.raises(error, match=text):
        edgecv.export(
            recipe(tmp_path, change=("normalize = false", options)),
            weights="random",
            output=tmp_path / "net.onnx",
        )


@pytest.mark.parametrize("pair", ["l1"], indirect=True)
def test_an_adopted_file_has_one_of_its_length(pair, tmp_path):
    bare = onnx.load(pair[1].path)
    del bare.metadata_props[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    learned = "{ measure = 'l1', weights = [WEIGHTS], bias = 0.5 }"
    for count in (16, 15):
        (tmp_path / f"{count}.toml").write_text(
            'task = "embed"\n[input]\nsize = 32\n[output.options]\nnormalize = false\n'
            f"likeness = {learned.replace('WEIGHTS', ', '.join(['-1.0'] * count))}\n"
        )
    own, wrong = (str(tmp_path / f"{count}.toml") for count in (16, 15))
    adopted = adopt(tmp_path / "bare.onnx", recipe=own, output=tmp_path / "net.onnx")
    assert Likeness.of(adopted.spec) == Likeness("l1", (-1.0,) * 16, 0.5)
    with pytest.raises(SpecError, match=r"expected 16 weights, .* got 15"):
        adopt(tmp_path / "bare.onnx", recipe=wrong, output=tmp_path / "no.onnx")
    assert not (tmp_path / "no.onnx").exists()


def test_a_users_own_pair(tmp_path, monkeypatch):
    """Any net with a likeness, called with one batch or two, is exported with it."""
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "from edgecv.gallery import Likeness\n"
        "class Mine(nn.Module):\n"
        "    def forward(self, x, y=None):\n"
        "        a = x.mean((2, 3))\n"
        "        if y is None:\n"
        "            return a\n"
        "        return torch.sigmoid(0.5 - (a - y.mean((2, 3))).abs().sum(1, keepdim=True))\n"
        "    def likeness(self):\n"
        "        return Likeness('l1', (-1.0, -1.0, -1.0), 0.5)\n"
        "def build():\n"
        "    return Mine()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "pair.toml").write_text(
        'task = "embed"\n[model]\nsource = "mine:build"\n[input]\nsize = 32\n'
        "[output]\noptions = { normalize = false }\n"
    )
    exported = edgecv.export(
        str(tmp_path / "pair.toml"), weights="random", output=tmp_path / "mine.onnx"
    )
    assert Likeness.of(exported.spec) == Likeness("l1", (-1.0, -1.0, -1.0), 0.5)
