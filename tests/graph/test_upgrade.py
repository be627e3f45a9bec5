"""Third-party ONNX files: brought to opset 18 with the same answers, or refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgecv.errors import ExportError, InputError
from edgecv.export.to_onnx import to_bytes
from edgecv.graph.upgrade import read_onnx, upgrade

# Folding a BatchNorm changes the order of float32 operations: unit roundoff 6e-8 times the square
# root of the terms along the net (1e4 here) is 6e-6 of the largest value.
ROUNDING = 1e-5


def run(model: bytes, feed: NDArray[Any]) -> list[NDArray[Any]]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options)
    return session.run(None, {session.get_inputs()[0].name: feed})


def graph_of(
    nodes: list[onnx.NodeProto],
    weights: dict[str, NDArray[Any]],
    *,
    opset: int = 11,
    ir_version: int = 6,
    as_inputs: bool = False,
) -> onnx.ModelProto:
    """A net from ``x`` [1, 3, 8, 8] to ``y``."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    extra = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
    graph = helper.make_graph(nodes, "net", [x, *(extra if as_inputs else [])], [y], tensors)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version
    )


def kernel(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def picture() -> NDArray[np.float32]:
    return np.random.default_rng(5).standard_normal((1, 3, 8, 8)).astype(np.float32)


def batchnorm(channels: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(1)
    keys = ("scale", "bias", "mean", "var")
    return {key: (rng.random(channels) + 0.5).astype(np.float32) for key in keys}


CONV = helper.make_node("Conv", ["x", "w"], ["y"], name="conv")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("yolox_nano_coco", (1, 3, 416, 416)),
        ("yunet_n", (1, 3, 96, 160)),
        ("rfb320_face", (1, 3, 240, 320)),
        ("fastestdet_coco", (1, 3, 352, 352)),
    ],
)
def test_real_files_compute_the_same(assets: Path, name: str, size: tuple[int, ...]) -> None:
    path = assets / "weights" / f"{name}.onnx"
    proto = read_onnx(path)
    model = upgrade(proto, path)
    data = to_bytes(model)  # runs onnx's checker and strict shape inference
    feed = np.random.default_rng(0).random(size, np.float32) * 255
    for ours, theirs in zip(run(data, feed), run(proto.SerializeToString(), feed), strict=True):
        assert np.abs(ours - theirs).max() <= ROUNDING * np.abs(theirs).max()
    assert model.opset_imports == {"": 18}
    assert model.ir_version == 8
    kept = {node.name for node in proto.graph.node if node.name and node.op_type == "Conv"}
    assert kept <= {node.name for node in model.graph}
    operators = {node.op_type for node in model.graph}
    assert not operators & {"BatchNormalization", "Constant", "Identity"}
    assert len({node.name for node in model.graph}) == len(list(model.graph))
    assert [value.name for value in model.graph.outputs] == [o.name for o in proto.graph.output]
    for node in model.graph:
        if node.op_type == "Conv":
            assert node.outputs[0].shape is not None


@pytest.mark.parametrize("opset", [7, 9, 12, 17, 20, 21, 23])
def test_batchnorm_folds_whatever_the_opset(opset: int) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "scale", "bias", "mean", "var"], ["y"]),
    ]
    proto = graph_of(
        nodes,
        {"w": kernel(4, 3, 3, 3), **batchnorm(4)},
        opset=opset,
        ir_version=3 if opset < 9 else 8,
        as_inputs=opset < 9,
    )
    before = proto.SerializeToString()
    model = upgrade(proto)
    assert proto.SerializeToString() == before
    assert [(n.name, n.op_type) for n in model.graph] == [("conv", "Conv")]
    assert model.opset_imports[""] == max(18, min(opset, 20))
    assert [value.name for value in model.graph.inputs] == ["x"]
    expected = run(before, picture())[0]
    assert np.abs(run(to_bytes(model), picture())[0] - expected).max() <= ROUNDING * 10


def test_batchnorm_folds_into_transposed_convolution_and_gemm() -> None:
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w"], ["c"], strides=[2, 2]),
        helper.make_node("BatchNormalization", ["c", "scale", "bias", "mean", "var"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "g"], ["h"], transB=1),
        helper.make_node("BatchNormalization", ["h", "scale", "bias", "mean", "var"], ["y"]),
    ]
    proto = graph_of(nodes, {"w": kernel(3, 4, 2, 2), "g": kernel(4, 4), **batchnorm(4)}, opset=15)
    model = upgrade(proto)
    assert "BatchNormalization" not in {node.op_type for node in model.graph}
    expected = run(proto.SerializeToString(), picture())[0]
    found = run(to_bytes(model), picture())[0]
    assert np.abs(found - expected).max() <= ROUNDING * np.abs(expected).max()


def test_names_are_unique_and_of_the_layer_that_owns_the_weight() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "stem.weight"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"], name="act"),
        helper.make_node("Conv", ["b", "head.weight"], ["c"], name="act"),
        helper.make_node("Sigmoid", ["c"], ["y"]),
    ]
    weights = {"stem.weight": kernel(4, 3, 1, 1), "head.weight": kernel(2, 4, 1, 1)}
    model = upgrade(graph_of(nodes, weights))
    assert [node.name for node in model.graph] == ["stem/Conv", "act", "head/Conv", "Sigmoid"]


def test_constant_branch_folds_and_a_real_one_is_refused() -> None:
    branch = [
        helper.make_graph(
            [helper.make_node(op, ["c"], [f"{op}.out"])],
            op,
            [],
            [helper.make_tensor_value_info(f"{op}.out", TensorProto.FLOAT, None)],
        )
        for op in ("Relu", "Sigmoid")
    ]
    conv = helper.make_node("Conv", ["x", "w"], ["c"], name="conv")
    constant = helper.make_node(
        "Constant", [], ["cond"], value=numpy_helper.from_array(np.array(True))
    )
    choice = helper.make_node(
        "If", ["cond"], ["y"], name="choice", then_branch=branch[0], else_branch=branch[1]
    )
    model = upgrade(graph_of([conv, constant, choice], {"w": kernel(4, 3, 3, 3)}))
    assert [node.op_type for node in model.graph] == ["Conv", "Relu"]
    decide = [
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Greater", ["m", "zero"], ["cond"]),
    ]
    weights = {"w": kernel(4, 3, 3, 3), "zero": np.float32(0).reshape(())}
    with pytest.raises(ExportError, match=r"some\.onnx.*control flow \(If 'choice'\)"):
        upgrade(graph_of([conv, *decide, choice], weights), "some.onnx")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite(bad: float) -> None:
    weights = kernel(4, 3, 3, 3)
    weights[1, 2, 0, 0] = bad
    with pytest.raises(ExportError, match=r"weights 'w' \(used by 'conv'\) hold NaN or infinite"):
        upgrade(graph_of([CONV], {"w": weights}))


def test_infinite_bounds_of_a_clip_are_fine() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Clip", ["c", "low", "high"], ["y"], name="clip"),
    ]
    bounds = {"low": np.float32(0).reshape(()), "high": np.float32(np.inf).reshape(())}
    proto = graph_of(nodes, {"w": kernel(4, 3, 3, 3), **bounds})
    expected = run(proto.SerializeToString(), picture())[0]
    assert np.array_equal(run(to_bytes(upgrade(proto)), picture())[0], expected)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: setattr(m.opset_import[0], "version", 5), "opset 5; expected 7 or later"),
        (lambda m: setattr(m.graph.node[0], "domain", "com.acme"), r"com\.acme\.Conv.*standard"),
        (lambda m: setattr(m.graph.node[0], "op_type", "QLinearConv"), "quantized already"),
        (lambda m: setattr(m.graph.node[0], "op_type", "Cnov"), "not valid|simplified|converted"),
        (
            lambda m: onnx.external_data_helper.set_external_data(
                m.graph.initializer[0], "weights.bin"
            ),
            r"another file \('weights.bin' holds 'w'\)",
        ),
    ],
)
def test_what_is_refused_says_why(edit: Any, message: str) -> None:
    proto = graph_of([CONV], {"w": kernel(4, 3, 3, 3)})
    edit(proto)
    with pytest.raises(ExportError, match=message):
        upgrade(proto)


def test_operators_that_changed_after_opset_20_are_refused() -> None:
    proto = graph_of(
        [helper.make_node("Swish", ["x"], ["y"], name="act")], {}, opset=24, ir_version=11
    )
    with pytest.raises(ExportError, match=r"'act' is a Swish of opset 24.*export the model with"):
        upgrade(proto)


def test_files_that_are_not_onnx(tmp_path: Path) -> None:
    for name, data in (("empty.onnx", b""), ("text.onnx", b"hello, I am text"), ("cut.onnx", None)):
        whole = graph_of([CONV], {"w": kernel(4, 3, 3, 3)}).SerializeToString()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2] if data is None else data)
        with pytest.raises(ExportError, match=name):
            read_onnx(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        read_onnx(tmp_path / "absent.onnx")


def test_the_standard_domain_by_its_long_name() -> None:
    proto = graph_of([CONV], {"w": kernel(4, 3, 3, 3)})
    proto.opset_import[0].domain = proto.graph.node[0].domain = "ai.onnx"
    assert upgrade(proto).opset_imports == {"": 18}
