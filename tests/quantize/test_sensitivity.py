"""Sensitivity on a net that was built with one tensor that cannot be quantized."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgecv.quantize.calibrate import extremes, histograms
from edgecv.quantize.place import place
from edgecv.quantize.ranges import Range
from edgecv.quantize.run import Probe
from edgecv.quantize.sensitivity import (
    Sensitivity,
    measure,
    put_back,
    relative_error,
)
from edgecv.quantize.structure import plan
from edgecv.quantize.targets import policy_for
from edgecv.quantize.unify import unify

POLICY = policy_for("onnxruntime-x86")
WIDE = 1000.0


def net() -> ir.Model:
    """Three SiLU layers; channel 0 of the first is ``WIDE`` times the others, and hardly read.

    Its levels are so coarse that the other channels vanish, whatever the range: the output can
    only be had if that tensor (``m0``) stays float.
    """
    rng = np.random.default_rng(1)
    weights = {f"w{i}": rng.standard_normal((4, 4 if i else 3, 1, 1)) for i in range(4)}
    weights["w0"][0] *= WIDE
    weights["w1"][:, 0] /= WIDE
    nodes = []
    for i in range(3):
        source = f"m{i - 1}" if i else "x"
        nodes += [
            helper.make_node("Conv", [source, f"w{i}"], [f"c{i}"], name=f"conv{i}"),
            helper.make_node("Sigmoid", [f"c{i}"], [f"s{i}"], name=f"sigmoid{i}"),
            helper.make_node("Mul", [f"c{i}", f"s{i}"], [f"m{i}"], name=f"mul{i}"),
        ]
    nodes.append(helper.make_node("Conv", ["m2", "w3"], ["y"], name="head"))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 8, 8])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    model: ir.Model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    return model


def pictures() -> Iterator[NDArray[np.float32]]:
    rng = np.random.default_rng(7)
    return (rng.standard_normal((1, 3, 8, 8)).astype(np.float32) for _ in range(4))


@pytest.fixture(scope="module")
def measured() -> dict[str, Sensitivity]:
    model = net()
    values = list(plan(model, POLICY).values)
    found = histograms(model, extremes(model, values, pictures), pictures)
    return measure(model, POLICY, found, pictures, whole=("y",))


def test_the_tensor_that_cannot_be_quantized_is_found(measured: dict[str, Sensitivity]) -> None:
    worst = sorted(measured.values(), key=lambda item: -item.error)
    assert {worst[0].value, worst[1].value} == {"m0", "c0"}
    assert worst[1].error > 10 * worst[2].error
    assert measured["s1"].range == Range(0.0, 255 / 256, "sigmoid")
    assert measured["y"].range.method == "minmax"


def test_put_back_frees_it_with_its_neighbours(measured: dict[str, Sensitivity]) -> None:
    model = net()
    total = sum(item.error for item in measured.values())
    nothing = put_back(model, POLICY, measured, limit=total)
    assert nothing.nodes == {}
    assert nothing.before == nothing.after == pytest.approx(total)
    found = put_back(model, POLICY, measured, limit=total / 5)
    layers = {f"{kind}{i}" for kind in ("conv", "sigmoid", "mul") for i in (0, 1)}
    assert set(found.nodes) == layers
    assert found.after <= total / 5
    left = set(plan(model, POLICY, tuple(found.nodes)).values)
    assert not left & {"m0", "c0", "c1"}


def test_the_quantized_net_is_right_only_after_it(measured: dict[str, Sensitivity]) -> None:
    model = net()
    ranges = {name: item.range for name, item in measured.items()}
    kept = put_back(model, POLICY, measured, limit=measured["m0"].error / 5)
    reference = Probe(model).over(pictures())
    errors = [
        relative_error(reference, Probe(place(model, POLICY, ranges, nodes)).over(pictures()))
        for nodes in ((), tuple(kept.nodes))
    ]
    # the sum of the errors that were left is the forecast; weights and their product add to it
    assert errors[1] < 0.2 * errors[0]


def test_everything_may_be_put_back(measured: dict[str, Sensitivity]) -> None:
    found = put_back(net(), POLICY, measured, limit=0.0)
    assert plan(net(), POLICY, tuple(found.nodes)).units == ()
    assert found.after == 0


def test_concatenated_values_share_their_widest_range() -> None:
    shape = [1, 2, 4, 4]
    weights = np.ones((2, 2, 1, 1), np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="a"),
        helper.make_node("Conv", ["x", "w"], ["b"], name="b"),
        helper.make_node("MaxPool", ["b"], ["p"], name="p", kernel_shape=[1, 1]),
        helper.make_node("Concat", ["a", "p"], ["c"], name="c", axis=1),
        helper.make_node("Conv", ["x", "w"], ["other"], name="other"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("c", "other")],
        [numpy_helper.from_array(weights, "w")],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    before = {"a": Range(-1, 2), "b": Range(-3, 1), "c": Range(-1, 1), "other": Range(-9, 9)}
    after = unify(model, before)
    assert all((after[n].lo, after[n].hi) == (-3, 2) for n in ("a", "b", "c"))
    assert after["other"] == before["other"]
