"""NMS in the graph finds what the NumPy path finds: every family, ties, batches, no objects."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from edgecv import export, load
from edgecv.cli.app import app
from edgecv.errors import ExportError, InputError, RuntimeFailure
from edgecv.graph.end2end import OUTPUTS, append_nms
from edgecv.model import Model
from edgecv.postprocess.detect import decode
from edgecv.results import Placement
from edgecv.runtimes import open_backend
from edgecv.spec import Decoding, ModelSpec, Preparation, TensorSpec, read_spec, write_spec
from edgecv.workflows.adopt import adopt
from edgecv.workflows.end2end import append_to_file, with_nms

SIZE, BATCH, CLASSES = 64, 2, 5
CELLS = (SIZE // 8) ** 2 + (SIZE // 16) ** 2
COMMON = {"conf": 0.3, "iou": 0.4, "max_det": 20}
YOLOX = {"decoded": False, "strides": [8, 16]}
FREE = {
    "layout": "channels-first",
    "boxes": "cxcywh",
    "normalized": False,
    "objectness": False,
    "scores": "probabilities",
}
DFL = FREE | {"boxes": "dfl", "bins": 4, "strides": [8, 16], "scores": "logits"}
LTRB = FREE | {"boxes": "ltrb", "strides": [8, 16], "layout": "channels-last", "objectness": True}
CASES = {
    "yolox": ("yolox", [CELLS, 5 + CLASSES], YOLOX),
    "yolox, several classes a box": ("yolox", [CELLS, 5 + CLASSES], YOLOX | {"multi_label": True}),
    "yolox, agnostic": ("yolox", [CELLS, 5 + CLASSES], YOLOX | {"agnostic": True}),
    "v5": ("yolo-anchors", [200, 5 + CLASSES], {"decoded": True}),
    "v8": ("yolo-anchor-free", [4 + CLASSES, 200], FREE),
    "v8, fewer boxes than max_det": ("yolo-anchor-free", [4 + CLASSES, 7], FREE),
    "relative": ("yolo-anchor-free", [4 + CLASSES, 90], FREE | {"normalized": True}),
    "dfl": ("yolo-anchor-free", [16 + CLASSES, CELLS], DFL),
    "ltrb": ("yolo-anchor-free", [CELLS, 5 + CLASSES], LTRB),
    "fastestdet": ("fastestdet", [5 + CLASSES, 8, 8], {}),
}


def contract(kind, shape, options, batch=BATCH):
    return ModelSpec(
        name="tiny",
        task="detect",
        inputs=(TensorSpec("input", (batch, 3, SIZE, SIZE)),),
        outputs=(TensorSpec("raw", (batch, *shape)),),
        preparation=Preparation(SIZE, SIZE, fit="stretch"),
        decoding=Decoding(kind, COMMON | options),
        labels=tuple("abcde"),
    )


def raw_output(kind, shape, options, seed=0):
    """Values that make some boxes overlap; scores of few levels, so that there are ties."""
    rng = np.random.default_rng(seed)
    raw = rng.uniform(0, 1, (BATCH, *shape)).astype(np.float32)
    if kind == "fastestdet" or options.get("boxes") == "dfl":
        return rng.normal(0, 1, raw.shape).astype(np.float32) + (kind == "fastestdet") * 0.5
    rows = raw if shape[-1] <= 5 + CLASSES else np.moveaxis(raw, 1, 2)  # a view
    rows[..., 4:] = rng.integers(0, 11, rows[..., 4:].shape) / 10
    if kind == "yolox":
        rows[..., 2:4] = rng.uniform(0, 1.2, rows[..., 2:4].shape)
    elif options.get("boxes") == "ltrb":
        rows[..., :4] *= 2
    elif not options.get("normalized"):
        rows[..., :4] = rng.integers(8, 40, rows[..., :4].shape)
    return raw


def model_file(path, spec, raw):
    """A graph whose output is ``raw``, whatever the input."""
    nodes = [
        helper.make_node("ReduceMin", ["input"], ["least"], keepdims=0),
        helper.make_node("Mul", ["least", "zero"], ["nothing"]),
        helper.make_node("Add", ["value", "nothing"], ["raw"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, spec.inputs[0].shape)],
        [helper.make_tensor_value_info("raw", TensorProto.FLOAT, spec.outputs[0].shape)],
        [
            helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
            helper.make_tensor("value", TensorProto.FLOAT, raw.shape, raw.ravel()),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    if path is not None:
        write_spec(model.SerializeToString(), spec, path)
    return model


@pytest.mark.parametrize("case", CASES)
def test_the_graph_finds_what_numpy_finds(tmp_path, case):
    kind, shape, options = CASES[case]
    spec = contract(kind, shape, options)
    raw = raw_output(kind, shape, options)
    data, changed = with_nms(model_file(None, spec, raw).SerializeToString(), spec)
    path = tmp_path / "end2end.onnx"
    write_spec(data, changed, path)
    placements = [Placement(128, 96, 0.5, 0.6, 3.0, 2.0, SIZE, SIZE)] * BATCH
    expected = decode({"raw": raw}, spec, placements)
    with Model(changed, open_backend("onnxruntime", path)) as model:
        outputs = model.infer(np.zeros((BATCH, 3, SIZE, SIZE), np.float32))
        found = model.decode(outputs, placements)
    assert sum(map(len, expected)) > 10
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a.classes, b.classes)
        # exp, pow and sigmoid of two libraries: a few units in the last place of float32
        np.testing.assert_allclose(a.scores, b.scores, rtol=1e-6)
        np.testing.assert_allclose(a.boxes, b.boxes, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("rule", ["v2", "v3", "v5"])
def test_raw_maps_of_anchors_are_decoded_in_the_graph(tmp_path, rule):
    strides, anchors = [8, 16], [[[10, 8], [16, 20]], [[24, 30], [40, 28]]]
    options = {"decoded": False, "activated": False, "layout": "channels-first", "rule": rule}
    options |= {"strides": strides, "anchors": anchors}
    names = [f"map{stride}" for stride in strides]
    rng = np.random.default_rng(2)
    maps = {
        name: rng.normal(0, 1.5, (BATCH, 2 * (5 + CLASSES), SIZE // s, SIZE // s)).astype("f")
        for name, s in zip(names, strides, strict=True)
    }
    outputs = tuple(TensorSpec(name, value.shape) for name, value in maps.items())
    blank = contract("yolo-anchors", [1], options)
    spec = replace(blank, outputs=outputs)
    nodes = [
        helper.make_node("ReduceMin", ["input"], ["least"], keepdims=0),
        helper.make_node("Mul", ["least", "zero"], ["nothing"]),
        *(helper.make_node("Add", [f"{name}_value", "nothing"], [name]) for name in names),
    ]
    tensors = [helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0])]
    tensors += [
        helper.make_tensor(f"{name}_value", TensorProto.FLOAT, value.shape, value.ravel())
        for name, value in maps.items()
    ]
    infos = [helper.make_tensor_value_info(t.name, TensorProto.FLOAT, t.shape) for t in outputs]
    source = helper.make_tensor_value_info("input", TensorProto.FLOAT, spec.inputs[0].shape)
    graph = helper.make_graph(nodes, "tiny", [source], infos, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    data, changed = with_nms(model.SerializeToString(), spec)
    write_spec(data, changed, tmp_path / "a.onnx")
    placements = [Placement(128, 96, 0.5, 0.6, 3.0, 2.0, SIZE, SIZE)] * BATCH
    expected = decode(maps, spec, placements)
    with Model(changed, open_backend("onnxruntime", tmp_path / "a.onnx")) as opened:
        found = opened.decode(
            opened.infer(np.zeros((BATCH, 3, SIZE, SIZE), np.float32)), placements
        )
    assert sum(map(len, expected)) > 10
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a.classes, b.classes)
        np.testing.assert_allclose(a.scores, b.scores, rtol=1e-6)  # as above
        np.testing.assert_allclose(a.boxes, b.boxes, rtol=1e-5, atol=1e-3)
    wrong = replace(spec, decoding=Decoding("yolo-anchors", COMMON | options | {"activated": True}))
    with pytest.raises(ExportError, match="through no sigmoid"):
        with_nms(model.SerializeToString(), wrong)


def test_nothing_found_is_no_detection(tmp_path):
    spec = contract(*CASES["v8"])
    raw = np.zeros((BATCH, 4 + CLASSES, 200), np.float32)
    data, changed = with_nms(model_file(None, spec, raw).SerializeToString(), spec)
    write_spec(data, changed, tmp_path / "a.onnx")
    with Model(changed, open_backend("onnxruntime", tmp_path / "a.onnx")) as model:
        outputs = model.infer(np.zeros((BATCH, 3, SIZE, SIZE), np.float32))
    assert outputs["num"].tolist() == [[0], [0]]
    assert [outputs[name].dtype.name for name in OUTPUTS] == [
        "int32",
        "float32",
        "float32",
        "int32",
    ]
    assert outputs["boxes"].shape == (BATCH, 20, 4)


def test_a_finished_file_and_one_of_an_old_opset(assets, tmp_path):
    source = assets / "weights" / "yolox_nano_coco.onnx"
    adopted = adopt(source, recipe="yolox-nano", output=tmp_path / "a.onnx").path
    path, spec = append_to_file(adopted, tmp_path / "b.onnx")
    assert read_spec(path).decoding.kind == spec.decoding.kind == "detections"
    assert spec.parity["end2end"]["detections"] > 50
    photograph = sorted((assets / "coco" / "images").glob("*.jpg"))[0]
    with load(adopted) as one, load(path) as other:
        a, b = one(photograph), other(photograph)
    assert len(a) > 3
    np.testing.assert_array_equal(a.classes, b.classes)
    np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-2)


def test_the_target_chooses_tensorrts_plugin(assets, tmp_path):
    source = assets / "weights" / "yolox_nano_coco.onnx"
    adopted = adopt(source, recipe="yolox-nano", output=tmp_path / "a.onnx").path
    path = tmp_path / "b.onnx"
    command = ["export", str(adopted), "--end2end", "--target", "tensorrt", "-o", str(path)]
    assert CliRunner().invoke(app, command).exit_code == 0
    spec = read_spec(path)
    assert (spec.target, spec.parity["end2end"]["form"]) == ("tensorrt", "tensorrt")
    assert spec.parity["end2end"]["detections"] > 50  # its twin is what was proven
    assert onnx.load(path).graph.node[-1].op_type == "EfficientNMS_TRT"
    with pytest.raises(RuntimeFailure, match=r"TensorRT's own plugin.*without --target tensorrt"):
        load(path, backend="onnxruntime")
    assert CliRunner().invoke(app, ["inspect", str(path)]).exit_code == 0
    with pytest.raises(InputError, match="there is no target 'coreml'"):
        append_to_file(adopted, path, "coreml")


def test_a_plugin_is_for_a_file_with_nms_in_its_graph():
    with pytest.raises(InputError, match="with --end2end, --target tensorrt takes"):
        export("lenet5", weights="random", target="tensorrt")
    with pytest.raises(InputError, match="for precision int8"):
        export("yolox-nano", weights="random", target="openvino", end2end=True)


def test_tensorrts_plugin_gets_the_contracts_thresholds():
    spec = contract(*CASES["yolox"])
    raw = raw_output(*CASES["yolox"])
    data, changed = with_nms(model_file(None, spec, raw).SerializeToString(), spec, "tensorrt")
    node = onnx.load_from_string(data).graph.node[-1]
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    assert (node.op_type, node.domain) == ("EfficientNMS_TRT", "TRT")
    assert values["score_threshold"] == pytest.approx(0.3)
    assert values["iou_threshold"] == pytest.approx(0.4)
    assert (values["max_output_boxes"], values["class_agnostic"]) == (20, 0)
    assert list(node.output) == list(OUTPUTS)
    assert changed.target == "tensorrt"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "yunet"}, "no place for landmarks"),
        ({"kind": "yolo-end2end"}, "needs no NMS"),
        ({"options": {"measure": "diou"}}, "compares IoU"),
        ({"options": {"nms": "soft"}}, "is done in NumPy"),
        ({"options": {"agnostic": True, "multi_label": True}}, "at once"),
        ({"outputs": 2}, "gives 2 maps"),
        ({"opset": 13}, "needs opset 18"),
        ({"open": True}, "leaves the input's size open"),
        ({"form": "coreml"}, "must be one of"),
    ],
)
def test_what_cannot_be_appended_is_refused_with_the_reason(change, message):
    spec = contract(*CASES["yolox"])
    decoding = Decoding(
        change.get("kind", "yolox"), spec.decoding.options | change.get("options", {})
    )
    spec = replace(spec, decoding=decoding)
    if change.get("open"):
        spec = replace(spec, inputs=(TensorSpec("input", (BATCH, 3, "h", "w")),))
    graph = ir.from_proto(model_file(None, spec, raw_output(*CASES["yolox"])))
    graph.opset_imports[""] = change.get("opset", 18)
    if change.get("outputs"):
        graph.graph.outputs.append(graph.graph.node(0).outputs[0])
    with pytest.raises(ExportError, match=message):
        append_nms(graph, spec, change.get("form", "onnx"))
