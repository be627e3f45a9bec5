"""`edgecv bench` as a user meets it, and the measuring behind it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner

from edgecv.cli.app import app
from edgecv.errors import CheckFailed, InputError
from edgecv.measure.ready import READY_MODEL
from edgecv.measure.record import identity
from edgecv.workflows.bench import BenchReport, bench
from edgecv.workflows.report import report_on

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "benchmarks" / "bench.schema.json").read_text())
# A child whose backend "fake" dies in the third slice, or sleeps a planted share longer
CRASHING = """
import os, sys
from edgecv.measure import child
real = child.Session.time
count = [0]
def time(self, request):
    count[0] += 1
    if count[0] == 3 and self.model.info.backend == "fake":
        sys.stderr.write("the driver is gone\\n"); sys.stderr.flush(); os._exit(9)
    return real(self, request)
child.Session.time = time
child.main()
"""


def edgecv(*arguments, cwd=None):
    command = [str(Path(sys.executable).parent / "edgecv"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def measured():
    """The ready model on two backends, with layers."""
    return bench(
        [READY_MODEL], backends=["onnxruntime", "fake"], threads=1, duration=0.4, rounds=6
    ).to_dict()


def test_every_pair_has_a_record_of_the_published_form(measured):
    jsonschema.validate(measured, SCHEMA)
    ort, fake = measured["records"]
    assert (ort["backend"], fake["backend"]) == ("onnxruntime", "fake")
    assert len(ort["round_p50_ms"]) == 6
    assert ort["count"] >= 10
    assert ort["preprocess_ms"]
    assert ort["end_to_end_ms"]
    quantiles = ort["quantiles_ms"]
    assert quantiles == sorted(quantiles)
    assert quantiles[32] == pytest.approx(ort["latency_ms"]["p50"], rel=1e-3)
    (comparison,) = measured["comparisons"]
    assert comparison["ratio"]["low"] <= comparison["ratio"]["value"] <= comparison["ratio"]["high"]
    assert comparison["ratio"]["value"] < 1  # the fake computes nothing
    # the wall clock of a picture is not less than what it is made of, bar noise
    whole = ort["end_to_end_ms"]["p50"]
    assert whole > ort["preprocess_ms"]["p50"] / 2


def test_committed_results_are_valid_and_named_by_their_content():
    files = sorted((ROOT / "benchmarks").rglob("bench-*.json"))
    assert files, "there is no committed result"
    for path in files:
        data = json.loads(path.read_text())
        jsonschema.validate(data, SCHEMA)
        assert path.stem == identity(data), path
        assert not data["partial"]
        assert not any(Path(record["path"]).is_absolute() for record in data["records"])


def test_a_backend_that_dies_is_reported_with_its_words_and_the_others_go_on():
    report = bench(
        [READY_MODEL],
        backends=["fake", "onnxruntime"],
        threads=1,
        duration=0.2,
        child=(sys.executable, "-c", CRASHING),
    )
    jsonschema.validate(report.to_dict(), SCHEMA)
    assert [record["backend"] for record in report.records] == ["onnxruntime"]
    (failure,) = report.failures
    assert failure.backend == "fake"
    assert "the driver is gone" in failure.message
    assert "exit 9" in failure.message
    assert isinstance(report.error(), CheckFailed)


def test_json_keeps_the_records_of_those_that_could_be_measured():
    done = edgecv(
        "bench",
        READY_MODEL,
        "--backend",
        "ort",
        "--backend",
        "tflite",
        "--duration",
        "0.1",
        "--json",
    )
    assert done.returncode == 1
    data = json.loads(done.stdout)
    jsonschema.validate(data, SCHEMA)
    assert len(data["records"]) == len(data["failures"]) == 1
    assert "there is no backend" in data["failures"][0]["message"]
    assert "tflite" in done.stderr


def test_a_file_that_cannot_be_written_costs_no_figures(tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("a file, and no folder")
    short = ["--backend", "fake", "--duration", "0.1", "--json"]
    lost, kept = taken / "out.json", tmp_path / "table.md"
    done = edgecv("bench", READY_MODEL, *short, "-o", lost, "--markdown", kept)
    assert done.returncode == 2
    jsonschema.validate(json.loads(done.stdout), SCHEMA)
    assert str(lost) in done.stderr
    assert "fake" in kept.read_text()


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_keeps_what_was_measured(tmp_path):
    out = tmp_path / "partial.json"
    command = [Path(sys.executable).parent / "edgecv", "bench", READY_MODEL, "--backend", "fake"]
    process = subprocess.Popen(
        [*map(str, command), "--duration", "600", "--rounds", "6000", "-o", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 0, stderr
    assert "interrupted" in stderr
    data = json.loads(out.read_text())
    jsonschema.validate(data, SCHEMA)
    assert data["partial"]
    assert data["records"][0]["count"] > 0
    assert "peak_rss_mb" in data["records"][0] or sys.platform != "linux"


def test_ctrl_c_before_anything_was_measured_is_no_success(monkeypatch, measured):
    nothing = BenchReport(measured["environment"], (), partial=True)
    monkeypatch.setattr("edgecv.workflows.bench.bench", lambda *_, **__: nothing)
    done = CliRunner().invoke(app, ["bench", str(READY_MODEL)])
    assert done.exit_code == 1
    assert "before anything was measured" in done.stderr


@pytest.mark.parametrize("scenario", ["multi-stream", "offline", "server"])
def test_scenarios(scenario):
    report = bench([READY_MODEL], backends=["fake"], scenario=scenario, duration=0.3)
    data = report.to_dict()
    jsonschema.validate(data, SCHEMA)
    (record,) = data["records"]
    if scenario == "multi-stream":
        assert record["pictures_per_query"] == 8
    if scenario == "server":
        assert record["server"]["held"]
        assert record["throughput"] > 0


def test_a_bound_that_no_rate_keeps_is_said():
    (record,) = bench(
        [READY_MODEL], scenario="server", duration=0.2, latency_bound_ms=1e-4, threads=1
    ).records
    assert record["server"]["held"] is False
    assert record["throughput"] == 0


def test_baseline_finds_a_slower_model_and_exits_1(tmp_path, monkeypatch):
    """The old file is the fake's, the new one runs a real net: slower beyond any doubt."""
    new, old = tmp_path / "new.onnx", tmp_path / "old.onnx"
    for path in (new, old):
        path.write_bytes(READY_MODEL.read_bytes())
    slow = (
        "import time\nfrom edgecv.measure import child\nreal = child._stages\n"
        "def stages(model, plan):\n"
        "    found = real(model, plan)\n"
        "    if model.runtime.path.name == 'new.onnx':\n"
        "        run = found['inference']\n"
        "        found['inference'] = lambda: (time.sleep(0.01), run())\n"
        "    return found\n"
        "child._stages = stages\nchild.main()\n"
    )
    report = bench(
        [new],
        baseline=old,
        backends=["fake"],
        duration=0.3,
        rounds=8,
        child=(sys.executable, "-c", slow),
    )
    assert [verdict.word for verdict in report.regressions] == ["regression"]
    report = bench(
        [old],
        baseline=new,
        backends=["fake"],
        duration=0.3,
        rounds=8,
        child=(sys.executable, "-c", slow),
    )
    assert [verdict.word for verdict in report.verdicts] == ["improvement"]
    with pytest.raises(InputError, match="compared with itself"):
        bench([new], baseline=new)


def test_compare_refuses_another_machine(tmp_path, measured):
    other = json.loads(json.dumps(measured))
    other["environment"]["machine_id"] = "0" * 12
    other["environment"]["cpu"] = "Cortex-A76"
    path = tmp_path / "old.json"
    path.write_text(json.dumps(other))
    done = edgecv("bench", READY_MODEL, "--compare", path, "--duration", "0.1")
    assert done.returncode == 2
    assert "another machine (Cortex-A76" in done.stderr
    path.write_text(json.dumps({"schema": "edgecv.bench/1"}))
    with pytest.raises(InputError, match="measure it again"):
        bench([READY_MODEL], compare=path)
    path.write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        bench([READY_MODEL], compare=path)
    path.write_text(json.dumps(measured | {"records": [{}]}))
    with pytest.raises(InputError, match="damaged"):
        bench([READY_MODEL], compare=path)


def test_compare_matches_records_of_an_earlier_session(tmp_path, measured):
    path = tmp_path / "old.json"
    slower = json.loads(json.dumps(measured))
    for record in slower["records"]:
        record["round_p50_ms"] = [value / 10 for value in record["round_p50_ms"]]
    path.write_text(json.dumps(slower))
    arguments = {"backends": ["onnxruntime"], "threads": 1, "duration": 0.3, "rounds": 6}
    assert bench([READY_MODEL], compare=path, **arguments).regressions
    with pytest.raises(InputError, match="holds none of these"):
        bench([READY_MODEL], compare=path, backends=["fake"], threads=1, batch=2, duration=0.1)


def test_report_merges_by_sha256_and_escapes(tmp_path, measured):
    score = {"schema": "edgecv.eval/1", "sha256": measured["records"][0]["sha256"], "top1": 0.9014,
             "backend": "onnxruntime"}  # fmt: skip
    evil = json.loads(json.dumps(measured))
    evil["environment"]["machine_id"] = "abcdef012345"
    for record in evil["records"]:
        record["file"] = "<script>alert(1)</script>|.onnx"
    files = []
    for name, data in (("a", measured), ("b", evil), ("c", score)):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(data))
    html, markdown = tmp_path / "r.html", tmp_path / "r.md"
    done = edgecv("report", *files, "--html", html, "--markdown", markdown, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert len(rows) == 4
    assert {row["score"] for row in rows} == {"top1 90.1%"}
    text = html.read_text()
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    own = measured["environment"]["machine_id"]  # in the charts each pair says where it ran
    assert "(abcdef012345): median" in text
    assert f"({own}): median" in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    assert "| top1 90.1% |" in markdown.read_text()
    assert "\\|.onnx" in markdown.read_text()
    done = edgecv("report", files[2])
    assert done.returncode == 2
    assert "none of the files is a benchmark" in done.stderr
    assert edgecv("report", READY_MODEL).returncode == 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_measuring_process_is_left(measured):
    """Ours end with the measurement; the second field behind the name in stat is the parent."""
    left = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            command = (stat.parent / "cmdline").read_bytes()
        except OSError:  # it has just ended
            continue
        if parent == os.getpid() and b"edgecv.measure.child" in command:
            left.append(command)
    assert left == []


def test_the_report_names_what_failed(measured):
    failed = measured | {
        "failures": [{"model": "m.onnx", "backend": "x", "message": "gone", "exit_code": 1}]
    }
    assert any("m.onnx on x: gone" in note for note in report_on([failed]).notes)
