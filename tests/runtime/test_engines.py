"""Engines: really built by TensorRT-RTX without a GPU, cached, damaged, refused."""

import contextlib
import dataclasses
import hashlib
import json
import signal
import subprocess
import sys
import types

import numpy as np
import pytest

import edgecv
from edgecv.enginefile import EngineHeader, is_engine, read_engine, read_header, write_engine
from edgecv.errors import BackendUnavailable, InputError, RuntimeFailure, SpecError
from edgecv.measure.ready import READY_MODEL
from edgecv.onnxfile import read_metadata
from edgecv.runtimes import open_backend, probe_backends
from edgecv.runtimes.base import RuntimeOptions
from edgecv.spec import read_spec
from edgecv.workflows.build import build


def a_header(**changes):
    return EngineHeader(
        **{
            "backend": "tensorrt-rtx",
            "library_version": "1.7",
            "gpus": ("sm86", "sm89"),
            "model_sha256": "0" * 64,
            "engine_sha256": hashlib.sha256(b"an engine").hexdigest(),
            "inputs": ({"name": "input", "shape": ["N", 3], "dtype": "float32"},),
            "outputs": ({"name": "y", "shape": ["N"], "dtype": "float32"},),
            "profile": {"N": (1, 1, 32)},
            "settings": {"tf32": False, "dla_core": None},
            "nodes": {"fp32": 53},
            "metadata": read_metadata(READY_MODEL),
            **changes,
        }
    )


@pytest.fixture
def engine_file(tmp_path):
    """An engine file around bytes that are no engine: what reads the file needs no TensorRT."""
    path = tmp_path / "m.engine"
    write_engine(path, a_header(), b"an engine")
    return path


def test_the_contract_is_read_from_an_engine_file(engine_file):
    assert is_engine(engine_file)
    assert not is_engine(READY_MODEL)
    header, engine = read_engine(engine_file)
    assert engine == b"an engine"
    assert header == a_header()
    assert read_spec(engine_file) == read_spec(READY_MODEL)


def test_damaged_engine_files_are_refused(engine_file, tmp_path):
    whole = engine_file.read_bytes()
    bad = tmp_path / "bad.engine"
    for data, message in (
        (whole[:-1], "sha256 differs"),
        (whole[:40], "cut off"),
        (whole[:10], "cut off"),
        (whole.replace(b'"version":1', b'"version":2'), "version 2"),
        (whole.replace(b'"gpus":', b'"sups":'), "KeyError"),
        (whole.replace(b'{"backend"', b'{]backend"'), "damaged"),
        (whole[:16] + b"\xff" * 8 + whole[24:], "cut off"),
    ):
        bad.write_bytes(data)
        with pytest.raises(SpecError, match=message):
            read_engine(bad)


def test_only_its_own_backend_takes_an_engine(engine_file):
    usable = [n for n, p in probe_backends().items() if p.usable and not n.startswith("tensorrt")]
    for name in usable:
        with pytest.raises(InputError, match="is an engine for backend tensorrt-rtx"):
            open_backend(name, engine_file)
    if not probe_backends()["tensorrt-rtx"].usable:
        for name in ("auto", "tensorrt-rtx"):  # never a runtime of another kind in its place
            with pytest.raises(BackendUnavailable, match="'tensorrt-rtx' is not usable here"):
                edgecv.load(engine_file, backend=name)


def test_build_refuses_what_it_cannot_do(tmp_path):
    with pytest.raises(InputError, match="built with tensorrt or tensorrt-rtx"):
        build(READY_MODEL, backend="onnxruntime")
    if not probe_backends()["tensorrt"].version:
        with pytest.raises(BackendUnavailable, match="apt install"):
            build(READY_MODEL, backend="tensorrt")


def test_an_engine_of_another_gpu_library_or_version_is_refused(tmp_path):
    from edgecv.runtimes.trt import TrtRtxBackend

    backend = object.__new__(TrtRtxBackend)
    backend.path, backend._cuda = tmp_path, types.SimpleNamespace(gpu="sm89")
    backend._check(a_header(), "1.7")
    for header, version, message in (
        (a_header(), "1.8", "is for tensorrt-rtx 1.7, here is tensorrt-rtx 1.8; build it again"),
        (a_header(backend="tensorrt"), "1.7", "is for tensorrt 1.7, here is tensorrt-rtx"),
        (a_header(gpus=("sm80", "sm86")), "1.7", "is for sm80, sm86, the GPU here is sm89"),
    ):
        with pytest.raises(BackendUnavailable, match=message):
            backend._check(header, version)


def test_an_engine_runs_on_the_dla_core_that_was_asked_for(tmp_path):
    from edgecv.runtimes.trt import TrtBackend

    backend = object.__new__(TrtBackend)
    backend.path = tmp_path
    on_dla = a_header(backend="tensorrt", settings={"tf32": False, "dla_core": 1})
    for asked, header, core in ((None, a_header(), None), (None, on_dla, 1), (0, on_dla, 0)):
        backend.options = RuntimeOptions(dla_core=asked)
        assert backend._dla_core(header) == core
    with pytest.raises(BackendUnavailable, match="built for the GPU alone"):
        backend._dla_core(a_header())


def test_a_recorded_graph_is_given_back_when_another_takes_its_place():
    from edgecv.runtimes.trt import TrtBackend

    alive, launched = set(), []

    @contextlib.contextmanager
    def capture(stream, into):
        yield
        into.append(f"graph {len(launched)}")
        alive.add(into[0])

    backend = object.__new__(TrtBackend)
    backend._graphs, backend._stream, backend._enqueue = {}, 0, lambda: None
    backend._cuda = types.SimpleNamespace(
        api=types.SimpleNamespace(cudaGraphExecDestroy=alive.remove),
        call=lambda function, *arguments: function(*arguments),
        capture=capture,
        replay=lambda graph, stream: launched.append(graph),
    )
    for shape in ((1, 3), (2, 3), (1, 3)):
        for _ in range(4):  # enqueued, recorded, and replayed from there on
            backend._replay((shape,))
        assert len(alive) == 1
    assert len(launched) == 9
    backend._forget_graphs()
    assert not alive


# --- with tensorrt_rtx: engines are really built ----------------------------------------------


@pytest.fixture(scope="module")
def trt():
    return pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")


@pytest.fixture(scope="module")
def built(trt, tmp_path_factory):
    heard = []
    path = tmp_path_factory.mktemp("engine") / "ready.engine"
    result = build(
        READY_MODEL,
        backend="tensorrt-rtx",
        gpus=["sm80", "sm86", "sm89", "sm120"],
        output=path,
        progress=lambda *step: heard.append(step),
    )
    return result, heard


def test_an_engine_is_built_without_a_gpu_and_carries_the_contract(built, trt):
    result, heard = built
    header = read_header(result.path)
    assert header.gpus == ("sm80", "sm86", "sm89", "sm120")
    assert header.library_version == trt.__version__
    assert dict(header.nodes) == {"fp32": 53}
    assert header.profile == {"N": (1, 1, 32)}
    assert read_spec(result.path) == read_spec(READY_MODEL)
    # the weights are in it: 2.2 million parameters of 4 bytes
    assert result.size_bytes > 8_000_000
    phases = {phase for phase, _, _ in heard}
    assert "Building engine" in phases
    assert all(0 <= done <= total for _, done, total in heard)


@pytest.mark.parametrize("gpu", ["sm80", "sm86", "sm89", "sm120"])
def test_each_architecture_builds_on_its_own(gpu, trt, tmp_path):
    result = build(
        READY_MODEL, backend="tensorrt-rtx", gpus=[gpu], output=tmp_path / f"{gpu}.engine"
    )
    assert result.header.gpus == (gpu,)


def test_a_gpu_named_twice_is_one_and_the_model_is_never_replaced(trt, tmp_path):
    model = tmp_path / "m.onnx"
    model.write_bytes(READY_MODEL.read_bytes())
    options = {"backend": "tensorrt-rtx", "gpus": ["sm86", "sm86"]}
    with pytest.raises(InputError, match="is the model itself"):
        build(model, output=model, **options)
    assert model.read_bytes() == READY_MODEL.read_bytes()
    assert build(model, output=tmp_path / "m.engine", **options).header.gpus == ("sm86",)


def test_architectures_without_kernels_are_named(trt, tmp_path):
    target = tmp_path / "x.engine"
    with pytest.raises(RuntimeFailure, match=r"lacks these kernels for sm75.*fp16.*FP32 GEMM"):
        build(READY_MODEL, backend="tensorrt-rtx", gpus=["sm75"], output=target)
    for gpu, word in (("sm87", "Jetson Orin"), ("sm90", "Hopper")):
        with pytest.raises(BackendUnavailable, match=f"no kernels for {gpu} .{word}"):
            build(READY_MODEL, backend="tensorrt-rtx", gpus=[gpu], output=target)
    with pytest.raises(InputError, match="expected sm and the compute capability"):
        build(READY_MODEL, backend="tensorrt-rtx", gpus=["8.6"], output=target)
    assert not target.exists()


def test_a_dla_is_never_replaced_by_the_gpu(trt, tmp_path):
    from edgecv.runtimes.trt_build import BuildPlan, build_engine

    target = tmp_path / "x.engine"
    options = {"backend": "tensorrt-rtx", "gpus": ["sm86"], "output": target}
    with pytest.raises(BackendUnavailable, match="builds for GPUs alone"):
        build(READY_MODEL, dla_core=0, **options)
    settings = {"tf32": False, "dla_core": 0}
    plan = BuildPlan("tensorrt-rtx", trt.__version__, ("sm86",), "0" * 64, {}, settings)
    with pytest.raises(BackendUnavailable, match="no DLA core 0"):
        build_engine(plan, READY_MODEL, lambda *step: None)
    assert not target.exists()


def test_an_interrupt_ends_the_build(trt, tmp_path):
    def ctrl_c(*step):
        signal.raise_signal(signal.SIGINT)

    def fail(*step):
        raise ZeroDivisionError

    target = tmp_path / "x.engine"
    options = {"backend": "tensorrt-rtx", "gpus": ["sm86"], "output": target}
    for progress, error in ((ctrl_c, KeyboardInterrupt), (fail, ZeroDivisionError)):
        with pytest.raises(error):
            build(READY_MODEL, progress=progress, **options)
    assert not target.exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_fp16_builds_for_turing_too(trt, tiny, tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "half.onnx"
    path.write_bytes(
        tiny.model(
            [tiny.node("MatMul", ["x", "w"], ["y"])],
            inputs=[tiny.value("x", "float16", ["N", 64])],
            outputs=[tiny.value("y", "float16", ["N", 64])],
            initializers=[tiny.tensor("w", rng.standard_normal((64, 64)).astype(np.float16))],
        )
    )
    result = build(path, backend="tensorrt-rtx", gpus=["sm75"], output=tmp_path / "h.engine")
    assert dict(result.header.nodes) == {"fp16": 1}
    assert result.header.metadata == {}  # no contract in it, none invented


def test_tf32_is_off_unless_asked_for(trt, tmp_path):
    result = build(
        READY_MODEL, backend="tensorrt-rtx", gpus=["sm86"], tf32=True, output=tmp_path / "t.engine"
    )
    assert dict(result.header.nodes) == {"tf32": 53}
    assert result.header.settings["tf32"] is True


def test_symbolic_sizes_need_a_range(trt, tiny, tmp_path):
    path = tmp_path / "any.onnx"
    path.write_bytes(
        tiny.model(
            [tiny.node("Relu", ["x"], ["y"])],
            inputs=[tiny.value("x", "float32", ["N", 3, "H", "W"])],
            outputs=[tiny.value("y", "float32", ["N", 3, "H", "W"])],
        )
    )
    target = tmp_path / "any.engine"
    options = {"backend": "tensorrt-rtx", "gpus": ["sm86"], "output": target}
    with pytest.raises(InputError, match="'H', for which an engine needs a range: --shape H="):
        build(path, **options)
    with pytest.raises(InputError, match="no symbolic size K"):
        build(path, shapes={"H": (1, 2, 3), "W": (1, 2, 3), "K": (1, 2, 3)}, **options)
    ranges = {"H": (32, 64, 128), "W": (32, 64, 128)}
    result = build(path, shapes=ranges, **options)
    assert result.header.profile == {"N": (1, 1, 32), **ranges}
    assert read_header(target).inputs[0]["shape"] == ["N", 3, "H", "W"]


def test_qdq_pairs_of_another_runtime_are_refused_with_the_remedy(trt, tiny, tmp_path):
    scale, zero = np.full(4, 0.1, np.float32), np.zeros(4, np.int32)
    path = tmp_path / "bias.onnx"
    path.write_bytes(
        tiny.model(
            [
                tiny.node("DequantizeLinear", ["b", "s", "z"], ["bd"], axis=0),
                tiny.node("Add", ["x", "bd"], ["y"]),
            ],
            inputs=[tiny.value("x", "float32", [1, 4])],
            outputs=[tiny.value("y", "float32", [1, 4])],
            initializers=[
                tiny.tensor("b", zero),
                tiny.tensor("s", scale),
                tiny.tensor("z", zero),
            ],
        )
    )
    with pytest.raises(RuntimeFailure, match="--target tensorrt"):
        build(path, backend="tensorrt-rtx", gpus=["sm86"], output=tmp_path / "b.engine")


def test_the_command_builds_and_says_what_it_did(trt, tmp_path):
    code = "import sys; from edgecv.cli.app import main; sys.argv[0] = 'edgecv'; main()"
    command = [sys.executable, "-c", code, "build", str(READY_MODEL), "--backend", "tensorrt-rtx"]
    target = tmp_path / "m.engine"
    done = subprocess.run(
        [*command, "--gpu", "sm86", "--json", "-o", str(target)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["path"] == str(target)
    assert answer["gpus"] == ["sm86"]
    assert answer["size_bytes"] == target.stat().st_size
    done = subprocess.run([*command, "--gpu", "sm87"], capture_output=True, text=True)
    assert done.returncode == 3
    assert "no kernels for sm87" in done.stderr


# --- the cache ---------------------------------------------------------------------------------


def cached(folder, **options):
    from edgecv.runtimes.trt_build import plan_build
    from edgecv.runtimes.trt_cache import cached_engine

    chosen = RuntimeOptions(cache_dir=folder, **options)
    plan = plan_build("tensorrt-rtx", READY_MODEL, ("sm86",), chosen)
    return cached_engine(plan, READY_MODEL, chosen)


def test_the_cache_builds_once_and_mends_what_is_damaged(trt, tmp_path):
    with pytest.raises(BackendUnavailable, match="has to be built first"):
        cached(tmp_path, build=False)
    first = cached(tmp_path)
    stamp = first.stat().st_mtime_ns
    assert cached(tmp_path, build=False) == first
    assert first.stat().st_mtime_ns == stamp
    # other ranges or builder options are other engines
    assert cached(tmp_path, shapes={"N": (1, 2, 4)}) != first
    assert cached(tmp_path, precision="tf32") != first
    first.write_bytes(first.read_bytes()[:-100])
    with pytest.warns(RuntimeWarning, match="sha256 differs.*built anew"):
        assert cached(tmp_path) == first
    assert read_engine(first)


def test_a_key_depends_on_all_that_makes_an_engine(trt):
    from edgecv.runtimes.trt_build import BuildPlan

    plan = BuildPlan("tensorrt-rtx", "1.7", ("sm86",), "0" * 64, {"N": (1, 1, 8)}, {"tf32": False})
    changes = {
        "backend": "tensorrt",
        "library_version": "1.8",
        "gpus": ("sm89",),
        "model_sha256": "1" * 64,
        "shapes": {"N": (1, 1, 16)},
        "settings": {"tf32": True},
    }
    assert changes.keys() == {field.name for field in dataclasses.fields(plan)}
    keys = {dataclasses.replace(plan, **{k: v}).key for k, v in changes.items()}
    assert len(keys | {plan.key}) == len(changes) + 1


def test_processes_share_the_cache(trt, tmp_path):
    code = (
        "import sys\nfrom edgecv.measure.ready import READY_MODEL\n"
        "from edgecv.runtimes.base import RuntimeOptions\n"
        "from edgecv.runtimes.trt_build import plan_build\n"
        "from edgecv.runtimes.trt_cache import cached_engine\n"
        "from edgecv.enginefile import read_engine\n"
        "o = RuntimeOptions(cache_dir=sys.argv[1])\n"
        "p = plan_build('tensorrt-rtx', READY_MODEL, ('sm86',), o)\n"
        "e = cached_engine(p, READY_MODEL, o); read_engine(e); print(e.stat().st_ino)"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    inodes = {process.communicate()[0].strip() for process in running}
    assert all(process.returncode == 0 for process in running)
    assert len(inodes) == 1  # built once: a second build would have replaced the file
    assert len(list(tmp_path.glob("*.engine"))) == 1
    assert not list(tmp_path.glob(".edgecv-*"))
