"""What the figures of a benchmark rest on: percentiles, ratios, sensors, scenarios, doctor."""

import itertools
import math
import sys
import time
from array import array
from pathlib import Path

import numpy as np
import pytest

from edgecv.errors import InputError
from edgecv.measure import statistics
from edgecv.measure.child import Session
from edgecv.measure.machine import installed
from edgecv.measure.record import Verdict, judge_baseline, record_of
from edgecv.measure.report import number, pareto
from edgecv.measure.rounds import Pair, Rounds
from edgecv.measure.scenarios import Plan, RateSearch, plan, serve
from edgecv.measure.statistics import Interval, ratio, ratio_by_turns, ratio_of_sessions, spread
from edgecv.measure.telemetry import Counters, Machine, Sample, Watch, settings
from edgecv.measure.timing import by_turns, needed, percentiles, timed, warm_up
from edgecv.runtimes.base import Probe
from edgecv.workflows import doctor


def test_percentiles_only_where_the_sample_supports_them():
    assert [needed(p) for p in (50, 90, 99, 99.9)] == [5, 29, 299, 2995]
    assert percentiles([1_000_000] * 4) == {}
    assert percentiles([1_000_000] * 28) == {"p50": 1.0}
    assert list(percentiles([1_000_000] * 298)) == ["p50", "p90"]
    assert list(percentiles(range(3000))) == ["p50", "p90", "p99", "p99.9"]


def test_nothing_is_dropped_and_nothing_else_is_called():
    calls = []
    times = timed(lambda: calls.append(0), 0, least=7)
    assert len(times) == len(calls) == 7
    warm_up(lambda: calls.append(0), 0)
    assert len(calls) == 10


def test_a_ratio_is_taken_within_rounds():
    """The machine slows to a third on the way: both times drift, their ratio does not."""
    rng = np.random.default_rng(0)
    drift = np.linspace(1, 3, 20)
    old = drift * (1 + 0.002 * rng.standard_normal(20))
    new = 1.05 * drift * (1 + 0.002 * rng.standard_normal(20))
    found = ratio(new, old)
    assert found.low < 1.05 < found.high
    assert found.half_width < 0.005
    apart = ratio_of_sessions(new, old)
    assert apart.half_width > 20 * found.half_width
    assert ratio(new[:4], old[:4]) is None
    assert spread(old[:4]) is None
    assert spread([2.0] * 9) == 0


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """300 comparisons without a difference; a right 99% interval misses more than 12 of them
    (4%) with a probability below 1e-4, and a 95% one would miss 15 on average."""
    rng = np.random.default_rng(0)
    missed = 0
    for index in range(300):
        noise = rng.standard_normal(20) if index % 2 else rng.standard_t(2, 20)
        found = ratio(np.exp(0.01 * noise), np.ones(20))
        missed += not found.low <= 1 <= found.high
    assert missed <= 12


def test_verdicts():
    def word(low, high):
        return Verdict("m", "b", "o", Interval((low + high) / 2, low, high), 0.02).word

    assert word(1.03, 1.05) == "regression"
    assert word(0.90, 0.95) == "improvement"
    assert word(0.99, 1.01) == "unchanged"
    assert word(1.01, 1.05) == "undecided"
    assert word(0.9, 1.1) == "undecided"
    assert Verdict("m", "b", "o", None, 0.02).word == "undecided"


def test_how_each_scenario_feeds_a_file():
    assert plan("single-stream", "N", None, "m") == Plan(1, 1)
    assert plan("offline", "N", None, "m") == Plan(8, 1)
    assert plan("multi-stream", "N", None, "m") == Plan(8, 1)
    assert plan("multi-stream", "N", 2, "m") == Plan(2, 4)
    assert plan("multi-stream", 1, None, "m") == Plan(1, 8)
    assert plan("multi-stream", 3, None, "m").pictures == 9
    with pytest.raises(InputError, match="fixed at 1, not 4"):
        plan("offline", 1, 4, "m")
    with pytest.raises(InputError, match="sends 8 pictures at once"):
        plan("multi-stream", "N", 3, "m")


def test_a_picture_that_waits_counts_from_its_arrival(monkeypatch):
    """A model of 10 ms at 1,000 arrivals a second: the queue grows, and the latency with it."""
    now = [0]
    monkeypatch.setattr("edgecv.measure.scenarios.time.perf_counter_ns", lambda: now[0])
    monkeypatch.setattr(
        "edgecv.measure.scenarios.time.sleep",
        lambda s: now.__setitem__(0, now[0] + int(s * 1e9) + 100_000),
    )

    def run():
        now[0] += 10_000_000

    latencies = serve(run, 1000, 0.05, seed=0)
    assert len(latencies) == 50
    assert all(b > a for a, b in itertools.pairwise(latencies))
    assert latencies[-1] > 400_000_000


def test_the_search_finds_the_highest_rate_that_keeps_the_bound():
    """A queue whose latency is 10 / (1 - load) ms: 50 ms are reached at a load of 0.8."""
    search = RateSearch(capacity=100, bound_ms=50, step_seconds=10)
    assert search.percentile == 99
    for _ in range(10):
        load = search.rate / search.capacity
        search.seen(array("q", [int(10e6 / (1 - load))] * 300))
    assert search.best[0] == pytest.approx(80, abs=0.2)
    never = RateSearch(capacity=100, bound_ms=1, step_seconds=0.1)
    assert never.percentile == 90 or never.percentile == 50
    never.seen(array("q", [10_000_000]))
    assert never.best is None


def test_what_warms_a_slice_up_is_not_the_neighbours_work():
    """A slow model's two runs before each turn are a third of its time."""

    def run():
        until = time.process_time_ns() + 5_000_000
        while time.process_time_ns() < until:
            pass

    session = Session.__new__(Session)
    session.stages, session.cpu_ns, session.wall_ns = {"inference": run}, 0, 0
    reply = session.time({"stage": "inference", "seconds": 0.0, "least": 1})
    assert len(reply["times"]) == 1
    assert 5_000_000 <= session.cpu_ns <= reply["cpu_ns"] - 2 * 5_000_000
    reply = session.serve({"rate": 1000.0, "seconds": 0.002, "seed": 0})
    assert reply["cpu_ns"] >= 3 * 5_000_000


def test_a_servers_energy_is_shared_by_all_queries_and_its_rate_is_in_pictures():
    pair = Pair("m.onnx", "fake", {}, description={"pictures_per_query": 4})
    pair.search, pair.resources = RateSearch(100, 50, 1), {"provider": "fake"}
    pair.watch = Watch(Machine(Path("/nowhere")), energy_j=3.0, has_energy=True, seconds=3.0)
    for latency_ms in (10, 10, 60):  # holds, holds, does not
        pair.search.seen(array("q", [latency_ms * 1_000_000] * 10))
    record = record_of(pair)
    assert record["count"] == 10
    assert record["telemetry"]["energy_mj_per_run"] == 100.0
    assert record["throughput"] == pytest.approx(4 * 100 * 0.98 * 3 / 4)


def test_a_baseline_is_matched_by_the_backend_that_was_asked_for():
    """An engine and the file that it replaces open on two backends, both by `auto`."""

    def measured(path, asked, ran, milliseconds):
        record = {"file": "m", "pictures_per_query": 1, "backend": ran}
        return Pair(path, asked, {}, turns=[[milliseconds] * 3] * 9), record

    old = measured("old.onnx", "auto", "onnxruntime", 1.0)
    new = measured("new.engine", "auto", "tensorrt", 2.0)
    (verdict,) = judge_baseline([old, new], "old.onnx")
    assert (verdict.word, verdict.interval.value) == ("regression", pytest.approx(2))
    other = measured("old.onnx", "openvino", "openvino", 1.0)
    assert judge_baseline([other, new], "old.onnx") == []


def test_a_ratio_is_taken_within_turns():
    """The machine is twice as slow for half of the turns, others in each round."""
    rng = np.random.default_rng(0)
    slow = np.where(rng.random((12, 40)) < 0.5, 2.0, 1.0)
    noise = 1 + 0.01 * rng.standard_normal((2, 12, 40))
    old, new = (slow * noise[0]).tolist(), (1.03 * slow * noise[1]).tolist()
    new[3][5] *= 50  # what hits one turn alone is no part of it
    found = ratio_by_turns(new, old)
    assert found.low <= 1.03 <= found.high
    assert found.half_width < 0.004  # 1% of noise
    new[-1] = new[-1][:7]  # Ctrl-C
    assert ratio_by_turns(new, old).value == pytest.approx(1.03, abs=0.004)
    assert ratio_by_turns(new[:4], old[:4]) is None


def test_a_model_that_loads_slowly_may_take_its_time_to_say_what_it_used(monkeypatch):
    waited = []

    def ask(self, request, timeout):
        waited.append(timeout)
        return {"provider": "slow"}

    monkeypatch.setattr(Pair, "ask", ask)
    pair = Pair("m.onnx", "fake", {}, child=object(), description={"load_ms": 30_000.0})
    Rounds([pair], 1.0)._ask_usage()
    assert waited[0] >= 60


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


PI = {
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1500000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "2400000\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "81250\n",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
}
JETSON = {
    "sys/class/thermal/thermal_zone0/type": "CPU-therm\n",
    "sys/class/thermal/thermal_zone0/temp": "45000\n",
    "sys/class/hwmon/hwmon3/name": "ina3221\n",
    "sys/class/hwmon/hwmon3/in1_label": "VDD_IN\n",
    "sys/class/hwmon/hwmon3/in1_input": "5000\n",
    "sys/class/hwmon/hwmon3/curr1_input": "1200\n",
    "sys/class/hwmon/hwmon3/in2_label": "VDD_CPU_GPU_CV\n",
    "sys/class/hwmon/hwmon3/in2_input": "5000\n",
    "sys/class/hwmon/hwmon3/curr2_input": "400\n",
    "var/lib/nvpmodel/status": "pmode:0002",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1500000",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq": "700000",
}
RAPL = {
    "sys/class/powercap/intel-rapl:0/energy_uj": "900000\n",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "1000000\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "7\n",
    "proc/stat": "cpu  100 0 50 1000 0 0 0 5 0 0\n",
    "proc/vmstat": "pswpin 3\npswpout 4\n",
}


def test_a_raspberry_pi(tmp_path):
    root = tree(tmp_path, PI)
    sample = Machine(root).sample()
    assert sample.frequency_mhz == 1500
    assert sample.temperature_c == 81.25
    assert sample.throttled == {"under-voltage", "throttled"}
    assert settings(root) == {"governor": "ondemand", "max_frequency_mhz": 2400}


def test_a_jetson(tmp_path):
    root = tree(tmp_path, JETSON)
    assert Machine(root).sample().power_w == 6.0  # the input rail alone: the others are behind it
    assert settings(root) == {"nvpmodel": "0002", "jetson_clocks": False}


def test_counters_that_run_over(tmp_path):
    root = tree(tmp_path, RAPL)
    machine = Machine(root)
    before = machine.counters()
    assert before == Counters({"intel-rapl:0": 900000}, 150, 5, 7, 7)
    (root / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("100000")
    after = machine.counters()
    assert machine.energy_j(before, after) == pytest.approx(0.2)


def test_what_cannot_be_read_is_absent(tmp_path):
    machine = Machine(tmp_path)
    assert machine.sample() == Sample()
    assert machine.counters() == Counters()
    assert settings(tmp_path) == {}
    watch = Watch(machine)
    watch.add(Counters(), Counters(), Sample(), 1.0, 0.5)
    assert watch.reasons() == []
    assert watch.to_dict(10) == {"other_processes_cores": 0.0}


def test_a_disturbed_run_says_by_what(tmp_path):
    watch = Watch(Machine(tree(tmp_path, RAPL)))
    ticks = 100
    for clock in (2000, 1500):
        watch.add(
            Counters({"intel-rapl:0": 0}, 0, 0, 7, 0),
            Counters({"intel-rapl:0": 500_000}, 2 * ticks, 1 * ticks, 8, 3),
            Sample(frequency_mhz=clock, throttled=frozenset({"under-voltage"})),
            1.0,
            0.9,
        )
    words = "; ".join(watch.reasons())
    for part in ("other processes used", "hypervisor", "under-voltage", "2 throttling", "6 pages",
                 "between 1500 and 2000 MHz"):  # fmt: skip
        assert part in words
    assert watch.to_dict(100)["energy_mj_per_run"] == 10


def test_the_front_and_the_figures():
    points = [(1, 5), (2, 9), (3, 7), (2, 8), (4, 10)]
    assert pareto(points) == [0, 1, 4]
    assert [number(v) for v in (None, 0, 1234.5, 12.345, 1.2345, 0.01234)] == [
        "", "0", "1234", "12.3", "1.23", "0.012",
    ]  # fmt: skip


def test_the_margin_is_above_what_the_rule_for_noise_allows():
    assert statistics.NOISY_HALF_WIDTH <= statistics.MEANINGFUL
    assert math.isclose(statistics.CONFIDENCE, 0.99)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"simd": ["avx2"]}, "no VNNI"),
        ({"simd": ["sse4_2"]}, "no AVX2"),
        ({"architecture": "aarch64", "simd": ["asimd"]}, "no NEON dot product"),
        ({"governor": "ondemand"}, "governor is ondemand"),
        ({"nvpmodel": "0002", "jetson_clocks": False}, "power mode 0002"),
        ({"memory_mb": 900, "swap_mb": 0}, "no swap"),
        ({"packages": {"onnxruntime": "1", "onnxruntime-gpu": "1"}}, "both installed"),
        ({"packages": {"opencv-python": "1", "opencv-python-headless": "1"}}, "both installed"),
        ({"packages": {"torch": "2+cu12"}}, "CUDA build of torch"),
    ],
)
def test_doctor_names_what_is_wrong_and_what_to_do(monkeypatch, change, message):
    healthy = {
        "architecture": "x86_64", "simd": ["avx2", "avx512_vnni"], "memory_mb": 16000,
        "swap_mb": 2000, "packages": {}, "governor": "performance",
    }  # fmt: skip
    monkeypatch.setattr(doctor, "nvidia_devices", list)
    monkeypatch.setattr(doctor, "Machine", lambda: Machine(Path("/nowhere")))
    monkeypatch.setattr(doctor, "environment", lambda: dict(healthy))
    monkeypatch.setattr(doctor, "memory_mb", lambda key: 0)
    assert doctor.diagnose().findings == ()
    monkeypatch.setattr(doctor, "environment", lambda: {**healthy, **change})
    (finding,) = doctor.diagnose().findings
    assert message in finding.message
    assert finding.remedy


def test_what_doctor_judges_by_is_read_from_what_is_installed(monkeypatch, tmp_path):
    """PyPI's CUDA build of torch is 2.13.0 by name; two OpenCVs are two names of one package."""
    for name, version in (
        ("torch", "2.13.0"),
        ("opencv_python", "4.9"),
        ("opencv_contrib_python", "4.9"),
    ):
        info = tmp_path / f"{name}-{version}.dist-info"
        tree(info, {"METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"})
    tree(tmp_path, {"torch/version.py": "__version__ = '2.13.0+cu130'\ncuda = '13.0'\n"})
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    found = installed()
    assert found == {
        "torch": "2.13.0+cu130",
        "opencv-python": "4.9",
        "opencv-contrib-python": "4.9",
    }


def test_doctor_sees_heat_throttling_and_an_idle_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "Machine", lambda: Machine(tree(tmp_path, PI)))
    monkeypatch.setattr(doctor, "nvidia_devices", lambda: ["/dev/nvidia0"])
    probes = dict.fromkeys(doctor.AUTO_ORDER, Probe(False, reason="not installed"))
    monkeypatch.setattr(doctor, "probe_backends", lambda: probes)
    diagnosis = doctor.diagnose()
    text = " ".join(finding.message for finding in diagnosis.findings)
    for part in ("no runtime is usable", "held back: throttled, under-voltage", "81 degrees",
                 "no backend that uses it"):  # fmt: skip
        assert part in text
    assert diagnosis.to_dict()["healthy"] is False


def test_by_turns_one_after_the_other(monkeypatch):
    """Each has its tenth of a second, in turns of 25 ms that go forwards and backwards."""
    from edgecv.measure import timing

    seen: list[int] = []
    monkeypatch.setattr(timing, "warm_up", lambda run: None)
    monkeypatch.setattr(timing, "warm_turn", lambda run: None)
    monkeypatch.setattr(timing, "timed", lambda run, *_: [run(), *[3_000_000] * 7, 3_000_000])
    runs = [lambda i=i: (seen.append(i), 1_000_000)[1] for i in (1, 2)]
    assert by_turns(runs, 3, 0.1) == [[3.0] * 3, [3.0] * 3]
    assert seen == [1, 2, 2, 1] * 6
