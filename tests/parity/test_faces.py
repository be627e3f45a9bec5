"""Real photographs: YuNet, alignment and MobileFaceNet tell people apart."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edgecv
from edgecv.errors import InputError
from edgecv.faces import FacePipeline
from edgecv.gallery import Settings
from edgecv.workflows.adopt import adopt


@pytest.fixture(scope="session")
def embedder(assets, tmp_path_factory):
    weights = str(assets / "weights" / "mobilefacenet.pt")
    path = tmp_path_factory.mktemp("faces") / "mobilefacenet.onnx"
    return edgecv.export("mobilefacenet", weights=weights, batch=None, output=path).path


@pytest.fixture(scope="session")
def detector(assets, tmp_path_factory):
    path = tmp_path_factory.mktemp("faces") / "yunet.onnx"
    return adopt(assets / "weights" / "yunet_n.onnx", recipe="yunet", output=path).path


@pytest.fixture(scope="session")
def score(assets, detector, embedder):
    return edgecv.evaluate(embedder, assets / "faces" / "pairs.csv", detector=detector)


def test_all_pairs_are_right_at_thresholds_chosen_on_other_pairs(score):
    assert (score.count, score.same, score.pictures) == (300, 38, 25)
    assert score.correct == 300
    assert score.accuracy == 1.0
    assert len(score.fold_thresholds) == score.folds == 10
    assert score.no_face == ()


def test_the_threshold_found_and_the_scores_are_the_published_ones(score):
    # the assets' manifest: 300 right at 0.37, people 0.75 like themselves, others 0.03 on average
    assert score.same_mean == pytest.approx(0.75, abs=0.01)
    assert score.different_mean == pytest.approx(0.03, abs=0.01)
    assert score.eer == 0
    assert score.at_threshold.tar == 1
    assert score.at_threshold.far == 0
    assert score.at_threshold.far_bound == pytest.approx(1 - 0.05 ** (1 / 262), abs=1e-6)
    assert 0.37 < score.threshold < 0.48


def test_a_gallery_of_real_people(assets, detector, embedder, tmp_path):
    faces = assets / "faces"
    with FacePipeline(detector, embedder) as pipeline:
        edgecv.Gallery.create(tmp_path / "door", Settings(pipeline.space, threshold=0.4))
    with edgecv.FacePipeline(detector, embedder, gallery=tmp_path / "door") as pipeline:
        pipeline.enrol("one", faces / "img1.jpg")
        pipeline.enrol("two", faces / "img20.jpg")
        names = [face.identity.name for face in pipeline(faces / "couple.jpg")]
        assert sorted(names, key=str) == [None, "one"]
        assert pipeline.verify("two", faces / "img21.jpg").same
        assert not pipeline.verify("one", faces / "img21.jpg").same
        with pytest.raises(InputError, match="there are 2 faces"):
            pipeline.enrol("three", faces / "couple.jpg")
        with pytest.raises(InputError, match="there is no face"):
            pipeline.enrol("three", np.full((300, 400, 3), 128, np.uint8))
        assert pipeline.gallery.people() == {"one": 1, "two": 1}


def test_the_command_finds_the_threshold_itself(assets, detector, embedder, tmp_path):
    command = [
        str(Path(sys.executable).parent / "edgecv"), "gallery", "enrol", str(tmp_path / "door"),
        "one", str(assets / "faces" / "img1.jpg"), "-m", str(embedder), "-d", str(detector),
        "--pairs", str(assets / "faces" / "pairs.csv"), "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    settings = json.loads(done.stdout)["settings"]
    assert 0.37 < settings["threshold"] < 0.48
    assert settings["origin"]["accuracy_on_held_out_folds"] == 1.0
    assert settings["origin"]["count"] == 300
