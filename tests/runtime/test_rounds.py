"""The rounds of a benchmark: turns, new processes, what they add up to."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgecv.measure import rounds
from edgecv.measure.rounds import Pair, Rounds
from edgecv.measure.telemetry import Machine


class Processes:
    """Stands for :class:`edgecv.measure.rounds.Child`; opening one takes ``opening`` seconds."""

    def __init__(self, ms: float = 1.0, opening: float = 0.0) -> None:
        self.ms, self.opening = ms, opening
        self.opened: list[Processes.One] = []
        self.turns: list[int] = []  # whose turn of inference it was

    def __call__(self, command):
        return Processes.One(self)

    class One:
        def __init__(self, all_: Processes) -> None:
            self.all, self.dead = all_, False
            all_.opened.append(self)

        def send(self, request):
            self.request = request

        def receive(self, timeout):
            assert not self.dead
            do, number = self.request["do"], self.all.opened.index(self)
            if do == "open":
                time.sleep(self.all.opening)
                description = {"sha256": self.request["model"], "load_ms": number, "file": "m"}
                return {"description": description, "steady_s": self.all.ms / 1e3}
            if do == "time":
                if self.request["stage"] == "inference":
                    self.all.turns.append(number)
                return {"times": [int(self.all.ms * 1e6)], "cpu_ns": 0}
            # the third process had the highest peak
            peak = {"peak_rss_mb": 12.0 if number == 2 else 10.0, "rss_growth_mb": number}
            named = {"provider": "CPU", "compute_precision": "fp32"}
            return {**peak, **(named if self.request.get("readback") else {})}

        def kill(self):
            self.dead = True


def measured(monkeypatch, stand_in, duration, names="a", **options):
    monkeypatch.setattr(rounds, "Child", stand_in)
    pairs = [Pair(name, "fake", {"model": name}) for name in names]
    Rounds(pairs, duration, machine=Machine(Path("/nowhere")), **options).run()
    assert all(one.dead for one in stand_in.opened)
    return pairs


def test_every_round_has_new_processes_where_opening_them_is_cheap(monkeypatch):
    stand_in = Processes()
    (pair,) = measured(monkeypatch, stand_in, 0.2)
    assert len(stand_in.opened) == pair.processes == len(pair.medians) == rounds.ROUNDS
    assert len(stand_in.turns) == pair.processes  # with nobody to alternate with
    assert pair.description["load_ms"] == 0  # the first one's
    wanted = {"provider": "CPU", "compute_precision": "fp32"}
    assert pair.resources == {"peak_rss_mb": 12.0, "rss_growth_mb": 2, **wanted}


def test_one_process_measures_all_rounds_where_opening_it_is_dear(monkeypatch):
    stand_in = Processes(opening=0.05)
    (pair,) = measured(monkeypatch, stand_in, 0.2)
    assert (len(stand_in.opened), pair.processes, len(pair.medians)) == (1, 1, rounds.ROUNDS)
    (pair,) = measured(monkeypatch, Processes(opening=0.05), 0.2, rounds=7)
    assert (pair.processes, len(pair.medians)) == (1, 7)


@pytest.mark.parametrize(("duration", "count"), [(0.2, 20), (20, 40), (1000, 60)])
def test_a_longer_duration_has_more_rounds(duration, count):
    pair = Pair("m", "fake", {}, child=object(), steady_s=0.001, opening_s=duration / 100)
    assert Rounds([pair], duration)._plan() == (count, True)
    pair.opening_s = duration
    assert Rounds([pair], duration)._plan() == (20, False)
    pair.steady_s = duration / 28  # four runs in a slice
    assert Rounds([pair], duration)._plan() == (7, False)


def test_pairs_alternate_in_turns(monkeypatch):
    """Forwards and backwards, so that each comes first as often as the other."""
    stand_in = Processes(opening=1e-4)
    pairs = measured(monkeypatch, stand_in, 0.24, "ab", rounds=2)
    assert [len(slice_) for pair in pairs for slice_ in pair.times["inference"]] == [24] * 4
    assert len(stand_in.turns) == 2 * 48
    orders = [tuple(stand_in.turns[i : i + 2]) for i in range(0, 96, 2)]
    assert set(orders) == {(0, 1), (1, 0)}
    assert all(
        first == second[::-1] for first, second in zip(orders[::2], orders[1::2], strict=True)
    )


@pytest.mark.skipif(sys.platform != "linux", reason="stopped on Linux only")
def test_a_process_runs_only_while_it_owes_an_answer():
    echo = (
        "import json, sys\n"
        "for line in sys.stdin: print(json.dumps({'id': json.loads(line)['id']}), flush=True)"
    )
    child = rounds.Child([sys.executable, "-c", echo])
    try:
        for _ in range(3):
            child.send({"do": "nothing"})
            assert child.receive(20) == {}
            status = Path(f"/proc/{child._process.pid}/stat")
            until = time.monotonic() + 10
            while (state := status.read_text().rpartition(")")[2].split()[0]) != "T":
                assert time.monotonic() < until, state
    finally:
        child.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="stopped on Linux only")
def test_a_parent_that_is_killed_leaves_no_stopped_process():
    script = (
        "import sys, time\n"
        "from edgecv.measure.ready import READY_MODEL\n"
        "from edgecv.measure.rounds import Child\n"
        "child = Child()\n"
        "child.send({'do': 'open', 'warmup': 0.0, 'model': str(READY_MODEL), 'threads': 1,\n"
        "            'backend': 'auto', 'batch': None, 'scenario': 'single-stream'})\n"
        "child.receive(60)\n"
        "print(child._process.pid, flush=True)\n"
        "time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    left = Path(f"/proc/{parent.stdout.readline().strip()}")
    assert left.name.isdigit()
    parent.kill()
    parent.communicate()
    until = time.monotonic() + 10
    while left.exists() and "Z" not in (left / "stat").read_text().rpartition(")")[2]:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_file_that_is_replaced_meanwhile_is_a_failure(monkeypatch):
    stand_in = Processes()
    monkeypatch.setattr(rounds, "Child", stand_in)
    pair = Pair("a", "fake", {"model": "a"})

    def progress(what, number, total):
        if what == "rounds" and number == 3:
            pair.request["model"] = "b"

    Rounds([pair], 0.1, machine=Machine(Path("/nowhere")), progress=progress).run()
    assert "was replaced" in str(pair.failure)
    assert not pair.measured
