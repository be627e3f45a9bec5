"""FP16 in the graph: what may be float16 is, what overflows or underflows is not, and IO stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgecv.export.precision import make_half
from edgecv.export.to_onnx import to_bytes
from edgecv.graph.half import rounding_error, to_half

HALF_UNIT = 2.0**-11  # float16's unit roundoff


def net(scale: float = 1.0, gain: float = 1.0) -> ir.Model:
    """conv (weights times ``scale``) -> gain -> Resize by 2 -> Relu; no value cancels."""
    kernel = np.random.default_rng(0).random((4, 3, 1, 1)).astype(np.float32)
    weights = {
        "w": kernel * np.float32(scale),
        "gain": np.full((1,), gain, np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "back": np.full((1,), 1 / (gain * scale), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Mul", ["c", "gain"], ["g"], name="gain"),
        helper.make_node("Mul", ["g", "back"], ["b"], name="back"),
        helper.make_node("Resize", ["b", "", "scales"], ["r"], name="resize", mode="nearest"),
        helper.make_node("Relu", ["r"], ["y"], name="relu"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 12, 12])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    model: ir.Model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    return model


def run(model: ir.Model, feed: NDArray[Any]) -> NDArray[np.float32]:
    """By onnx's own evaluator: onnxruntime's CPU goes on in float32 between float16 nodes."""
    with np.errstate(over="ignore", invalid="ignore"):
        (answer,) = ReferenceEvaluator(to_bytes(model)).run(None, {"x": feed})
    return answer


def picture() -> NDArray[np.float32]:
    return np.random.default_rng(1).random((1, 3, 6, 6)).astype(np.float32)


def halves(model: ir.Model) -> set[str]:
    return {
        str(node.name)
        for node in model.graph
        if node.outputs[0].dtype == ir.DataType.FLOAT16 and node.op_type != "Cast"
    }


def test_everything_is_half_but_inputs_outputs_and_scales() -> None:
    model = net()
    expected = run(model, picture())
    assert to_half(model) == 5
    assert halves(model) == {"conv", "gain", "back", "resize", "relu"}
    assert [node.op_type for node in model.graph].count("Cast") == 2
    assert model.graph.inputs[0].dtype == model.graph.outputs[0].dtype == ir.DataType.FLOAT
    assert model.graph.outputs[0].name == "y"
    assert model.graph.initializers["scales"].dtype == ir.DataType.FLOAT
    found = run(model, picture())
    difference = np.abs(found - expected) / np.abs(expected).max()
    # the weights, the picture and five results are rounded once each, and sums of three
    assert 0 < difference.max() <= 10 * HALF_UNIT


def test_kept_nodes_stay_float_with_casts_around_them() -> None:
    model = net()
    expected = run(model, picture())
    to_half(model, {"gain", "back"})
    assert halves(model) == {"conv", "resize", "relu"}
    assert [node.op_type for node in model.graph].count("Cast") == 4
    assert np.abs(run(model, picture()) - expected).max() <= 10 * HALF_UNIT * expected.max()


def test_an_overflow_is_measured_and_kept_out() -> None:
    bright = picture() * 8
    model = net(gain=3e4)
    expected = run(model, bright)
    report = make_half(model, [bright])
    assert set(report.kept) == {"gain", "back"}
    assert "reaches" in report.kept["back"]
    found = run(model, bright)
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() <= 10 * HALF_UNIT * expected.max()
    broken = net(gain=3e4)
    to_half(broken)  # without the measurement it does overflow
    assert not np.isfinite(run(broken, bright)).all()


def test_weights_and_values_below_the_normal_range_are_kept_out() -> None:
    model = net(scale=1e-6)
    expected = run(model, picture())
    report = make_half(model, [picture()])
    assert "rounding 'w' to float16" in report.kept["conv"]
    assert "is around" in report.kept["gain"]
    assert np.abs(run(model, picture()) - expected).max() <= 10 * HALF_UNIT * expected.max()
    broken = net(scale=1e-6)
    to_half(broken)
    assert not np.abs(run(broken, picture()) - expected).max() <= 10 * HALF_UNIT * expected.max()


@pytest.mark.parametrize(
    ("weights", "low", "high"),
    [
        ([1.0, 0.5, 0.25], 0, 0),
        ([0.1, 0.7, 3.3], 1e-6, HALF_UNIT),
        ([1e-7, 3e-8], 0.1, 1.1),
        ([1.0, 1e6], np.inf, np.inf),
        ([0.0, 0.0], 0, 0),
    ],
)
def test_rounding_error(weights: list[float], low: float, high: float) -> None:
    assert low <= rounding_error(np.array(weights, np.float32)) <= high


def test_operators_without_a_half_form_stay_float() -> None:
    nodes = [
        helper.make_node("Mul", ["boxes", "one"], ["b"], name="scale"),
        helper.make_node("NonMaxSuppression", ["b", "scores"], ["y"], name="nms"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, 6, 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 1, 6]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["n", 3])],
        [numpy_helper.from_array(np.ones(1, np.float32), "one")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    assert to_half(model) == 1
    to_bytes(model)  # the checker and strict inference see the types
