"""Focus folds into one strided convolution; what only looks like one is left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgecv.export.to_onnx import to_bytes
from edgecv.graph.focus import fold_focus

END = np.iinfo(np.int64).max
# float32's roundoff 6e-8 times the root of the 2 * 16 * 25 products of the largest kernel here
ROUNDING = 2e-6


def net(
    step: int = 2,
    *,
    kernel: int = 3,
    starts: dict[int, int] | None = None,
    size: tuple[int, int] = (12, 24),
    two_slices: bool = True,
    order: str = "columns first",
) -> ir.Model:
    """Slices of every ``step``-th pixel, Concat, Conv: as YOLOX and YOLOv5 export it."""
    weights: dict[str, NDArray[Any]] = {
        "w": np.random.default_rng(2).standard_normal((5, 2 * step**2, kernel, kernel)),
        "end": np.array([END]),
        "step": np.array([step]),
        "axis2": np.array([2]),
        "axis3": np.array([3]),
        "ends": np.array([END, END]),
        "steps": np.array([step, step]),
        "axes": np.array([2, 3]),
    }
    weights["w"] = weights["w"].astype(np.float32)
    nodes, parts = [], []
    corners = [(dy, dx) for dx in range(step) for dy in range(step)]
    if order != "columns first":
        corners = corners[::-1]
    for index, (dy, dx) in enumerate(corners):
        dy = (starts or {}).get(index, dy)
        weights |= {f"y{index}": np.array([dy]), f"x{index}": np.array([dx])}
        weights[f"yx{index}"] = np.array([dy, dx])
        if two_slices:
            rows = ["x", f"y{index}", "end", "axis2", "step"]
            columns = [f"r{index}", f"x{index}", "end", "axis3", "step"]
            nodes += [
                helper.make_node("Slice", rows, [f"r{index}"], name=f"rows{index}"),
                helper.make_node("Slice", columns, [f"p{index}"], name=f"columns{index}"),
            ]
        else:
            inputs = ["x", f"yx{index}", "ends", "axes", "steps"]
            nodes.append(helper.make_node("Slice", inputs, [f"p{index}"], name=f"slice{index}"))
        parts.append(f"p{index}")
    pads = [kernel // 2] * 4
    nodes += [
        helper.make_node("Concat", parts, ["c"], name="cat", axis=1),
        helper.make_node("Conv", ["c", "w"], ["y"], name="stem", pads=pads),
    ]
    shape = [1, 5, -(-size[0] // step), -(-size[1] // step)]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, *size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    model: ir.Model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    return model


def run(model: ir.Model) -> NDArray[np.float32]:
    (source,) = model.graph.inputs
    assert source.shape is not None
    feed = np.random.default_rng(4).standard_normal(source.shape.numpy()).astype(np.float32)
    session = ort.InferenceSession(to_bytes(model), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"x": feed})
    return answer


@pytest.mark.parametrize("step", [2, 4])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("two_slices", [True, False])
@pytest.mark.parametrize("order", ["columns first", "reversed"])
def test_the_same_answers_from_one_convolution(
    step: int, kernel: int, two_slices: bool, order: str
) -> None:
    model = net(step, kernel=kernel, two_slices=two_slices, order=order)
    expected = run(model)
    assert fold_focus(model) == 1
    assert [(node.name, node.op_type) for node in model.graph] == [("stem", "Conv")]
    assert np.abs(run(model) - expected).max() <= ROUNDING * np.abs(expected).max() * step


def test_a_corner_twice_is_no_focus() -> None:
    model = net(starts={1: 0})
    expected = run(model)
    assert fold_focus(model) == 0
    assert np.array_equal(run(model), expected)


def test_sizes_that_do_not_divide_are_left_alone() -> None:
    graph = net(two_slices=False, size=(12, 24))
    graph.graph.inputs[0].shape = ir.Shape([1, 2, "height", "width"])
    assert fold_focus(graph) == 0


def test_a_concat_that_others_read_too_stays() -> None:
    model = net()
    cat = next(node for node in model.graph if node.op_type == "Concat")
    model.graph.outputs.append(cat.outputs[0])
    assert fold_focus(model) == 0


def test_yolox_nano(assets: Any) -> None:
    from edgecv.graph.upgrade import read_onnx, upgrade

    model = upgrade(read_onnx(assets / "weights" / "yolox_nano_coco.onnx"))
    assert fold_focus(model) == 1
    assert [node.op_type for node in model.graph][:3] == ["Conv", "Sigmoid", "Mul"]
