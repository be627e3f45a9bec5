"""``edgecv quantize`` from the file to the file: what is written, what is refused, what gates."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from typer.testing import CliRunner

import edgecv
from edgecv.cli.app import app
from edgecv.errors import CheckFailed, InputError, QuantizeError
from edgecv.graph.pixels import pixels_in
from edgecv.graph.upgrade import read_onnx, upgrade
from edgecv.measure import timing
from edgecv.measure.ready import READY_MODEL
from edgecv.measure.saturation import saturation_note
from edgecv.onnxfile import read_metadata
from edgecv.quantize.targets import policy_for
from edgecv.spec import Decoding, ModelSpec, Preparation, TensorSpec, read_spec, write_spec
from edgecv.workflows import proof, putback
from edgecv.workflows.quantize import quantize

TARGET = "onnxruntime-x86"
SIZE = 16


@pytest.fixture(autouse=True)
def untimed(monkeypatch):
    """Fewer rounds than an interval needs: no gate by time, which these nets are too small for."""
    monkeypatch.setattr(proof, "ROUNDS", 1)
    monkeypatch.setattr(proof, "ROUND_SECONDS", 0.01)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """60 pictures of a few large areas, in two folders named after classes."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for index in range(60):
        small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        path = folder / ("cat" if index % 2 else "dog") / f"{index:02}.png"
        path.parent.mkdir(exist_ok=True)
        small.resize((70, 64), Image.Resampling.BICUBIC).save(path)
    return folder


@pytest.fixture(scope="session")
def done(pictures, tmp_path_factory):
    """The ready model, quantized once for all that only look."""
    path = tmp_path_factory.mktemp("done") / "int8.onnx"
    html = path.with_suffix(".html")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "ROUNDS", 1)
        return quantize(
            READY_MODEL, calibration=pictures, data=pictures, target=TARGET, html=html, output=path
        )


def classifier(path, weights, layers, classes=5):
    """A file with a contract; ``layers`` are its nodes from ``x`` to ``y``, ``[1, classes]``."""
    graph = helper.make_graph(
        layers,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, classes])],
        [
            numpy_helper.from_array(np.asarray(array, np.float32), name)
            for name, array in weights.items()
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    proto = onnx.shape_inference.infer_shapes(proto)
    spec = ModelSpec(
        name="net",
        task="classify",
        inputs=(TensorSpec("x", (1, 3, SIZE, SIZE)),),
        outputs=(TensorSpec("y", (1, classes)),),
        preparation=Preparation(SIZE, SIZE, fit="stretch"),
        decoding=Decoding("logits"),
        labels=tuple(f"class {i}" for i in range(classes)),
        provenance={"opset": 18},
    )
    write_spec(proto.SerializeToString(), spec, path)
    return path


def node(kind, inputs, output, **options):
    return helper.make_node(kind, inputs, [output], f"{output}/{kind}", **options)


@pytest.fixture
def tied(tmp_path):
    """One layer, whose classes differ by less than a step of its weights: nothing can be done."""
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((1, 3, SIZE, SIZE)) + rng.standard_normal((5, 3, SIZE, SIZE)) / 1e3
    layers = [node("Conv", ["x", "w"], "c"), node("Flatten", ["c"], "y")]
    return classifier(tmp_path / "tied.onnx", {"w": weight}, layers)


def three_layers(path, factor):
    """Channel 0 of the first layer is ``factor`` times the others and read as much less.

    With most seeds the correction of the biases gives back what that costs: with this one the
    error is another one in each picture.
    """
    rng = np.random.default_rng(9)
    weights = {f"w{i}": rng.standard_normal((6, 6 if i else 3, 3, 3)) for i in range(3)}
    weights["w0"][0] *= factor
    weights["w1"][:, 0] /= factor
    weights["fc"] = rng.standard_normal((5, 6))
    weights["fb"] = np.zeros(5)
    layers = []
    for i in range(3):
        source = f"r{i - 1}" if i else "x"
        layers += [node("Conv", [source, f"w{i}"], f"c{i}"), node("Relu", [f"c{i}"], f"r{i}")]
    layers += [
        node("GlobalAveragePool", ["r2"], "p"),
        node("Flatten", ["p"], "f"),
        node("Gemm", ["f", "fc", "fb"], "y", transB=1),
    ]
    return classifier(path, weights, layers)


@pytest.fixture
def plain(tmp_path):
    return three_layers(tmp_path / "plain.onnx", 1)


@pytest.fixture
def wide(tmp_path):
    """The tensor of the wide channel has to be float, as in test_sensitivity.py."""
    return three_layers(tmp_path / "wide.onnx", 3000)


def test_what_programs_rely_on(done):
    data = json.loads(json.dumps(done.to_dict(), allow_nan=False))
    assert {"path", "precision", "target", "opset", "size_bytes", "parity"} <= data.keys()
    assert (data["precision"], data["target"]) == ("int8", TARGET)
    assert {"max_abs", "max_rel", "cosine"} <= data["parity"].keys()
    assert data["size_bytes"] == done.path.stat().st_size < READY_MODEL.stat().st_size / 3
    own = data["proof"]
    assert own["layers"][0]["sqnr_db"] == min(one["sqnr_db"] for one in own["layers"])
    assert sum(one["operator"] == "Conv" for one in own["layers"]) == 52
    assert own["integer_nodes"]["QLinearConv"] == 52


def test_sums_that_may_saturate_are_in_the_proof(done, plain, pictures, tmp_path):
    assert len(done.proof.saturation) > 10
    stored = read_spec(done.path).quantization["proof"]["saturation_without_vnni"]
    assert stored == [one.to_dict() for one in done.proof.saturation]
    shown = CliRunner().invoke(app, ["inspect", str(done.path)]).stdout
    assert saturation_note(done.proof.saturation) in shown
    for target, some in (("onnxruntime-arm", True), ("onnxruntime-x86-avx2", False)):
        path = tmp_path / f"{target}.onnx"
        result = quantize(plain, calibration=pictures, target=target, output=path)
        assert bool(result.proof.saturation) == some
        # read back wherever onnxruntime is, though its speed is another processor's
        assert result.proof.readback.integer["QLinearConv"] == 3


def test_what_calibrates_is_not_scored(done):
    """60 pictures, four fifths calibrate; the data set is the same folder."""
    assert done.calibrated_on == 48
    assert (done.proof.drop.metric, done.proof.drop.pictures, done.proof.pictures) == (
        "top1", 12, 12,
    )  # fmt: skip


def test_copies_under_other_names_are_recognised(plain, pictures, tmp_path):
    """All that calibrates is in the data set under another name, and left out."""
    data = tmp_path / "data"
    data.mkdir()
    for index, path in enumerate(sorted(pictures.rglob("*.png"))):
        shutil.copy(path, data / f"copy{index}.png")
    Image.new("RGB", (40, 40), (9, 200, 30)).save(data / "new.png")
    warnings = []
    result = quantize(
        plain, calibration=pictures, data=data, target=TARGET,
        output=tmp_path / "int8.onnx", warn=warnings.append,
    )  # fmt: skip
    assert result.proof.pictures == 61 - result.calibrated_on == 13
    assert result.proof.drop.metric == "disagreement"
    assert any("no labels were found" in text for text in warnings)


def test_the_contract_in_the_file(done):
    spec = read_spec(done.path)
    assert (spec.precision, spec.target, spec.task) == ("int8", TARGET, "classify")
    real = {"pictures": 48, "seed": 0, "provenance": "pictures", "synthetic": None}
    assert spec.quantization["calibration"] == real
    assert spec.quantization["proof"]["synthetic"] is False
    assert spec.quantization["proof"]["agreement"] == round(done.proof.agreement, 6)
    assert edgecv.verify(done.path).passed


def test_the_page_stands_alone(done):
    page = done.path.with_suffix(".html").read_text()
    assert "52 QLinearConv" in page
    assert "Layers by error" in page
    assert "http" not in page.replace("http-equiv", "")


@pytest.mark.parametrize("order", [True, "bgr"])
def test_pixels_in_answers_like_the_float_input(plain, pictures, tmp_path, order):
    """The same integers but for the padding, which is made of pixels there."""
    paths = [tmp_path / "floats.onnx", tmp_path / "pixels.onnx"]
    for path in paths:
        taken = order if path is paths[1] else False
        quantize(plain, calibration=pictures, target=TARGET, pixels=taken, output=path)
    spec = read_spec(paths[1])
    assert spec.inputs[0].dtype == "uint8"
    assert spec.preparation.color == ("rgb" if order is True else order)
    some = sorted(pictures.rglob("*.png"))
    with edgecv.load(paths[0]) as floats, edgecv.load(paths[1]) as pixels:
        same = [a.best.id == b.best.id for a, b in zip(pixels(some), floats(some), strict=True)]
    assert np.mean(same) >= 0.95
    assert edgecv.verify(paths[1]).passed
    assert edgecv.verify(paths[1], plain, layers=True).layers


def test_a_parent_that_takes_pixels(plain, pictures, tmp_path):
    """Its arithmetic stays in its graph, before the integers; the input stays as it is."""
    spec, path = read_spec(plain), tmp_path / "pixels.onnx"
    model = upgrade(read_onnx(plain))
    preparation = pixels_in(model, spec.preparation).preparation
    inputs = (TensorSpec("x", (1, SIZE, SIZE, 3), "uint8"),)
    data = ir.to_proto(model).SerializeToString()
    write_spec(data, replace(spec, inputs=inputs, preparation=preparation), path)
    out = tmp_path / "out.onnx"
    result = quantize(path, calibration=pictures, target=TARGET, output=out)
    assert result.spec.inputs == inputs
    assert result.proof.readback.integer["QLinearConv"] == 3
    assert edgecv.verify(out).passed


def test_the_same_bytes_twice(wide, pictures, tmp_path):
    """But for the figures of the clock, which stand in the contract."""

    def graph(name):
        path = tmp_path / name
        quantize(wide, calibration=pictures, target=TARGET, output=path)
        proto = onnx.load(path)
        del proto.metadata_props[:]
        return proto.SerializeToString(deterministic=True), dict(read_spec(path).self_test)

    assert graph("a.onnx") == graph("b.onnx")


def test_layers_go_back_to_float_until_the_drop_fits(wide, pictures, tmp_path):
    path = tmp_path / "out.onnx"
    before = quantize(wide, calibration=pictures, target=TARGET, output=path, force=True)
    assert before.proof.drop.points > 0
    after = quantize(wide, calibration=pictures, target=TARGET, max_drop=0, output=path)
    assert after.proof.drop.points == 0
    back = after.spec.quantization["put_back"]
    assert {"c0/Conv", "c1/Conv"} <= set(back["nodes"])
    assert back["nodes"]["c0/Conv"] == "r0"  # the tensor with the wide channel
    assert len(after.proof.readback.float_macs) >= 2  # and onnxruntime leaves them alone
    assert after.proof.readback.integer  # something is left in integers
    assert after.proof.pictures < before.proof.pictures  # those that decided do not prove


@pytest.mark.parametrize("scored", [False, True])
def test_judges_count_what_the_proof_counts(pictures, scored):
    """The folder has labels in both cases: a proof without a score is not judged by them."""
    found = sorted(pictures.rglob("*.png"))
    spec = read_spec(READY_MODEL)
    judges = putback.judges_of(spec, pictures, found[:20], found[20:], scored, print)
    assert [half.pictures for half in judges] == [found[:20:4], found[2:20:4]]
    for half in judges:
        assert (half.dataset == pictures) is scored
        if scored:
            assert [path for path in found if not half.leave_out(path)] == half.pictures


def test_the_judge_that_sees_more_decides(pictures, tmp_path):
    """Halves that disagree about a file: the drop is the worse one's, and so are its pictures."""
    parent, path = three_layers(tmp_path / "off.onnx", 2000), tmp_path / "out.onnx"
    quantize(parent, calibration=pictures, target=TARGET, output=path, force=True)
    with proof.Prover(parent, policy_for(TARGET)) as prover:

        def drop(*judges):
            return prover.judge(path, [proof.HeldOut(list(some)) for some in judges])

        alone = {one: drop([one]).points for one in sorted(pictures.rglob("*.png"))}
        assert set(alone.values()) == {0, 100}
        same = [one for one, points in alone.items() if points == 0]
        other = [one for one, points in alone.items() if points == 100]
        assert drop(same[:5]).points == 0
        worse = drop(same[:5], [*same[5:8], other[0]])
        assert (worse.points, worse.pictures) == (25, 4)


def test_a_drop_of_just_the_limit_is_no_more_than_it():
    assert (1 - 198 / 200) * 100 > 1  # in binary
    assert proof.points_of(1 - 198 / 200) == 1


def test_a_drop_that_nothing_helps_is_an_error(tied, pictures, tmp_path):
    arguments = [tied, "--calibration", pictures, "--target", TARGET, "--max-drop", "0"]
    command = [str(Path(sys.executable).parent / "edgecv"), "quantize", *map(str, arguments)]
    folder = tmp_path / "run"
    folder.mkdir()
    ran = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert ran.returncode == 1, ran.stderr
    assert "points of disagreement" in ran.stderr
    assert list(folder.iterdir()) == []
    result = quantize(
        tied, calibration=pictures, target=TARGET, max_drop=0, force=True, output=folder / "f.onnx"
    )
    assert result.proof.drop.points > 0
    assert result.path.is_file()


def test_a_file_that_is_slower_is_an_error(wide, pictures, tmp_path, monkeypatch):
    slow = proof.Latency(1.0, 2.0, proof.Interval(0.5, 0.4, 0.6))
    monkeypatch.setattr(proof, "_latency", lambda *_: slow)
    monkeypatch.setattr(proof, "runs_here", lambda _: True)
    with pytest.raises(CheckFailed, match="not faster than its parent") as raised:
        quantize(wide, calibration=pictures, target=TARGET, output=tmp_path / "out.onnx")
    assert "edgecv quantize --force" in str(raised.value)  # `edgecv export` has no such flag
    assert not (tmp_path / "out.onnx").exists()


def test_bad_pictures(wide, tmp_path):
    folder = tmp_path / "few"
    folder.mkdir()
    out = tmp_path / "out.onnx"
    with pytest.raises(InputError, match="there are no pictures to calibrate on"):
        quantize(wide, calibration=folder, target=TARGET, output=out)
    Image.new("RGB", (30, 30), (200, 10, 60)).save(folder / "a.png")
    warnings = []
    result = quantize(wide, calibration=folder, target=TARGET, output=out, warn=warnings.append)
    assert result.calibrated_on == result.proof.pictures == 1
    assert any("below 32" in text for text in warnings)
    assert any("proven on those that calibrated it" in text for text in warnings)
    out.unlink()
    (folder / "b.png").write_bytes(b"no picture")
    (folder / "c.png").write_bytes(b"no picture either")
    with pytest.raises(InputError, match=r"[bc]\.png"):
        quantize(wide, calibration=folder, target=TARGET, output=out)
    assert not out.exists()


def test_bad_files_and_names(done, wide, pictures, tmp_path):
    def refused(error, match, model, **options):
        with pytest.raises(error, match=match):
            quantize(model, calibration=pictures, output=tmp_path / "out.onnx", **options)

    refused(InputError, "is int8 already", done.path)
    bare = tmp_path / "bare.onnx"
    proto = onnx.load(wide)
    del proto.metadata_props[:]
    onnx.save(proto, bare)
    assert not read_metadata(bare)
    refused(edgecv.errors.EdgeCVError, "contract", bare)
    refused(InputError, "there is no target 'tflite'", wide, target="tflite")
    refused(QuantizeError, "no node of that name", wide, keep_float=["nothing"])
    weight = np.ones((5, 3, SIZE, SIZE))
    weight[2, 1, 0, 0] = np.nan
    layers = [node("Conv", ["x", "w"], "c"), node("Flatten", ["c"], "y")]
    broken = classifier(tmp_path / "nan.onnx", {"w": weight}, layers)
    refused(edgecv.errors.ExportError, "NaN or infinite values", broken)
    layers = [node("GlobalAveragePool", ["x"], "p"), node("Flatten", ["p"], "y")]
    nothing = classifier(tmp_path / "nothing.onnx", {}, layers, classes=3)
    refused(QuantizeError, "nothing to quantize", nothing)
    everything = ["c0/Conv", "c1/Conv", "c2/Conv", "y/Gemm"]
    refused(QuantizeError, "nothing is left to quantize", wide, keep_float=everything)
    for points in (-1.0, float("nan")):
        refused(InputError, "expected points, 0 or more", wide, max_drop=points)
    refused(InputError, "--seed -1: expected a whole number", wide, seed=-1)
    assert not (tmp_path / "out.onnx").exists()


def test_the_parent_is_not_overwritten(plain, pictures, tmp_path):
    before = plain.read_bytes()
    with pytest.raises(InputError, match="is the FP32 file that is read"):
        quantize(plain, calibration=pictures, output=tmp_path / ".." / tmp_path.name / plain.name)
    assert plain.read_bytes() == before
    with pytest.raises(InputError, match="is a folder"):  # before the work, not after it
        quantize(plain, calibration=tmp_path / "none", output=tmp_path)


def test_bad_data_is_said_before_the_work(plain, pictures, tmp_path):
    """The search for ranges takes minutes on a large net."""
    steps = []
    with pytest.raises(InputError, match="there is no such folder"):
        quantize(
            plain,
            calibration=pictures,
            data=tmp_path / "none",
            target=TARGET,
            output=tmp_path / "out.onnx",
            progress=lambda what, *_: steps.append(what),
        )
    assert steps == []


def test_latency_is_that_of_one_picture(plain, tmp_path, monkeypatch):
    """A file of batch 2 answers two at a time."""
    spec, two = read_spec(plain), tmp_path / "two.onnx"
    proto = onnx.load(plain)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    del proto.graph.value_info[:]
    del proto.metadata_props[:]
    tensors = [replace(t, shape=(2, *t.shape[1:])) for t in (*spec.inputs, *spec.outputs)]
    spec = replace(spec, inputs=(tensors[0],), outputs=(tensors[1],))
    write_spec(proto.SerializeToString(), spec, two)
    monkeypatch.setattr(timing, "timed", lambda *_: [6_000_000] * 25)
    latencies = [proof._latency(path, path, "onnxruntime") for path in (plain, two)]
    assert [one.parent_ms for one in latencies] == [6.0, 3.0]
    assert [one.candidate_ms for one in latencies] == [6.0, 3.0]


def test_what_is_interrupted_leaves_nothing(wide, pictures, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()

    def stop(what, number, total):
        if what == "proving":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(wide, calibration=pictures, target=TARGET, output=folder / "o.onnx", progress=stop)
    assert list(folder.iterdir()) == []


def test_steps_end(wide, pictures, tmp_path, monkeypatch):
    """With no step allowed the search gives back what it began with, and the gate closes."""
    monkeypatch.setattr(putback, "STEPS", 0)
    with pytest.raises(CheckFailed, match="more than --max-drop 0"):
        quantize(wide, calibration=pictures, target=TARGET, max_drop=0, output=tmp_path / "o.onnx")


def test_export_to_int8_is_export_and_quantize(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = edgecv.export(
        "lenet5", weights="random", precision="int8", calibration=pictures, target=TARGET
    )
    assert [path.name for path in tmp_path.iterdir()] == [f"lenet5-int8-{TARGET}.onnx"]
    data = result.to_dict()
    assert (data["precision"], data["target"]) == ("int8", TARGET)
    assert {"proof", "weights", "nodes", "preparation"} <= data.keys()
    assert data["size_bytes"] == (tmp_path / data["path"]).stat().st_size
    assert read_spec(data["path"]).provenance["weights"]["origin"] == "random"
    with pytest.raises(InputError, match="no BatchNorm layers"):
        edgecv.export("lenet5", weights="random", precision="int8")
    with pytest.raises(InputError, match="there is no target"):
        edgecv.export(
            "lenet5", weights="random", precision="int8", calibration=pictures, target="x"
        )


def test_learning_from_the_calibration_pictures(plain, pictures, tmp_path):
    warnings = []

    def run(name, **options):
        path = tmp_path / f"{name}.onnx"
        options = {"calibration": pictures, "target": TARGET, "warn": warnings.append, **options}
        return quantize(plain, output=path, force=True, **options)

    without, learned = run("without"), run("learned", learn=20)
    about = learned.spec.quantization["learned"]
    assert without.spec.quantization["learned"] is None
    assert about["steps"] == 20
    assert about["held_out"] == round(learned.calibrated_on / 5)
    assert about["taken"] == (about["loss_after"] < about["loss_before"])
    assert about["taken"] != any("gained nothing" in text for text in warnings)
    before, after = (onnx.load(done.path).graph for done in (without, learned))
    assert before.node == after.node
    assert about["taken"] == (before.initializer != after.initializer)
    methods = {span[2] for span in learned.spec.quantization["ranges"].values()}
    assert ("learned" in methods) == about["taken"]
    assert read_spec(learned.path) == learned.spec


def test_learning_says_what_it_needs(plain, pictures, tmp_path, monkeypatch):
    options = {"calibration": pictures, "target": TARGET, "output": tmp_path / "out.onnx"}
    with pytest.raises(InputError, match="a number of steps"):
        quantize(plain, learn=-1, **options)
    monkeypatch.setitem(sys.modules, "edgecv.quantize.gradients.tune", None)  # as without torch
    with pytest.raises(InputError, match="needs torch"):
        quantize(plain, learn=5, **options)
    assert not (tmp_path / "out.onnx").exists()
