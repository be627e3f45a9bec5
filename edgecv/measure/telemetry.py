"""What the machine does while it is measured: clock, temperature, throttling, power, neighbours.

Read from files of Linux (``root`` stands for ``/``, so that tests can bring a tree of their own).
What a machine does not show is absent, never zero. Nothing is read inside a timed region: the
parent process reads in the middle of a slice, on files that take some microseconds each.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MEMBERS_OF_CPU = ("cpu", "x86_pkg_temp", "soc", "coretemp", "k10temp", "acpitz")
# vcgencmd get_throttled, bits 0 to 3 (now); 16 to 19 are the same since boot
PI_THROTTLED = ("under-voltage", "frequency capped", "throttled", "soft temperature limit")
BUSY_NEIGHBOURS = 0.1  # cores that others used: more, and the run is called noisy
CLOCK_DROP = 0.05  # of the highest clock seen: more, and the clock was not steady


@dataclass(frozen=True)
class Sample:
    """One look; None or empty is what could not be read."""

    frequency_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    throttled: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Counters:
    """Totals that only grow; their differences over a slice are what it cost."""

    energy_uj: dict[str, int] = field(default_factory=dict)  # per RAPL domain
    busy_ticks: int | None = None  # of all CPUs, 10 ms each
    stolen_ticks: int | None = None
    throttle_events: int | None = None
    pages_swapped: int | None = None


class Machine:
    """The sensors of one machine; which of them exist is found out once."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        sys_ = root / "sys"
        self._clocks = sorted(sys_.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"))
        self._temperatures = _cpu_zones(sys_)
        self._energy = [
            path
            for path in sorted(sys_.glob("class/powercap/intel-rapl:[0-9]"))
            if _number(path / "energy_uj") is not None
        ]
        self._throttles = sorted(
            sys_.glob("devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count")
        ) + sorted(sys_.glob("class/hwmon/hwmon*/oc[0-9]*_event_cnt"))  # x86, Jetson
        self._rails = _ina_rails(sys_)
        self._pi = sys_ / "devices/platform/soc/soc:firmware/get_throttled"
        self._vcgencmd = shutil.which("vcgencmd") if root == Path("/") else None

    def sample(self) -> Sample:
        clocks = [value / 1e3 for path in self._clocks if (value := _number(path)) is not None]
        warmth = [v / 1e3 for path in self._temperatures if (v := _number(path)) is not None]
        return Sample(
            frequency_mhz=max(clocks, default=None),
            temperature_c=max(warmth, default=None),
            power_w=self._power(),
            throttled=self._pi_flags(),
        )

    def counters(self) -> Counters:
        energy = {
            path.name: value
            for path in self._energy
            if (value := _number(path / "energy_uj")) is not None
        }
        events = [value for path in self._throttles if (value := _number(path)) is not None]
        busy, stolen = self._ticks()
        return Counters(energy, busy, stolen, sum(events) if events else None, self._swapped())

    def energy_j(self, before: Counters, after: Counters) -> float | None:
        """Joules between two readings, all packages; a counter that ran over is unrolled."""
        joules = []
        for path in self._energy:
            if path.name in before.energy_uj and path.name in after.energy_uj:
                spent = after.energy_uj[path.name] - before.energy_uj[path.name]
                if spent < 0:
                    spent += _number(path / "max_energy_range_uj") or 0
                joules.append(spent / 1e6)
        return sum(joules) if joules else None

    def _ticks(self) -> tuple[int | None, int | None]:
        for line in _text(self.root / "proc/stat").splitlines():
            if line.startswith("cpu "):
                user, nice, system, _idle, _iowait, irq, soft, steal = map(int, line.split()[1:9])
                return user + nice + system + irq + soft, steal
        return None, None

    def _swapped(self) -> int | None:
        values = dict(line.split() for line in _text(self.root / "proc/vmstat").splitlines())
        if "pswpin" not in values:
            return None
        return int(values["pswpin"]) + int(values["pswpout"])

    def _power(self) -> float | None:
        """Watts over the rails of an INA sensor (Jetson): volts times amperes."""
        watts = []
        for volts, amperes in self._rails:
            mv, ma = _number(volts), _number(amperes)
            if mv is not None and ma is not None:
                watts.append(mv * ma / 1e6)
        return sum(watts) if watts else None

    def _pi_flags(self) -> frozenset[str]:
        """What a Raspberry Pi's firmware holds back right now."""
        text = _text(self._pi)
        if not text and self._vcgencmd:
            done = subprocess.run(
                [self._vcgencmd, "get_throttled"], capture_output=True, text=True, check=False
            )
            text = done.stdout.partition("=")[2]
        try:
            bits = int(text.strip() or "0", 16)
        except ValueError:
            return frozenset()
        return frozenset(name for bit, name in enumerate(PI_THROTTLED) if bits >> bit & 1)


@dataclass
class Watch:
    """Telemetry of one pair, summed over its slices."""

    machine: Machine
    samples: list[Sample] = field(default_factory=list)
    energy_j: float = 0.0
    has_energy: bool = False
    seconds: float = 0.0
    others_cpu_s: float = 0.0
    stolen_s: float = 0.0
    throttle_events: int = 0
    pages_swapped: int = 0

    def add(
        self,
        before: Counters,
        after: Counters,
        sample: Sample | None,
        seconds: float,
        own_cpu_s: float,
    ) -> None:
        """Take in ``seconds`` in which the pair, and who measures it, used ``own_cpu_s``."""
        if sample is not None:
            self.samples.append(sample)
        self.seconds += seconds
        energy = self.machine.energy_j(before, after)
        if energy is not None:
            self.energy_j, self.has_energy = self.energy_j + energy, True
        if before.busy_ticks is not None and after.busy_ticks is not None:
            self.others_cpu_s += (after.busy_ticks - before.busy_ticks) / _ticks_per_s() - own_cpu_s
        if before.stolen_ticks is not None and after.stolen_ticks is not None:
            self.stolen_s += (after.stolen_ticks - before.stolen_ticks) / _ticks_per_s()
        if before.throttle_events is not None and after.throttle_events is not None:
            self.throttle_events += after.throttle_events - before.throttle_events
        if before.pages_swapped is not None and after.pages_swapped is not None:
            self.pages_swapped += after.pages_swapped - before.pages_swapped

    @property
    def others_cores(self) -> float:
        """Cores that other processes kept busy meanwhile (0 where the system does not say)."""
        return max(0.0, self.others_cpu_s / self.seconds) if self.seconds else 0.0

    def reasons(self) -> list[str]:
        """Why the figures may be disturbed, in words; empty where nothing was seen."""
        found = []
        if self.others_cores > BUSY_NEIGHBOURS:
            found.append(f"other processes used {self.others_cores:.2f} cores")
        if self.seconds and self.stolen_s / self.seconds > BUSY_NEIGHBOURS:
            found.append(f"the hypervisor took {self.stolen_s / self.seconds:.2f} cores away")
        flags = sorted(frozenset().union(*(sample.throttled for sample in self.samples)))
        if flags:
            found.append(f"held back: {', '.join(flags)}")
        if self.throttle_events:
            found.append(f"{self.throttle_events} throttling events")
        if self.pages_swapped:
            found.append(f"{self.pages_swapped} pages were swapped")
        clocks = [s.frequency_mhz for s in self.samples if s.frequency_mhz is not None]
        if clocks and min(clocks) < (1 - CLOCK_DROP) * max(clocks):
            found.append(f"the clock moved between {min(clocks):.0f} and {max(clocks):.0f} MHz")
        return found

    def to_dict(self, runs: int) -> dict[str, Any]:
        """The JSON form; ``runs`` is how many runs the energy is divided by."""
        found: dict[str, Any] = {}
        clocks = [s.frequency_mhz for s in self.samples if s.frequency_mhz is not None]
        warmth = [s.temperature_c for s in self.samples if s.temperature_c is not None]
        powers = [s.power_w for s in self.samples if s.power_w is not None]
        if clocks:
            found["frequency_mhz"] = _range(clocks)
        if warmth:
            found["temperature_c"] = {**_range(warmth), "last": round(warmth[-1], 1)}
        if self.has_energy:
            found["energy_j"] = round(self.energy_j, 4)
            found["energy_source"] = "RAPL, package"
        elif powers:
            found["power_w"] = _range(powers)
            found["energy_j"] = round(statistics.fmean(powers) * self.seconds, 4)
            found["energy_source"] = "INA rails, sampled once per round"
        if "energy_j" in found and runs:
            found["energy_mj_per_run"] = round(found["energy_j"] / runs * 1e3, 4)
        if self.seconds:
            found["other_processes_cores"] = round(self.others_cores, 3)
        return found


def settings(root: Path = Path("/")) -> dict[str, Any]:
    """How the machine is set: governor, power mode of a Jetson, clocks pinned or not."""
    cpu = root / "sys/devices/system/cpu"
    found: dict[str, Any] = {}
    governors = {_text(p).strip() for p in cpu.glob("cpu[0-9]*/cpufreq/scaling_governor")} - {""}
    if governors:
        found["governor"] = ", ".join(sorted(governors))
    highest = [v for p in cpu.glob("cpu[0-9]*/cpufreq/cpuinfo_max_freq") if (v := _number(p))]
    if highest:
        found["max_frequency_mhz"] = round(max(highest) / 1e3)
    if mode := _text(root / "var/lib/nvpmodel/status").strip():  # pmode:0002
        found["nvpmodel"] = mode.partition(":")[2] or mode
        pinned = [
            _number(p.with_name("scaling_min_freq")) == _number(p)
            for p in cpu.glob("cpu[0-9]*/cpufreq/scaling_max_freq")
        ]
        found["jetson_clocks"] = bool(pinned) and all(pinned)
    boost = _text(cpu / "cpufreq/boost").strip() or _text(cpu / "intel_pstate/no_turbo").strip()
    if boost:
        found["turbo"] = (boost == "1") == (cpu / "cpufreq/boost").exists()
    return found


def _cpu_zones(sys_: Path) -> list[Path]:
    zones = sorted(sys_.glob("class/thermal/thermal_zone[0-9]*"))
    named = [(z, _text(z / "type").strip().lower()) for z in zones]
    of_cpu = [z / "temp" for z, kind in named if any(m in kind for m in MEMBERS_OF_CPU)]
    sensors = [
        temp
        for hwmon in sorted(sys_.glob("class/hwmon/hwmon*"))
        if _text(hwmon / "name").strip() in ("coretemp", "k10temp", "cpu_thermal")
        for temp in sorted(hwmon.glob("temp*_input"))
    ]
    return of_cpu or sensors


def _ina_rails(sys_: Path) -> list[tuple[Path, Path]]:
    """(millivolts, milliamperes) of each input rail of a Jetson; VDD_IN alone where it is there."""
    rails: list[tuple[str, Path, Path]] = []
    for hwmon in sorted(sys_.glob("class/hwmon/hwmon*")):
        if not _text(hwmon / "name").startswith("ina3221"):
            continue
        for volts in sorted(hwmon.glob("in[0-9]_input")):
            index = volts.name[2]
            amperes = hwmon / f"curr{index}_input"
            if amperes.exists():
                rails.append((_text(hwmon / f"in{index}_label").strip(), volts, amperes))
    whole = [(v, a) for label, v, a in rails if label in ("VDD_IN", "POM_5V_IN")]
    return whole or [(v, a) for _, v, a in rails]


def _range(values: Sequence[float]) -> dict[str, float]:
    return {"min": round(min(values), 1), "max": round(max(values), 1)}


def _ticks_per_s() -> int:
    if sys.platform == "win32":
        return 100
    return os.sysconf("SC_CLK_TCK")


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
