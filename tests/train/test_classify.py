"""Classifiers: reading pictures, transfer learning, the command from folder to ONNX."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from edgecv import models
from edgecv.errors import InputError, RecipeError, WeightsError
from edgecv.export.recipe import load_recipe, read_recipe
from edgecv.export.weights import read_state_dict
from edgecv.spec import Preparation
from edgecv.train.batchnorm import is_folded
from edgecv.train.checkpoint import Position, State, load, save
from edgecv.train.classify import ClassificationTask, ClassifySettings, learner
from edgecv.train.data import load_pictures, split
from edgecv.train.finder import range_test
from edgecv.train.settings import TrainConfig, typed
from edgecv.train.task import Batch
from edgecv.train.transfer import freeze_up_to, head_of, tail_of, unfreeze_from
from edgecv.workflows.startweights import start_from
from edgecv.workflows.train import RateResult, read_table, train_recipe
from tests.train.conftest import write_pictures

PREPARATION = Preparation(16, 16, mean=(0.5,) * 3, std=(0.5,) * 3)


def test_a_folder_and_a_zip_of_it_are_the_same_data(pictures, tmp_path):
    archive = tmp_path / "pictures.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in pictures.rglob("*.png"):
            file.write(path, path.relative_to(tmp_path))
    one, two = (load_pictures(source, PREPARATION) for source in (pictures, archive))
    assert torch.equal(one.pixels, two.pixels)
    assert torch.equal(one.labels, two.labels)
    assert one.classes == ("disc", "square")


def test_labels_follow_the_recipes_order(pictures):
    turned = load_pictures(pictures, PREPARATION, classes=("square", "disc"))
    plain = load_pictures(pictures, PREPARATION)
    assert torch.equal(turned.labels, 1 - plain.labels)


def test_a_split_is_by_class_and_by_seed(pictures):
    data = load_pictures(pictures, PREPARATION)
    first, second = split(data, 0.25, 3)
    assert torch.bincount(first.labels).tolist() == [15, 15]
    assert torch.bincount(second.labels).tolist() == [5, 5]
    again, other = split(data, 0.25, 3)[1], split(data, 0.25, 4)[1]
    assert torch.equal(second.pixels, again.pixels)
    assert not torch.equal(second.pixels, other.pixels)
    every = torch.cat([first.pixels, second.pixels]).flatten(1)
    assert len(torch.unique(every, dim=0)) == 40


def test_what_is_wrong_with_the_pictures_is_named(pictures, tmp_path):
    with pytest.raises(InputError, match="no such folder or zip file"):
        load_pictures(tmp_path / "none", PREPARATION)
    (pictures / "triangle").mkdir()
    with pytest.raises(InputError, match="no pictures of triangle"):
        load_pictures(pictures, PREPARATION)
    with pytest.raises(InputError, match=r"classes \['triangle'\] are not the recipe's labels"):
        load_pictures(pictures, PREPARATION, classes=("disc", "square"))
    (pictures / "triangle").rmdir()
    for path in (pictures / "square").iterdir():
        path.unlink()
    (pictures / "square").rmdir()
    with pytest.raises(InputError, match="a folder per class, at least two; found"):
        load_pictures(pictures, PREPARATION)


@pytest.mark.parametrize("zipped", [False, True])
def test_folders_that_are_no_class_or_two(pictures, tmp_path, zipped):
    """A class that is lost, or held-out pictures that are learned from, must not go unseen."""

    def read():
        if not zipped:
            return load_pictures(pictures, PREPARATION)
        archive = tmp_path / "pictures.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted(pictures.rglob("*")):
                file.write(path, path.relative_to(tmp_path))
        return load_pictures(archive, PREPARATION)

    one = pictures / "disc" / "000.png"
    hidden = pictures / "disc" / ".ipynb_checkpoints" / "000-checkpoint.png"
    for path in (hidden, pictures / "disc" / "._000.png", pictures / "__MACOSX" / "a" / "b.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not a picture")
    data = read()
    assert (data.classes, len(data.labels)) == (("disc", "square"), 40)
    (pictures / "photos").mkdir()
    (pictures / "photos" / "a.heic").write_bytes(b"no suffix of a picture")
    with pytest.raises(InputError, match=r"no pictures of photos; add some \(\.bmp, "):
        read()
    (pictures / "photos" / "a.heic").unlink()
    with pytest.raises(InputError, match="no pictures of photos"):
        read()
    (pictures / "photos").rmdir()
    more = pictures / "disc" / "more"
    more.mkdir()
    shutil.copy(one, more)
    with pytest.raises(InputError, match=r"disc and in .*disc/more below it"):
        read()
    shutil.rmtree(more)
    for part in ("train", "val"):
        for kind in ("disc", "square"):
            (pictures / part).mkdir(exist_ok=True)
            shutil.copytree(pictures / kind, pictures / part / kind)
    for kind in ("disc", "square"):
        shutil.rmtree(pictures / kind)
    with pytest.raises(
        InputError,
        match=r"train/disc and .*val/disc are both .*hold out \((.*held_out=.*val|a zip)",
    ):
        read()


def test_a_broken_picture_stops_or_is_left_out(pictures):
    broken = pictures / "disc" / "003.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(InputError, match=r"003\.png.*skip_broken=true"):
        load_pictures(pictures, PREPARATION)
    data = load_pictures(pictures, PREPARATION, skip_broken=True)
    assert len(data.labels) == len(data.pixels) == 39
    assert [text for text in data.skipped if "003.png" in text]


def test_gray_pictures_have_one_channel(pictures, tmp_path):
    recipe = tmp_path / "digits.toml"
    recipe.write_text(
        '[model]\nsource = "lenet5"\n[input]\nsize = 32\ncolor = "gray"\nfit = "stretch"\n'
        '[train]\ninitial = "random"\nepochs = 1\nbatch = 20\n'
        "[train.augment]\nrotation = 5.0\nbrightness = 0.1\n"
    )
    done = train_recipe(str(recipe), pictures, [], tmp_path / "run")
    assert "top1" in done.scores
    gray = load_pictures(pictures, Preparation(32, 32, color="gray", mean=(0.0,), std=(1.0,)))
    assert gray.pixels.shape == (40, 32, 32, 1)
    with pytest.raises(RecipeError, match=r"augment\.hue: .* gray .* no colours"):
        train_recipe(str(recipe), pictures, ["augment.hue=0.1"], tmp_path / "other")


def test_a_size_that_the_net_cannot_have_is_said_before_training(pictures, tmp_path):
    recipe = tmp_path / "small.toml"
    recipe.write_text(
        '[model]\nsource = "alexnet"\n[input]\nsize = 32\n[train]\ninitial = "random"\n'
    )
    with pytest.raises(RecipeError, match="at least 63 pixels on each side, got 32 x 32"):
        train_recipe(str(recipe), pictures, [], tmp_path / "run")


def test_settings_are_typed():
    where = "mine.toml: train"
    assert typed(TrainConfig, {"lr": 1}, where).lr == 1.0
    for values, message in (
        ({"learning": 1}, r"mine\.toml: train\.learning: unknown key"),
        ({"epoch": 1}, "did you mean 'epochs'"),
        ({"epochs": "2"}, "train.epochs: expected int, got '2'"),
        ({"precision": "int8"}, "precision: expected one of fp32, bf16, fp16; got 'int8'"),
        ({"ema": 1.0}, "ema: expected a decay"),
        ({"epochs": 0}, "epochs: expected at least 1"),
        ({"finish_epochs": -3}, "finish_epochs: expected at least 0"),
        ({"weight_decay": -0.1}, "weight_decay: expected at least 0"),
        ({"layer_decay": 0}, "layer_decay: expected above 0"),
    ):
        with pytest.raises(RecipeError, match=message):
            typed(TrainConfig, values, where)


def test_overrides_reach_into_tables(recipe):
    table = read_table(read_recipe(recipe), ["lr=0.5", "transfer.views=2", "held_out=x.zip"])
    assert (table["lr"], table["transfer"], table["held_out"]) == (0.5, {"views": 2}, "x.zip")
    with pytest.raises(InputError, match="expected key=value"):
        read_table(read_recipe(recipe), ["lr"])
    with pytest.raises(InputError, match=r"--set epochs\.x=1: epochs is 3, and no table"):
        read_table(read_recipe(recipe), ["epochs.x=1"])
    bare = load_recipe("mobilenetv2")
    assert read_table(bare, [])["transfer"] == {}
    for setting in ("quantized.file=x.onnx", "distill.teacher=x.onnx"):
        assert "transfer" not in read_table(bare, [setting])


def test_freezing_by_path():
    net = models.create("mobilenet_v2", 5, width=0.25)
    head = head_of(net, 1)
    freeze_up_to(net, "all", head)
    assert [n for n, p in net.named_parameters() if p.requires_grad] == [
        "classifier.1.weight",
        "classifier.1.bias",
    ]
    freeze_up_to(net, "features.15", head)
    learning = [n for n, p in net.named_parameters() if p.requires_grad]
    assert learning[0] == "features.16.conv.0.0.weight"
    unfreeze_from(net, "features.18")
    assert next(n for n, p in net.named_parameters() if p.requires_grad) == "features.18.0.weight"
    with pytest.raises(InputError, match=r"'features\.99': MobileNetV2 has no module"):
        unfreeze_from(net, "features.99")
    with pytest.raises(InputError, match="has 1 dense layers"):
        head_of(net, 2)


def test_the_tail_of_several_dense_layers():
    net = models.create("mobilenet_v3_small", 5, width=0.5)
    tail = tail_of(net, head_of(net, 2))
    assert isinstance(tail, nn.Sequential)
    assert isinstance(tail[0], nn.Linear)
    assert tail[-1].out_features == 5


def test_only_the_head_may_differ(tmp_path):
    other, own = (models.create("mobilenet_v2", n, width=0.25) for n in (7, 5))
    torch.save(other.state_dict(), tmp_path / "seven.pth")
    start_from(own, tmp_path / "seven.pth")
    assert torch.equal(own.features[3].conv[0][0].weight, other.features[3].conv[0][0].weight)
    wide = models.create("mobilenet_v2", 5, width=0.5)
    with pytest.raises(RecipeError, match="more than the last layer has another shape"):
        start_from(wide, tmp_path / "seven.pth")
    fresh = own.classifier[1].weight.clone()
    torch.save(own.state_dict(), tmp_path / "five.pth")
    again = models.create("mobilenet_v2", 5, width=0.25)
    start_from(again, tmp_path / "five.pth", ["classifier.1"])
    assert not torch.equal(again.classifier[1].weight, fresh)


def test_auxiliary_heads_learn_with_the_net_and_are_in_no_answer(tmp_path):
    net = models.create("googlenet", 3, dropout=0.0)
    learning = learner(net).train()
    plain = models.create("googlenet", 3, auxiliary=False)
    assert learner(plain) is plain
    task = object.__new__(ClassificationTask)  # the loss needs no pictures
    task.settings, task.weights = ClassifySettings(), None
    labels = torch.tensor([0, 1, 2])
    outputs = learning(torch.randn(3, 3, 32, 32))
    one, two, three = (
        nn.functional.cross_entropy(logits, labels, label_smoothing=0.1) for logits in outputs
    )
    loss = task.loss(outputs, labels)
    torch.testing.assert_close(loss, one + 0.3 * (two + three))
    loss.backward()
    for head in net.inner_heads:
        assert net.get_submodule(head).fc2.weight.grad.abs().sum() > 0
    assert learning.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    torch.save(net.state_dict(), tmp_path / "three.pth")
    other = models.create("googlenet", 2)
    start_from(other, tmp_path / "three.pth")
    assert torch.equal(other.conv1.conv.weight, net.conv1.conv.weight)


def test_a_fresh_net_is_not_a_folded_one():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    assert not is_folded(net)
    nn.init.normal_(net[1].bias)
    assert is_folded(net)


def test_the_saved_recipe_finds_the_users_module_again(recipe, pictures, tmp_path):
    """From another process, in another folder."""
    result = train_recipe(str(recipe), pictures, ["epochs=1"], tmp_path / "deep" / "run")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    program = (
        "import sys; from edgecv.export import recipe, weights; "
        "found = recipe.load_recipe(sys.argv[1]); "
        "weights.load_model(weights.resolve(found, 'bundled'))"
    )
    root = str(Path(__file__).parents[2])
    subprocess.run(
        [sys.executable, "-c", program, str(result.recipe)],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": root},
        check=True,
    )
    again = train_recipe(str(result.recipe), pictures, ["epochs=1"], tmp_path / "again")
    assert read_recipe(again.recipe).folder.resolve() == recipe.parent.resolve()


@pytest.mark.parametrize("cached", [True, False])
def test_transfer_from_a_folder_to_a_file_that_predicts(recipe, tmp_path, cached):
    """The recipe has other labels and no [train]: a new head learns the folder's classes."""
    import edgecv

    pictures = write_pictures(tmp_path / "pictures", colored=True)
    text = recipe.read_text().split("[train]")[0]
    recipe.write_text(text.replace('"disc", "square"', '"a", "b", "c"'))
    torch.save(_net(tmp_path, 3).state_dict(), tmp_path / "start.pth")
    said: list[str] = []
    settings = [
        f"initial={tmp_path / 'start.pth'}",
        "epochs=30",
        "lr=0.03",
        "transfer.epochs=20",
        "transfer.lr=0.02",
        f"transfer.cached={json.dumps(cached)}",
        "shift=1",
    ]
    result = train_recipe(
        str(recipe), pictures, settings, tmp_path / "run", say=lambda text: said.append(text)
    )
    assert "classes: disc, square" in said
    assert result.weights.name == "tiny-pictures.safetensors"
    assert result.scores["top1"] > 0.7  # from each of eight seeds it is 1
    log = json.loads(result.log.read_text())
    assert log["stored"] == result.scores
    assert len(log["epochs"]) == 50
    exported = edgecv.export(str(result.recipe), output=tmp_path / "tiny.onnx")
    with edgecv.load(exported.path) as model:
        assert set(model.spec.labels) == {"disc", "square"}
        answers = [
            model(path).best.label == path.parent.name for path in sorted(pictures.rglob("*.png"))
        ]
    assert sum(answers) / len(answers) > 0.7


def _net(folder: Path, classes: int) -> nn.Module:
    sys.path.insert(0, str(folder))
    try:
        import tinynet

        torch.manual_seed(1)
        net: nn.Module = tinynet.tiny(classes)
        return net
    finally:
        sys.path.remove(str(folder))
        del sys.modules["tinynet"]


def test_a_run_of_other_pictures_classes_or_inputs_is_not_continued(recipe, pictures, tmp_path):
    """A finished run's weights would be given out as those of what lies there now."""
    text = recipe.read_text().replace('data = "."\n', "")
    recipe.write_text(text.replace("epochs = 3", "epochs = 1"))

    def start() -> None:
        train_recipe(str(recipe), pictures, [], tmp_path / "run")

    start()
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    start()  # finished: nothing to do
    moved = pictures / "disc" / "000.png"
    moved.rename(pictures / "square" / "000x.png")
    with pytest.raises(WeightsError, match=r"another run: pictures was '32, .*' and is '32, "):
        start()
    (pictures / "square" / "000x.png").rename(moved)
    recipe.write_text(recipe.read_text().replace("size = 16", "size = 24"))
    with pytest.raises(WeightsError, match=r"another run: input was"):
        start()
    recipe.write_text(recipe.read_text().replace("size = 24", "size = 16"))
    (pictures / "disc").rename(pictures / "round")
    recipe.write_text(recipe.read_text().replace('"disc", "square"', '"round", "square"'))
    with pytest.raises(WeightsError, match=r"labels was 'disc, square' and is 'round, square'"):
        start()
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


def test_checkpoints_of_before_the_pictures_were_known_go_on(tmp_path):
    state = State({}, {}, None, None, None, Position())
    save(tmp_path / "old.pt", state, {"recipe": "tiny", "lr": 0.1})
    new = {"recipe": "tiny", "lr": 0.1, "labels": "disc, square", "pictures": "32, 0123"}
    assert load(tmp_path / "old.pt", new) is not None
    with pytest.raises(WeightsError, match=r"lr was 0\.1 and is 0\.2"):
        load(tmp_path / "old.pt", {**new, "lr": 0.2})


def test_what_to_learn_from_may_be_named_beside_other_classes(recipe, pictures, tmp_path):
    """The usual layout, train/CLASS and val/CLASS, for a recipe made for other classes."""
    text = recipe.read_text().replace('data = "."\n', "").replace("epochs = 3", "epochs = 1")
    recipe.write_text(text.replace('"disc", "square"', '"a", "b", "c"'))
    for part in ("train", "val"):
        shutil.copytree(pictures, tmp_path / "photos" / part)
    shutil.rmtree(tmp_path / "photos" / "val" / "disc")
    settings = ["data=train", "held_out=val"]
    with pytest.raises(InputError, match=r"val: .* at least two"):
        train_recipe(str(recipe), tmp_path / "photos", settings, tmp_path / "run")
    shutil.copytree(pictures / "disc", tmp_path / "photos" / "val" / "disc")
    result = train_recipe(str(recipe), tmp_path / "photos", settings, tmp_path / "run")
    assert read_recipe(result.recipe).labels == ("disc", "square")
    text = recipe.read_text().replace("[train]", '[train]\ndata = "."')
    recipe.write_text(text)  # the recipe's own data are of the recipe's own classes
    with pytest.raises(InputError, match="are not the recipe's labels"):
        train_recipe(str(recipe), tmp_path / "photos", settings, tmp_path / "other")


def test_finding_a_rate(recipe, pictures, tmp_path):
    result = train_recipe(str(recipe), pictures, ["find_lr=true"], tmp_path / "run")
    assert isinstance(result, RateResult)
    assert 1e-6 < result.proposed < 1
    assert result.picture.read_bytes().startswith(b"\x89PNG")


def test_a_batch_of_one_finds_no_rate(recipe, pictures, tmp_path):
    with pytest.raises(InputError, match=r"batch = 1, 32 samples: BatchNorm learns from batches"):
        train_recipe(str(recipe), pictures, ["find_lr=true", "batch=1"], tmp_path / "run")


def test_a_rate_is_found_for_what_will_learn(recipe, pictures, tmp_path, monkeypatch):
    """With transfer the head alone, BatchNorm as it will be; the model itself is left alone."""
    seen = {}

    def spy(model, task, config, progress):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        seen["learns"] = [n for n, p in model.named_parameters() if p.requires_grad]
        found = range_test(model, task, config, steps=3, progress=progress)
        seen["same"] = all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
        return found

    monkeypatch.setattr("edgecv.workflows.train.range_test", spy)
    settings = ["find_lr=true", "transfer.cached=false"]
    train_recipe(str(recipe), pictures, settings, tmp_path / "run")
    whole = {n.rpartition(".")[0] for n, _ in _net(recipe.parent, 2).named_parameters()}
    assert {n.rpartition(".")[0] for n in seen["learns"]} < whole
    assert len(seen["learns"]) == 2  # the last dense layer's
    assert seen["same"]


def test_frozen_norms_stay_frozen_in_the_range_test(monkeypatch):
    modes = []
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    net[1].register_forward_hook(lambda module, x, y: modes.append(module.training))

    class Ones:
        metric = "top1"

        def order(self, generator):
            return torch.arange(8)

        def plain(self, index):
            return torch.ones(len(index), 3, 1, 1)

        def draw(self, index, part, generator):
            return Batch(self.plain(index), torch.zeros(len(index), dtype=torch.long), 1.0)

        def loss(self, outputs, targets):
            return nn.functional.cross_entropy(outputs, targets)

    for norms in ("frozen", "train"):
        modes.clear()
        range_test(net, Ones(), TrainConfig(batch=4, norms=norms), steps=3)
        assert set(modes) == {norms == "train"}


def test_keys_that_mean_nothing_are_refused(recipe, pictures, tmp_path):
    for setting, message in (
        ("shfit=2", "train.shfit: unknown key; did you mean 'shift'"),
        ("detect.lr=2", "train.detect: unknown key, or not one of this task's"),
        ("transfer.freze=all", "train.transfer.freze: unknown key; did you mean 'freeze'"),
        ("transfer.freeze=features.3", "train.transfer.cached: features can be computed once"),
        ("shift=16", r"train\.shift: 16 pixels, .* by up to 15"),
    ):
        with pytest.raises(RecipeError, match=message):
            train_recipe(str(recipe), pictures, [setting], tmp_path / "run")
    with pytest.raises(InputError, match="no such weights to start from"):
        train_recipe(str(recipe), pictures, ["initial=none.pth"], tmp_path / "run")
    mixed = ["augment.mixup=0.4", "transfer.views=2"]
    with pytest.raises(RecipeError, match=r"mixup and cutmix .* keep one class each"):
        train_recipe(str(recipe), pictures, mixed, tmp_path / "run")


@pytest.mark.parametrize("kind", ["multilabel-logits", "probabilities"])
def test_a_net_that_gives_no_logits_is_not_taught_by_a_softmax(recipe, pictures, tmp_path, kind):
    recipe.write_text(
        recipe.read_text().replace("[labels]", f'[output]\ndecode = "{kind}"\n[labels]')
    )
    with pytest.raises(RecipeError, match=f"output.decode is {kind}"):
        train_recipe(str(recipe), pictures, [], tmp_path / "run")


def test_the_bundled_weights_name_the_recipes_settings():
    """The file says which settings made it; they are those that the recipe has today."""
    recipe = load_recipe("mobilenetv2-cifar10")
    path = recipe.weights["bundled"].file
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    files = ("data", "held_out", "initial")
    assert json.loads(header["config"]) == {k: v for k, v in recipe.train.items() if k not in files}
    assert header["recipe"] == recipe.name
    assert read_state_dict(path)


def test_weights_that_are_not_there_are_an_error(recipe, pictures, tmp_path):
    with pytest.raises(WeightsError, match="names no published weights"):
        train_recipe(str(recipe), pictures, ["initial=imagenet"], tmp_path / "run")
