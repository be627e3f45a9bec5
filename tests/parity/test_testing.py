"""`edgecv.testing` and the pytest plug-in, as a user's own CI has them."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgecv.errors import BackendUnavailable, InputError
from edgecv.measure.ready import READY_MODEL
from edgecv.spec import read_spec, write_spec
from edgecv.testing import assert_parity

ROOT = Path(__file__).parents[2]


def test_the_fixture_opens_models_on_the_chosen_backend(edgecv_model, edgecv_backend, pixels):
    model = edgecv_model(READY_MODEL)
    assert model(pixels).best.label in model.spec.labels
    assert edgecv_backend in ("auto", model.info.backend)


def test_parity_passes_or_says_by_how_much_it_does_not(tmp_path):
    assert assert_parity(READY_MODEL).passed
    spec = read_spec(READY_MODEL)
    wrong = tmp_path / "wrong.onnx"
    preparation = dataclasses.replace(spec.preparation, color="bgr")
    write_spec(READY_MODEL, dataclasses.replace(spec, preparation=preparation), wrong)
    with pytest.raises(AssertionError, match=r"max_rel is .*, the bound 0.0001.*diverges: input"):
        assert_parity(wrong, READY_MODEL, layers=True)
    with pytest.raises(AssertionError, match="agreement is"):
        assert_parity(wrong, READY_MODEL, min_agreement=1.0, min_cosine=0.5)
    with pytest.raises(InputError, match="compared with itself"):
        assert_parity(wrong, wrong)
    with pytest.raises(BackendUnavailable):
        assert_parity(wrong, backend="tflite")


def test_a_users_suite(tmp_path):
    """A project of its own, in a process of its own, with the option on its command line."""
    (tmp_path / "test_ours.py").write_text(
        "from edgecv.testing import assert_parity\n"
        f"MODEL = {str(READY_MODEL)!r}\n"
        "def test_parity(edgecv_backend):\n"
        "    assert_parity(MODEL, backend=edgecv_backend)\n"
        "def test_model(edgecv_model):\n"
        "    assert edgecv_model(MODEL).info.backend == 'fake'\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "edgecv.testing.plugin", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--edgecv-backend", "fake"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 1, done.stdout
    assert "1 failed, 1 passed" in done.stdout  # the fake's answers are no net's
    assert "max_rel is" in done.stdout
    done = subprocess.run(
        [*command, "--edgecv-backend", "tflite"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert "there is no backend 'tflite'" in done.stdout
    assert "skipped" not in done.stdout
