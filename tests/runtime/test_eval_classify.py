"""eval of classifiers: maps of fully convolutional ones, and scores that are no numbers."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import edgecv
from edgecv.errors import InputError, RuntimeFailure
from edgecv.evaluate.classes import match_classes, own_classes
from edgecv.evaluate.imagenet import read_folder
from edgecv.postprocess.classify import ranking
from edgecv.runtimes.fake import FakeBackend
from edgecv.spec import Decoding, ModelSpec, Preparation, TensorSpec, read_spec, write_spec

LABELS = ("a", "b", "c", "d", "e", "f", "g")


@pytest.fixture
def folder(tmp_path):
    for index, name in enumerate("abc" * 4):
        path = tmp_path / "data" / name / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path / "data"


def net(path, *map_size, options=None):
    spec = ModelSpec(
        name="net",
        task="classify",
        inputs=(TensorSpec("input", ("N", 3, 8, 8)),),
        outputs=(TensorSpec("logits", ("N", len(LABELS), *map_size)),),
        preparation=Preparation(8, 8, fit="stretch"),
        decoding=Decoding("logits", options or {}),
        labels=LABELS,
    )
    write_spec(b"\x3a\x00", spec, path)  # an empty graph: the fake backend's answers are random
    return path


@pytest.mark.parametrize("map_size", [(), (2, 3)])
def test_the_score_is_that_of_the_answers(folder, tmp_path, map_size):
    path = net(tmp_path / "net.onnx", *map_size)
    score = edgecv.evaluate(path, folder, backend="fake")
    files = sorted(folder.rglob("*.png"))
    with edgecv.load(path, backend="fake") as model:
        answers = model(files)
    firsts = [
        found.best.label == file.parent.name for found, file in zip(answers, files, strict=True)
    ]
    fives = [
        file.parent.name in [one.label for one in found.top(5)]
        for found, file in zip(answers, files, strict=True)
    ]
    assert (score.correct1, score.correct5) == (sum(firsts), sum(fives))
    assert score.count == 12
    assert 0 < score.correct5 < 12  # seeded: a score of all or none could be a fixed one


@pytest.mark.parametrize("map_size", [(), (2, 3)])
def test_scores_of_nan_are_no_right_answers(folder, tmp_path, map_size, monkeypatch):
    def broken(self, feeds):
        count = len(feeds["input"])
        return {"logits": np.full((count, len(LABELS), *map_size), np.nan, np.float32)}

    monkeypatch.setattr(FakeBackend, "_run", broken)
    with pytest.raises(RuntimeFailure, match="NaN or infinite"):
        edgecv.evaluate(net(tmp_path / "net.onnx", *map_size), folder, backend="fake")


def test_the_heat_map_of_a_picture(tmp_path, pixels):
    path = net(tmp_path / "net.onnx", 2, 3, options={"window": 4, "stride": 2})
    with edgecv.load(path, backend="fake") as model:
        heat = model.heat_map(pixels[:, :, ::-1], color="bgr")
        assert heat.probabilities.shape == (len(LABELS), 2, 3)
        np.testing.assert_allclose(heat.probabilities.sum(axis=0), 1, rtol=1e-5)
        whole = model(pixels).probabilities
        np.testing.assert_allclose(heat.probabilities.mean(axis=(1, 2)), whole, rtol=1e-5)
        # the input of 8x8 pixels is the picture of 64x48: row 1, column 2 sees x 4 to 8, y 2 to 6
        np.testing.assert_allclose(heat.windows[1, 2], [32, 12, 64, 36])


def test_a_name_that_two_classes_have_says_nothing(folder, tmp_path):
    labels, ids = ("crane", "b", "c", "Crane"), ("n1", "n2", "n3", "n4")
    index = own_classes(labels, ids)
    assert (index["b"], index["n1"], index["n4"]) == (1, 0, 3)
    assert own_classes(("a", "b"), ("a", "b")) == {"a": 0, "b": 1}  # ids that are the names
    with pytest.raises(InputError, match="several classes of the model are named crane"):
        match_classes(["b", "crane"], labels, tmp_path)
    path = net(tmp_path / "net.onnx")
    spec = replace(read_spec(path), labels=("a", "b", "c", "A", "e", "f", "g"))
    with pytest.raises(InputError, match="several classes of the model are named a;"):
        read_folder(folder, spec)
    (folder / "a").rename(folder / "n4")
    spec = replace(spec, label_ids=("n1", "n2", "n3", "n4", "n5", "n6", "n7"))
    assert set(read_folder(folder, spec).classes.tolist()) == {1, 2, 3}


def test_what_ranks_classes():
    far = np.array([[30.0, 40.0, 20.0]], np.float32)  # sigmoids that are 1 to all digits
    assert ranking(far, "multilabel-logits", ("a", "b", "c")).argmax() == 1
    maps = np.zeros((1, 3, 1, 2), np.float32)
    maps[0, 2, 0, 0], maps[0, 1, 0, 1] = np.log(8), np.log(6)  # 0.1, 0.1, 0.8; 1/8, 6/8, 1/8
    (found,) = ranking(maps, "logits", ("a", "b", "c"))
    np.testing.assert_allclose(found, [0.1125, 0.425, 0.4625], rtol=1e-6)


@pytest.mark.parametrize(("task", "decode"), [("embed", "embedding"), ("landmarks", "points")])
def test_classes_are_for_data_sets_that_have_some(tmp_path, task, decode):
    spec = ModelSpec(
        name="net",
        task=task,
        inputs=(TensorSpec("input", ("N", 3, 8, 8)),),
        outputs=(TensorSpec("output", ("N", 4)),),
        preparation=Preparation(8, 8, fit="stretch"),
        decoding=Decoding(decode, {"normalize": True}),
        labels=(),
    )
    write_spec(b"\x3a\x00", spec, tmp_path / "net.onnx")
    with pytest.raises(InputError, match=f"there are none for {task}"):
        edgecv.evaluate(
            tmp_path / "net.onnx", tmp_path, classes=tmp_path / "classes.json", backend="fake"
        )
