"""Several models on several backends, measured in turns, each in a process of its own.

One round gives every pair one slice of time of each stage. The slice of inference is cut into
turns of a few runs, in which the pairs alternate, in an order that is drawn anew and then reversed.
So a clock that sinks or a neighbour that wakes (on a shared machine they come and go within a
second) hits all of them, and their ratio within a round stays true.

Two processes of one file are not equally fast: where their memory came to lie stays as it is for
as long as they live, and moves the median by up to a percent, which no number of rounds averages
away. So every round has new processes, as far as opening them takes no longer than measuring
(:meth:`Rounds._plan`); an interval over such rounds holds what processes differ by.
"""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np

from edgecv.errors import CheckFailed
from edgecv.measure.child import STAGES
from edgecv.measure.scenarios import SERVER_SEED, RateSearch
from edgecv.measure.telemetry import Machine, Watch
from edgecv.measure.timing import MIN_RUNS, TURN_RUNS, TURN_SECONDS, WARMUP_SECONDS
from edgecv.progress import Progress, silent

CHILD = (sys.executable, "-m", "edgecv.measure.child")
STARTUP_SECONDS = 600.0  # a child that has not opened its model by then hangs
CLOSE_SECONDS = 10.0
RELOADS = 5  # so many times the first load may a second one take, on a machine that is busy by then
ROUNDS = 20
MIN_ROUNDS = 5  # as many as a confidence interval needs
MAX_ROUNDS = 60
SLICE_SECONDS = 0.5  # of inference; a longer --duration has more rounds, not longer slices
MIN_PROCESSES = 10  # fewer say little of what processes differ by: then one measures all rounds
SERVER_STEPS = 6  # of the bisection: the rate is known to 1 in 64
ORDER_SEED = 5
# Seconds of a slice, as shares of the inference slice
SHARES = {"inference": 1.0, "end_to_end": 0.25, "preprocess": 0.125, "postprocess": 0.125}


class ChildFailed(Exception):
    """A child's error, or its death; ``exit_code`` is the command line's."""

    def __init__(self, message: str, exit_code: int = CheckFailed.exit_code) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Child:
    """The other end of :mod:`edgecv.measure.child`.

    On Linux it runs only while it owes an answer, and is stopped otherwise: the threads of a
    runtime spin on for tens of milliseconds after a run, on the cores of whoever is measured next.
    """

    def __init__(self, command: Sequence[str] = CHILD) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as we
        # a session of its own: Ctrl-C ends the rounds, and the child then says what it used
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._sent = 0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._sent += 1
        self._signal("SIGCONT")
        with contextlib.suppress(BrokenPipeError):  # receive() says what happened
            self._process.stdin.write(json.dumps({**request, "id": self._sent}) + "\n")
            self._process.stdin.flush()

    def receive(self, timeout: float) -> dict[str, Any]:
        """The answer to what was sent last; those to earlier requests (Ctrl-C came between) go."""
        answer: dict[str, Any] = {}
        while answer.get("id") != self._sent:
            try:
                line = self._lines.get(timeout=timeout)
            except queue.Empty:
                raise ChildFailed(
                    f"the measuring process gave no answer for {timeout:.0f} s"
                ) from None
            if not line:
                code = self._process.wait()
                raise ChildFailed(
                    f"the measuring process died ({_ending(code)}): {self._last_words()}"
                )
            answer = json.loads(line)
        self._signal("SIGSTOP")
        del answer["id"]
        if (error := answer.get("error")) is not None:
            raise ChildFailed(error["message"], error["exit_code"])
        return answer

    def _signal(self, name: str) -> None:
        if sys.platform == "linux":
            self._process.send_signal(getattr(signal, name))

    def _last_words(self) -> str:
        self._errors.seek(0)
        text = self._errors.read().decode(errors="replace")
        return " | ".join(text.strip().splitlines()[-3:])[-1500:] or "it said nothing"

    def kill(self) -> None:
        """End the process if it is still there, and give everything back."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit {code}"


@dataclass
class Pair:
    """One model on one backend, and everything that was measured of it.

    ``times`` are nanoseconds by stage and round, ``turns`` the medians of each round's turns of
    inference.
    """

    path: str
    backend: str
    request: dict[str, Any]
    child: Child | None = None
    description: dict[str, Any] = field(default_factory=dict)
    steady_s: float = 0.0
    opening_s: float = 0.0
    processes: int = 0  # that measured, one after the other
    times: dict[str, list[array[int]]] = field(default_factory=lambda: {s: [] for s in STAGES})
    turns: list[list[float]] = field(default_factory=list)
    watch: Watch | None = None
    search: RateSearch | None = None
    resources: dict[str, Any] = field(default_factory=dict)
    profile: dict[str, Any] = field(default_factory=dict)
    failure: ChildFailed | None = None
    measured: bool = False  # all rounds are done: what fails from here on costs no record

    def used(self, usage: dict[str, Any]) -> None:
        """Take in what a process says it used; of several, that with the highest peak stands."""
        peak = usage.get("peak_rss_mb", 0.0)
        if peak >= self.resources.get("peak_rss_mb", 0.0):
            self.resources |= usage
        else:
            self.resources = usage | self.resources

    @property
    def alive(self) -> bool:
        return self.child is not None and self.failure is None

    @property
    def medians(self) -> list[float]:
        """The median of each round's inference slice, in nanoseconds."""
        return [float(np.median(np.asarray(slice_))) for slice_ in self.times["inference"]]

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any] | None:
        """Ask the child; a failure is kept, ends the child, and gives None."""
        assert self.child is not None
        try:
            self.child.send(request)
            return self.child.receive(timeout)
        except ChildFailed as error:
            self.fail(error)
            return None

    def took(self, stage: str, step: int, times: Sequence[int]) -> None:
        """Take in what one turn of round ``step`` measured, in nanoseconds."""
        if len(self.times[stage]) == step:
            self.times[stage].append(array("q"))
        self.times[stage][step].extend(times)
        if stage == "inference":
            if len(self.turns) == step:
                self.turns.append([])
            self.turns[step].append(float(np.median(times)))

    def fail(self, error: ChildFailed) -> None:
        self.failure = error
        if self.child is not None:
            self.child.kill()


def _orders(count: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Orders of turns, each drawn and then reversed: who comes first, and who comes after whom, is
    the same for all, exactly and not only on average."""
    while True:
        order = rng.permutation(count).tolist()
        yield order
        yield order[::-1]


@dataclass
class Rounds:
    """Measure ``pairs`` in turns; ``partial`` says that Ctrl-C ended it early."""

    pairs: list[Pair]
    duration: float
    rounds: int | None = None
    latency_bound_ms: float | None = None  # set: the server scenario
    profile_runs: int = 0
    command: Sequence[str] = CHILD
    progress: Progress = silent
    machine: Machine = field(default_factory=Machine)
    partial: bool = False

    def run(self) -> None:
        """Open all, measure in rounds, close all. Failures stay with their pair."""
        try:
            self._open_all()
            steps, renewing = self._plan()
            rng = np.random.default_rng(ORDER_SEED)
            orders = {stage: _orders(len(self.pairs), rng) for stage in SHARES}
            for step in range(steps):
                self.progress("rounds", step, steps)
                if renewing and step:
                    self._renew_all()
                for stage in SHARES:
                    turns = self._turns(stage, steps)
                    for turn in range(turns):
                        for index in next(orders[stage]):
                            if self.pairs[index].alive:
                                self._measure(self.pairs[index], stage, step, steps, turn, turns)
            self.progress("rounds", steps, steps)
            self._ask_usage()
            self._profile_all()
        except KeyboardInterrupt:
            self.partial = True
        finally:
            self._close_all()

    def _open_all(self) -> None:
        for index, pair in enumerate(self.pairs):
            self.progress("loading", index, len(self.pairs))
            started = time.perf_counter()
            pair.child = Child(self.command)
            reply = self._open(pair)
            if reply is None:
                continue
            pair.opening_s = time.perf_counter() - started
            pair.description, pair.steady_s = reply["description"], reply["steady_s"]
            pair.watch = Watch(self.machine)
        self.progress("loading", len(self.pairs), len(self.pairs))

    def _open(self, pair: Pair) -> dict[str, Any] | None:
        pair.processes += 1
        request = {"do": "open", "warmup": min(WARMUP_SECONDS, self.duration), **pair.request}
        return pair.ask(request, STARTUP_SECONDS)

    def _renew_all(self) -> None:
        """New processes for all; load times and first runs stay those of the first ones."""
        for pair in self.pairs:
            if not pair.alive:
                continue
            pair.used(pair.ask({"do": "usage", "readback": False}, CLOSE_SECONDS) or {})
            if not pair.alive or pair.ask({"do": "close"}, CLOSE_SECONDS) is None:
                continue
            assert pair.child is not None
            old, pair.child = pair.child, Child(self.command)  # at once: Ctrl-C finds a living one
            old.kill()
            reply = self._open(pair)
            if reply is not None and reply["description"]["sha256"] != pair.description["sha256"]:
                pair.fail(ChildFailed("the file was replaced while it was measured"))

    def _plan(self) -> tuple[int, bool]:
        """How many rounds, and whether each has new processes.

        As many rounds as asked, or as :data:`SLICE_SECONDS` makes of the duration, fewer where a
        slice would not hold 4 runs of the slowest. New processes, where opening the slowest that
        often takes no longer than the duration; for that the rounds may be fewer, but not fewer
        than :data:`MIN_PROCESSES`.
        """
        if self.latency_bound_ms is not None:
            for pair in self.pairs:
                if pair.alive:
                    step = self.duration / SERVER_STEPS
                    pair.search = RateSearch(1 / pair.steady_s, self.latency_bound_ms, step)
            return SERVER_STEPS, False
        alive = [pair for pair in self.pairs if pair.alive]
        openings = int(self.duration / max((pair.opening_s for pair in alive), default=1.0))
        if self.rounds is not None:
            return self.rounds, MIN_PROCESSES <= self.rounds <= openings
        slowest = max((pair.steady_s for pair in alive), default=1.0)
        most = min(MAX_ROUNDS, max(ROUNDS, int(self.duration / SLICE_SECONDS)))
        rounds = max(MIN_ROUNDS, min(most, int(self.duration / (4 * slowest))))
        if (renewed := min(rounds, openings)) >= MIN_PROCESSES:
            return renewed, True
        return min(rounds, ROUNDS), False

    def _turns(self, stage: str, steps: int) -> int:
        """In how many turns the slice of a stage is measured: inference is what ratios are of."""
        alive = [pair for pair in self.pairs if pair.alive]
        if stage != "inference" or self.latency_bound_ms is not None or len(alive) < 2:
            return 1
        slowest = max(pair.steady_s for pair in alive)
        return max(1, int(self.duration / steps / max(TURN_SECONDS, TURN_RUNS * slowest)))

    def _measure(
        self, pair: Pair, stage: str, step: int, steps: int, turn: int, turns: int
    ) -> None:
        if stage == "inference" and pair.search is not None:
            request = {"do": "serve", "rate": pair.search.rate, "seed": SERVER_SEED + step}
            reply = self._turn(pair, request, pair.search.step_seconds, sensors=True)
            if reply is not None:
                pair.search.seen(array("q", reply["times"]))
            return
        least = -(-MIN_RUNS // (steps * turns)) if stage == "inference" else 1
        request = {"do": "time", "stage": stage, "least": least}
        seconds = self.duration / steps * SHARES[stage] / turns
        reply = self._turn(pair, request, seconds, sensors=turn == turns // 2)
        if reply is not None:
            pair.took(stage, step, reply["times"])

    def _turn(
        self, pair: Pair, request: dict[str, Any], seconds: float, *, sensors: bool
    ) -> dict[str, Any] | None:
        """One turn under watch: counters are read around it, ``sensors`` in its middle."""
        assert pair.child is not None
        assert pair.watch is not None
        before, start, mine = self.machine.counters(), time.perf_counter(), time.process_time()
        pair.child.send({**request, "seconds": seconds})
        sample = None
        if sensors:
            time.sleep(seconds / 2)
            sample = self.machine.sample()
        try:
            reply = pair.child.receive(60 + 10 * (seconds + pair.steady_s * MIN_RUNS))
        except ChildFailed as error:
            pair.fail(error)
            return None
        elapsed = time.perf_counter() - start
        if request.get("stage", "inference") == "inference":
            after = self.machine.counters()
            ours = reply["cpu_ns"] / 1e9 + time.process_time() - mine
            pair.watch.add(before, after, sample, elapsed, ours)
        return reply

    def _profile_all(self) -> None:
        """Layer by layer, after the timing: a profiler slows what it looks at."""
        for pair in self.pairs:
            if self.profile_runs and pair.alive:
                timeout = STARTUP_SECONDS + 20 * self.profile_runs * pair.steady_s
                reply = pair.ask({"do": "profile", "runs": self.profile_runs}, timeout)
                pair.profile = reply or {}

    def _ask_usage(self) -> None:
        for pair in self.pairs:
            if pair.alive and pair.description and not pair.measured:
                # to say what it computed in, a runtime may load the model a second time
                patience = CLOSE_SECONDS + RELOADS * pair.description["load_ms"] / 1e3
                pair.used(pair.ask({"do": "usage", "readback": True}, patience) or {})
                pair.measured = True

    def _close_all(self) -> None:
        with contextlib.suppress(KeyboardInterrupt):  # a second one: close without asking
            if self.partial:
                self._ask_usage()
        for pair in self.pairs:
            if pair.child is None:
                continue
            if pair.alive and pair.description:
                pair.ask({"do": "close"}, CLOSE_SECONDS)
            pair.child.kill()
