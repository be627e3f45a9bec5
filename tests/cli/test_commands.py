"""The command line as a user meets it: exit codes, JSON and nothing else, errors without traces."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecv.measure.ready import READY_MODEL

COMMANDS = [
    "export", "quantize", "adopt", "inspect", "predict", "eval", "verify", "bench", "train",
    "models", "backends", "doctor", "samples", "gallery", "report", "build",
]  # fmt: skip


def edgecv(*arguments, cwd=None, code=0):
    """Run the installed command; returns stdout, after checking the exit code and stderr."""
    command = [str(Path(sys.executable).parent / "edgecv"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    if code:
        assert done.stderr.strip() or done.stdout.strip()
    return done.stdout if not code else done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path):
    """A data set of ten pictures in two classes."""
    rng = np.random.default_rng(0)
    for index in range(10):
        path = tmp_path / "set" / ("cat" if index % 2 else "dog") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    return tmp_path / "set"


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help(command):
    assert "Usage" in edgecv(*command, "--help")


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['edgecv', '--help']\n"
        "from edgecv.cli.app import app\n"
        "try: app()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'onnx', 'onnxruntime', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_json_is_one_object_and_nothing_else(folder, tmp_path):
    runs = {
        "inspect": [READY_MODEL],
        "predict": [READY_MODEL, folder],
        "eval": [READY_MODEL, folder],
        "verify": [READY_MODEL],
        "bench": [READY_MODEL, "--duration", "0.1"],
        "models": [],
        "backends": [],
        "doctor": [],
        "samples": [tmp_path / "s"],
    }
    for command, arguments in runs.items():
        data = json.loads(edgecv(command, *arguments, "--json"))
        assert isinstance(data, dict), command
        if command == "eval":
            assert {"task", "count", "top1", "top5", "backend", "precision"} <= data.keys()
            assert data["count"] == 10
        if command == "verify":
            keys = {"passed", "max_abs", "max_rel", "cosine", "sqnr_db", "agreement"}
            assert (keys | {"first_divergent_node"}) <= data.keys()
        if command == "bench":
            (record,) = data["records"]
            keys = {"model", "backend", "precision", "threads", "batch", "scenario", "latency_ms"}
            assert (keys | {"throughput", "load_ms", "peak_rss_mb"}) <= record.keys()
        if command == "predict":
            assert len(data["results"]) == 10
            assert data["results"][0]["top"][0]["label"]


def test_errors_are_json_too():
    out = subprocess.run(
        [str(Path(sys.executable).parent / "edgecv"), "inspect", "absent.onnx", "--json"],
        capture_output=True,
        text=True,
    )
    assert out.returncode == 2
    assert "no such file" in json.loads(out.stdout)["error"]["message"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["export", "mobilnet"], 2, "did you mean mobilenetv2"),
        (["export", "mobilenetv2", "--batch", "many"], 2, "expected a number of pictures"),
        (["export", "mobilenetv2", "--mean", "a,b"], 2, "expected one number"),
        (
            ["export", "lenet5", "--weights", "random", "--precision", "int8"],
            2,
            "no BatchNorm layers.*--calibration DIR",
        ),
        (["export", "mobilenetv2", "--precision", "int4"], 2, "not one of fp32, fp16, int8"),
        (["export", "mobilenetv2", "--target", "openvino"], 2, "are for precision int8"),
        (["quantize", READY_MODEL], 2, "needs --calibration DIR.*`edgecv export NAME"),
        (["quantize", READY_MODEL, "--calibration", "none"], 2, "no such folder"),
        (["export", "lenet5", "--pixels-color", "bgr"], 2, "--pixels-in's channels: give both"),
        (["export", "mobilenetv2", "--weights", "none.pth"], 2, "no such file"),
        (["export", "none.toml"], 2, "no such recipe"),
        (["predict", READY_MODEL, "none.jpg"], 2, "no such file"),
        (["predict", READY_MODEL, "x", "--conf", "0.5"], 2, "do not apply"),
        (["eval", READY_MODEL, "none"], 2, "no such folder"),
        (["bench", READY_MODEL, "--duration", "0"], 2, "above 0"),
        (["bench", READY_MODEL, "--backend", "tflite"], 3, "there is no backend"),
        (["predict", READY_MODEL, "x", "--backend", "tflite"], 3, "there is no backend"),
        (["bench", "none.onnx"], 2, "no such file"),
        (["train", "mobilenetv2"], 2, "no pictures in it"),
        (["train", "yunet"], 2, "no recipe named"),
        (["train", "mobilenetv2-cifar10", "--set", "epochs=many"], 2, "expected int"),
        (["nothing"], 2, "No such command"),
        (["export"], 2, "Missing argument"),
    ],
)
def test_mistakes(tmp_path, arguments, code, message):
    import re

    assert re.search(message, edgecv(*arguments, cwd=tmp_path, code=code))
    assert list(tmp_path.iterdir()) == []


def test_predict_names_what_it_could_not_read_and_goes_on(folder, tmp_path):
    (folder / "cat" / "broken.jpg").write_bytes(b"no")
    out = edgecv("predict", READY_MODEL, folder, code=2)
    assert "broken.jpg" in out
    assert "1 of 11 pictures could not be read" in out
    assert out.count(".png: ") == 10


def test_predict_saves_drawn_pictures(folder, tmp_path):
    edgecv("predict", READY_MODEL, folder / "cat", "--save", tmp_path / "drawn")
    drawn = sorted((tmp_path / "drawn").glob("*.png"))
    assert len(drawn) == 5
    with Image.open(drawn[0]) as picture:
        assert picture.height > 40


def test_eval_matches_folders_or_refuses(folder, tmp_path):
    (folder / "cat").rename(folder / "kitty")
    assert "no class of the model, such as kitty" in edgecv("eval", READY_MODEL, folder, code=2)
    classes = tmp_path / "classes.json"
    classes.write_text('{"kitty": 3, "dog": 5}')
    edgecv("eval", READY_MODEL, folder, "--classes", classes, "-o", tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["count"] == 10


def test_bench_takes_the_models_of_this_folder_or_the_ready_one(tmp_path):
    (tmp_path / "foreign.onnx").write_bytes(b"\x3a\x00")
    data = json.loads(edgecv("bench", "--duration", "0.1", "--json", cwd=tmp_path))
    assert data["records"][0]["path"] == str(READY_MODEL)
    shutil.copy(READY_MODEL, tmp_path / "mine.onnx")
    data = json.loads(edgecv("bench", "--duration", "0.1", "--json", cwd=tmp_path))
    assert [record["path"] for record in data["records"]] == ["mine.onnx"]


def test_verify_exits_1_where_it_falls_short():
    out = edgecv("verify", READY_MODEL, "--min-cosine", "1.0", "--backend", "fake", code=1)
    assert "FAILED" in out
