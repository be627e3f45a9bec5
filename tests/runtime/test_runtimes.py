"""One conformance suite over all backends that are usable here, on the model in the wheel."""

import threading

import numpy as np
import pytest

import edgecv
from edgecv.errors import BackendUnavailable, FeedError, InputError, RuntimeFailure, SpecError
from edgecv.measure.ready import READY_MODEL
from edgecv.measure.seeded import seeded_pictures
from edgecv.runtimes import open_backend, probe_backends
from edgecv.runtimes.base import RuntimeOptions

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


def test_unknown_backends_are_named_with_the_known_ones():
    with pytest.raises(BackendUnavailable, match="known are auto, onnxruntime"):
        open_backend("tensorflow", READY_MODEL)


def test_a_backend_that_is_not_usable_is_never_replaced(monkeypatch):
    from edgecv.runtimes.base import Probe
    from edgecv.runtimes.ort import OrtBackend

    monkeypatch.setattr(OrtBackend, "probe", lambda: Probe(False, reason="no wheel"))
    with pytest.raises(BackendUnavailable, match="no wheel"):
        open_backend("onnxruntime", READY_MODEL)
    with pytest.raises(BackendUnavailable, match="no runtime is usable"):
        open_backend("auto", READY_MODEL)


def test_auto_says_what_it_chose_and_why():
    with edgecv.load(READY_MODEL) as model:
        assert model.info.backend in RUNNING
        assert "usable" in model.info.reason


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


def test_the_self_test_holds_on_this_machine():
    outcome = edgecv.verify(READY_MODEL)
    assert outcome.passed, outcome
