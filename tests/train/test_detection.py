"""Detectors: every decoding that can be trained learns to find two shapes, from labels to ONNX."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import edgecv
from edgecv.errors import InputError, RecipeError, WeightsError
from edgecv.evaluate.yolo_labels import yolo_names
from edgecv.export.recipe import load_recipe, read_recipe
from edgecv.models import create
from edgecv.postprocess.options import Options
from edgecv.spec import Decoding, Preparation
from edgecv.train.assign import Objects
from edgecv.train.batchnorm import is_folded, reestimate
from edgecv.train.places import LandmarkSettings, LocalizeSettings
from edgecv.train.scoring import contract
from edgecv.train.segmentation import SegmentSettings
from edgecv.train.trunk import load_trunk
from edgecv.train.vary import color_settings
from edgecv.train.views import ViewSettings
from edgecv.train.yololoss import DetectSettings, make_loss
from edgecv.workflows.evaluate import evaluate
from edgecv.workflows.preview import preview_recipe
from edgecv.workflows.train import make_job, prepare, train_recipe

SIDE = 32
NET = """
import torch
from torch import nn

def layer(a, b, stride):
    return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())

class Net(nn.Module):
    def __init__(self, kind, classes):
        super().__init__()
        self.kind = kind
        self.trunk = nn.Sequential(layer(3, 16, 2), layer(16, 24, 2), layer(24, 48, 2),
                                   layer(48, 48, 1))
        self.head = nn.Conv2d(48, {"anchors": 2 * (5 + classes), "yolox": 5 + classes,
                                   "grid": 10 + classes, "one": 4 + classes}[kind], 1)

    def forward(self, x):
        y = self.head(self.trunk(x))
        if self.kind == "anchors":
            return y
        if self.kind == "grid":
            return y.sigmoid().permute(0, 2, 3, 1)
        if self.kind == "one":
            y = y.mean((2, 3))
            box, logits = y[:, :4].sigmoid(), y[:, 4:]
            if self.training:
                return box, logits
            box = torch.cat([box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2], 1)
            score, index = logits.softmax(1).topk(1)
            return torch.cat([box, score, index.float()], 1)[:, None]
        y = y.flatten(2).transpose(1, 2)
        return y if self.training else torch.cat([y[..., :4], y[..., 4:].sigmoid()], 2)

def net(num_classes, kind):
    return Net(kind, num_classes)
"""
RECIPE = """
task = "detect"
[model]
source = "tinydet:net"
options = {{ kind = "{kind}" }}
[input]
size = 32
fit = "stretch"
mean = 0.5
std = 0.5
[output]
decode = "{decode}"
options = {options}
[labels]
names = ["disc", "square"]
[train]
data = "shapes"
held_out = "shapes"
epochs = {epochs}
batch = 4
lr = 0.01
zoom = 0.1
shift = 0.1
{rest}
"""
KINDS = {
    "v2": ("anchors", "yolo-anchors", "v2"),
    "v3": ("anchors", "yolo-anchors", "v3"),
    "v5": ("anchors", "yolo-anchors", "v5"),
    "yolox": ("yolox", "yolox", ""),
    "grid": ("grid", "yolo-grid", ""),
    "one": ("one", "yolo-end2end", ""),
}
# Last digits differ from processor to processor, so a test may rest on no lucky run: these learn
# from each of eight seeds and more. YOLOX's with less weight on boxes, or in one run of six so
# small a net keeps brightness alone, which is enough for boxes, and never sees a colour again.
EPOCHS = {"v2": 10, "v3": 10, "v5": 10, "yolox": 50, "grid": 15, "one": 80}
DETECT = {"v5": 'anchors = "kmeans"', "yolox": "box = 1"}
OPTIONS = {
    "yolo-anchors": (
        '{ decoded = false, activated = false, layout = "channels-first", strides = [8], '
        'anchors = [[[6, 6], [12, 12]]], rule = "RULE", conf = 0.1, iou = 0.5, max_det = 20 }'
    ),
    "yolox": "{ decoded = false, strides = [8], conf = 0.1, iou = 0.5, max_det = 20 }",
    "yolo-grid": (
        '{ grid = 4, boxes = 2, order = "boxes-first", square_root = true, conf = 0.1, iou = 0.5, '
        "max_det = 20 }"
    ),
    "yolo-end2end": "{ normalized = true, conf = 0.1, max_det = 1 }",
}


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch):
    """Drawing them takes longer than an epoch of these nets; test_loop.py has them drawn."""
    monkeypatch.setattr("edgecv.train.journal.draw_curves", lambda *_: None)


def write_shapes(folder: Path, count: int, most: int, size: tuple[int, int] = (48, 40)) -> Path:
    """Pictures with one to ``most`` bright shapes side by side, and their YOLO labels."""
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        picture = Image.fromarray(rng.integers(0, 50, (size[1], size[0], 3), np.uint8))
        shape, lines = ImageDraw.Draw(picture), []
        for place in range(int(rng.integers(1, most + 1))):
            side, kind = int(rng.integers(12, 19)), int(rng.integers(2))
            x = int(rng.integers(1, 5)) + place * size[0] // most
            y = int(rng.integers(0, size[1] - side))
            draw = shape.rectangle if kind else shape.ellipse
            draw((x, y, x + side - 1, y + side - 1), fill=((255, 240, 80), (90, 160, 255))[kind])
            box = ((x + side / 2) / size[0], (y + side / 2) / size[1])
            lines.append(f"{kind} {box[0]} {box[1]} {side / size[0]} {side / size[1]}")
        picture.save(folder / "images" / f"{i:02}.png")
        (folder / "labels" / f"{i:02}.txt").write_text("\n".join(lines))
    return folder


def write_recipe(folder: Path, name: str, epochs: int = 3, rest: str = "") -> Path:
    kind, decode, rule = KINDS[name]
    (folder / "tinydet.py").write_text(NET)
    path = folder / f"{name}.toml"
    options = OPTIONS[decode].replace("RULE", rule)
    path.write_text(
        RECIPE.format(kind=kind, decode=decode, options=options, epochs=epochs, rest=rest)
    )
    return path


@pytest.mark.parametrize("name", KINDS)
def test_learns_two_shapes_and_scores_the_same_through_onnx(name, tmp_path):
    write_shapes(tmp_path / "shapes", 24, 1 if name == "one" else 2)
    rest = f"[train.detect]\n{DETECT[name]}" if name in DETECT else ""
    recipe = write_recipe(tmp_path, name, EPOCHS[name], rest)
    said: list[str] = []
    result = train_recipe(str(recipe), tmp_path, [], tmp_path / "run", say=said.append)
    # chance is far below: boxes must be right to an IoU of 0.5, and named
    assert result.scores["ap50"] > 0.75
    out = edgecv.export(str(result.recipe), output=tmp_path / "m.onnx")
    if name == "v5":
        anchors = np.array(out.spec.decoding.options["anchors"])
        assert anchors.shape == (1, 2, 2)
        assert anchors[0, 0].prod() < anchors[0, 1].prod()
        assert any("k-means" in text for text in said)
    score = evaluate(out.path, tmp_path / "shapes", backend="onnxruntime")
    # the same weights and code; two programs' last digits can swap two boxes of one score
    assert score.ap50 == pytest.approx(result.scores["ap50"], abs=0.01)


def test_the_same_loss_however_a_batch_is_cut(tmp_path):
    write_shapes(tmp_path / "shapes", 8, 2)
    recipe = read_recipe(write_recipe(tmp_path, "v3"))
    _, job = make_job(recipe, recipe.train, tmp_path, lambda *_: None, lambda _: None)
    task = prepare("detect", job).task
    index = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    outputs = torch.randn((8, 14, 4, 4), generator=torch.Generator().manual_seed(1)).double()

    def loss(part: slice) -> float:
        batch = task.draw(index, part, torch.Generator().manual_seed(2))
        return batch.share * task.loss(outputs[part], batch.targets).item()

    whole = loss(slice(None))
    parts = sum(loss(slice(*ends)) for ends in ((0, 3), (3, 4), (4, 8)))
    assert parts == pytest.approx(whole, rel=1e-6)  # targets are float32


def test_augmented_pictures_show_their_boxes(tmp_path):
    """Where a target says that a shape is, the input is bright."""
    write_shapes(tmp_path / "shapes", 8, 2)
    rest = "[train.augment]\nbrightness = 0.2\nhue = 0.1"
    recipe = read_recipe(write_recipe(tmp_path, "v3", rest=rest))
    _, job = make_job(recipe, recipe.train, tmp_path, lambda *_: None, lambda _: None)
    task = prepare("detect", job).task
    batch = task.draw(torch.arange(8), slice(None), torch.Generator().manual_seed(0))
    boxes, _, picture, _ = batch.targets
    assert len(boxes) >= 8
    for box, i in zip(boxes, picture.tolist(), strict=True):
        x1, y1, x2, y2 = box.round().int().tolist()
        inside = batch.inputs[i, :, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2]
        assert inside.amax(0).mean() > 0.2  # of -1 to 1; the ground is below -0.6
    again = task.draw(torch.arange(8), slice(None), torch.Generator().manual_seed(0))
    assert torch.equal(again.inputs, batch.inputs)


def test_what_the_data_must_not_be(tmp_path):
    data = write_shapes(tmp_path / "shapes", 4, 2)
    recipe = str(write_recipe(tmp_path, "v3", epochs=1))
    runs = iter(range(20))

    def train(*settings: str, name: str = recipe) -> None:
        train_recipe(name, tmp_path, list(settings), tmp_path / f"run{next(runs)}")

    label = data / "labels" / "02.txt"
    before = label.read_text()
    label.write_text("0 120 80 30 30\n")
    with pytest.raises(InputError, match=r"02\.txt, line 1: expected parts of the picture's size"):
        train()
    label.write_text("7 0.5 0.5 0.2 0.2\n")
    with pytest.raises(InputError, match="class 7 is not one of the 2 classes"):
        train()
    label.write_text("")  # a picture with nothing in it is none to stop at
    train()
    picture = data / "images" / "01.png"
    whole = picture.read_bytes()
    picture.write_bytes(whole[:50])
    with pytest.raises(InputError, match=r"01\.png"):
        train()
    train("skip_broken=true")
    picture.write_bytes(whole)
    for file in data.glob("labels/*.txt"):
        file.write_text("")
    with pytest.raises(InputError, match="none of its 4 pictures has an object to learn from"):
        train()
    label.write_text(before)
    with pytest.raises(InputError, match="exactly one"):
        train(name=str(write_recipe(tmp_path, "one", epochs=1)))


def test_what_a_recipe_must_not_say(tmp_path):
    write_shapes(tmp_path / "shapes", 4, 2)
    recipe = write_recipe(tmp_path, "v3", epochs=1)
    for setting, message in {
        "detect.box_loss=iuo": "train.detect.box_loss: expected one of",
        "detect.boxes=2.0": "train.detect.boxes: unknown key",
        "detect.positive=0.0": "train.detect.positive: expected an IoU",
        "augment.rotation=10": "train.augment.rotation: moves or mixes pictures",
        "segment.dice=1.0": "train.segment: unknown key, or not one of this task's",
        "zoom=-1": "train.zoom: expected at least 0",
        "detect.anchors=kmeans": "2 anchors",
    }.items():
        if "kmeans" in setting:
            for file in (tmp_path / "shapes" / "labels").glob("*.txt"):
                file.write_text("0 0.5 0.5 0.25 0.25")
        with pytest.raises((RecipeError, InputError), match=message):
            train_recipe(str(recipe), tmp_path, [setting], tmp_path / "run")


def test_a_contract_that_does_not_fit_the_net_is_refused():
    preparation = Preparation(32, 32, fit="stretch")
    objects = Objects(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0).long())

    def loss(kind: str, **options: object) -> object:
        spec = contract("x", "detect", preparation, Decoding(kind, options), ("a", "b"))
        return make_loss(Options(spec), DetectSettings(), (32, 32))

    criterion = loss("yolox", decoded=False, strides=[8, 16])
    with pytest.raises(RecipeError, match=r"20 values a picture.*gives 16"):
        criterion(torch.zeros(2, 16, 7), objects, torch.tensor(1.0))
    with pytest.raises(RecipeError, match="can be decoded but not trained"):
        loss("fastestdet")
    with pytest.raises(RecipeError, match="raw maps"):
        loss("yolo-anchors", decoded=True)


def test_classes_of_a_data_yaml_take_the_labels_place(tmp_path):
    data = write_shapes(tmp_path / "mine", 6, 2)
    (data / "data.yaml").write_text("train: images\nval: images\nnames: [ring, box]\n")
    assert yolo_names(data) == ("ring", "box")
    recipe = write_recipe(tmp_path, "v3", epochs=1)
    text = recipe.read_text().replace('data = "shapes"\nheld_out = "shapes"\n', "")
    recipe.write_text(text)
    result = train_recipe(str(recipe), data, [], tmp_path / "run")
    assert result.weights.name == "v3-mine.safetensors"
    assert read_recipe(result.recipe).labels == ("ring", "box")
    log = json.loads(result.log.read_text())
    assert set(log["stored"]) == {"ap50", "ap"}


def test_a_classifiers_weights_are_the_trunk_of_a_detector():
    classifier = create("mobilenet_v2", 5, width=0.35)
    detector = create("yolo_mobilenet_v2", 3, width=0.35, channels=16)
    assert load_trunk(detector, classifier.state_dict(), "w.pth") == "trunk"
    own = detector.state_dict()["trunk.features.3.conv.0.0.weight"]
    assert torch.equal(own, classifier.state_dict()["features.3.conv.0.0.weight"])
    unet = create("unet_mobilenet_v2", 2, width=0.35)
    assert load_trunk(unet, classifier.state_dict(), "w.pth") == "encoder"
    assert load_trunk(create("localizer", 2), create("mobilenet_v2").state_dict(), "w") == (
        "trunk.net"
    )
    with pytest.raises(WeightsError, match="another architecture, or another width"):
        load_trunk(create("yolo_mobilenet_v2", 3), classifier.state_dict(), "w.pth")


def test_a_fresh_head_on_a_folded_trunk_takes_statistics_of_its_own():
    """The trunk goes on computing what it did; the head's BatchNorms normalize from the start."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 5, 1),
        torch.nn.BatchNorm2d(5),
    )  # fmt: skip
    with torch.no_grad():
        net[1].bias += torch.tensor([1.0, 2, 3, 4])
    assert is_folded(net)
    x = torch.randn(64, 3, 8, 8) * 3
    before = net[:2].eval()(x)
    reestimate(net, [x] * 200)
    torch.testing.assert_close(net[:2].eval()(x), before, rtol=1e-4, atol=1e-4)  # float32 sums
    out = net.eval()(x)
    # running averages of momentum 0.1 after 200 batches: 1e-9 of the start is left
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(5), atol=1e-3, rtol=0)
    torch.testing.assert_close(out.var((0, 2, 3)), torch.ones(5), atol=1e-2, rtol=0)
    assert not is_folded(net)


def test_a_folded_head_that_no_answer_passes_through_stays():
    """An auxiliary head's: nothing is measured there, and nothing is no variance."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.aside = torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)
            for norm in (self.norm, self.aside):
                torch.nn.init.normal_(norm.bias)

        def forward(self, x):
            return self.norm(x)

    net = Net()
    before = {name: value.clone() for name, value in net.aside.state_dict().items()}
    assert is_folded(net)
    reestimate(net, [torch.randn(8, 3, 4, 4)])
    assert all(torch.equal(value, before[name]) for name, value in net.aside.state_dict().items())
    assert not torch.equal(net.norm.running_mean, torch.zeros(3))


TABLES = {
    "yolo-mobilenetv2": ("detect", DetectSettings),
    "yolo-grid-mobilenetv2": ("detect", DetectSettings),
    "yolox-nano": ("detect", DetectSettings),
    "yolox-tiny": ("detect", DetectSettings),
    "localizer": ("localize", LocalizeSettings),
    "landmarks": ("landmarks", LandmarkSettings),
    "unet": ("segment", SegmentSettings),
    "unet-mobilenetv2": ("segment", SegmentSettings),
}


@pytest.mark.parametrize("name", TABLES)
def test_the_shipped_training_tables_say_what_their_tasks_know(name):
    recipe, (key, settings) = load_recipe(name), TABLES[name]
    assert recipe.train
    _, job = make_job(recipe, recipe.train, Path(), lambda *_: None, lambda _: None)
    job.flat(ViewSettings)
    color_settings(job)
    job.table(key, settings)
    job.done()


def test_the_preview_shows_the_boxes(tmp_path):
    write_shapes(tmp_path / "shapes", 8, 2)
    recipe = write_recipe(tmp_path, "v3")
    sheet = preview_recipe(str(recipe), tmp_path, [], tmp_path / "sheet.png")
    with_boxes = Image.open(sheet.path).convert("RGB")
    for label in (tmp_path / "shapes" / "labels").glob("*.txt"):
        label.write_text("")
    (tmp_path / "shapes" / "labels" / "00.txt").write_text("0 0.5 0.5 0.1 0.1")
    preview_recipe(str(recipe), tmp_path, [], tmp_path / "plain.png")
    plain = Image.open(tmp_path / "plain.png").convert("RGB")
    assert with_boxes.size == plain.size
    changed = (np.asarray(with_boxes) != np.asarray(plain)).any(axis=2).any(axis=0)
    # the pictures as they are stand first, 128 pixels wide; boxes are drawn on those beside them
    assert not changed[:140].any()
    assert changed[150:].mean() > 0.5


@pytest.mark.parametrize("name", ["yolo-mobilenetv2", "yolo-grid-mobilenetv2", "yolox-nano"])
def test_the_shipped_detectors_have_a_loss(name):
    """Outputs of the net in training mode fit the recipe's contract, and gradients reach all."""
    recipe = load_recipe(name)
    options = {**recipe.options, **({"width": 0.35} if "mobile" in name else {})}
    net = create(recipe.source, 3, **options).train()
    p = recipe.preparation
    spec = contract(name, "detect", p, recipe.decoding, ("a", "b", "c"))
    criterion = make_loss(Options(spec), DetectSettings(), (p.height, p.width))
    outputs = net(torch.zeros(2, 3, p.height, p.width))
    boxes = torch.tensor([[20.0, 30, 90, 120], [5, 5, 25, 20]])
    objects = Objects(boxes, torch.tensor([0, 2]), torch.tensor([0, 1]))
    loss = criterion(outputs, objects, torch.tensor(2.0))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(q.grad is not None for q in net.parameters())
