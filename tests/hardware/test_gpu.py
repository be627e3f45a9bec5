"""What only an NVIDIA GPU can show. Elsewhere each test is skipped, and says why."""

import numpy as np
import pytest

import edgecv
from edgecv.errors import BackendUnavailable, FeedError, RuntimeFailure
from edgecv.measure.ready import READY_MODEL
from edgecv.measure.selftest import inputs
from edgecv.runtimes import open_backend, probe_backends
from edgecv.runtimes.base import RuntimeOptions
from edgecv.spec import read_spec

PROBES = probe_backends()
GPU = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-tensorrt")
# TF32 is off, so these are FP32 programs: the project's bound for those
MAX_REL = 1e-4


@pytest.fixture(params=GPU)
def name(request):
    probe = PROBES[request.param]
    if not probe.usable:
        pytest.skip(f"{request.param}: {probe.reason}")
    return request.param


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("engines")


def batch(count):
    return inputs(read_spec(READY_MODEL), 5, count)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_answers_are_those_of_the_self_test(name, cache, count):
    x = batch(count)
    with open_backend("onnxruntime", READY_MODEL) as reference:
        expected = reference.run({"input": x})["logits"]
    with open_backend(name, READY_MODEL, RuntimeOptions(cache_dir=cache)) as runtime:
        got = runtime.run({"input": x})["logits"]
        assert next(iter(runtime.info.nodes)) == "fp32"
    assert np.abs(got - expected).max() <= MAX_REL * np.abs(expected).max()


def test_a_cuda_graph_gives_the_same_answers_every_time(name, cache):
    shapes = {"N": (1, 1, 1)}
    options = RuntimeOptions(cache_dir=cache, cuda_graph=True, shapes=shapes)
    xs = [batch(4)[i : i + 1] for i in range(4)]
    with open_backend(name, READY_MODEL, RuntimeOptions(cache_dir=cache)) as runtime:
        expected = [runtime.run({"input": x})["logits"] for x in xs]
    with open_backend(name, READY_MODEL, options) as runtime:
        for x, row in zip(xs * 3, expected * 3, strict=True):
            got = runtime.run({"input": x})["logits"]
            assert np.abs(got - row).max() <= MAX_REL * np.abs(row).max()


def test_the_verify_command_passes(name):
    assert edgecv.verify(READY_MODEL, backend=name).passed


def test_bad_feeds_and_use_after_close(name, cache):
    runtime = open_backend(name, READY_MODEL, RuntimeOptions(cache_dir=cache))
    with pytest.raises(FeedError, match="missing 'input'"):
        runtime.run({})
    runtime.close()
    with pytest.raises(RuntimeFailure, match="after close"):
        runtime.run({"input": batch(1)})


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_an_engine_runs_on_its_own_gpu_and_batch_range_only(backend, cache, tmp_path):
    if not PROBES[backend].usable:
        pytest.skip(f"{backend}: {PROBES[backend].reason}")
    import dataclasses

    from edgecv.enginefile import read_engine, write_engine
    from edgecv.workflows.build import build

    built = build(READY_MODEL, backend=backend, output=tmp_path / "here.engine")
    with edgecv.load(built.path) as model:  # auto: the engine names its backend
        assert model.info.backend == backend
        with pytest.raises(RuntimeFailure, match="outside of the sizes"):
            model.runtime.run({"input": batch(33)})
    header, engine = read_engine(built.path)
    other = tmp_path / "other.engine"
    write_engine(other, dataclasses.replace(header, gpus=("sm10",)), engine)
    with pytest.raises(BackendUnavailable, match="is for sm10, the GPU here is"):
        edgecv.load(other)
    write_engine(other, dataclasses.replace(header, library_version="0.1"), engine)
    with pytest.raises(BackendUnavailable, match="build it again"):
        edgecv.load(other)


def test_outputs_may_stay_on_the_gpu():
    if not PROBES["onnxruntime-cuda"].usable:
        pytest.skip(f"onnxruntime-cuda: {PROBES['onnxruntime-cuda'].reason}")
    with open_backend("onnxruntime-cuda", READY_MODEL) as runtime:
        expected = runtime.run({"input": batch(2)})["logits"]
        value = runtime.run_on_device({"input": batch(2)})["logits"]
        assert value.device_name() == "cuda"
        np.testing.assert_array_equal(value.numpy(), expected)
