"""All usable backends on tiny graphs with known answers, on Q/DQ files, on other people's nets, and
on files that no runtime should be asked to read."""

import os

import numpy as np
import pytest

from edgecv.errors import BackendUnavailable, FeedError, InputError, SpecError
from edgecv.runtimes import open_backend, probe_backends
from edgecv.runtimes.base import RuntimeOptions
from edgecv.runtimes.filecheck import check_file, content_sha256

RUNNING = [n for n, probe in probe_backends().items() if probe.usable and n != "fake"]
DTYPES = ("float32", "float16", "uint8", "int8", "int32", "int64", "bool")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RUNNING)
def test_every_dtype_goes_in_and_comes_out_bit_for_bit(name, dtype, tiny, tmp_path):
    path = tmp_path / "transposed.onnx"
    path.write_bytes(
        tiny.model(
            [tiny.node("Transpose", ["x"], ["y"], perm=[1, 0])],
            inputs=[tiny.value("x", dtype, ["N", 3])],
            outputs=[tiny.value("y", dtype, [3, "N"])],
        )
    )
    raw = np.random.default_rng(0).integers(0, 256, (4, 3))
    x = raw.astype(np.uint8).view(np.int8).astype(dtype) if dtype == "int8" else raw.astype(dtype)
    with open_backend(name, path) as runtime:
        assert (runtime.inputs[0].dtype, runtime.outputs[0].dtype) == (dtype, dtype)
        answer = runtime.run({"x": x})["y"]
        assert answer.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(answer, x.T)
        assert dict(runtime.info.nodes) == {}  # nothing is multiplied
        assert runtime.info.precision == "none"
        wrong = "float64" if dtype != "float64" else "float32"
        with pytest.raises(FeedError, match=f"takes {dtype}.*got {wrong}"):
            runtime.run({"x": x.astype(wrong)})


@pytest.mark.parametrize("name", RUNNING)
def test_symbolic_sizes_and_several_tensors(name, tiny, tmp_path):
    path = tmp_path / "two.onnx"
    path.write_bytes(
        tiny.model(
            [tiny.node("Add", ["a", "b"], ["sum"]), tiny.node("Mul", ["a", "b"], ["product"])],
            inputs=[tiny.value(n, "float32", ["N", "M"]) for n in ("a", "b")],
            outputs=[tiny.value(n, "float32", ["N", "M"]) for n in ("sum", "product")],
        )
    )
    rng = np.random.default_rng(1)
    with open_backend(name, path) as runtime:
        assert [t.name for t in runtime.inputs] == ["a", "b"]
        assert [t.name for t in runtime.outputs] == ["sum", "product"]
        for shape in ((1, 1), (2, 5), (7, 3)):
            a, b = rng.standard_normal((2, *shape)).astype(np.float32)
            answer = runtime.run({"b": b, "a": a})
            np.testing.assert_array_equal(answer["sum"], a + b)
            np.testing.assert_array_equal(answer["product"], a * b)
        assert {t.shape for t in (*runtime.inputs, *runtime.outputs)} == {("N", "M")}
        # sizes of one name are equal: no runtime may stretch the one to the other
        with pytest.raises(FeedError, match=r"takes float32 \[N, M\], got float32 \[2, 5\]"):
            runtime.run({"a": np.ones((1, 5), np.float32), "b": np.ones((2, 5), np.float32)})


def quantized(tiny):
    """Conv with Q/DQ pairs as onnxruntime's quantizer places them, and its answer in integers."""
    rng = np.random.default_rng(2)
    weight = rng.integers(-127, 128, (8, 4, 3, 3)).astype(np.int8)
    scales = rng.uniform(0.001, 0.01, 8).astype(np.float32)
    bias = rng.integers(-1000, 1000, 8).astype(np.int32)
    constants = {
        "xs": np.float32(0.02), "xz": np.uint8(128), "ys": np.float32(0.2), "yz": np.uint8(128),
        "w": weight, "ws": scales, "wz": np.zeros(8, np.int8),
        "b": bias, "bs": scales * np.float32(0.02), "bz": np.zeros(8, np.int32),
    }  # fmt: skip
    model = tiny.model(
        [
            tiny.node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
            tiny.node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
            tiny.node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
            tiny.node("DequantizeLinear", ["b", "bs", "bz"], ["bd"], axis=0),
            tiny.node("Conv", ["xd", "wd", "bd"], ["c"], kernel_shape=[3, 3]),
            tiny.node("QuantizeLinear", ["c", "ys", "yz"], ["cq"]),
            tiny.node("DequantizeLinear", ["cq", "ys", "yz"], ["y"]),
        ],
        inputs=[tiny.value("x", "float32", ["N", 4, 8, 8])],
        outputs=[tiny.value("y", "float32", ["N", 8, 6, 6])],
        initializers=[tiny.tensor(name, value) for name, value in constants.items()],
    )

    def answer(x):
        q = np.clip(np.rint(x / np.float32(0.02)) + 128, 0, 255) - 128
        windows = np.lib.stride_tricks.sliding_window_view(q, (3, 3), (2, 3))
        sums = np.einsum("nchwij,ocij->nohw", windows, weight.astype(np.float64))
        real = (sums + bias[:, None, None]) * (scales[:, None, None] * 0.02)
        return (np.clip(np.rint(real / 0.2) + 128, 0, 255) - 128) * 0.2

    return model, answer


@pytest.mark.parametrize("name", RUNNING)
def test_a_quantized_file_computes_in_integers_and_says_so(name, tiny, tmp_path):
    path = tmp_path / "quantized.onnx"
    model, answer = quantized(tiny)
    path.write_bytes(model)
    x = np.random.default_rng(3).uniform(-2, 2, (3, 4, 8, 8)).astype(np.float32)
    with open_backend(name, path, RuntimeOptions(precision="int8")) as runtime:
        assert dict(runtime.info.nodes) == {"int8": 1}
        got, expected = runtime.run({"x": x})["y"], answer(x)
    # the integer sums are exact; scaling them in float32 moves those that lie on a rounding
    # boundary, at most one in a hundred, by one step of 0.2
    steps = np.rint(np.abs(got - expected) / 0.2)
    assert steps.max() <= 1
    assert steps.mean() <= 0.01
    with pytest.raises(BackendUnavailable, match="precision fp32 was asked for"):
        open_backend(name, path, RuntimeOptions(precision="fp32"))


@pytest.mark.parametrize("name", RUNNING)
def test_an_fp16_file_says_what_it_computes_in(name, tiny, tmp_path):
    weight = np.random.default_rng(4).standard_normal((4, 4)).astype(np.float16)
    path = tmp_path / "half.onnx"
    path.write_bytes(
        tiny.model(
            [tiny.node("MatMul", ["x", "w"], ["y"])],
            inputs=[tiny.value("x", "float16", ["N", 4])],
            outputs=[tiny.value("y", "float16", ["N", 4])],
            initializers=[tiny.tensor("w", weight)],
        )
    )
    x = np.random.default_rng(5).standard_normal((2, 4)).astype(np.float16)
    with open_backend(name, path) as runtime:
        assert runtime.info.precision in ("fp16", "fp32")  # by the processor
        got = runtime.run({"x": x})["y"].astype(np.float64)
    # 4 products and their sum, each rounded to 11 bits: 8 * 2**-11 of the largest
    expected = x.astype(np.float64) @ weight.astype(np.float64)
    assert np.abs(got - expected).max() <= 8 * 2**-11 * np.abs(expected).max()


NETS = {
    "yolox_nano_coco.onnx": ((1, 3, 416, 416),),
    "yunet_n.onnx": ((1, 3, 320, 320), (1, 3, 192, 256)),
    "rfb320_face.onnx": ((1, 3, 240, 320),),
}


@pytest.mark.parametrize("file", NETS)
def test_nets_that_others_wrote_give_the_same_answers_everywhere(file, assets):
    if "onnxruntime" not in RUNNING or len(RUNNING) < 2:
        pytest.skip("needs onnxruntime and another runtime to compare with")
    path = assets / "weights" / file
    answers = {}
    for name in RUNNING:
        with open_backend(name, path) as runtime:
            (tensor,) = runtime.inputs
            assert dict(runtime.info.nodes).keys() == {"fp32"}
            answers[name] = [
                runtime.run({tensor.name: rng_feed(shape)}) for shape in fitting(tensor, NETS[file])
            ]
    reference = answers.pop("onnxruntime")
    assert len(reference[0]) == {"yunet_n.onnx": 12, "rfb320_face.onnx": 2}.get(file, 1)
    for got in answers.values():
        for one, other in zip(got, reference, strict=True):
            assert one.keys() == other.keys()
            for key, values in other.items():
                # 1e-4 of the largest value: the project's bound for equal FP32 programs
                assert np.abs(one[key] - values).max() <= 1e-4 * np.abs(values).max(), key


def rng_feed(shape):
    return np.random.default_rng(6).uniform(0, 255, shape).astype(np.float32)


def fitting(tensor, shapes):
    """Those of ``shapes`` that the file takes; all of them where its sizes are symbolic."""
    return [
        shape
        for shape in shapes
        if all(isinstance(want, str) or want == size for want, size in zip(tensor.shape, shape))  # noqa: B905
    ]


# --- caches of compiled models ----------------------------------------------------------------


def scaling(tiny, path, factor, *, external):
    """``y = x * factor``: files of one size, one time and the same names, whatever the factor."""
    weights = np.full(4, factor, np.float32)
    if external:
        (path.parent / "w.bin").write_bytes(weights.tobytes())
        constant = tiny.external("w", [4], location="w.bin", length=16)
    else:
        constant = tiny.tensor("w", weights)
    path.write_bytes(
        tiny.model(
            [tiny.node("Mul", ["x", "w"], ["y"])],
            inputs=[tiny.value("x", "float32", [4])],
            outputs=[tiny.value("y", "float32", [4])],
            initializers=[constant],
        )
    )
    os.utime(path, (1e9, 1e9))  # as unpacked from an archive, or copied with its time
    return path


@pytest.mark.parametrize("external", [False, True])
def test_a_cache_never_gives_one_model_the_weights_of_another(external, tiny, tmp_path):
    path, cache = tmp_path / "m.onnx", tmp_path / "cache"
    digests, folders = set(), set()
    for factor in (2, 3):
        scaling(tiny, path, factor, external=external)
        digests.add(content_sha256(path))
        folders.add(tensorrt_folder(path, cache))
        if "openvino" in RUNNING:
            for _ in range(2):  # compiled, then taken from the cache
                with open_backend("openvino", path, RuntimeOptions(cache_dir=cache)) as runtime:
                    answer = runtime.run({"x": np.ones(4, np.float32)})["y"]
                np.testing.assert_array_equal(answer, np.full(4, factor, np.float32))
    assert len(digests) == 2
    assert len(folders) == 2


def tensorrt_folder(path, cache, **options):
    """Where onnxruntime's TensorRT provider is told to keep the engines of ``path``."""
    ort_gpu = pytest.importorskip("edgecv.runtimes.ort_gpu")
    backend = object.__new__(ort_gpu.OrtTensorRtBackend)
    backend.path = backend.file = path
    provider, settings = backend._providers(RuntimeOptions(cache_dir=cache, **options))[0]
    assert provider == "TensorrtExecutionProvider"
    assert settings["trt_engine_cache_path"] == settings["trt_timing_cache_path"]
    return settings["trt_engine_cache_path"]


@pytest.mark.skipif("onnxruntime" not in RUNNING, reason="onnxruntime is not installed")
def test_tf32_is_off_for_good_once_it_was_turned_off(tiny, tmp_path, monkeypatch):
    from edgecv.runtimes.ort_gpu import TF32_SWITCH, OrtCudaBackend

    monkeypatch.setenv(TF32_SWITCH, "1")
    path = scaling(tiny, tmp_path / "m.onnx", 2, external=False)
    with_tf32 = tensorrt_folder(path, tmp_path, precision="tf32")
    assert os.environ[TF32_SWITCH] == "1"
    assert tensorrt_folder(path, tmp_path) != with_tf32
    assert os.environ[TF32_SWITCH] == "0"
    with pytest.raises(BackendUnavailable, match="TF32 is off in this process"):
        OrtCudaBackend(path, RuntimeOptions(precision="tf32"))


def test_onnxruntime_runs_on_dla_core_0_only(tiny, tmp_path):
    path = scaling(tiny, tmp_path / "m.onnx", 2, external=False)
    tensorrt_folder(path, tmp_path, dla_core=0)
    with pytest.raises(BackendUnavailable, match="DLA core 0 only"):
        tensorrt_folder(path, tmp_path, dla_core=1)


@pytest.mark.skipif("openvino" not in RUNNING, reason="openvino is not installed")
def test_a_cache_folder_that_cannot_be_is_said(tiny, tmp_path):
    path = scaling(tiny, tmp_path / "m.onnx", 2, external=False)
    with pytest.raises(InputError, match=r"m\.onnx.*could not be written"):
        open_backend("openvino", path, RuntimeOptions(cache_dir=path))


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
@pytest.mark.parametrize("name", RUNNING)
def test_external_data_lies_beside_the_file_not_beside_a_link_to_it(name, tiny, tmp_path):
    store, shop = tmp_path / "store", tmp_path / "shop"
    store.mkdir()
    shop.mkdir()
    (tmp_path / "secret.bin").write_bytes(np.full(4, 7, np.float32).tobytes())
    scaling(tiny, store / "v1.onnx", 2, external=True)
    (shop / "current.onnx").symlink_to(store / "v1.onnx")
    (shop / "w.bin").symlink_to(tmp_path / "secret.bin")  # what was not checked is not read
    with open_backend(name, shop / "current.onnx") as runtime:
        answer = runtime.run({"x": np.ones(4, np.float32)})["y"]
    np.testing.assert_array_equal(answer, np.full(4, 2, np.float32))


# --- files that are refused before a runtime sees them ----------------------------------------


def with_external(tiny, path, **entries):
    path.write_bytes(
        tiny.model(
            [tiny.node("Add", ["x", "w"], ["y"])],
            inputs=[tiny.value("x", "float32", [4])],
            outputs=[tiny.value("y", "float32", [4])],
            initializers=[tiny.external("w", [4], **entries)],
        )
    )
    return path


@pytest.mark.parametrize("name", RUNNING)
def test_external_data_beside_the_file_is_read(name, tiny, tmp_path):
    weights = np.arange(4, dtype=np.float32)
    (tmp_path / "w.bin").write_bytes(bytes(16) + weights.tobytes())
    path = with_external(tiny, tmp_path / "m.onnx", location="w.bin", offset=16, length=16)
    with open_backend(name, path) as runtime:
        answer = runtime.run({"x": np.ones(4, np.float32)})["y"]
    np.testing.assert_array_equal(answer, weights + 1)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "/etc/passwd"}, "inside the model's own folder"),
        ({"location": "../w.bin"}, "inside the model's own folder"),
        ({"location": "a/../../w.bin"}, "inside the model's own folder"),
        ({"location": "C:\\w.bin"}, "inside the model's own folder"),
        ({"location": "..\\w.bin"}, "inside the model's own folder"),
        ({"location": "w\0.bin"}, "inside the model's own folder"),
        ({"location": ""}, "inside the model's own folder"),
        ({"location": "link.bin"}, "leaves the model's own folder"),
        ({"location": "absent.bin"}, "not there"),
        ({"location": "w.bin", "length": 17}, "which has 16 bytes"),
        ({"location": "w.bin", "offset": -1}, "which has 16 bytes"),
        ({"location": "w.bin", "offset": "x"}, "no number"),
        ({"location": "sparse.bin"}, "2,147,483,649 bytes of external data"),
    ],
)
def test_hostile_external_data_is_refused(entries, message, tiny, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "w.bin").write_bytes(bytes(16))
    (tmp_path / "w.bin").write_bytes(bytes(16))
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    with (folder / "sparse.bin").open("wb") as file:
        file.truncate(2 * 1024**3 + 1)  # takes no room on the disk
    path = with_external(tiny, folder / "m.onnx", **entries)
    with pytest.raises(SpecError, match=message):
        check_file(path)
    for name in RUNNING:
        with pytest.raises(SpecError, match=message):
            open_backend(name, path)


def test_external_data_is_found_in_attributes_and_subgraphs_too(tiny, tmp_path):
    hidden = tiny.external("w", [4], location="/etc/passwd")
    path = tmp_path / "m.onnx"
    path.write_bytes(
        tiny.model(
            [tiny.node("Constant", [], ["y"], value=hidden)],
            inputs=[],
            outputs=[tiny.value("y", "float32", [4])],
        )
    )
    with pytest.raises(SpecError, match="'w' are in the external file '/etc/passwd'"):
        check_file(path)


def test_graphs_nested_without_end_are_refused(tiny, tmp_path):
    from edgecv.wire import varint

    def inside(field, value):
        return varint(field << 3 | 2) + varint(len(value)) + value

    graph = b""
    for _ in range(100):  # a graph in an attribute of a node of a graph ...
        graph = inside(1, inside(5, inside(6, graph)))
    path = tmp_path / "deep.onnx"
    path.write_bytes(inside(7, graph) + inside(14, inside(1, b"location")))
    with pytest.raises(SpecError, match="nested"):
        check_file(path)


@pytest.mark.parametrize(
    "content", [b"", b"\x00", b"PK\x03\x04 a zip", b"# text\n", b"\x80\x04pickle"]
)
def test_what_is_not_onnx_is_refused_alike_everywhere(content, tmp_path):
    path = tmp_path / "foreign.onnx"
    path.write_bytes(content)
    for name in RUNNING:
        with pytest.raises(SpecError, match="not an ONNX model"):
            open_backend(name, path)
