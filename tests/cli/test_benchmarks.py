"""The suites of `benchmarks/`: they start, the README names them, their results keep a format."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
SHARED = {"record.py"}  # what the suites have in common
SUITES = sorted(path.name for path in BENCHMARKS.glob("*.py") if path.name not in SHARED)
SCHEMAS = {path.name for path in BENCHMARKS.glob("*.schema.json")}
RESULTS = sorted(
    path
    for path in BENCHMARKS.rglob("*.json")
    if path.name not in SCHEMAS and not path.name.startswith("bench-")
)
# one process: most of what they import is the same
HELP = """
import contextlib, io, runpy, sys
for script in sys.argv[1:]:
    sys.argv = [script, "--help"]
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code, script
    assert text.getvalue().startswith("usage:"), script
"""


def test_every_suite_starts():
    command = [sys.executable, "-c", HELP, *SUITES]
    done = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_readme_names_every_suite():
    named = set(re.findall(r"benchmarks/(\w+\.py)", (BENCHMARKS / "README.md").read_text()))
    assert named == set(SUITES)


def test_the_schema_is_one_and_describes_every_suite_that_writes():
    schema = json.loads((BENCHMARKS / "suite.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    written = {
        f"edgecv.{name}"
        for suite in SUITES
        for name in re.findall(r'"(\w+/\d+)"', (BENCHMARKS / suite).read_text())
    }
    assert written == set(schema["properties"]["schema"]["enum"])


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_committed_results_are_valid(path):
    schema = json.loads((BENCHMARKS / "suite.schema.json").read_text())
    data = json.loads(path.read_text())
    jsonschema.validate(data, schema)
    assert data["schema"].startswith(f"edgecv.{path.stem}/")
