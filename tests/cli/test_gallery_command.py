"""``edgecv gallery`` as a user meets it, on the fake backend: every step of a door's life."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from edgecv.cli.app import main
from edgecv.gallery import Likeness
from edgecv.spec import (
    Decoding,
    ModelSpec,
    Preparation,
    TensorSpec,
    read_spec,
    write_spec,
)


@pytest.fixture
def edgecv(monkeypatch, capsys):
    """Run the command in this process (test_commands.py starts it as users do)."""

    def run(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["edgecv", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert (ended.value.code or 0) == code, said
        return said.out if "--json" in arguments else said.out + said.err

    return run


@pytest.fixture
def net(tmp_path):
    path = tmp_path / "net.onnx"
    spec = ModelSpec(
        name="net",
        task="embed",
        inputs=(TensorSpec("input", (1, 3, 8, 8)),),
        outputs=(TensorSpec("embedding", (1, 64)),),
        preparation=Preparation(8, 8, fit="stretch"),
        decoding=Decoding("embedding", {"normalize": True}),
        labels=(),
        provenance={"weights": {"sha256": "c" * 64}},
    )
    write_spec(b"\x3a\x00", spec, path)  # an empty graph: the fake backend's answers are random
    for name in ("a", "b", "c"):
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return path


def test_the_life_of_a_gallery(edgecv, net, tmp_path):
    door, a, b, c = (tmp_path / name for name in ("door", "a.png", "b.png", "c.png"))
    model = ("-m", net, "--backend", "fake")
    assert "needs a threshold" in edgecv("gallery", "enrol", door, "anna", a, *model, code=2)
    assert not door.exists()
    made = json.loads(
        edgecv("gallery", "enrol", door, "anna", a, *model, "--threshold", "0.8", "--json")
    )
    assert made["created"] is True
    assert made["settings"]["threshold"] == 0.8
    assert made["settings"]["origin"] == {"given": True}
    assert "enrolled already" in edgecv("gallery", "enrol", door, "anna", b, *model, code=2)
    assert "enrolled by 1" in edgecv("gallery", "enrol", door, "anna", b, "--add", *model)
    found = json.loads(edgecv("gallery", "identify", door, a, b, c, *model, "--json"))
    names = [face["identity"]["name"] for r in found["results"] for face in r["faces"]]
    assert names == ["anna", "anna", None]
    assert "not recognized" in edgecv("gallery", "identify", door, c, *model)
    assert "same" in edgecv("gallery", "verify", door, "anna", a, *model)
    assert "different" in edgecv("gallery", "verify", door, "anna", c, *model, code=1)
    assert "nobody is enrolled" in edgecv("gallery", "verify", door, "bo", c, *model, code=2)
    listed = json.loads(edgecv("gallery", "list", door, "--json"))
    assert listed["people"] == [{"name": "anna", "pictures": 2}]
    gone = json.loads(edgecv("gallery", "remove", door, "anna", "--json"))
    assert (gone["pictures"], gone["people"]) == (2, 0)
    assert "empty gallery" in edgecv("gallery", "identify", door, a, *model)
    assert "no gallery here" in edgecv("gallery", "list", tmp_path / "nowhere", code=2)


def test_a_refused_enrolment_leaves_the_gallery_as_it_was(edgecv, net, tmp_path):
    door, a = tmp_path / "door", tmp_path / "a.png"
    model = ("-m", net, "--backend", "fake")
    said = edgecv("gallery", "enrol", door, " anna", a, *model, "--threshold", "0.8", code=2)
    assert "is no name" in said
    assert not door.exists()
    edgecv("gallery", "enrol", door, "anna", a, *model, "--threshold", "0.8")
    before = (door / "gallery.json").read_bytes()
    again = ("gallery", "enrol", door, "anna", a, *model, "--threshold", "-0.9", "--margin", "0.1")
    assert "enrolled already" in edgecv(*again, code=2)
    assert (door / "gallery.json").read_bytes() == before
    edgecv(*again, "--add")
    settings = json.loads(edgecv("gallery", "list", door, "--json"))["settings"]
    assert (settings["threshold"], settings["margin"]) == (-0.9, 0.1)


def test_a_broken_picture_does_not_stop_the_others(edgecv, net, tmp_path):
    door, a, c = (tmp_path / name for name in ("door", "a.png", "c.png"))
    model = ("-m", net, "--backend", "fake")
    edgecv("gallery", "enrol", door, "anna", a, *model, "--threshold", "0.8")
    (tmp_path / "notes.txt").write_text("no picture")
    asked = ("gallery", "identify", door, a, tmp_path / "notes.txt", c, *model)
    told = json.loads(edgecv(*asked, "--json", code=2))
    assert [one["source"] for one in told["results"]] == [str(a), str(c)]
    assert "not a picture" in told["failed"][0]["error"]
    said = edgecv(*asked, code=2)
    assert "anna" in said
    assert "1 of 3 pictures could not be read" in said


def test_pairs_are_evaluated_and_give_the_threshold(edgecv, net, tmp_path):
    pairs = tmp_path / "pairs.csv"
    lines = [f"{x}.png,{y}.png,{'yes' if x == y else 'no'}" for x in "abc" for y in "abc"]
    pairs.write_text("\n".join(["left,right,same", *lines]))
    score = json.loads(edgecv("eval", net, pairs, "--backend", "fake", "--json"))
    assert {"task", "count", "accuracy", "threshold", "backend", "precision"} <= score.keys()
    assert (score["count"], score["correct"], score["folds"]) == (9, 9, 3)
    text = edgecv("eval", net, pairs, "--backend", "fake", "--far", "0.1")
    assert "accuracy, 3 folds" in text
    assert "TAR at FAR" in text
    made = json.loads(
        edgecv("gallery", "enrol", tmp_path / "door", "anna", tmp_path / "a.png", "-m", net,
               "--backend", "fake", "--pairs", pairs, "--json")
    )  # fmt: skip
    assert made["settings"]["threshold"] == score["threshold"]
    message = edgecv("gallery", "enrol", tmp_path / "door", "bo", tmp_path / "b.png", "-m", net,
                     "--threshold", "1", "--pairs", pairs, code=2)  # fmt: skip
    assert "give one of them" in message


def test_a_learned_likeness_is_used_from_the_file_on(edgecv, net, tmp_path):
    """Without a flag: by the likeness that the net has learned."""
    plain = read_spec(net)
    learned = Likeness("l1", (-0.1,) * 64, 2.0)  # a picture and itself: 1 / (1 + exp(-2)) = 0.881
    options = {"normalize": False, "likeness": learned.to_dict()}
    write_spec(net, replace(plain, decoding=Decoding("embedding", options)), tmp_path / "pair.onnx")
    door, a, b = (tmp_path / name for name in ("door", "a.png", "b.png"))
    model = ("-m", tmp_path / "pair.onnx", "--backend", "fake")
    assert "needs a threshold" in edgecv("gallery", "enrol", door, "anna", a, *model, code=2)
    made = edgecv("gallery", "enrol", door, "anna", a, *model, "--threshold", "0.5")
    assert "threshold 0.5000 (likeness)" in made
    assert "anna 0.881" in edgecv("gallery", "identify", door, a, *model)
    assert "not recognized" in edgecv("gallery", "identify", door, b, *model)
    assert "same (likeness 0.881, same where >= 0.500)" in edgecv(
        "gallery", "verify", door, "anna", a, *model
    )
    assert "likeness, threshold 0.5000" in edgecv("gallery", "list", door)
    listed = json.loads(edgecv("gallery", "list", door, "--json"))
    assert listed["settings"]["weights"]["measure"] == "l1"
    assert "learned, l1 of 64 values" in edgecv("inspect", tmp_path / "pair.onnx")

    pairs = tmp_path / "pairs.csv"
    lines = [f"{x}.png,{y}.png,{'yes' if x == y else 'no'}" for x in "abc" for y in "abc"]
    pairs.write_text("\n".join(["left,right,same", *lines]))
    score = json.loads(edgecv("eval", tmp_path / "pair.onnx", pairs, "--backend", "fake", "--json"))
    assert score["metric"] == "likeness"
    assert 0 < score["threshold"] < 0.881  # midway between a pair of one and of two
    other = json.loads(
        edgecv("eval", tmp_path / "pair.onnx", pairs, "--metric", "euclidean", "--backend", "fake",
               "--json")
    )  # fmt: skip
    assert other["metric"] == "euclidean"
    # the threshold of an old gallery is found in its own metric, and of a new one in the wanted
    kept = edgecv("gallery", "enrol", door, "bo", b, *model, "--pairs", pairs, "--json")
    assert json.loads(kept)["settings"]["threshold"] == score["threshold"]
    far = edgecv("gallery", "enrol", tmp_path / "far", "bo", b, *model, "--pairs", pairs,
                 "--metric", "euclidean", "--json")  # fmt: skip
    assert json.loads(far)["settings"]["threshold"] == other["threshold"]
    message = edgecv("gallery", "enrol", door, "carl", b, *model, "--metric", "cosine", code=2)
    assert "this gallery compares by likeness; make a new one for cosine" in message
    message = edgecv("gallery", "enrol", tmp_path / "new", "bo", b, "-m", net, "--backend", "fake",
                     "--metric", "likeness", code=2)  # fmt: skip
    assert "carries no learned likeness" in message
    assert not (tmp_path / "new").exists()
