"""A quantized file as a torch module: the same numbers, gradients, and the same file again."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgecv.errors import QuantizeError
from edgecv.graph.pixels import pixels_in
from edgecv.quantize import calibrate
from edgecv.quantize.gradients.fake import Grid, Weight
from edgecv.quantize.gradients.net import QuantizedNet
from edgecv.quantize.gradients.operators import OPERATORS, operator
from edgecv.quantize.gradients.tune import Settings, divergence, relative_noise, tune
from edgecv.quantize.place import place
from edgecv.quantize.ranges import Affine, Range
from edgecv.quantize.run import Probe, open_session
from edgecv.quantize.structure import origin, plan
from edgecv.quantize.targets import POLICIES, policy_for
from edgecv.spec import Preparation

X86 = policy_for("onnxruntime-x86")


def ranges_of(model, policy, batches):
    values = {
        v.name: v for v in (*model.graph.inputs, *(o for n in model.graph for o in n.outputs))
    }
    names = dict.fromkeys(origin(values[name]).name for name in plan(model, policy).values)
    found = calibrate.extremes(model, list(names), batches)
    return {name: Range(one.lo, one.hi) for name, one in found.items()}


def bytes_of(model):
    return ir.to_proto(model).SerializeToString(deterministic=True)


def run(net, batch):
    with torch.no_grad():
        return {name: value.numpy() for name, value in net(torch.from_numpy(batch)).items()}


def constants(model):
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


@pytest.fixture(params=POLICIES)
def placed(request, net, batches):
    policy = policy_for(request.param)
    return place(net, policy, ranges_of(net, policy, batches)), policy


def test_forward_is_what_onnxruntime_computes(placed, net, batches):
    """A sum of floats in another order puts a value that lies on an edge on its other side. Of the
    2,000 values in the last but one tensor few do, and each moves y by a step of its grid at most
    times a weight; y itself then by less than two of its own steps."""
    model, policy = placed
    probe, ours = Probe(model), QuantizedNet(model, policy)
    wanted = np.concatenate([probe(batch)["y"] for batch in batches()])
    found = np.concatenate([run(ours, batch)["y"] for batch in batches()])
    step = float(np.ptp(wanted)) / 255
    assert np.abs(found - wanted).max() < 2 * step
    assert np.mean(np.abs(found - wanted) < 1e-5) > 0.8
    float_answers = np.concatenate([Probe(net)(batch)["y"] for batch in batches()])
    assert np.mean(np.abs(found - float_answers) < 1e-5) < 0.2  # what is compared does round


def test_a_float_graph_runs_as_it_is(net, batches):
    teacher, probe = QuantizedNet(net, X86), Probe(net)
    for batch in batches():
        np.testing.assert_allclose(run(teacher, batch)["y"], probe(batch)["y"], atol=1e-5)


def test_what_learned_nothing_is_written_as_it_was(placed, net):
    model, policy = placed
    assert bytes_of(QuantizedNet(model, policy).write()) == bytes_of(model)
    # from the parent's weights instead of those on the grid: they round to the same integers
    assert bytes_of(QuantizedNet(model, policy, net).write()) == bytes_of(model)


def test_only_constants_change(placed):
    model, policy = placed
    ours = QuantizedNet(model, policy)
    with torch.no_grad():
        for parameters in ours.groups().values():
            for parameter in parameters:
                parameter.add_(0.05)
    written = ours.write()
    assert [(n.name, n.op_type) for n in written.graph] == [
        (n.name, n.op_type) for n in model.graph
    ]
    before, after = constants(model), constants(written)
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert after[name].dtype == array.dtype
        assert after[name].shape == array.shape
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    assert any("weight.int" in name for name in changed)
    if policy.bias == "int32":
        assert any("bias.int" in name for name in changed)
    if policy.symmetric:
        assert not any("zero_point" in name for name in changed)
    assert "x.scale" not in changed  # the pixels' grid is what they are given on
    batch = np.random.default_rng(0).uniform(-1, 1, (1, 3, 16, 16)).astype(np.float32)
    found, wanted = run(QuantizedNet(written, policy), batch)["y"], Probe(written)(batch)["y"]
    np.testing.assert_allclose(found, wanted, atol=2 * float(np.ptp(wanted)) / 255)


def test_int32_biases_are_in_units_of_the_learned_steps(net, batches):
    """onnxruntime takes input step times weight step for a bias' scale, whatever the file says."""
    model = place(net, X86, ranges_of(net, X86, batches))
    ours = QuantizedNet(model, X86)
    with torch.no_grad():
        for grid in ours.grids.values():
            grid.factor.add_(0.0 if grid.fixed else 0.1)
    after = constants(ours.write())
    np.testing.assert_allclose(
        after["dw/Conv.bias.scale"],
        after["stem/Clip:0.scale"] * after["dw/Conv.weight.scale"]
        if "stem/Clip:0.scale" in after
        else after["a.scale"] * after["dw/Conv.weight.scale"],
        rtol=1e-6,
    )


def test_values_that_are_moved_keep_the_grid_of_their_source(net, batches):
    """Flatten copies bytes; with two steps a runtime would have to compute there."""
    model = place(net, X86, ranges_of(net, X86, batches))
    ours = QuantizedNet(model, X86)
    with torch.no_grad():
        for factor in ours.groups()["steps"]:
            factor.copy_(torch.rand(()) * 0.1)
    after = constants(ours.write())
    assert after["pool.scale"] == after["flat.scale"]
    assert after["pool.scale"] != after["sum.scale"]


def test_a_file_that_takes_pixels(net, batches):
    preparation = Preparation(16, 16, fit="stretch", mean=(0.5,) * 3, std=(0.5,) * 3)
    pixels_in(net, preparation, integer=True)
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (1, 16, 16, 3), dtype=np.uint8) for _ in range(4)]
    model = place(net, X86, ranges_of(net, X86, lambda: iter(pixels)))
    ours, probe = QuantizedNet(model, X86), Probe(model)
    for batch in pixels:
        wanted = probe(batch)["y"]
        np.testing.assert_allclose(
            run(ours, batch)["y"], wanted, atol=2 * float(np.ptp(wanted)) / 255
        )
    assert bytes_of(ours.write()) == bytes_of(model)


def test_gradients_of_a_grid():
    """Inside: one to the value, LSQ's to the step. Outside: none, and the integer at the end."""
    grid = Grid(Affine(np.float32(0.5), 3, "uint8"), symmetric=False)
    x = torch.tensor([0.3, 1.1, -9.0, 500.0], requires_grad=True)
    y = grid(x)
    assert y.tolist() == [0.5, 1.0, -1.5, 126.0]
    y.sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 0.0, 0.0]
    slopes = [(0.5 - 0.3) / 0.5, (1.0 - 1.1) / 0.5, 0 - 3, 255 - 3]
    assert float(grid.factor.grad) == pytest.approx(0.5 * sum(slopes), rel=1e-5)  # d exp(f) = 1
    assert float(grid.shift.grad) == pytest.approx(255 * 2 * -0.5)


def test_a_zero_point_at_the_end_of_the_integers_stays():
    grid = Grid(Affine(np.float32(0.5), 0, "uint8"), symmetric=False)
    grid(torch.tensor([0.3, -1.0], requires_grad=True)).sum().backward()
    assert grid.shift.grad is None
    assert not grid.shifts


def test_weights_round_on_their_grid_and_pass_gradients():
    weight = Weight(np.array([[0.26, -0.9]], np.float32), np.array([0.1], np.float32), 0, 7)
    found = weight()
    torch.testing.assert_close(found, torch.tensor([[0.3, -0.7]]))
    found.sum().backward()
    assert weight.latent.grad.tolist() == [[1.0, 0.0]]
    assert weight.integers(weight.steps.detach()).tolist() == [[3, -7]]


def test_learning_brings_the_answers_closer(net, batches):
    """Ranges that cut off half of what there is: steps have to grow."""
    ranges = ranges_of(net, X86, batches)
    narrow = {name: Range(one.lo / 2, one.hi / 2) for name, one in ranges.items()}
    model = place(net, X86, narrow)
    settings = Settings(steps=30, batch=4, grids=0.05)
    done = tune(model, net, X86, batches, settings)
    assert done.after < done.before / 2
    assert done.gained
    again = tune(model, net, X86, batches, settings)
    assert bytes_of(again.model) == bytes_of(done.model)


def test_divergence_is_that_of_the_answers():
    """Logits all moved by one number say the same; segmenters' have positions behind classes."""
    wanted = torch.tensor([[2.0, 0.0, 1.0]])
    same, other = {"y": wanted + 3}, {"y": wanted.flip(1)}
    assert divergence({"y": wanted}, same).item() == pytest.approx(0, abs=1e-6)
    assert relative_noise({"y": wanted}, same).item() == pytest.approx(27 / 5)
    p, q = (torch.softmax(x, 1) for x in (wanted, wanted.flip(1)))
    found = divergence({"y": wanted}, other).item()
    assert found == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-5)
    each = {"y": wanted[:, :, None, None].expand(1, 3, 2, 2)}
    turned = {"y": wanted.flip(1)[:, :, None, None].expand(1, 3, 2, 2)}
    assert divergence(each, turned).item() == pytest.approx(found, rel=1e-5)


def test_what_is_worse_on_other_pictures_is_not_taken(net, batches):
    model = place(net, X86, ranges_of(net, X86, batches))
    done = tune(model, net, X86, batches, Settings(steps=3, weights=30.0))
    assert done.after > done.before
    assert done.model is model


def test_learning_that_diverges_says_so(net, batches):
    model = place(net, X86, ranges_of(net, X86, batches))
    with pytest.raises(QuantizeError, match="lower the rates"):
        tune(model, net, X86, batches, Settings(steps=20, grids=float("inf")))


def test_too_few_pictures_to_learn_from(net, batches):
    model = place(net, X86, ranges_of(net, X86, batches))
    with pytest.raises(QuantizeError, match="too few"):
        tune(model, net, X86, lambda: iter([next(batches())]))


def test_an_operator_that_is_missing_is_named():
    node = ir.node("Erf", [ir.Value(name="x")], name="gelu/Erf")
    with pytest.raises(QuantizeError, match=r"gelu/Erf.*Erf"):
        operator(node)
    node = ir.node("Conv", [ir.Value(name="x")], domain="com.microsoft", name="odd")
    with pytest.raises(QuantizeError, match=r"com\.microsoft\.Conv"):
        operator(node)


def _f(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _i(*values):
    return np.array(values, np.int64)


PICTURE = _f(2, 4, 6, 8)
CASES = {
    "Add": ([PICTURE, _f(4, 1, 1)], {}),
    "AveragePool": ([PICTURE], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "AveragePool counts": (
        [PICTURE],
        {"kernel_shape": [3, 2], "pads": [1, 0, 0, 1], "count_include_pad": 1},
    ),
    "Cast": ([PICTURE * 50], {"to": TensorProto.INT32}),
    "Clip": ([PICTURE, np.float32(-0.5), np.float32(1)], {}),
    "Clip one end": ([PICTURE, None, np.float32(1)], {}),
    "Concat": ([PICTURE, _f(2, 1, 6, 8)], {"axis": 1}),
    "Conv": ([PICTURE, _f(6, 2, 3, 3), _f(6)], {"group": 2, "strides": [2, 1], "pads": [1] * 4}),
    "Conv uneven": ([PICTURE, _f(6, 4, 3, 2)], {"pads": [0, 1, 2, 0], "dilations": [2, 1]}),
    "Conv same": ([PICTURE, _f(6, 4, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "Conv 1": ([_f(2, 4, 9), _f(5, 4, 3)], {"pads": [1, 1]}),
    "ConvTranspose": (
        [PICTURE, _f(4, 3, 3, 3), _f(3)],
        {"strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]},
    ),
    "DepthToSpace": ([PICTURE], {"blocksize": 2}),
    "DepthToSpace CRD": ([PICTURE], {"blocksize": 2, "mode": "CRD"}),
    "Div": ([PICTURE, np.abs(_f(4, 1, 1)) + 1], {}),
    "Exp": ([PICTURE], {}),
    "Flatten": ([PICTURE], {"axis": 2}),
    "Gather": ([PICTURE, _i(2, -1, 0)], {"axis": 1}),
    "Gather one": ([PICTURE, np.int64(1)], {"axis": 2}),
    "Gemm": ([_f(3, 4), _f(5, 4), _f(5)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    "GlobalAveragePool": ([PICTURE], {}),
    "HardSigmoid": ([PICTURE * 4], {"alpha": 1 / 6}),
    "HardSwish": ([PICTURE * 4], {}),
    "Identity": ([PICTURE], {}),
    "LeakyRelu": ([PICTURE], {"alpha": 0.2}),
    "MatMul": ([_f(2, 3, 4), _f(4, 5)], {}),
    "MaxPool": ([PICTURE], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}),
    "MaxPool uneven": ([PICTURE], {"kernel_shape": [3, 2], "pads": [0, 0, 2, 1]}),
    "MaxPool ceil": ([PICTURE], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    "Mul": ([PICTURE, _f(2, 4, 1, 1)], {}),
    "PRelu": ([PICTURE, np.abs(_f(4, 1, 1))], {}),
    "Pad": ([PICTURE, _i(0, 0, 1, 2, 0, 0, 0, 1), np.float32(3)], {}),
    "Pow": ([np.abs(PICTURE), np.float32(2)], {}),
    "ReduceL2": ([PICTURE, _i(1)], {"keepdims": 1}),
    "ReduceMean": ([PICTURE, _i(2, 3)], {"keepdims": 0}),
    "ReduceSum": ([PICTURE, _i(-1)], {}),
    "Relu": ([PICTURE], {}),
    "Reshape": ([PICTURE, _i(0, 2, -1)], {}),
    "Resize": ([PICTURE, None, np.array([1, 1, 2, 2], np.float32)], {"mode": "nearest"}),
    "Resize linear": ([PICTURE, None, None, _i(2, 4, 9, 5)], {"mode": "linear"}),
    "Resize corners": (
        [PICTURE, None, None, _i(2, 4, 12, 16)],
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    ),
    "Shape": ([PICTURE], {"start": 1, "end": 3}),
    "Sigmoid": ([PICTURE], {}),
    "Slice": ([PICTURE, _i(1, 0), _i(2**62, -1), _i(2, 3), _i(2, 1)], {}),
    "Softmax": ([PICTURE], {"axis": 1}),
    "SpaceToDepth": ([PICTURE], {"blocksize": 2}),
    "Split": ([PICTURE, _i(1, 3)], {"axis": 1}),
    "Sqrt": ([np.abs(PICTURE)], {}),
    "Squeeze": ([_f(2, 1, 3), _i(1)], {}),
    "Sub": ([PICTURE, _f(4, 1, 1)], {}),
    "Tanh": ([PICTURE], {}),
    "Transpose": ([PICTURE], {"perm": [0, 2, 3, 1]}),
    "Unsqueeze": ([_f(2, 3), _i(0, -1)], {}),
}


def test_every_operator_has_a_case():
    assert {name.split()[0] for name in CASES} == set(OPERATORS)


@pytest.mark.parametrize("case", CASES)
def test_operators_compute_what_onnxruntime_does(case):
    arrays, attributes = CASES[case]
    op = case.split()[0]
    names = ["" if array is None else f"in{i}" for i, array in enumerate(arrays)]
    outputs = ["y", "z"] if op == "Split" else ["y"]
    node = helper.make_node(op, names, outputs, "it", **attributes)
    x = helper.make_tensor_value_info("in0", TensorProto.FLOAT, arrays[0].shape)
    kind = {"Cast": TensorProto.INT32, "Shape": TensorProto.INT64}.get(op, TensorProto.FLOAT)
    graph = helper.make_graph(
        [node],
        "one",
        [x],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [
            numpy_helper.from_array(np.asarray(array), name)
            for array, name in zip(arrays[1:], names[1:], strict=True)
            if array is not None
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    session = open_session(proto.SerializeToString())
    wanted = session.run(None, {"in0": arrays[0]})
    found = run(QuantizedNet(ir.from_proto(proto), X86), arrays[0])
    for name, array in zip(outputs, wanted, strict=True):
        assert found[name].shape == array.shape
        # float32 sums of at most 36 products
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5)
