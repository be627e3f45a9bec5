"""The README's session, run as it stands; its two set-up commands are what .ci/run runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"


def shell_block(marker):
    return re.search(rf"<!-- {marker}.*?```sh\n(.*?)```", README.read_text(), re.S)[1]


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


def test_the_session_runs_offline_and_sees_a_cat(tmp_path):
    out = run(shell_block("session"), tmp_path)
    assert "samples/cat.jpg: cat" in out
    block = re.search(r"```python\n(.*?)```", README.read_text(), re.S)[1]
    run(f"python - <<'CODE'\n{block}\nCODE", tmp_path)


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
    assert len(used) >= 6
