"""The README's commands, run as they stand; its two set-up commands are what .ci/run runs."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "README.md"

# names that the README's examples give to what a reader has -> what stands for it here
YOURS = {
    "mine.pth": "weights/mobilenet_v2_imagenet.pth",
    "pictures": "imagenet",
    "yolox_nano_coco.onnx": "weights/yolox_nano_coco.onnx",
    "coco": "coco",
    "mobilefacenet.pt": "weights/mobilefacenet.pt",
    "yunet_n.onnx": "weights/yunet_n.onnx",
    "faces": "faces",
}


def shell_block(marker):
    return re.search(rf"<!-- {marker}\b.*?```sh\n(.*?)```", README.read_text(), re.S)[1]


def run(script, folder):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """The folder in which the README's session has been run, and what it printed."""
    folder = tmp_path_factory.mktemp("session")
    return folder, run(shell_block("session"), folder)


@pytest.fixture(scope="module")
def reader(tmp_path_factory, assets):
    """The folder of a reader who has a checkpoint, pictures and other people's models."""
    folder = tmp_path_factory.mktemp("reader")
    for name, source in YOURS.items():
        (folder / name).symlink_to(assets / source)
    lines = (assets / "imagenet" / "classes.txt").read_text().splitlines()
    names = [re.sub(r"^(n\d{8})[\s,]+", "\\1\t", line) for line in lines]
    (folder / "mine.txt").write_text("\n".join(names) + "\n")
    with zipfile.ZipFile(assets / "cifar10_test.zip") as archive:  # photos: a folder per class
        for kind in ("cat", "ship"):
            for name in [n for n in archive.namelist() if f"/{kind}/" in n and "." in n][:12]:
                path = folder / "photos" / kind / Path(name).name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(name))
    return folder


def test_the_session_runs_offline_and_sees_a_cat(session):
    folder, out = session
    assert "samples/cat.jpg: cat" in out
    block = re.search(r"```python\n(.*?)```", README.read_text(), re.S)[1]
    run(f"python - <<'CODE'\n{block}\nCODE", folder)


def test_the_runtimes_part_goes_on_from_the_session(session):
    folder, _ = session
    run(shell_block("runtimes"), folder)
    assert "openvino" in (folder / "report.html").read_text()


def test_your_own_checkpoint_then_int8(reader):
    run(shell_block("yours"), reader)
    assert (reader / "mobilenetv2-fp16.onnx").is_file()
    out = run(shell_block("int8"), reader)
    assert "52 QLinearConv" in out


def test_training_from_a_folder(reader):
    out = run(shell_block("train"), reader)
    assert (reader / "sheet.png").is_file()
    assert len(re.findall(r"^photos/.*: (cat|ship) ", out, re.M)) == 24


def test_other_peoples_models(reader):
    out = run(shell_block("others"), reader)
    assert "AP" in out
    assert len(list((reader / "drawn").glob("*.jpg"))) == 128


def test_faces(reader):
    out = run(shell_block("faces"), reader)
    assert "300 of 300" in out or "100.00%" in out
    assert "anna" in out


def test_the_main_command_works_in_an_environment_that_is_set_up(tmp_path):
    """Without its first half, which makes the environment that this test runs in."""
    command = shell_block("main").strip()
    assert command.startswith("python3 -m venv .venv && . .venv/bin/activate && pip install")
    out = run(command[command.index("edgecv export") :], tmp_path)
    assert out.splitlines()[-1].startswith("samples/cat.jpg: cat")


def test_every_edgecv_command_of_the_readme_exists():
    from typer.main import get_command

    from edgecv.cli.app import app

    known = set(get_command(app).commands)
    used = set(re.findall(r"^edgecv ([a-z]+)", README.read_text(), re.M))
    assert used <= known
    assert len(used) >= 12
