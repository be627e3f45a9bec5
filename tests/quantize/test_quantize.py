"""Placement, calibration, read-back and sensitivity on a net small enough to see through."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from edgecv.errors import InputError, QuantizeError
from edgecv.graph.pixels import pixels_in
from edgecv.quantize import calibrate, layers
from edgecv.quantize.calibrate import METHODS, Histogram
from edgecv.quantize.correct import correct
from edgecv.quantize.pipeline import Quantizer, Search, prepare
from edgecv.quantize.place import place
from edgecv.quantize.ranges import Range, affine, quantize_weight, weight_scales
from edgecv.quantize.readback import onnxruntime_readback, openvino_readback
from edgecv.quantize.run import Probe
from edgecv.quantize.sensitivity import Sensitivity, put_back
from edgecv.quantize.structure import origin, plan
from edgecv.quantize.targets import POLICIES, onnxruntime_target, policy_for
from edgecv.spec import Preparation
from tests.quantize.conftest import build

X86, TRT = policy_for("onnxruntime-x86"), policy_for("tensorrt")


def ranges_of(model, policy, batches, methods=METHODS):
    values = plan(model, policy).values
    everything = {v.name: v for v in (*model.graph.inputs, *(o for n in model.graph
                                                             for o in n.outputs))}  # fmt: skip
    names = list(dict.fromkeys(origin(everything[name]).name for name in values))
    found = calibrate.extremes(model, names, batches)
    return calibrate.choose(calibrate.histograms(model, found, batches), policy, methods=methods)


def bytes_of(model):
    return ir.to_proto(model).SerializeToString(deterministic=True)


def sqnr(model, reference, batches):
    a, b = Probe(model).over(batches())["y"], Probe(reference).over(batches())["y"]
    return 10 * np.log10(np.square(b).sum() / np.square(a - b).sum())


@pytest.mark.parametrize("target", POLICIES)
def test_every_target_keeps_the_answers(net, batches, target):
    policy = policy_for(target)
    model = place(net, policy, ranges_of(net, policy, batches))
    # seven tensors at about 35 dB (U8) or 30 dB (S8, after ReLU half the steps) each add up
    assert sqnr(model, net, batches) > (20 if policy.symmetric else 26)


def test_nothing_is_left_in_float_for_onnxruntime(net, batches):
    before = onnxruntime_readback(bytes_of(net))
    assert len(before.float_macs) == 4  # Conv under any name: fused and blocked ones as well
    after = onnxruntime_readback(bytes_of(place(net, X86, ranges_of(net, X86, batches))))
    assert after.floats == ()
    assert after.integer["QLinearConv"] == 3
    assert after.integer["QLinearAdd"] == 1


def test_the_floats_do_not_stay_in_the_file(net, batches):
    model = place(net, X86, ranges_of(net, X86, batches))
    assert not {"stem_w", "dw_w", "pw_w", "fc_w"} & set(model.graph.initializers)


def test_nodes_kept_in_float_are_found_by_the_readback(net, batches):
    """Neighbours: a lone float Conv between DequantizeLinear and QuantizeLinear is made an
    integer one by onnxruntime itself (its WeightBiasQuantization, seen in 1.32)."""
    ranges = ranges_of(net, X86, batches)
    model = place(net, X86, ranges, ["stem/Conv", "dw/Conv", "pw/Conv", "sum/Add"])
    found = onnxruntime_readback(bytes_of(model)).float_macs
    assert len(found) == 3
    assert all("Conv" in mac.operator for mac in found)


def test_openvino_says_what_it_executes(net, batches):
    pytest.importorskip("openvino")
    policy = policy_for("openvino")
    data = bytes_of(place(net, policy, ranges_of(net, policy, batches)))
    assert openvino_readback(data).integer["Convolution"] == 3
    assert len(openvino_readback(bytes_of(net)).float_macs) >= 3


def test_what_openvino_fuses_is_listed_as_well():
    """An activation between integer convolutions is a Subgraph, of integers by its own account."""
    pytest.importorskip("openvino")
    rng = np.random.default_rng(5)
    tensors = {f"w{i}": rng.standard_normal((8, 8 if i else 3, 3, 3)) for i in range(2)}
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], "first"),
        helper.make_node("HardSwish", ["a"], ["h"], "swish"),
        helper.make_node("Conv", ["h", "w1"], ["y"], "second"),
    ]
    net = build(nodes, {name: array.astype(np.float32) for name, array in tensors.items()})
    policy = policy_for("openvino")
    ranges = {name: Range(-1, 1) for name in plan(net, policy).values}
    found = openvino_readback(bytes_of(place(net, policy, ranges)))
    assert found.integer["Convolution"] == 2
    assert [node.operator for node in found.floats] == ["HardSwish"]


def test_tensorrt_gets_symmetric_activations_and_float_biases(net, batches):
    model = place(net, TRT, ranges_of(net, TRT, batches))
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = node.inputs[2].const_value.numpy()
            assert zero.dtype == np.int8
            assert not zero.any()
        if node.op_type == "Conv":
            assert node.inputs[2].dtype == ir.DataType.FLOAT
            assert node.inputs[2].is_initializer()
    (add,) = [node for node in model.graph if node.op_type == "Add"]
    producers = {value.producer().op_type for value in add.inputs}
    assert producers == {"DequantizeLinear", "Conv"}  # the residual, and what fuses with the Add


def test_seven_bit_weights_for_processors_without_vnni(net, batches):
    policy = policy_for("onnxruntime-x86-avx2")
    model = place(net, policy, ranges_of(net, policy, batches))
    for name, value in model.graph.initializers.items():
        if name.endswith("weight.int"):
            assert np.abs(value.const_value.numpy()).max() == 63


def test_quantizing_twice_gives_the_same_bytes(net, batches):
    first, second = (bytes_of(place(net, X86, ranges_of(net, X86, batches))) for _ in range(2))
    assert first == second


def test_a_value_without_a_range_is_named(net):
    with pytest.raises(QuantizeError, match="'x' has no calibrated range"):
        place(net, X86, {})


def test_calibration_refuses_what_is_no_calibration(net):
    with pytest.raises(QuantizeError, match="no calibration pictures"):
        calibrate.extremes(net, ["a"], lambda: iter(()))
    broken = np.full((1, 3, 16, 16), np.nan, np.float32)
    with pytest.raises(QuantizeError, match="NaN or infinite"):
        calibrate.extremes(net, ["stem"], lambda: iter([broken]))


def test_each_method_proposes_what_it_should():
    values = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    values[:2] = 100, -100  # outliers: 99.7% of the steps of a range that keeps them are lost
    histogram = Histogram(-100, 100, np.zeros(calibrate.BINS, np.int64))
    histogram.take(values)
    chosen = {m: calibrate.choose({"t": histogram}, X86, methods=[m])["t"] for m in METHODS}
    assert (chosen["minmax"].lo, chosen["minmax"].hi) == (-100, 100)
    assert 3 < chosen["percentile"].hi < 6
    assert chosen["mse"].hi < 100
    assert 30 <= chosen["entropy"].hi <= 100
    best = calibrate.choose({"t": histogram}, X86)["t"]
    assert best.sqnr_db == max(one.sqnr_db for one in chosen.values())


def test_the_histogram_error_is_the_real_one():
    """Against the slow, obvious form, on values that fill the range."""
    values = np.random.default_rng(0).uniform(-3, 5, 400_000).astype(np.float32)
    histogram = Histogram(float(values.min()), float(values.max()),
                          np.zeros(calibrate.BINS, np.int64))  # fmt: skip
    histogram.take(values)
    for lo, hi in ((-3, 5), (-2, 4), (-1, 1)):
        found = affine(Range(lo, hi), X86)
        real = np.square(found.fake(values) - values, dtype=np.float64).sum()
        assert calibrate.squared_error(histogram, found) == pytest.approx(real, rel=0.02)


def test_zero_is_exact_whatever_the_range():
    for lo, hi in ((0.5, 2.0), (-3.0, -1.0), (0.0, 0.0), (-1e-9, 1e9)):
        for policy in (X86, TRT):
            assert affine(Range(lo, hi), policy).fake(np.zeros(1))[0] == 0


def test_weights_round_to_half_a_step_and_zero_channels_survive():
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    weight[2] = 0
    scales = weight_scales(weight, 0, 127)
    q = quantize_weight(weight, scales, 0, 127)
    error = np.abs(q * scales.reshape(-1, 1, 1, 1) - weight).max(axis=(1, 2, 3))
    assert (error <= scales / 2 * 1.001).all()
    assert np.isfinite(scales).all()
    assert (scales > 0).all()


def test_the_error_of_a_layer_is_its_own(net, batches):
    ranges = dict(ranges_of(net, X86, batches))
    errors = {e.name: e for e in layers.layer_errors(net, X86, ranges, batches)}
    assert set(errors) == {unit.name for unit in plan(net, X86).units}
    ranges["pw"] = Range(-0.05, 0.05)  # cut off nearly all of one layer's output
    worse = layers.layer_errors(net, X86, ranges, batches)
    assert worse[0].name == "pw/Conv"
    changed = {e.name for e in worse if abs(e.sqnr_db - errors[e.name].sqnr_db) > 1}
    assert changed == {"pw/Conv", "sum/Add"}  # who writes that value and who reads it
    assert errors["dw/Conv"].macs == 16 * 16 * 8 * 9


@pytest.mark.parametrize("policy", [X86, TRT], ids=lambda p: p.name)
def test_bias_correction_gives_the_means_back(net, batches, policy):
    """Ranges that cut off a third of a layer's input shift its mean; the correction undoes it."""
    ranges = dict(ranges_of(net, policy, batches))
    ranges["a"] = Range(0, ranges["a"].hi / 3)
    corrected = correct(net, policy, ranges, batches)

    def shift(model):
        probe = Probe(place(model, policy, ranges), ["dw"])
        other = Probe(net, probe.names)
        (name,) = probe.names
        difference = probe.over(batches())[name] - other.over(batches())[name]
        return float(np.abs(difference.mean(axis=(0, 2, 3))).max())

    # what is left: the shift is measured on each layer with the float net's inputs
    assert shift(corrected) < 0.35 * shift(net)


def test_biases_are_corrected_also_where_ranges_are_searched(net, batches):
    """A search for ranges, as detectors have it, once left the means where rounding put them."""
    spec = Preparation(height=8, width=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    ready = prepare(net.clone(), TRT, spec, pixels=False)
    done = Quantizer(ready, TRT, batches, search=Search(batches, limit=1e9)).quantize()
    assert not done.kept
    corrected = correct(ready.model, TRT, done.ranges, batches)
    assert bytes_of(done.model) == bytes_of(place(corrected, TRT, done.ranges))
    assert bytes_of(done.model) != bytes_of(place(ready.model, TRT, done.ranges))


def test_activations_kept_in_float_have_ranges_where_they_are_searched(net, batches):
    """Such a Relu leaves the Conv before it a value of its own, which a search once forgot."""
    spec = Preparation(height=8, width=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    ready = prepare(net.clone(), X86, spec, pixels=False)
    search = Search(batches, limit=1e9)
    done = Quantizer(ready, X86, batches, keep_float={"dw/Relu": "test"}, search=search).quantize()
    assert {"dw", "b"} <= done.ranges.keys()
    assert sqnr(done.model, ready.model, batches) > 26  # as test_every_target_keeps_the_answers


def shuffled():
    """Two convolutions with a channel shuffle between them, which only moves numbers."""
    rng = np.random.default_rng(4)
    node = helper.make_node
    weight = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    tensors = {
        "a_w": weight(8, 3, 3, 3), "b_w": weight(8, 8, 1, 1), "c_w": weight(4, 8, 1, 1),
        "split": np.array([1, 2, 4, 256]), "join": np.array([1, 8, 16, 16]),
    }  # fmt: skip
    nodes = [
        node("Conv", ["x", "a_w"], ["a"], "a/Conv", pads=[1] * 4),
        node("Reshape", ["a", "split"], ["two"], "two"),
        node("Transpose", ["two"], ["turned"], "turned", perm=[0, 2, 1, 3]),
        node("Reshape", ["turned", "join"], ["mixed"], "mixed"),
        node("Conv", ["mixed", "b_w"], ["b"], "b/Conv"),
        node("Conv", ["b", "c_w"], ["y"], "c/Conv"),
    ]
    return build(nodes, tensors)


def test_a_layer_kept_in_float_before_a_shuffle_has_a_range(batches):
    """The range of what a shuffle moves is kept under the name of what made it (FastestDet)."""
    spec = Preparation(height=16, width=16, mean=(0.5,) * 3, std=(0.5,) * 3)
    ready = prepare(shuffled(), X86, spec, pixels=False)
    keep, search = {"a/Conv": "asked for"}, Search(batches, limit=1e9)
    done = Quantizer(ready, X86, batches, keep_float=keep, search=search).quantize()
    assert done.kept == ("a/Conv",)
    assert {"a", "b"} <= done.ranges.keys()
    assert sqnr(done.model, ready.model, batches) > 26  # as test_every_target_keeps_the_answers


def test_a_value_is_freed_where_it_is_read_behind_a_shuffle(batches):
    spec = Preparation(height=16, width=16, mean=(0.5,) * 3, std=(0.5,) * 3)
    ready = prepare(shuffled(), X86, spec, pixels=False)
    found = {name: Sensitivity(name, Range(-1, 1), name == "a") for name in ("a", "b")}
    freed = put_back(ready.model, X86, found, limit=0.5)
    assert {"a/Conv", "b/Conv"} <= freed.nodes.keys()
    assert freed.after == 0


@pytest.mark.parametrize("shape", [(5,), (1, 5), (1,), ()])
def test_a_bias_may_be_broadcast(net, batches, shape):
    """ONNX's Gemm takes a row or one number as its bias; scales per channel are a list."""
    bias = np.full(shape, 0.3, np.float32)
    net.graph.initializers["fc_b"].const_value = ir.tensor(bias, name="fc_b")
    ranges = ranges_of(net, X86, batches)
    found = place(correct(net, X86, ranges, batches), X86, ranges)
    assert sqnr(found, net, batches) > 26  # as test_every_target_keeps_the_answers


def test_layers_without_a_bias_get_one_to_correct(net, batches):
    """And a first convolution without one takes an input on the pixels' grid, like any other."""
    for node in net.graph:
        if node.name in ("stem/Conv", "dw/Conv"):
            node.resize_inputs(2)
    spec = Preparation(height=8, width=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    ready = prepare(net.clone(), X86, spec, pixels=False)
    assert ready.preparation.mean == (128 / 255,) * 3
    done = Quantizer(ready, X86, batches).quantize().model
    stored = {name: value.const_value for name, value in done.graph.initializers.items()}
    assert np.any(stored["dw/Conv.bias.int"].numpy())
    assert sqnr(done, ready.model, batches) > 26  # as test_every_target_keeps_the_answers


def test_convolutions_of_one_dimension(batches):
    rng = np.random.default_rng(3)
    tensors = {
        "flat": np.array([1, 3, 256]),
        "w": rng.standard_normal((4, 3, 3)).astype(np.float32),
        "b": np.ones(4, np.float32),
    }
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["line"], "line"),
        helper.make_node("Conv", ["line", "w", "b"], ["y"], "conv"),
    ]
    net = build(nodes, tensors)
    ranges = ranges_of(net, X86, batches)
    found = place(correct(net, X86, ranges, batches), X86, ranges)
    assert sqnr(found, net, batches) > 26  # as test_every_target_keeps_the_answers


@pytest.mark.parametrize("batch", [np.zeros((1, 3, 16, 16), np.uint8), np.zeros((1, 1, 2, 2))])
def test_what_does_not_run_is_an_error(net, batch):
    with pytest.raises(QuantizeError, match="does not run on a calibration picture"):
        Probe(net)(batch)


def test_floats_behind_a_cast_are_listed(net):
    """A file that takes pixels has its first float behind a Cast: nothing of it was seen."""
    spec = Preparation(height=16, width=16, mean=(0.5,) * 3, std=(0.5,) * 3)
    pixels_in(net, spec)
    found = onnxruntime_readback(bytes_of(net))
    assert "Sub" in {node.operator for node in found.floats}
    assert len(found.float_macs) == 4  # as without


def test_targets():
    assert onnxruntime_target("x86_64", ["avx2", "avx512_vnni"]) == "onnxruntime-x86"
    assert onnxruntime_target("x86_64", ["avx2"]) == "onnxruntime-x86-avx2"
    assert onnxruntime_target("aarch64", []) == "onnxruntime-arm"
    with pytest.raises(InputError, match="expected one of onnxruntime-x86"):
        policy_for("tflite")
