"""An FP16 file is held to what rounding does to its net, measured on the net."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import edgecv
from edgecv.errors import ExportError, InputError
from edgecv.measure import rounding
from edgecv.measure.compare import Comparison
from edgecv.measure.ready import READY_MODEL
from edgecv.measure.rounding import (
    fp16_margin,
    fp16_min_sqnr,
    rough_file,
    roughened,
    rounding_noise,
)
from edgecv.spec import read_spec, write_spec

NAME = "mobilenetv2-cifar10"


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    path = tmp_path_factory.mktemp("half") / "half.onnx"
    return edgecv.export(NAME, precision="fp16", output=path).path


def spoiled(half, path, factor):
    """``half`` with one layer's weights off by ``factor``; its name for people."""
    proto = onnx.load(half)
    weights = [t for t in proto.graph.initializer if len(t.dims) == 4][20]
    values = (numpy_helper.to_array(weights) * np.float16(factor)).astype(np.float16)
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    write_spec(proto.SerializeToString(), read_spec(half), path)
    return next(node.name for node in proto.graph.node if weights.name in node.input)


def test_noise_is_that_of_independent_roundings_of_weights_and_inputs():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 4000))

    def run(scale):
        def net(rng):
            a, b = (x, w) if rng is None else (roughened(x, rng), roughened(w, rng))
            return {"y": (a * b - scale * x * w)[None]}

        return net

    # two uniform roundings each of u / sqrt(3), and as much again for the values computed
    expected = 2**-11 / 3**0.5 * 2
    assert rounding_noise(run(0))["y"] == pytest.approx(expected, rel=0.02)
    # a difference of near values amplifies, and the bound follows
    assert rounding_noise(run(0.99))["y"] == pytest.approx(100 * expected, rel=0.02)
    assert fp16_min_sqnr(0.01) - fp16_min_sqnr(0.1) == pytest.approx(20)
    # what nothing moves is rounded once, and may be one bit worse
    assert fp16_min_sqnr(0) == pytest.approx(-20 * np.log10(2 * 2**-11))
    assert roughened(np.arange(5, dtype=np.uint8), rng).tolist() == [0, 1, 2, 3, 4]


def test_the_output_nearest_to_its_own_bound_decides():
    one, exact = Comparison(0, 0, 1, 30.0), Comparison(0, 0, 1, None)
    bounds = {"a": 0.001, "b": 0.01, "c": 1.0}
    value, least = fp16_margin({"a": one, "b": one, "c": exact}, bounds)
    assert (value, least) == (30.0, fp16_min_sqnr(0.001))
    assert value < least


def test_a_rough_file_differs_in_weights_and_biases_only(tmp_path):
    before = onnx.load(READY_MODEL)
    rough = rough_file(READY_MODEL, np.random.default_rng(0))
    after = onnx.load_model_from_string(rough)
    layers = {
        n for node in before.graph.node if node.op_type in ("Conv", "Gemm") for n in node.input
    }
    for a, b in zip(before.graph.initializer, after.graph.initializer, strict=True):
        x, y = numpy_helper.to_array(a), numpy_helper.to_array(b)
        if a.name in layers:
            assert 0 < np.abs(x - y).max() <= 2**-11 * np.abs(x).max()
            # numbers outside the raw bytes too
            b.ClearField("raw_data")
            b.float_data.extend(y.ravel().tolist())
        else:
            assert np.array_equal(x, y)
        a.CopyFrom(b)
    assert before == after
    other = tmp_path / "floats.onnx"
    onnx.save(after, other)
    again = onnx.load_model_from_string(rough_file(other, np.random.default_rng(0)))
    values = [numpy_helper.to_array(t) for t in again.graph.initializer if t.name in layers]
    kept = [numpy_helper.to_array(t) for t in after.graph.initializer if t.name in layers]
    assert all(not np.array_equal(x, y) for x, y in zip(values, kept, strict=True))
    onnx.save(after, other, save_as_external_data=True, size_threshold=0, location="w.bin")
    with pytest.raises(InputError, match="lie in other files"):
        rough_file(other, np.random.default_rng(0))


def test_an_exported_file_passes_by_every_reference(half, tmp_path):
    kept = edgecv.verify(half)
    assert kept.passed
    assert kept.checks[0].name == "sqnr_db"
    record = tmp_path / "r.npz"
    by_torch = edgecv.verify(half, NAME, record=record)
    by_file = edgecv.verify(half, READY_MODEL)
    by_record = edgecv.verify(half, record)
    assert by_torch.passed
    assert by_file.passed
    assert by_record.checks == by_torch.checks
    # two ways to roughen one net agree within what 8 draws vary: 1 dB each, one in 30 times 3 apart
    bounds = [one.checks[0].bound for one in (by_torch, by_file)]
    assert bounds[0] == pytest.approx(bounds[1], abs=3)
    assert edgecv.verify(half, READY_MODEL, layers=True).divergence is None


def test_a_layer_scaled_by_three_percent_is_found_and_named(half, tmp_path):
    path = tmp_path / "spoiled.onnx"
    node = spoiled(half, path, 1.03)
    outcome = edgecv.verify(path, READY_MODEL, layers=True)
    assert outcome.first_divergent_node == node
    assert not edgecv.verify(path).passed
    assert not outcome.passed


def test_a_record_without_noise_is_refused(half, tmp_path):
    record = tmp_path / "r.npz"
    edgecv.verify(READY_MODEL, NAME, record=record)
    with np.load(record) as archive:
        arrays = dict(archive)
    meta = json.loads(str(arrays["meta"]))
    assert set(meta["noise"]) == {"logits"}
    meta.pop("noise")
    np.savez(record, **{**arrays, "meta": np.array(json.dumps(meta))})
    assert edgecv.verify(READY_MODEL, record).passed
    with pytest.raises(InputError, match="record it again"):
        edgecv.verify(half, record)


def test_an_export_that_loses_more_is_not_written(tmp_path, monkeypatch):
    path = tmp_path / "half.onnx"
    monkeypatch.setattr(rounding, "SPARE_BITS", -4.0)
    with pytest.raises(ExportError, match=r"SQNR is .* dB \(at least .* expected\)"):
        edgecv.export(NAME, precision="fp16", output=path)
    assert not path.exists()
