"""Recipes: the shipped ones, people's own, and every way to get one wrong."""

import sys
from pathlib import Path

import pytest

from edgecv.errors import EdgeCVError, RecipeError
from edgecv.export.overrides import InputOverrides, recipe_for
from edgecv.export.recipe import list_recipes, load_recipe
from edgecv.export.sources import build

GOOD = """
summary = "mine"
[model]
source = "mobilenet_v2"
options = { width = 0.35 }
[input]
size = [32, 48]
resize = 40
mean = 0.5
std = [0.1, 0.2, 0.3]
[labels]
names = ["a", "b"]
"""


@pytest.mark.parametrize("name", list_recipes())
def test_shipped_recipes_load(name):
    recipe = load_recipe(name)
    assert recipe.summary
    assert bool(recipe.labels) == (recipe.task in ("classify", "detect", "segment"))
    assert all(source.licence for source in recipe.weights.values() if not source.recipe)


def test_imagenet_labels_are_in_the_usual_order(assets):
    lines = (assets / "imagenet" / "classes.txt").read_text().splitlines()
    recipe = load_recipe("mobilenetv2")
    assert list(recipe.label_ids) == [line.split()[0] for line in lines]
    assert len(set(recipe.labels)) == 1000


def test_names_ignore_case_hyphens_and_underscores():
    assert load_recipe("MobileNet_V2").name == "mobilenetv2"
    with pytest.raises(RecipeError, match="did you mean mobilenetv2"):
        load_recipe("mobilenetv22")


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def test_a_users_own_recipe(tmp_path):
    recipe = load_recipe(write(tmp_path, GOOD))
    assert recipe.name == "mine"
    assert recipe.options == {"width": 0.35}
    assert (recipe.preparation.height, recipe.preparation.width) == (32, 48)
    assert recipe.preparation.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("resize = 40", "rezise = 40", r"mine\.toml: input\.rezise: unknown key; did you mean 'r"),
        ("resize = 40", 'resize = "40"', r"input\.resize: expected a whole number, got '40'"),
        ("size = [32, 48]", "", r"input\.size: is missing; expected pixels"),
        ("size = [32, 48]", "size = 0", "height must be 1 to 16384"),
        ("mean = 0.5", "mean = [1, 2]", "expected 1 or 3 values, got 2"),
        ("std = [0.1, 0.2, 0.3]", "std = 0", "positive"),
        ('source = "mobilenet_v2"', 'source = "mobilnet"', "did you mean mobilenet_v2"),
        ('source = "mobilenet_v2"', 'source = "x.pt2"', "there is no file"),
        ('names = ["a", "b"]', 'file = "none.txt"', r"labels\.file: there is no file"),
        ('names = ["a", "b"]', "names = [1]", "list of strings"),
        ("[labels]", "[lables]", "lables: unknown key; did you mean 'labels'"),
        ("[input]", "[input", "not valid TOML.*line"),
        ("[labels]", '[weights.x]\nurl = "u"\n[labels]', "sha256: expected 8 to 64 hex digits"),
        ("[labels]", "[weights.x]\n[labels]", "expected one of url, file, recipe"),
        ('summary = "mine"', 'task = "sing"', "task: expected one of classify"),
    ],
)
def test_mistakes_are_named_with_file_key_and_remedy(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(write(tmp_path, GOOD.replace(old, new)))
    assert "mine.toml" in str(caught.value) or "none.txt" in str(caught.value)


def test_input_flags_override_the_recipe(tmp_path):
    labels = tmp_path / "l.txt"
    labels.write_text("n1\tone\nn2\ttwo\n")
    flags = InputOverrides(128, None, "stretch", (0.5,), (0.25, 0.5, 1.0), labels)
    recipe = recipe_for("mobilenetv2", flags)
    p = recipe.preparation
    assert (p.height, p.resize, p.fit) == (128, 146, "stretch")  # 256 / 224 of 128
    assert (p.mean, p.std) == ((0.5, 0.5, 0.5), (0.25, 0.5, 1.0))
    assert (recipe.labels, recipe.label_ids) == (("one", "two"), ("n1", "n2"))
    with pytest.raises(RecipeError, match="fit must be one of"):
        recipe_for("mobilenetv2", InputOverrides(fit="squeeze"))


def test_a_model_without_a_recipe_never_guesses_its_preparation():
    with pytest.raises(RecipeError, match="needs --image-size, --mean, --std, --labels"):
        recipe_for("my_package:build")


@pytest.mark.parametrize("content", ["", "a\n\nb\n", "\xff"])
def test_bad_label_files(tmp_path, content):
    labels = tmp_path / "l.txt"
    labels.write_bytes(content.encode("latin-1"))
    with pytest.raises(EdgeCVError, match=r"l\.txt"):
        recipe_for("mobilenetv2", InputOverrides(labels=labels))


@pytest.mark.parametrize(
    ("library", "function", "name"),
    [
        ("timm", "create_model(model_name", "timm:net"),
        ("torchvision", "get_model(name", "torchvision:net"),
    ],
)
def test_models_of_timm_and_torchvision_are_built_by_their_own_functions(
    tmp_path, monkeypatch, library, function, name
):
    """A stand-in with the library's signature: neither is among what the tests install."""
    package = tmp_path / library
    package.mkdir()
    code = (
        "from torch import nn\n"
        f"def {function}, num_classes=1000, width=1):\n"
        f"    assert {function.partition('(')[2]} == 'net'\n"
        "    return nn.Linear(4 * width, num_classes)\n"
    )
    (package / "models.py").write_text(code)
    (package / "__init__.py").write_text("from .models import *\nfrom . import models\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module in (library, f"{library}.models"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    net = build(name, 7, {"width": 2}, tmp_path)
    assert net.weight.shape == (7, 8)
    for module in (library, f"{library}.models"):
        sys.modules.pop(module, None)
