"""`verify --layers` names the layer in which a fault was planted, whichever it is."""

import dataclasses
import json
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

import edgecv
from edgecv.errors import CheckFailed, InputError, SpecError
from edgecv.export.to_onnx import to_bytes
from edgecv.graph.pixels import pixels_in
from edgecv.measure import selftest, targets
from edgecv.measure.agreement import agreements, changed
from edgecv.measure.compare import int8_min_sqnr
from edgecv.measure.cut import cut
from edgecv.measure.layers import first_divergence, rank_layers
from edgecv.measure.macs import macs, matmul_model
from edgecv.measure.ready import READY_MODEL
from edgecv.onnxgraph import read_graph
from edgecv.results import Classification, Detections, Embedding, Landmarks, Segmentation
from edgecv.spec import TensorSpec, read_spec, write_spec
from edgecv.wire import message


@pytest.fixture(scope="module")
def spec():
    return read_spec(READY_MODEL)


@pytest.fixture(scope="module")
def feed(spec):
    return selftest.inputs(spec.preparation, 1, 1)


def weights_of(proto):
    return [tensor for tensor in proto.graph.initializer if len(tensor.dims) > 1]


def layer_of(proto, tensor):
    (node,) = [node for node in proto.graph.node if tensor.name in node.input]
    return node.name


def test_every_layer_scaled_by_one_percent_is_named(spec, feed, tmp_path):
    proto, path = onnx.load(READY_MODEL), tmp_path / "scaled.onnx"
    feeds = {spec.inputs[0].name: feed}
    named, expected = [], []
    for tensor in weights_of(proto):
        original = tensor.raw_data
        tensor.raw_data = (np.frombuffer(original, np.float32) * np.float32(1.01)).tobytes()
        path.write_bytes(proto.SerializeToString())
        tensor.raw_data = original
        found = first_divergence(path, READY_MODEL, feeds, feeds, "onnxruntime")
        named.append(found and found.node)
        expected.append(layer_of(proto, tensor))
    assert len(named) == 53
    assert named == expected


def test_the_same_file_diverges_nowhere(spec, feed, tmp_path):
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(READY_MODEL.read_bytes())
    feeds = {spec.inputs[0].name: feed}
    for backend in ("onnxruntime", "openvino"):
        if backend == "openvino":
            pytest.importorskip("openvino")
        assert first_divergence(copy, READY_MODEL, feeds, feeds, backend) is None


def test_a_backend_without_intermediates_is_bisected(spec, feed, tmp_path, monkeypatch):
    """onnxruntime, with its outputs alone, finds the same layer."""
    proto, path = onnx.load(READY_MODEL), tmp_path / "scaled.onnx"
    tensor = weights_of(proto)[20]
    tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) * np.float32(1.01)).tobytes()
    path.write_bytes(proto.SerializeToString())
    monkeypatch.setattr("edgecv.measure.layers.INTERMEDIATES", ())
    feeds = {spec.inputs[0].name: feed}
    found = first_divergence(path, READY_MODEL, feeds, feeds, "onnxruntime")
    assert found is not None
    assert found.node == layer_of(proto, tensor)
    assert first_divergence(READY_MODEL, READY_MODEL, feeds, feeds, "onnxruntime") is None


@pytest.mark.parametrize("change", [{"color": "bgr"}, {"interpolation": "pillow-nearest"}])
def test_a_wrong_preparation_is_named_as_such(spec, tmp_path, change):
    wrong = tmp_path / "wrong.onnx"
    preparation = dataclasses.replace(spec.preparation, **change)
    write_spec(READY_MODEL, dataclasses.replace(spec, preparation=preparation), wrong)
    outcome = edgecv.verify(wrong, READY_MODEL, layers=True)
    assert not outcome.passed
    assert outcome.to_dict()["first_divergent_node"] == "input"


def test_bf16_in_place_of_fp32_is_found_in_the_first_layer(spec, tmp_path):
    """Weights rounded to 8 bits of mantissa: what a runtime with BF16 kernels computes with."""
    proto, path = onnx.load(READY_MODEL), tmp_path / "bf16.onnx"
    for tensor in weights_of(proto):
        bits = np.frombuffer(tensor.raw_data, np.uint32)
        tensor.raw_data = ((bits + 0x8000) & np.uint32(0xFFFF0000)).tobytes()
    path.write_bytes(proto.SerializeToString())
    outcome = edgecv.verify(path, READY_MODEL, layers=True)
    assert not outcome.passed
    assert outcome.first_divergent_node == layer_of(proto, weights_of(proto)[0])


def test_a_clip_bound_of_6_1_is_named(spec, tmp_path):
    proto, path = onnx.load(READY_MODEL), tmp_path / "clip.onnx"
    (six,) = [t for t in proto.graph.initializer if not t.dims and numpy_helper.to_array(t) == 6]
    six.CopyFrom(numpy_helper.from_array(np.float32(6.1), six.name))
    path.write_bytes(proto.SerializeToString())
    outcome = edgecv.verify(path, READY_MODEL, layers=True)
    assert not outcome.passed
    assert outcome.divergence.op == "Clip"


def with_pixels_in(spec, folder):
    """The ready model as a file that takes uint8 pixels, BGR."""
    graph, path = ir.load(READY_MODEL), folder / "pixels.onnx"
    taken = pixels_in(graph, spec.preparation, order="bgr")
    p = taken.preparation
    shape = (1, *p.tensor_shape(p.height, p.width))
    tensor = TensorSpec(spec.inputs[0].name, shape, "uint8")
    taking = dataclasses.replace(spec, inputs=(tensor,), preparation=p, self_test={})
    write_spec(to_bytes(graph), taking, path)
    return path, taking


def test_a_file_that_takes_pixels_is_compared_by_them(spec, tmp_path):
    path, taking = with_pixels_in(spec, tmp_path)
    outcome = edgecv.verify(path, READY_MODEL, layers=True)
    assert outcome.passed
    assert outcome.divergence is None
    changed = dataclasses.replace(taking.preparation, interpolation="pillow-nearest")
    write_spec(path, dataclasses.replace(taking, preparation=changed), path)
    outcome = edgecv.verify(path, READY_MODEL, layers=True)
    assert outcome.first_divergent_node == "input"


def test_layers_need_a_reference_with_tensors(tmp_path):
    with pytest.raises(InputError, match="--layers"):
        edgecv.verify(READY_MODEL, layers=True)
    with pytest.raises(InputError, match="no intermediate tensors"):
        edgecv.verify(READY_MODEL, tmp_path / "r.npz", layers=True)


@pytest.fixture(scope="module")
def int8(spec, tmp_path_factory):
    """The ready model in INT8, U8S8 per channel, by onnxruntime's own quantizer."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            batch = selftest.inputs(spec.preparation, 1, 9)
            self.batches = iter([{spec.inputs[0].name: batch[i : i + 1]} for i in range(9)])

        def get_next(self):
            return next(self.batches, None)

    path = tmp_path_factory.mktemp("int8") / "int8.onnx"
    quantize_static(
        str(READY_MODEL), str(path), Reader(), per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    quantized = dataclasses.replace(spec, precision="int8", target="onnxruntime-x86", self_test={})
    write_spec(path, quantized, path)
    return path


@pytest.mark.filterwarnings("default")
def test_an_int8_file_passes_and_ranks_its_layers(int8):
    outcome = edgecv.verify(int8, READY_MODEL, layers=True)
    assert outcome.passed, outcome.checks
    assert outcome.first_divergent_node is None
    contributions = [layer.contribution for layer in outcome.layers]
    assert contributions == sorted(contributions, reverse=True)
    assert len([layer for layer in outcome.layers if layer.op in ("Conv", "Gemm", "Clip")]) >= 52


@pytest.mark.parametrize("index", [3, 51])
def test_an_int8_scale_doubled_in_one_layer_is_named(int8, tmp_path, index):
    proto = onnx.load(int8)
    scales = [t for t in proto.graph.initializer if t.name.endswith("weight_scale")]
    scale = scales[index]
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * 2, scale.name))
    path = tmp_path / "doubled.onnx"
    path.write_bytes(proto.SerializeToString())
    outcome = edgecv.verify(path, READY_MODEL, layers=True)
    assert not outcome.passed
    assert outcome.first_divergent_node.rpartition("/")[0] == scale.name.partition(".weight")[0]


def test_layers_that_have_no_name_in_common_are_refused(int8, feed, tmp_path):
    with pytest.raises(InputError, match="no quantized layer"):
        rank_layers(READY_MODEL, READY_MODEL, feed)
    other = tmp_path / "matmul.onnx"
    other.write_bytes(matmul_model(8))
    values = {"x": np.ones((8, 8), np.float32)}
    with pytest.raises(CheckFailed, match="share no tensor"):
        first_divergence(other, READY_MODEL, values, values, "onnxruntime")


def test_an_int8_file_on_a_processor_that_its_target_does_not_name(int8, monkeypatch):
    spec = read_spec(int8)
    vnni = ("avx2", "avx512_vnni")
    assert targets.mismatch(spec, "onnxruntime", "x86_64", vnni) is None
    assert "needs VNNI" in targets.mismatch(spec, "onnxruntime", "x86_64", ("avx2",))
    assert "aarch64" in targets.mismatch(spec, "onnxruntime", "aarch64", ("asimddp",))
    assert "openvino" in targets.mismatch(spec, "openvino", "x86_64", vnni)
    assert "onnxruntime-cuda" in targets.mismatch(spec, "onnxruntime-cuda", "x86_64", vnni)
    engine = dataclasses.replace(spec, target="tensorrt")
    for name in ("tensorrt", "tensorrt-rtx", "onnxruntime-tensorrt"):
        assert targets.mismatch(engine, name, "x86_64", vnni) is None
    arm = dataclasses.replace(spec, target="onnxruntime-arm")
    assert targets.mismatch(arm, "onnxruntime", "aarch64", ()) is None
    assert targets.mismatch(arm, "onnxruntime", "x86_64", vnni)
    floats = dataclasses.replace(spec, precision="fp32")
    assert targets.mismatch(floats, "onnxruntime", "aarch64", ()) is None
    monkeypatch.setattr(targets, "simd_flags", lambda: ("avx2",))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    outcome = edgecv.verify(int8, READY_MODEL)
    assert outcome.passed
    assert "needs VNNI" in outcome.target_note
    assert not edgecv.verify(int8, READY_MODEL, strict_target=True).passed


def test_save_keeps_the_pictures_whose_answer_changed(spec, tmp_path):
    wrong = tmp_path / "wrong.onnx"
    preparation = dataclasses.replace(spec.preparation, mean=(0.9, 0.1, 0.5), color="bgr")
    write_spec(READY_MODEL, dataclasses.replace(spec, preparation=preparation), wrong)
    outcome = edgecv.verify(wrong, READY_MODEL, save=tmp_path / "changed")
    assert outcome.agreement < 1
    answers = json.loads((tmp_path / "changed" / "answers.json").read_text())
    assert [Path(path).name for path in outcome.saved] == list(answers)
    for answer in answers.values():
        best = [answer[side]["top"][0]["id"] for side in ("candidate", "reference")]
        assert best[0] != best[1]


def test_agreement_in_each_tasks_terms():
    labels = ("a", "b")
    boxes = np.asarray([[0, 0, 10, 10], [20, 20, 30, 30]], np.float32)
    scores, classes = np.asarray([0.9, 0.8], np.float32), np.asarray([0, 1])

    def found(boxes, classes):
        return Detections(boxes, scores[: len(boxes)], classes, labels)

    both, one = found(boxes, classes), found(boxes[:1], classes[:1])
    none = found(boxes[:0], classes[:0])
    # an IoU just above one half, and one just below: 10 x 10 boxes apart by d overlap
    # (10 - d) / (10 + d), which is 1/2 at d = 10/3
    above, below = (boxes + np.asarray([d, 0, d, 0], np.float32) for d in (3.3, 3.4))
    assert agreements([both, one, none], [both, both, none]) == [1.0, pytest.approx(2 / 3), 1.0]
    assert agreements([found(above, classes)], [both]) == [1.0]
    assert agreements([found(below, classes)], [both]) == [0.0]
    assert agreements([found(boxes, classes[::-1])], [both]) == [0.0]
    x = np.asarray([1, 0, 0], np.float32)
    y = np.asarray([0.6, 0.8, 0], np.float32)
    assert agreements([Embedding(x), Embedding(y)], [Embedding(x), Embedding(x)]) == [
        1.0,
        pytest.approx(0.6),
    ]
    mask = np.zeros((2, 2), np.int64)
    other = mask.copy()
    other[0, 0] = 1
    assert agreements([Segmentation(other, labels)], [Segmentation(mask, labels)]) == [0.75]
    points = np.asarray([[0, 0], [100, 0]], np.float32)
    near, far = points + np.float32(0.5), points + np.float32([[0, 0], [5, 0]])
    assert agreements([Landmarks(near), Landmarks(far)], [Landmarks(points)] * 2) == [1.0, 0.5]
    p, q = (np.asarray(v, np.float32) for v in ([0.7, 0.3], [0.3, 0.7]))
    assert agreements([Classification(p, labels)], [Classification(q, labels)]) == [0.0]
    assert changed([1.0, 0.995, 0.5], "embed") == [2]
    assert changed([1.0, 0.995, 0.5], "detect") == [1, 2]
    with pytest.raises(CheckFailed, match="two tasks"):
        agreements([both], [Embedding(x)])


def test_an_int8_files_bound_follows_from_its_depth():
    assert int8_min_sqnr(1) - int8_min_sqnr(10) == pytest.approx(10)


def test_the_graph_is_read_as_onnx_reads_it():
    graph, proto = read_graph(READY_MODEL), onnx.load(READY_MODEL)
    assert [n.name for n in graph.nodes] == [n.name for n in proto.graph.node]
    assert [n.inputs for n in graph.nodes] == [tuple(n.input) for n in proto.graph.node]
    assert {n: one.dims for n, one in graph.initializers.items()} == {
        t.name: tuple(t.dims) for t in proto.graph.initializer
    }
    again = onnx.load_from_string(cut(graph))
    assert again.graph.node == proto.graph.node
    onnx.checker.check_model(again)
    conv = graph.nodes[0]  # 3x3, stride 2, 3 to 32 channels: 32 x 32 positions
    assert macs(graph, conv, (1, 3, 64, 64), (1, 32, 32, 32)) == 32 * 32 * 32 * 3 * 9
    depthwise = graph.nodes[2]
    assert macs(graph, depthwise, (1, 32, 32, 32), (1, 32, 32, 32)) == 32 * 32 * 32 * 9
    assert macs(graph, graph.nodes[1], (1, 32), (1, 32)) is None  # Clip


def test_a_damaged_graph_is_refused_and_weights_stay_unread(tmp_path):
    whole = READY_MODEL.read_bytes()
    for size in range(0, len(whole), len(whole) // 40):
        with pytest.raises(SpecError, match="not an ONNX model"):
            read_graph(whole[:size])
    inside = b""
    for _ in range(30):  # a graph in an attribute of a node of a graph ...
        inside = message(1, message(5, message(6, inside)))
    with pytest.raises(SpecError, match="nested more than 64"):
        read_graph(message(7, inside))
    with pytest.raises(SpecError, match="not UTF-8"):
        read_graph(message(7, message(1, message(4, b"\xff"))))
    path = tmp_path / "big.onnx"
    path.write_bytes(matmul_model(4000))  # 64 MB of weights
    tracemalloc.start()
    assert read_graph(path).initializers["w"].dims == (4000, 4000)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_pieces_of_a_graph_keep_what_subgraphs_read(tmp_path):
    """A tensor that only the branch of an If reads counts as read."""
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    out = helper.make_tensor_value_info("b", floats, [1])
    branch = helper.make_graph([helper.make_node("Identity", ["hidden"], ["b"])], "t", [], [out])
    nodes = [
        helper.make_node("Neg", ["x"], ["hidden"], name="captured"),
        helper.make_node("Abs", ["x"], ["unused"], name="unused"),
        helper.make_node("If", ["c"], ["y"], name="if", then_branch=branch, else_branch=branch),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", floats, [1]),
            helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", floats, [1])],
    )
    found = read_graph(helper.make_model(graph).SerializeToString())
    assert [node.name for node in found.needed(["y"])] == ["captured", "if"]
