"""Metric learning: batches, losses against slow references, verification, and whole runs."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import edgecv
from edgecv import models
from edgecv.cli.app import main
from edgecv.errors import InputError, RecipeError
from edgecv.export.weights import read_state_dict
from edgecv.gallery import Gallery, Settings, comparison
from edgecv.gallery.thresholds import roc
from edgecv.spec import Preparation
from edgecv.train.augment import AugmentSettings
from edgecv.train.byclass import by_class, check_classes
from edgecv.train.data import LabelledPictures
from edgecv.train.embed import EmbeddingTask, EmbedSettings
from edgecv.train.metric import MetricSettings, learner, make_loss
from edgecv.train.verification import draw_pairs, verification
from edgecv.workflows.train import train_recipe

RECIPE = """
task = "embed"
[model]
source = "SOURCE"
options = { OPTIONS }
[input]
size = 32
mean = 0.5
std = 0.5
[output]
decode = "embedding"
options = { normalize = true }
[train]
data = "pictures"
epochs = 12
batch = 16
lr = 1e-2
shift = 2
[train.augment]
rotation = 10.0
[train.metric]
unseen = ["e", "f"]
per_class = 4
pairs = 100
"""
EMBEDDER = 'trunk = "lenet5", dimensions = 16, trunk_options = { in_channels = 3 }'


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten classes of 20 pictures: discs of a colour, somewhere, on noise.

    Eight are learned from: of four, a head for pairs does not learn what holds for other colours.
    """
    folder = tmp_path_factory.mktemp("metric")
    rng = np.random.default_rng(0)
    colors = {"a": (220, 40, 40), "b": (40, 220, 40), "c": (40, 40, 220), "d": (220, 220, 40)}
    colors |= {"g": (240, 140, 20), "h": (20, 20, 20), "i": (240, 240, 240), "j": (120, 60, 10)}
    colors |= {"e": (40, 220, 220), "f": (220, 40, 220)}
    y, x = np.mgrid[0:32, 0:32]
    for name, color in colors.items():
        (folder / "pictures" / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(60, 160, (32, 32, 3))
            cx, cy = rng.uniform(10, 22, 2)
            pixels[(x - cx) ** 2 + (y - cy) ** 2 < 64] = color
            picture = Image.fromarray(pixels.astype(np.uint8))
            picture.save(folder / "pictures" / name / f"{i:02}.png")
    (folder / "e.toml").write_text(
        RECIPE.replace("SOURCE", "embedder").replace("OPTIONS", EMBEDDER)
    )
    (folder / "s.toml").write_text(
        RECIPE.replace("SOURCE", "siamese")
        .replace("OPTIONS", f'trunk = "embedder", trunk_options = {{ {EMBEDDER} }}')
        .replace("normalize = true", "normalize = false")
    )
    return folder


def test_batches_have_other_classes_and_other_pictures():
    counts = [40, 12, 9, 25, 7]  # unequal
    labels = torch.repeat_interleave(torch.arange(5), torch.tensor(counts))
    order = by_class(labels, 3, 4, generator())
    assert len(order) == 93 // 12 * 12
    blocks = labels[order].reshape(-1, 3, 4)
    assert (blocks == blocks[:, :, :1]).all()
    seen = torch.zeros(5, dtype=torch.int64)
    for batch, classes in zip(order.reshape(-1, 12), blocks[:, :, 0], strict=True):
        assert len(set(classes.tolist())) == 3
        assert len(set(batch.tolist())) == 12
        seen += torch.bincount(classes, minlength=5)
    assert int(seen.max() - seen.min()) <= 1  # 21 blocks of 5 classes
    first = order[labels[order] == 0]
    assert len(set(first.tolist())) == len(first)  # 40 pictures, fewer drawn: none twice
    assert torch.equal(order, by_class(labels, 3, 4, generator()))
    assert not torch.equal(order, by_class(labels, 3, 4, generator(1)))


@pytest.mark.parametrize(
    ("labels", "classes", "p", "k", "text"),
    [
        ([0] * 8, ["cat"], 2, 4, "at least 2 classes, got \\['cat'\\]"),
        ([0, 0, 1, 1], ["cat", "dog"], 3, 2, "a batch of 3 classes .* set batch to at most 4"),
        ([0, 0, 0, 1, 1], ["cat", "dog"], 2, 3, "class dog has 2 pictures .*per_class to 2"),
    ],
)
def test_classes_that_give_no_batch(labels, classes, p, k, text):
    with pytest.raises(InputError, match=text):
        check_classes(torch.tensor(labels), classes, p, k)


@pytest.fixture(scope="module")
def batch():
    vectors = torch.randn(12, 5, generator=generator(), dtype=torch.float32)
    return vectors, torch.arange(12) // 3


def distances(vectors, distance):
    unit = vectors.double() / vectors.double().norm(dim=1, keepdim=True)
    if distance == "cosine":
        return 1 - unit @ unit.T
    return (unit[:, None] - unit[None]).square().sum(2)


def triplets(labels):
    n = range(len(labels))
    return [
        (a, p, q)
        for a in n
        for p in n
        for q in n
        if a != p and labels[a] == labels[p] and labels[a] != labels[q]
    ]


@pytest.mark.parametrize("distance", ["squared-euclidean", "cosine"])
@pytest.mark.parametrize("mining", ["hard", "semi-hard", "all"])
def test_triplets_are_the_ones_meant(batch, distance, mining):
    vectors, labels = batch
    d = distances(vectors, distance)
    every = triplets(labels)
    if mining == "hard":
        chosen = []
        for a in range(12):
            likes = [p for i, p, _ in every if i == a]
            others = [q for i, _, q in every if i == a]
            chosen.append(
                (a, max(likes, key=lambda p: d[a, p]), min(others, key=lambda q: d[a, q]))
            )
    elif mining == "all":
        chosen = every
    else:
        chosen = [(a, p, q) for a, p, q in every if 0 < d[a, q] - d[a, p] <= 0.3]
    losses = [max(0.0, (d[a, p] - d[a, q]).item() + 0.3) for a, p, q in chosen]
    positive = [loss for loss in losses if loss > 0]  # the mean is over those that still push
    settings = MetricSettings(distance=distance, mining=mining, margin=0.3)
    got = make_loss(settings, normalize=True)(vectors, labels).item()
    assert got == pytest.approx(np.mean(positive), rel=1e-5)


def test_random_triplets_follow_torchs_generator(batch):
    vectors, labels = batch
    measure = make_loss(MetricSettings(mining="random", margin=3.0), normalize=True)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(measure(vectors, labels).item())
    assert draws[0] == draws[1] != draws[2]
    d = distances(vectors, "squared-euclidean")
    mean = np.mean([(d[a, p] - d[a, q]).item() + 3 for a, p, q in triplets(labels)])
    many = np.mean([measure(vectors, labels).item() for _ in range(200)])
    assert many == pytest.approx(mean, rel=0.05)  # all push at this margin; 3 sigma of 200 draws


def test_a_part_of_a_batch_is_what_it_is_in_the_whole():
    """However many processes share a batch, each draws for all of it and makes its own part."""
    labels = torch.arange(16) % 4
    pixels = torch.randint(0, 256, (16, 12, 12, 3), generator=torch.Generator().manual_seed(0))
    pictures = LabelledPictures(pixels.to(torch.uint8), labels, ("a", "b", "c", "d"))
    task = EmbeddingTask(
        pictures,
        pictures,
        Preparation(12, 12, mean=(0.5,) * 3, std=(0.5,) * 3),
        EmbedSettings(),
        MetricSettings(per_class=2, pairs=20),
        AugmentSettings(brightness=0.3, pca=0.1),
        batch=8,
        normalize=True,
        seed=0,
    )
    index = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])

    def draw(part):
        return task.draw(index, part, torch.Generator().manual_seed(1))

    whole = draw(slice(None))
    assert whole.share == 1
    for part in (slice(0, 4), slice(4, 8)):
        own = draw(part)
        assert torch.equal(own.inputs, whole.inputs[part])
        assert torch.equal(own.targets, whole.targets[part])
        assert own.share == 0.5
    with pytest.raises(InputError, match="not two of two classes"):
        draw(slice(0, 3))


@pytest.mark.parametrize("distance", ["squared-euclidean", "cosine"])
def test_contrastive(batch, distance):
    vectors, labels = batch
    d = distances(vectors, distance)
    near = [
        d[i, j].item() for i in range(12) for j in range(12) if i != j and labels[i] == labels[j]
    ]
    far = [
        max(0.0, 0.9 - d[i, j].item())
        for i in range(12)
        for j in range(12)
        if labels[i] != labels[j]
    ]
    expected = np.mean(near) + np.mean([loss for loss in far if loss > 0])
    settings = MetricSettings(loss="contrastive", distance=distance, margin=0.9)
    got = make_loss(settings, normalize=True)(vectors, labels).item()
    assert got == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("measure", ["l1", "chi-square"])
def test_likeness_compares_every_pair(measure):
    net = models.create(
        "siamese", trunk="lenet5", measure=measure, trunk_options={"in_channels": 3}
    ).eval()
    x = torch.randn(6, 3, 32, 32, generator=generator())
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    compared = learner(net, MetricSettings(loss="likeness"), 16, 3)
    with torch.no_grad():
        logits = compared(x)
        rows = [net(x[i].expand_as(x), x)[:, 0] for i in range(6)]
    probabilities = torch.stack(rows)
    assert torch.allclose(logits.sigmoid(), probabilities, atol=1e-5)
    p = probabilities.double()
    like = [-p[i, j].log() for i in range(6) for j in range(6) if i != j and labels[i] == labels[j]]
    unlike = [-(1 - p[i, j]).log() for i in range(6) for j in range(6) if labels[i] != labels[j]]
    expected = (np.mean(like) + np.mean(unlike)) / 2
    got = make_loss(MetricSettings(loss="likeness"), normalize=False)(logits, labels).item()
    assert got == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"loss": "arcface"}, "loss: expected one of triplet, contrastive, softmax, likeness"),
        ({"mining": "easy"}, "mining: expected one of hard, semi-hard, random, all"),
        ({"margin": float("nan")}, "margin: expected a number between 0 and 4, got nan"),
        ({"per_class": 1}, "per_class: expected at least 2"),
        ({"unseen": (1, 2)}, "unseen: expected names of classes"),
    ],
)
def test_settings_that_mean_nothing(settings, text):
    with pytest.raises(RecipeError, match=text):
        MetricSettings(**settings)


def test_losses_that_the_model_does_not_have():
    net = models.create("lenet5")
    with pytest.raises(RecipeError, match=r'model\.source = "siamese"'):
        learner(net, MetricSettings(loss="likeness"), 16, 3)
    pair = models.create("siamese", trunk="lenet5", trunk_options={"in_channels": 3})
    with pytest.raises(RecipeError, match="triplet does not teach a Siamese pair its likeness"):
        learner(pair, MetricSettings(), 16, 3)
    with pytest.raises(RecipeError, match="normalize = false"):
        make_loss(MetricSettings(loss="likeness"), normalize=True)
    with pytest.raises(RecipeError, match="normalize = true"):
        make_loss(MetricSettings(distance="cosine"), normalize=False)


def test_area_under_the_curve_counts_pairs():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 12, 80).astype(float)  # with many ties
    same = rng.random(80) < 0.4
    better = scores[same][:, None] > scores[~same][None]
    equal = scores[same][:, None] == scores[~same][None]
    assert roc(scores, same).auc == pytest.approx((better + 0.5 * equal).mean(), abs=1e-12)
    told = verification(scores + 100 * same, same)
    assert (told["auc"], told["accuracy"], told["eer"], told["tar_at_0.01"]) == (1, 1, 0, 1)
    assert 11 < told["threshold"] < 100


def test_pairs_are_half_of_a_kind():
    labels = torch.tensor([0] * 5 + [1] * 9 + [2] * 2)
    pairs = draw_pairs(labels, ["a", "b", "c"], 300, 0)
    assert pairs.same.sum() == 150
    assert ((labels[pairs.left] == labels[pairs.right]).numpy() == pairs.same).all()
    assert (pairs.left != pairs.right).all()
    assert torch.bincount(labels[pairs.left]).min() > 60  # classes alike, however large
    with pytest.raises(InputError, match=r"at least 2 classes, got \['a'\]"):
        draw_pairs(labels[:5], ["a", "b"], 20, 0)
    with pytest.raises(InputError, match="class b: verification needs at least 2"):
        draw_pairs(labels[:6], ["a", "b"], 20, 0)


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("e", ["metric.mining=semi-hard"]),
        ("e", ["metric.mining=all", "metric.margin=2.0"]),
        ("e", ["metric.loss=softmax"]),
        ("s", ["metric.loss=likeness", "epochs=20", "lr=3e-3"]),
    ],
    ids=lambda v: v if isinstance(v, str) else v[0].partition("=")[2],
)
def test_unseen_classes_are_told_apart(data, tmp_path, recipe, settings):
    """Colours tell the classes apart, and are easily learned."""
    result = train_recipe(str(data / f"{recipe}.toml"), data, settings, tmp_path / "run")
    assert result.scores["auc"] > 0.9
    log = json.loads(result.log.read_text())["epochs"]
    assert log[-1]["loss"] < log[0]["loss"]
    keys = read_state_dict(result.weights).keys()
    net = models.create({"e": "embedder", "s": "siamese"}[recipe], **_options(recipe))
    own = {key for key in net.state_dict() if not key.endswith("num_batches_tracked")}
    assert set(keys) == own  # nothing of the loss' own parts
    _use(result.recipe, data, tmp_path)


def _options(recipe):
    inner = {"trunk": "lenet5", "dimensions": 16, "trunk_options": {"in_channels": 3}}
    return inner if recipe == "e" else {"trunk": "embedder", "trunk_options": inner}


def _use(recipe, data, folder):
    """Exported, and asked through a gallery who is on a picture that was not enrolled: by what the
    file says how embeddings are compared."""
    exported = edgecv.export(str(recipe), output=folder / "net.onnx")
    metric, weights = comparison(exported.spec)
    assert metric == ("likeness" if exported.spec.provenance["model"] == "siamese" else "cosine")
    with edgecv.FacePipeline(None, exported.path) as pipeline:
        settings = Settings(space=pipeline.space, metric=metric, threshold=0.0, weights=weights)
        with Gallery.create(folder / "gallery", settings) as gallery:
            for name in ("e", "f"):
                vector = pipeline.one(data / "pictures" / name / "00.png").vector
                gallery.enrol(name, vector)
            probe = pipeline.one(data / "pictures" / "f" / "07.png").vector
            assert gallery.identify(probe)[0].name == "f"


def test_preview(data, tmp_path, monkeypatch):
    sheet = tmp_path / "sheet.png"
    command = ["edgecv", "train", str(data / "e.toml"), "--data", str(data)]
    monkeypatch.setattr(sys, "argv", [*command, "--preview", str(sheet)])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 0
    with Image.open(sheet) as picture:
        assert picture.size == (6 + 12 + 8 * (128 + 6), 6 + 8 * (128 + 6 + 17))
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("batch=18", "train.batch: 18 is not at least 2 classes of metric.per_class = 4"),
        ("batch=36", "a batch of 9 classes with 4 pictures each, but there are 8 classes"),
        ('metric.unseen=["z"]', "has no class z, which metric.unseen names; it has a, b, c, d"),
        ("augment.mixup=0.2", "mixup and cutmix make pictures of two classes"),
        ("augment.rotate=3", "train.augment.rotate: unknown key; did you mean 'rotation'"),
        ("metric.mine=3", "train.metric.mine: unknown key"),
        ("lr=1e9", "NaN or infinite|the loss is"),
    ],
)
def test_runs_that_cannot_be(data, tmp_path, setting, text):
    with pytest.raises(edgecv.errors.EdgeCVError, match=text):
        train_recipe(str(data / "e.toml"), data, [setting], tmp_path / "run")


def test_a_class_without_pictures(data, tmp_path):
    (tmp_path / "pictures" / "empty").mkdir(parents=True)
    for name in ("a", "b"):
        shutil.copytree(data / "pictures" / name, tmp_path / "pictures" / name)
    with pytest.raises(InputError, match="no pictures of empty"):
        train_recipe(str(data / "e.toml"), tmp_path, [], tmp_path / "run")
