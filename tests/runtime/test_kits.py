"""The device kits at the root: the sample app runs, and what the kits pin is what CI tests."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgecv.measure.ready import READY_MODEL

ROOT = Path(__file__).resolve().parents[2]
KITS = ("raspberry-pi", "jetson", "x86-cpu", "nvidia-gpu", "intel")


def app(*arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "runtimes" / "app.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
    )


def test_the_sample_app_answers_a_folder(pixels, tmp_path):
    from PIL import Image

    for name in ("b.png", "a.jpg"):
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    done = app(READY_MODEL, tmp_path, "--profile", "low-power", "--threads", 1)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["source"] for line in lines] == ["a.jpg", "b.png"]
    assert all(line["top"][0]["label"] and line["ms"] > 0 for line in lines)


def test_the_sample_app_says_what_is_wrong_without_a_traceback(tmp_path):
    for model, source, word in (
        (tmp_path / "absent.onnx", tmp_path, "absent.onnx"),
        (READY_MODEL, tmp_path / "nowhere", "nowhere"),
        (READY_MODEL, "camera:front", "front"),
    ):
        done = app(model, source)
        assert done.returncode == 1
        assert word in done.stderr
        assert "Traceback" not in done.stderr


def test_the_sample_app_is_short():
    assert len((ROOT / "runtimes" / "app.py").read_text().splitlines()) <= 60


@pytest.mark.parametrize("kit", KITS)
def test_every_kit_pins_what_the_constraints_pin(kit):
    folder = ROOT / "runtimes" / kit
    assert "app.py" in (folder / "README.md").read_text()
    pins = set((ROOT / "constraints.txt").read_text().lower().splitlines())
    from edgecv import __version__

    for line in (folder / "requirements.txt").read_text().splitlines():
        if line.startswith("edgecv"):
            assert line.endswith(f"=={__version__}")
        elif "==" in line and kit not in ("raspberry-pi", "jetson"):
            assert line.lower() in pins, line
