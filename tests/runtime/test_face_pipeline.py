"""The pipeline around known answers: a detector that says what it is told, the fake backend."""

import numpy as np
import pytest
from PIL import Image

import edgecv
from edgecv.align import TEMPLATE
from edgecv.errors import InputError
from edgecv.faces import FacePipeline
from edgecv.gallery import Gallery, Settings
from edgecv.model import Model, load
from edgecv.results import Detections
from edgecv.spec import Decoding, ModelSpec, Preparation, TensorSpec, write_spec

EMPTY_GRAPH = b"\x3a\x00"  # ModelProto with field 7, of no bytes: what the fake backend needs


def spec(task, output, decoding):
    return ModelSpec(
        name=task,
        task=task,
        inputs=(TensorSpec("input", (1, 3, 112, 112)),),
        outputs=(output,),
        preparation=Preparation(112, 112, fit="stretch"),
        decoding=decoding,
        labels=("face",) if task == "detect" else (),
        provenance={"weights": {"sha256": "c" * 64}},
    )


class Detector(Model):
    """Finds ``faces`` [n, 5, 2] in every picture."""

    faces = np.empty((0, 5, 2))

    def __call__(self, pictures, *, color="rgb", conf=None, iou=None):
        points = np.asarray(self.faces, np.float32)
        boxes = np.concatenate([points.min(1), points.max(1)], axis=1)
        count = len(points)
        return Detections(
            boxes, np.linspace(0.9, 0.8, count, dtype=np.float32), np.zeros(count, np.int64),
            ("face",), None if self.faces is None else points,
        )  # fmt: skip


@pytest.fixture
def embedder(tmp_path):
    path = tmp_path / "embedder.onnx"
    output = TensorSpec("embedding", (1, 8))
    write_spec(EMPTY_GRAPH, spec("embed", output, Decoding("embedding", {"normalize": True})), path)
    return path


@pytest.fixture
def detector(tmp_path):
    path = tmp_path / "detector.onnx"
    options = {"conf": 0.5, "iou": 0.5, "max_det": 10}
    made = spec("detect", TensorSpec("out", (1, 4, 6)), Decoding("yolo-end2end", options))
    write_spec(EMPTY_GRAPH, made, path)
    opened = load(path, backend="fake")
    return Detector(opened.spec, opened.runtime)


def photograph(seed):
    noise = np.random.default_rng(seed).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def test_from_a_photograph_to_a_name(detector, embedder, tmp_path):
    with FacePipeline(detector, embedder, backend="fake") as pipeline:
        Gallery.create(tmp_path / "g", Settings(pipeline.space, threshold=0.99))
    with edgecv.FacePipeline(
        detector, embedder, gallery=tmp_path / "g", backend="fake"
    ) as pipeline:
        detector.faces = [TEMPLATE + 20]
        pipeline.enrol("anna", photograph(1))
        detector.faces = [TEMPLATE + np.array([200, 90]), TEMPLATE + 20]
        faces = pipeline(photograph(1))
        assert [face.identity.name for face in faces] == [None, "anna"]
        assert [face.score for face in faces] == pytest.approx([0.9, 0.8])
        assert np.allclose(faces[1].landmarks, TEMPLATE + 20)
        assert "anna 1.000 at (58, 72, 94, 112)" in str(faces[1])
        assert "vector" not in faces[1].to_dict()
        detector.faces = [TEMPLATE + 20]
        assert pipeline.verify("anna", photograph(1)).same
        assert not pipeline.verify("anna", photograph(2)).same
        assert pipeline.compare(photograph(1), photograph(1), 0.9).same
        assert not pipeline.compare(photograph(1), photograph(2), 0.9).same


def test_no_face_and_two_faces(detector, embedder, tmp_path, picture_file):
    pipeline = FacePipeline(detector, embedder, backend="fake")
    Gallery.create(tmp_path / "g", Settings(pipeline.space, threshold=0.99))
    pipeline = FacePipeline(detector, embedder, gallery=tmp_path / "g", backend="fake")
    assert pipeline(picture_file) == []
    with pytest.raises(InputError, match=r"picture.png: there is no face"):
        pipeline.enrol("anna", picture_file)
    detector.faces = [TEMPLATE, TEMPLATE * 1.5]
    with pytest.raises(InputError, match="there are 2 faces in this picture"):
        pipeline.enrol("anna", picture_file)
    with pytest.raises(InputError, match="there are 2 faces"):
        pipeline.enrol("anna", [photograph(1), picture_file])
    assert pipeline.gallery.people() == {}
    (face,) = pipeline.enrol("anna", picture_file, largest=True)
    assert np.allclose(face.landmarks, TEMPLATE * 1.5)


def test_without_a_detector_the_picture_is_the_face(embedder, tmp_path, detector):
    with FacePipeline(None, embedder, backend="fake") as pipeline:
        (face,) = pipeline(photograph(1))
        assert face.box.tolist() == [0, 0, 400, 300]
        assert np.linalg.norm(face.vector) == pytest.approx(1, abs=1e-6)
        Gallery.create(tmp_path / "g", Settings(pipeline.space, threshold=0.9))
        with pytest.raises(InputError, match="has no gallery"):
            pipeline.enrol("anna", photograph(1))
    with pytest.raises(InputError, match="alignment None here, arcface-5-112 in the model"):
        FacePipeline(detector, embedder, gallery=tmp_path / "g", backend="fake")


def test_models_of_other_tasks_are_refused(detector, embedder):
    with pytest.raises(InputError, match="expected a detector of faces"):
        FacePipeline(embedder, embedder, backend="fake")
    with pytest.raises(InputError, match="expected an embedding net"):
        FacePipeline(None, detector)


def test_a_detector_without_landmarks_cannot_align(detector, embedder, monkeypatch):
    found = Detections(
        np.array([[0, 0, 9, 9]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64),
        ("face",),
    )  # fmt: skip
    monkeypatch.setattr(Detector, "__call__", lambda self, picture, conf=None: found)
    with pytest.raises(InputError, match="gives 0 landmarks; alignment needs 5"):
        FacePipeline(detector, embedder, backend="fake")(photograph(1))
