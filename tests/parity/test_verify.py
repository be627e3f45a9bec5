"""`verify` is worth something: what it must find is planted, one thing at a time."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest

import edgecv
from edgecv.errors import InputError, SpecError, WeightsError
from edgecv.export.overrides import InputOverrides
from edgecv.measure.compare import FP32_MAX_REL
from edgecv.measure.selftest import inputs
from edgecv.runtimes import open_backend
from edgecv.runtimes.base import RuntimeOptions
from edgecv.spec import read_spec, write_spec


@pytest.fixture(scope="module")
def parent(assets, tmp_path_factory):
    """The real ImageNet net, exported, and the reference recorded beside it."""
    folder = tmp_path_factory.mktemp("parity")
    weights = assets / "weights" / "mobilenet_v2_imagenet.pth"
    flags = InputOverrides(resize=256, mean=(0.5,), std=(0.5,))
    result = edgecv.export(
        "mobilenetv2", weights=str(weights), overrides=flags, batch=None, output=folder / "m.onnx"
    )
    record = folder / "reference.npz"
    outcome = edgecv.verify(result.path, "mobilenetv2", weights=weights, record=record)
    assert outcome.passed
    assert outcome.agreement == 1.0
    return result.path, record


def test_a_layer_scaled_by_one_percent_is_found_whichever_it_is(parent, tmp_path):
    path, record = parent
    proto = onnx.load(path)
    path_now = tmp_path / "scaled.onnx"
    spec = read_spec(path)
    weights = [t for t in proto.graph.initializer if len(t.dims) > 1]
    assert len(weights) == 53
    missed, missed_alone = [], []
    for tensor in weights:
        original = tensor.raw_data
        tensor.raw_data = (np.frombuffer(original, np.float32) * np.float32(1.01)).tobytes()
        write_spec(proto.SerializeToString(), spec, path_now)
        tensor.raw_data = original
        if edgecv.verify(path_now, record).passed:
            missed.append(tensor.name)
        if edgecv.verify(path_now).passed:  # by the file's own self-test, with no reference
            missed_alone.append(tensor.name)
    assert missed == []
    assert missed_alone == []


@pytest.mark.parametrize(
    "change",
    [{"color": "bgr"}, {"resize": 250}, {"interpolation": "pillow-bicubic-antialias"},
     {"fit": "stretch"}, {"mean": (0.485, 0.456, 0.406)}],
)  # fmt: skip
def test_a_wrong_preparation_is_found(parent, tmp_path, change):
    path, record = parent
    spec = read_spec(path)
    wrong = tmp_path / "wrong.onnx"
    write_spec(path, replace(spec, preparation=replace(spec.preparation, **change)), wrong)
    assert not edgecv.verify(wrong, record).passed


def test_a_clip_bound_of_6_1_is_found(parent, tmp_path):
    path, record = parent
    proto = onnx.load(path)
    (six,) = [
        t for t in proto.graph.initializer if not t.dims and onnx.numpy_helper.to_array(t) == 6
    ]
    six.raw_data = np.float32(6.1).tobytes()
    wrong = tmp_path / "clip.onnx"
    wrong.write_bytes(proto.SerializeToString())
    assert not edgecv.verify(wrong, record).passed


def test_the_same_answers_as_pytorch_on_real_pictures(parent, assets):
    """Every fifth picture here; all 500 in the slow test."""
    path, _ = parent
    score = edgecv.evaluate(path, assets / "imagenet", limit=100)
    assert score.count == 100
    assert score.top1 > 0.7


@pytest.mark.slow
def test_imagenet_scores_and_500_of_500(parent, assets):
    path, _ = parent
    score = edgecv.evaluate(path, assets / "imagenet")
    assert abs(score.correct1 - 409) <= 1
    assert abs(score.correct5 - 477) <= 1
    weights = assets / "weights" / "mobilenet_v2_imagenet.pth"
    outcome = edgecv.verify(
        path, "mobilenetv2", weights=weights, data=assets / "imagenet", max_drop=0.0
    )
    assert outcome.agreement == 1.0
    assert outcome.passed


def test_references_that_do_not_serve(parent, tmp_path, assets):
    path, record = parent
    with pytest.raises(WeightsError, match="--weights FILE"):
        edgecv.verify(path, "mobilenetv2")
    with pytest.raises(InputError, match="compared with itself"):
        edgecv.verify(path, path)
    with pytest.raises(InputError, match="other pictures"):
        edgecv.verify(path, record, data=assets / "coco" / "images")
    for reference in (None, record):
        with pytest.raises(InputError, match="--weights are those of a reference that is a recipe"):
            edgecv.verify(path, reference, weights="mine.pth")
    with pytest.raises(InputError, match="need a reference"):
        edgecv.verify(path, max_drop=1.0)
    broken = tmp_path / "r.npz"
    broken.write_bytes(record.read_bytes()[:500])
    with pytest.raises(InputError, match="damaged"):
        edgecv.verify(path, broken)
    with pytest.raises(InputError, match="no such record"):
        edgecv.verify(path, tmp_path / "absent.npz")


def test_gates_of_the_caller(parent):
    path, record = parent
    outcome = edgecv.verify(path, record, min_agreement=1.0, min_cosine=0.999999, max_drop=0.0)
    assert outcome.passed
    assert len(outcome.checks) == 4
    assert json.dumps(outcome.to_dict())


def test_a_file_without_a_self_test_says_so(parent, tmp_path):
    path, _ = parent
    bare = tmp_path / "bare.onnx"
    write_spec(path, replace(read_spec(path), self_test={}), bare)
    with pytest.raises(SpecError, match="no self-test"):
        edgecv.verify(bare)
    write_spec(path, replace(read_spec(path), self_test={"seed": 1}), bare)
    with pytest.raises(SpecError, match="damaged"):
        edgecv.verify(bare)


@pytest.mark.parametrize("name", ["openvino"])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_other_runtimes_give_the_same_answers(parent, name, count):
    x = inputs(read_spec(parent[0]).preparation, 7, count)
    with open_backend("onnxruntime", parent[0]) as runtime:
        expected = runtime.run({"input": x})["logits"]
    with open_backend(name, parent[0], RuntimeOptions(precision="fp32")) as runtime:
        got = runtime.run({"input": x})["logits"]
    assert np.abs(got - expected).max() <= FP32_MAX_REL * np.abs(expected).max()
    assert (got.argmax(1) == expected.argmax(1)).all()
