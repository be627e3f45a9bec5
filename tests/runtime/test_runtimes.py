"""One conformance suite over all backends that are usable here, on the model in the wheel."""

import dataclasses
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import edgecv
from edgecv.errors import BackendUnavailable, FeedError, InputError, RuntimeFailure, SpecError
from edgecv.measure.memory import rss_mb
from edgecv.measure.ready import READY_MODEL
from edgecv.measure.seeded import seeded_pictures
from edgecv.runtimes import (
    AUTO_ORDER,
    CPU_BACKENDS,
    GPU_BACKENDS,
    _candidates,
    backend_class,
    open_backend,
    probe_backends,
)
from edgecv.runtimes.base import Probe, RuntimeOptions
from edgecv.runtimes.computes import HEAVY
from edgecv.spec import read_spec, write_spec

USABLE = [name for name, probe in probe_backends().items() if probe.usable]
RUNNING = [name for name in USABLE if name != "fake"]
SHAPE = (2, 3, 64, 64)


@pytest.fixture(scope="module", params=USABLE)
def runtime(request):
    with open_backend(request.param, READY_MODEL, RuntimeOptions(check_finite=True)) as opened:
        yield opened


def feeds(array=None):
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    return {"input": x if array is None else array}


def test_names_shapes_and_dtypes(runtime):
    (tensor,) = runtime.inputs
    assert (tensor.name, tensor.shape[1:], tensor.dtype) == ("input", (3, 64, 64), "float32")
    out = runtime.run(feeds())
    assert out["logits"].shape == (2, 10)
    assert out["logits"].dtype == np.float32


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_any_batch_of_a_dynamic_file_gives_the_same_rows(runtime, batch):
    if runtime.name == "fake":
        pytest.skip("the fake's answer depends on the whole feed")
    x = np.random.default_rng(1).standard_normal((batch, 3, 64, 64)).astype(np.float32)
    rows = [runtime.run({"input": x[i : i + 1]})["logits"] for i in range(batch)]
    # 1e-5 of the largest: sums of another order (blocking depends on the batch), 60 times unit
    # roundoff; a wrong row is apart by its own size
    together = runtime.run({"input": x})["logits"]
    assert np.abs(together - np.concatenate(rows)).max() <= 1e-5 * np.abs(together).max()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({}, "missing 'input'"),
        ({"inptu": np.zeros(SHAPE, np.float32)}, "unknown 'inptu'"),
        ({"input": np.zeros(SHAPE, np.float32), "more": np.zeros(1)}, "unknown 'more'"),
        (feeds(np.zeros(SHAPE, np.float64)), "got float64"),
        (feeds(np.zeros(SHAPE[1:], np.float32)), "3 dimensions"),
        (feeds(np.zeros((1, 3, 32, 64), np.float32)), r"\[1, 3, 32, 64\]"),
        (feeds(np.zeros((0, 3, 64, 64), np.float32)), r"\[0, 3, 64, 64\]"),
        (feeds(np.zeros((2, 3, 64, 128), np.float32)[..., ::2]), "non-contiguous"),
        (feeds(np.full(SHAPE, np.nan, np.float32)), "NaN"),
        (feeds(np.empty(SHAPE, object)), "got object"),
        ({"input": [[1.0]]}, "a list"),
    ],
)
def test_bad_feeds_get_the_same_error_everywhere(runtime, bad, message):
    with pytest.raises(FeedError, match=message):
        runtime.run(bad)


@pytest.mark.parametrize("name", USABLE)
def test_eight_threads_get_the_answers_of_one(name):
    xs = [np.full((1, 3, 64, 64), i / 8, np.float32) for i in range(8)]
    with open_backend(name, READY_MODEL, RuntimeOptions(threads=1)) as runtime:
        expected = [runtime.run({"input": x})["logits"] for x in xs]
        wrong = []

        def work(index):
            for _ in range(20):
                got = runtime.run({"input": xs[index]})["logits"]
                if not np.array_equal(got, expected[index]):
                    wrong.append(index)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.parametrize("name", USABLE)
def test_close_during_use_is_safe_and_use_after_close_is_an_error(name):
    runtime = open_backend(name, READY_MODEL)
    outcomes = []

    def work():
        try:
            while True:
                runtime.run(feeds())
        except RuntimeFailure as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    runtime.close()
    runtime.close()
    for thread in threads:
        thread.join()
    assert all("after close" in outcome for outcome in outcomes)
    with pytest.raises(RuntimeFailure, match="after close"):
        runtime.run(feeds())


def test_a_device_that_was_asked_for_is_never_replaced_by_the_cpu():
    if "onnxruntime" in RUNNING:
        with open_backend("onnxruntime", READY_MODEL, RuntimeOptions(device="cpu")) as runtime:
            assert runtime.info.device == "CPU"
    names = [name for name in CPU_BACKENDS if name in RUNNING]
    for name in names if set(RUNNING) & set(GPU_BACKENDS) else [*names, "auto"]:
        for device in ("7", "GPU.7"):  # a seventh GPU is nowhere
            with pytest.raises(BackendUnavailable, match=f"device {device}"):
                open_backend(name, READY_MODEL, RuntimeOptions(device=device))
        with pytest.raises(BackendUnavailable, match=r"no DLA.*use backend tensorrt on a Jetson"):
            open_backend(name, READY_MODEL, RuntimeOptions(dla_core=0))
    assert RuntimeOptions().gpu_index == RuntimeOptions(device="gpu").gpu_index == 0
    assert RuntimeOptions(device="1").gpu_index == 1
    for device in ("CPU", "-1", "cuda"):
        with pytest.raises(InputError, match=f"device {device}: a CUDA backend takes the index"):
            _ = RuntimeOptions(device=device).gpu_index
    with pytest.raises(InputError, match="dla_core"):
        RuntimeOptions(dla_core=-1)


def test_unknown_backends_are_named_with_the_known_ones():
    with pytest.raises(BackendUnavailable, match="known are auto, onnxruntime"):
        open_backend("tensorflow", READY_MODEL)


def test_a_backend_that_is_not_usable_is_never_replaced(monkeypatch):
    monkeypatch.setattr(backend_class(RUNNING[0]), "probe", lambda: Probe(False, reason="no wheel"))
    with pytest.raises(BackendUnavailable, match="no wheel"):
        open_backend(RUNNING[0], READY_MODEL)
    for name in AUTO_ORDER:
        monkeypatch.setattr(backend_class(name), "probe", lambda: Probe(False, reason="no wheel"))
    with pytest.raises(BackendUnavailable, match="no runtime is usable"):
        open_backend("auto", READY_MODEL)


def test_auto_says_what_it_chose_and_why():
    with edgecv.load(READY_MODEL) as model:
        assert model.info.backend in RUNNING
        assert "usable" in model.info.reason


@pytest.mark.skipif(len(RUNNING) < 2, reason="there is one runtime here, so auto has no choice")
def test_auto_takes_the_next_one_where_the_first_refuses_the_file(monkeypatch):
    first, second = [name for name in AUTO_ORDER if name in RUNNING][:2]

    # a GPU's backend needs a range for each symbolic size, which is an InputError
    for kind in (RuntimeFailure, InputError):

        def refuse(self, kind=kind):
            raise kind("not this file")

        monkeypatch.setattr(backend_class(first), "_open", refuse)
        with edgecv.load(READY_MODEL) as model:
            assert model.info.backend == second
            assert f"{first}: not this file" in model.info.reason


def test_auto_follows_the_target_that_a_file_was_quantized_for(tmp_path):
    spec = read_spec(READY_MODEL)
    path = tmp_path / "for-openvino.onnx"
    write_spec(READY_MODEL, dataclasses.replace(spec, target="openvino"), path)
    order = [name for name in _candidates(path) if name in CPU_BACKENDS]
    assert order == ["openvino", "onnxruntime"]
    assert [name for name in _candidates(READY_MODEL) if name in CPU_BACKENDS] == order[::-1]


@pytest.mark.parametrize("name", RUNNING)
def test_fp32_is_what_computes_and_another_precision_is_an_error(name):
    with open_backend(name, READY_MODEL, RuntimeOptions(precision="fp32")) as runtime:
        assert dict(runtime.info.nodes) == {"fp32": 53}  # 52 Conv and a Gemm
        assert "CPU" in runtime.info.provider
    with pytest.raises(BackendUnavailable, match=r"precision int8 was asked for.*53 in fp32"):
        open_backend(name, READY_MODEL, RuntimeOptions(precision="int8"))


@pytest.mark.skipif("openvino" not in RUNNING, reason="openvino is not installed")
def test_bf16_is_what_was_asked_for_or_an_error():
    options = RuntimeOptions(precision="bf16")
    if "bf16" in probe_backends()["openvino"].precisions:
        with open_backend("openvino", READY_MODEL, options) as runtime:
            assert next(iter(runtime.info.nodes)) == "bf16"
    else:
        with pytest.raises(BackendUnavailable, match="precision bf16 was asked for"):
            open_backend("openvino", READY_MODEL, options)


@pytest.mark.skipif("openvino" not in RUNNING, reason="openvino is not installed")
def test_openvino_takes_a_device_by_name_and_none_that_falls_back(tmp_path):
    with pytest.raises(BackendUnavailable, match="may run the model anywhere"):
        open_backend("openvino", READY_MODEL, RuntimeOptions(device="AUTO"))
    with pytest.raises(BackendUnavailable, match="no device NPU"):
        open_backend("openvino", READY_MODEL, RuntimeOptions(device="NPU"))
    for _ in range(2):  # compiled, then taken from the cache
        options = RuntimeOptions(cache_dir=tmp_path, precision="fp32", threads=1)
        with open_backend("openvino", READY_MODEL, options) as runtime:
            assert (runtime.info.device, runtime.info.threads) == ("CPU", 1)
    assert list(tmp_path.iterdir())


@pytest.mark.parametrize("name", USABLE)
def test_run_into_fills_the_callers_own_buffers(name):
    with open_backend(name, READY_MODEL) as runtime:
        expected = runtime.run(feeds())["logits"]
        out = np.full((2, 10), np.nan, np.float32)
        runtime.run_into(feeds(), {"logits": out})
        np.testing.assert_array_equal(out, expected)
        x = feeds()
        for _ in range(2):  # the same arrays again, with other values in them
            x["input"] += 1
            runtime.run_into(x, {"logits": out})
            np.testing.assert_array_equal(out, runtime.run(x)["logits"])
        for bad, message in (
            ({}, "missing 'logits'"),
            ({"logits": np.empty((2, 10), np.float64)}, "got float64"),
            ({"logits": np.empty((2, 11), np.float32)}, r"\[2, 11\]"),
            ({"logits": np.empty((2, 20), np.float32)[:, ::2]}, "non-contiguous"),
            ({"logits": np.frombuffer(bytes(80), np.float32).reshape(2, 10)}, "read-only"),
        ):
            with pytest.raises(FeedError, match=f"output.*{message}"):
                runtime.run_into(feeds(), bad)
        for batch in (1, 3):  # right for the declaration, wrong for these feeds
            with pytest.raises(RuntimeFailure):
                runtime.run_into(feeds(), {"logits": np.empty((batch, 10), np.float32)})
        np.testing.assert_array_equal(runtime.run(feeds())["logits"], expected)


@pytest.mark.parametrize("name", USABLE)
def test_feeds_that_cannot_be_written_to_are_read_each_time(name):
    backing = bytearray(feeds()["input"].tobytes())
    x = np.frombuffer(backing, np.float32).reshape(SHAPE)
    x.flags.writeable = False  # as PIL's pictures and memory maps are
    out = np.empty((2, 10), np.float32)
    with open_backend(name, READY_MODEL) as runtime:
        for _ in range(2):
            runtime.run_into({"input": x}, {"logits": out})
            np.testing.assert_array_equal(out, runtime.run({"input": x})["logits"])
            backing[:] = (x * 2).tobytes()


@pytest.mark.parametrize("name", USABLE)
def test_run_many_answers_in_order_also_when_the_caller_stops_early(name):
    xs = [np.full((1, 3, 64, 64), i / 9, np.float32) for i in range(9)]
    with open_backend(name, READY_MODEL, RuntimeOptions(threads=1, streams=1)) as runtime:
        expected = [runtime.run({"input": x})["logits"] for x in xs]
        answers = list(runtime.run_many({"input": x} for x in xs))
        for answer, row in zip(answers, expected, strict=True):
            np.testing.assert_array_equal(answer["logits"], row)
        begun = runtime.run_many({"input": x} for x in xs)
        next(begun)
        begun.close()
        with pytest.raises(FeedError):
            list(runtime.run_many([{"input": xs[0]}, {}]))
        kept = runtime.run_many({"input": x} for x in xs)
        next(kept)
    # close() did not wait for a caller who asks for no more
    with pytest.raises(RuntimeFailure, match="after close"):
        next(kept)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("name", RUNNING)
def test_memory_is_given_back(name):
    # 2 MB and 10 MB are the promise for 20,000 runs and 200 opens, which
    # benchmarks/runtimes.py carries out; a leak of one output (80 bytes) would not show here, one
    # of an input (98 kB), a request or a session does
    x = feeds()
    with open_backend(name, READY_MODEL, RuntimeOptions(threads=1)) as runtime:
        for _ in range(50):
            runtime.run(x)
        before = rss_mb()
        for _ in range(300):
            runtime.run(x)
        assert rss_mb() - before < 2
    sizes = []
    for _ in range(8):
        with open_backend(name, READY_MODEL, RuntimeOptions(threads=1)) as runtime:
            runtime.run(x)
        sizes.append(rss_mb())
    assert sizes[-1] - sizes[2] < 10  # a session of this model takes about 20 MB


@pytest.mark.skipif("onnxruntime" not in RUNNING, reason="onnxruntime is not installed")
def test_the_profile_says_who_ran_each_node():
    from edgecv.runtimes.ort import CPU
    from edgecv.runtimes.ort_gpu import OrtCudaBackend, profile_nodes

    spec = read_spec(READY_MODEL)
    options = RuntimeOptions(threads=1)
    ran = profile_nodes(READY_MODEL, options, [CPU], spec.inputs)
    heavy = [node for node in ran if node.op_type in HEAVY]
    assert len(heavy) == 53
    assert {(node.provider, node.precision) for node in heavy} == {(CPU, "fp32")}
    # what the CUDA backend says to a run that onnxruntime quietly moved to the CPU
    backend = object.__new__(OrtCudaBackend)
    backend.path, backend.options = READY_MODEL, options
    with pytest.raises(
        BackendUnavailable, match=r"(52|45 FusedConv, 7) Conv, 1 Gemm of it on the CPU"
    ):
        backend._check(ran)


def test_an_engine_that_a_command_has_to_build_first_is_heard_of(monkeypatch, tmp_path):
    from edgecv.runtimes.fake import FakeBackend
    from edgecv.workflows.evaluate import evaluate
    from edgecv.workflows.verify import verify

    def opened(self):
        self.options.progress("Building engine", 0, 1)
        raise RuntimeFailure("far enough")

    monkeypatch.setattr(FakeBackend, "_open", opened)
    heard = []
    for work in (verify, lambda model, **options: evaluate(model, tmp_path, **options)):
        with pytest.raises(RuntimeFailure, match="far enough"):
            work(READY_MODEL, backend="fake", progress=lambda *step: heard.append(step))
    assert heard == [("Building engine", 0, 1)] * 2


@pytest.mark.skipif("onnxruntime" not in RUNNING, reason="onnxruntime is not installed")
def test_a_provider_that_fails_in_a_run_is_not_replaced(capfd):
    from onnxruntime.capi import _pybind_state

    class Gone:  # the session below the Python one
        def __init__(self, session):
            self.session = session

        def __getattr__(self, name):
            return getattr(self.session, name)

        def run(self, *arguments):
            raise _pybind_state.EPFail("the GPU is gone")

    with open_backend("onnxruntime", READY_MODEL) as runtime:
        runtime._session._sess = Gone(runtime._session._sess)
        with pytest.raises(RuntimeFailure, match="the GPU is gone"):
            runtime.run(feeds())
    assert not capfd.readouterr().out


@pytest.mark.skipif("onnxruntime" not in RUNNING, reason="onnxruntime is not installed")
def test_a_provider_that_does_not_start_says_why(monkeypatch, tmp_path):
    from edgecv.runtimes import ort_gpu

    real = ort_gpu.open_session

    def failing(path, settings, providers):
        if providers != [ort_gpu.CPU]:
            raise RuntimeFailure("CUDA failure 35")
        return real(path, settings, providers)

    monkeypatch.setattr(ort_gpu, "open_session", failing)
    with pytest.raises(BackendUnavailable, match=r"could not be started \(CUDA failure 35\)"):
        ort_gpu.OrtCudaBackend(READY_MODEL)
    bad = tmp_path / "bad.onnx"  # a graph without an operator set
    bad.write_bytes(b"\x3a\x02\x12\x00")
    with pytest.raises(RuntimeFailure, match="refuses this file"):
        ort_gpu.OrtCudaBackend(bad)


@pytest.mark.skipif("onnxruntime" not in RUNNING, reason="onnxruntime is not installed")
def test_a_cuda_graph_runs_in_memory_that_stays():
    from edgecv.runtimes import ort_gpu
    from edgecv.runtimes.base import Compute

    class OnTheCpu(ort_gpu.OrtCudaBackend):  # all of it but the GPU
        provider, memory = ort_gpu.CPU, "cpu"

        def _providers(self, options):
            return [ort_gpu.CPU]

        def _check(self, ran):
            return Compute("cpu", {"fp32": len(ran)})

    with pytest.raises(InputError, match=r"cuda_graph needs fixed sizes, and 'input' has N"):
        OnTheCpu(READY_MODEL, RuntimeOptions(cuda_graph=True))
    options = RuntimeOptions(cuda_graph=True, shapes={"N": (1, 2, 4)}, threads=1)
    with OnTheCpu(READY_MODEL, options) as runtime, OnTheCpu(READY_MODEL) as plain:
        assert runtime.inputs[0].shape == SHAPE
        assert runtime.batch_range == (2, 2)
        places = [value.data_ptr() for value in runtime._graph._inputs.values()]
        answers, out = [], np.empty((2, 10), np.float32)
        for factor in (1, 2, 3):
            x = {"input": feeds()["input"] * np.float32(factor)}
            answers.append((runtime.run(x)["logits"], plain.run(x)["logits"]))
            runtime.run_into(x, {"logits": out})
            np.testing.assert_array_equal(out, answers[-1][0])
        assert places == [value.data_ptr() for value in runtime._graph._inputs.values()]
        for got, expected in answers:  # each its own, also after the runs that followed
            assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
        with pytest.raises(FeedError, match=r"takes float32 \[2, 3, 64, 64\]"):
            runtime.run({"input": np.zeros((1, 3, 64, 64), np.float32)})
        with pytest.raises(InputError, match="leave cuda_graph out"):
            runtime.run_on_device(feeds())
        stays = plain.run_on_device(feeds())["logits"]
        np.testing.assert_array_equal(stays.numpy(), plain.run(feeds())["logits"])


def test_a_package_of_another_may_bring_a_backend(tmp_path, monkeypatch):
    (tmp_path / "acme_npu.py").write_text(PLUGIN)
    facts = tmp_path / "acme_npu-1.0.dist-info"  # what pip leaves of an installed package
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-npu\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(
        "[edgecv.backends]\nacme = acme_npu:Acme\nbroken = acme_npu:Nothing\nodd = acme_npu:Odd\n"
        "asleep = acme_npu:Asleep\nloud = acme_loud:Acme\n"
    )
    (tmp_path / "acme_loud.py").write_text("raise OSError('no libacme.so')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with edgecv.load(READY_MODEL, backend="acme") as model:
        assert model.info.backend == "acme"
        assert model.info.precision == "int4"
        assert model(np.zeros((9, 9, 3), np.uint8)).best.id == 0
    probes = probe_backends()
    assert probes["acme"].usable
    assert "does not load" in probes["broken"].reason
    # what another's code raises hides none of the backends
    assert probes["asleep"].reason == "its probe fails (OSError: no device)"
    assert "no libacme.so" in probes["loud"].reason
    assert {name for name, probe in probes.items() if probe.usable} == {*USABLE, "acme"}
    with pytest.raises(BackendUnavailable, match="not a Backend class"):
        open_backend("odd", READY_MODEL)


PLUGIN = """
import numpy as np
from edgecv.runtimes.base import Backend, Compute, Opened, Probe, RuntimeInfo
from edgecv.spec import read_spec

Odd = 3

class Acme(Backend):
    name = "acme"
    concurrent = False

    @classmethod
    def probe(cls):
        return Probe(True, "1.0")

    def _open(self):
        spec = read_spec(self.path)
        read = lambda: Compute("npu", {"int4": 1})
        return Opened(spec.inputs, spec.outputs, RuntimeInfo("acme", "1.0", "npu", 1, read))

    def _run(self, feeds):
        return {"logits": np.zeros((len(feeds["input"]), 10), np.float32)}

    def _close(self):
        pass

class Asleep(Acme):
    @classmethod
    def probe(cls):
        raise OSError("no device")
"""


@pytest.mark.parametrize(
    ("package", "backend"),
    [
        ("onnxruntime", "onnxruntime"),
        ("onnxruntime", "onnxruntime-cuda"),
        ("openvino", "openvino"),
        ("tensorrt", "tensorrt"),
        ("tensorrt_rtx", "tensorrt-rtx"),
    ],
)
def test_what_is_left_of_a_package_is_no_backend(package, backend, tmp_path, monkeypatch):
    (tmp_path / package).mkdir()  # a folder without files imports, as a namespace
    (tmp_path / package / "__init__.py").write_text("")
    for name in [n for n in sys.modules if n.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        probe = probe_backends()[backend]
    finally:
        sys.modules.pop(package, None)
    assert not probe.usable
    assert f"the package {package} is damaged: {tmp_path}" in probe.reason


def test_a_tensorrt_without_strongly_typed_networks_is_refused(tmp_path, monkeypatch):
    (tmp_path / "tensorrt.py").write_text("__version__ = '8.6.1'\nclass Builder: pass")
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        probe = probe_backends()["tensorrt"]
    finally:
        sys.modules.pop("tensorrt", None)
    assert not probe.usable
    assert "TensorRT 8.6.1 has no strongly typed networks" in probe.reason


@pytest.mark.parametrize(
    "name", [name for name in AUTO_ORDER if name not in USABLE], ids=lambda name: name
)
def test_what_is_not_usable_says_why_and_what_to_do(name):
    probe = probe_backends()[name]
    assert probe.reason
    with pytest.raises(BackendUnavailable, match="not usable here") as caught:
        open_backend(name, READY_MODEL)
    assert caught.value.exit_code == 3
    assert "install" in str(caught.value)


@pytest.mark.parametrize("name", RUNNING)
def test_truncated_and_foreign_files(name, tmp_path):
    data = READY_MODEL.read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(SpecError, match=r"cut\.onnx.*cut off"):
        open_backend(name, path)
    with pytest.raises(SpecError):
        edgecv.load(path)
    with pytest.raises(InputError, match="no such"):
        open_backend(name, tmp_path / "absent.onnx")


def test_options_are_checked():
    with pytest.raises(InputError, match="threads"):
        RuntimeOptions(threads=0)
    with pytest.raises(InputError, match="profile"):
        RuntimeOptions(profile="fast")
    assert RuntimeOptions(profile="low-power").resolved_spin is False


def test_one_picture_a_list_and_many():
    pictures = list(seeded_pictures(1, 40, 50, 70))
    with edgecv.load(READY_MODEL) as model:
        one = model(pictures[0])
        many = model(pictures)
        assert one.best.label in model.spec.labels
        assert len(many) == 40
        np.testing.assert_allclose(many[0].probabilities, one.probabilities, atol=1e-5)
        assert abs(float(one.probabilities.sum()) - 1) < 1e-5
        assert model([]) == []
        with pytest.raises(InputError, match="do not apply"):
            model(pictures[0], conf=0.5)


def test_an_engine_for_a_range_of_batches_is_run_as_often_as_it_takes():
    pictures = np.random.default_rng(2).standard_normal((7, 3, 64, 64)).astype(np.float32)
    with edgecv.load(READY_MODEL, backend=RUNNING[0]) as model:
        expected = model.infer(pictures)["logits"]
        sizes, run = [], model.runtime._run

        def recorded(feeds):
            sizes.append(len(feeds["input"]))
            return run(feeds)

        model.runtime._run = recorded
        for batch_range, wanted in (((1, 3), [3, 3, 1]), ((2, 3), [3, 3, 2]), ((8, 9), [8])):
            model.runtime.batch_range = batch_range
            sizes.clear()
            got = model.infer(pictures)["logits"]
            assert sizes == wanted
            assert got.shape == expected.shape
            # as for any batch: 1e-5 of the largest
            assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", RUNNING)
def test_the_self_test_holds_on_this_machine(name):
    # the answers in the file are onnxruntime's, so this is also one runtime against another
    outcome = edgecv.verify(READY_MODEL, backend=name)
    assert outcome.passed, outcome
