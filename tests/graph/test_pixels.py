"""Pixels in: the same answers from uint8 [N, H, W, C] as from the prepared float picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from edgecv.errors import ExportError
from edgecv.export.to_onnx import to_bytes
from edgecv.graph.pixels import pixels_in
from edgecv.preprocess import normalize
from edgecv.spec import Preparation

# float32's unit roundoff (6e-8) times the root of the 27 products of a 3x3x3 kernel, for values
# that cancel to a tenth of their terms
ROUNDING = 5e-6
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # v = 127.5, between two levels
LEVEL = {"divisor": 128.0, "mean": (127 / 128,) * 3, "std": (1.0,) * 3}  # v = 127 exactly
SCALED = {"divisor": 255.0}  # v = 0
CHANNELS = {"divisor": 1.0, "mean": (104.0, 117.0, 123.0), "std": (57.0, 57.0, 58.0)}


def net(pads: int, *, first: str = "Conv", bias: bool = True, batch: int | str = "N") -> ir.Model:
    """A convolution of stride 2 (after a Relu, for ``first``), opset 18."""
    rng = np.random.default_rng(3)
    weight = ir.tensor(rng.standard_normal((4, 3, 3, 3)).astype(np.float32), name="w")
    values = [ir.Value(name="w", const_value=weight, shape=ir.Shape((4, 3, 3, 3)))]
    if bias:
        tensor = ir.tensor(rng.standard_normal(4).astype(np.float32), name="b")
        values.append(ir.Value(name="b", const_value=tensor, shape=ir.Shape((4,))))
    for value in values:
        value.type = ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(
        name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([batch, 3, 10, 12])
    )
    nodes = [] if first == "Conv" else [ir.node(first, [x], name="first")]
    entry = nodes[-1].outputs[0] if nodes else x
    attributes = {"pads": [pads] * 4, "strides": [2, 2]}
    nodes.append(ir.node("Conv", [entry, *values], attributes, name="conv"))
    out = nodes[-1].outputs[0]
    out.name, out.type = "y", ir.TensorType(ir.DataType.FLOAT)
    out.shape = ir.Shape([batch, 4, (10 + 2 * pads - 3) // 2 + 1, (12 + 2 * pads - 3) // 2 + 1])
    graph = ir.Graph(
        [x], [out], nodes=nodes, initializers=values, opset_imports={"": 18}, name="net"
    )
    return ir.Model(graph, ir_version=8)


def run(model: ir.Model, feed: NDArray[Any]) -> NDArray[np.float32]:
    session = ort.InferenceSession(to_bytes(model), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"x": feed})
    return answer


def pictures() -> NDArray[np.uint8]:
    return np.random.default_rng(9).integers(0, 256, (2, 10, 12, 3), np.uint8)


def both(
    values: dict[str, Any], pads: int, *, integer: bool, **options: Any
) -> tuple[NDArray[np.float32], NDArray[np.float32], Any, ir.Model]:
    """The answers of the float file and of the pixel file, and what the pass reported."""
    p = Preparation(10, 12, **values)
    model = net(pads, **options)
    expected = run(model, normalize(pictures(), p))
    report = pixels_in(model, p, integer=integer)
    assert report.preparation.layout == "nhwc"
    return run(model, pictures()), expected, report, model


@pytest.mark.parametrize("values", [IMAGENET, HALF, LEVEL, SCALED, CHANNELS])
@pytest.mark.parametrize("pads", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_float_form_is_exact(values: dict[str, Any], pads: int, bias: bool) -> None:
    found, expected, report, model = both(values, pads, integer=False, bias=bias)
    assert report.padding_error == 0
    assert np.abs(found - expected).max() <= ROUNDING * np.abs(expected).max()
    subtracts = pads == 1 and values is not SCALED
    operators = [node.op_type for node in model.graph]
    assert operators == ["Cast", "Transpose", *(["Sub"] if subtracts else []), "Conv"]


@pytest.mark.parametrize(
    ("values", "pads", "error"),
    [
        (IMAGENET, 0, 0.0),
        (HALF, 0, 0.0),
        (LEVEL, 1, 0.0),
        (SCALED, 1, 0.0),
        (CHANNELS, 1, 0.0),
        (HALF, 1, 0.5),
        (IMAGENET, 1, 0.47),  # 103.53 is the level of blue
    ],
)
def test_integer_form_says_how_exact_it_is(values: dict[str, Any], pads: int, error: float) -> None:
    found, expected, report, model = both(values, pads, integer=True)
    assert report.padding_error == pytest.approx(error, abs=1e-6)
    inside = slice(1, -1) if pads else slice(None)
    difference = np.abs(found - expected)
    allowed = ROUNDING * np.abs(expected).max()
    assert difference[:, :, inside, inside].max() <= allowed
    p = Preparation(10, 12, **values)
    # what a border pixel can be off by: every padded position of the kernel, by the error reported
    kernel = np.abs(net(1).graph.initializers["w"].const_value.numpy())
    most = (kernel / (p.divisor * np.array(p.std))[None, :, None, None]).sum((1, 2, 3)).max()
    assert difference.max() <= allowed + most * error
    if error:
        assert difference.max() > allowed
    last = [node.op_type for node in model.graph][-2:]
    assert last == ["DequantizeLinear", "Conv"]
    assert not {"Cast", "Sub", "Mul"} & {node.op_type for node in model.graph}


def test_channels_with_levels_of_their_own_are_padded_one_by_one() -> None:
    *_, model = both(CHANNELS, 1, integer=True, batch=2)
    assert [node.op_type for node in model.graph].count("Pad") == 3
    assert len({node.name for node in model.graph}) == len(list(model.graph))


@pytest.mark.parametrize("integer", [True, False])
def test_a_net_that_begins_with_something_else_keeps_its_arithmetic(integer: bool) -> None:
    found, expected, report, _ = both(IMAGENET, 1, integer=integer, first="Relu")
    assert np.abs(found - expected).max() <= ROUNDING * np.abs(expected).max()
    assert report.form == "Cast + Sub + Mul"
    *_, plain = both({"divisor": 1.0}, 1, integer=integer, first="Relu")
    assert [node.op_type for node in plain.graph] == ["Cast", "Transpose", "Relu", "Conv"]


@pytest.mark.parametrize("first", ["Conv", "Relu"])
@pytest.mark.parametrize("integer", [True, False])
def test_pixels_in_the_other_order(first: str, integer: bool) -> None:
    p = Preparation(10, 12, **IMAGENET)
    model = net(0, first=first)
    expected = run(model, normalize(pictures(), p))
    report = pixels_in(model, p, integer=integer, order="bgr")
    taken = report.preparation
    assert (taken.color, taken.mean, report.net_color) == ("bgr", p.mean[::-1], "rgb")
    found = run(model, np.ascontiguousarray(pictures()[..., ::-1]))
    assert np.abs(found - expected).max() <= ROUNDING * np.abs(expected).max()


def test_a_second_user_of_the_picture_is_not_forgotten() -> None:
    model = net(1)
    x = model.graph.inputs[0]
    skip = ir.node("GlobalAveragePool", [x], name="skip")
    model.graph.insert_before(model.graph[0], skip)
    skip.outputs[0].name, skip.outputs[0].type = "z", ir.TensorType(ir.DataType.FLOAT)
    skip.outputs[0].shape = ir.Shape(["N", 3, 1, 1])
    model.graph.outputs.append(skip.outputs[0])
    assert pixels_in(model, Preparation(10, 12, **HALF)).form == "Cast + Sub + Mul"


def test_inputs_that_are_no_picture_are_refused() -> None:
    model = net(1)
    model.graph.inputs[0].shape = ir.Shape(["N", 3])
    with pytest.raises(ExportError, match=r"input 'x'.*expected float32 \[N, C, H, W\]"):
        pixels_in(model, Preparation(10, 12))
    with pytest.raises(ExportError, match="has 3 channels, the preparation makes 1"):
        pixels_in(net(1), Preparation(10, 12, color="gray", mean=(0.0,), std=(1.0,)))
    with pytest.raises(ExportError, match="cannot become the net's, 'rgb'"):
        pixels_in(net(1), Preparation(10, 12), order="gray")
