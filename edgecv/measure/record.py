"""The JSON of a benchmark: what it holds, what it is called, and reading it back.

``benchmarks/bench.schema.json`` publishes the format (JSON Schema 2020-12); a test validates what
this module writes, and every committed result, against it. :data:`SCHEMA` ends in the version: a
reader takes its own version, adding an optional key keeps it, anything else raises it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecv.errors import InputError
from edgecv.files import open_binary
from edgecv.measure.rounds import Pair
from edgecv.measure.scenarios import SCENARIOS
from edgecv.measure.statistics import (
    MEANINGFUL,
    NOISY_HALF_WIDTH,
    Interval,
    ratio_by_turns,
    ratio_of_sessions,
    spread,
)
from edgecv.measure.timing import percentiles

SCHEMA = "edgecv.bench/2"
# Between two sessions the same program's median moves by more than within one: another day's
# temperature, another layout of memory. Added to MEANINGFUL where runs were not interleaved.
SESSIONS_APART = 0.03
QUANTILES = 64  # points of the distribution that a record keeps, evenly spaced in rank
KEY = ("file", "backend", "threads", "batch", "scenario")  # what two sessions' records match by


@dataclass(frozen=True)
class Verdict:
    """What a comparison of two records says; ``word`` is one of

    - ``regression`` / ``improvement``: the whole interval lies beyond the margin;
    - ``unchanged``: the whole interval lies within it;
    - ``undecided``: it straddles the margin; measure longer, or on a quieter machine.
    """

    model: str
    backend: str
    against: str
    interval: Interval | None
    margin: float

    @property
    def word(self) -> str:
        if self.interval is None:
            return "undecided"
        if self.interval.low > 1 + self.margin:
            return "regression"
        if self.interval.high < 1 / (1 + self.margin):
            return "improvement"
        if self.interval.high <= 1 + self.margin and self.interval.low >= 1 / (1 + self.margin):
            return "unchanged"
        return "undecided"

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "model": self.model,
            "backend": self.backend,
            "against": self.against,
            "margin": self.margin,
            "verdict": self.word,
        }
        if self.interval is not None:
            found["ratio"] = self.interval.to_dict()
        return found


def record_of(pair: Pair) -> dict[str, Any] | None:
    """The JSON record of a measured pair; None where not one slice was finished, or where the
    process is gone that could say what it computed in."""
    slices, rate = pair.times["inference"], None
    if pair.search is not None and pair.search.best is not None:
        rate, latencies = pair.search.best
        slices = [latencies]
    nanoseconds = np.concatenate([np.asarray(s, np.int64) for s in slices]) if slices else None
    if "provider" not in pair.resources or (nanoseconds is None and pair.search is None):
        return None
    record = dict(pair.description)
    if nanoseconds is not None and len(nanoseconds):
        ranks = np.linspace(0, 100, QUANTILES + 1)
        record |= {
            "count": len(nanoseconds),
            "latency_ms": percentiles(nanoseconds),
            "quantiles_ms": [round(float(v) / 1e6, 5) for v in np.percentile(nanoseconds, ranks)],
        }
        if pair.search is None:
            busy = float(nanoseconds.sum()) / 1e9
            record["throughput"] = _figure(record["pictures_per_query"] * len(nanoseconds) / busy)
            record["round_p50_ms"] = [round(v / 1e6, 6) for v in pair.medians]
            record["processes"] = min(pair.processes, len(slices))
    else:
        record |= {"count": 0, "latency_ms": {}}
    if pair.search is not None:
        per_query = record["pictures_per_query"]
        record["throughput"] = 0.0 if rate is None else _figure(rate * per_query)
        record["server"] = {
            "latency_bound_ms": pair.search.bound_ms,
            "bound_percentile": f"p{pair.search.percentile:g}",
            "held": rate is not None,
        }
    for stage in ("preprocess", "postprocess", "end_to_end"):
        if pair.times[stage]:
            times = np.concatenate([np.asarray(s, np.int64) for s in pair.times[stage]])
            record[f"{stage}_ms"] = percentiles(times)
    record |= pair.resources
    record["noise"] = _noise(pair)
    runs = record["count"] if pair.search is None else pair.search.answered
    if pair.watch is not None and (seen := pair.watch.to_dict(runs)):
        record["telemetry"] = seen
    return record | pair.profile


def _noise(pair: Pair) -> dict[str, Any]:
    """The stated rule: noisy is a median that is known to no better than
    :data:`~edgecv.measure.statistics.NOISY_HALF_WIDTH`, or a machine that was seen to interfere."""
    reasons = pair.watch.reasons() if pair.watch is not None else []
    half_width = spread(pair.medians)
    found: dict[str, Any] = {}
    if half_width is not None:
        found["p50_half_width"] = round(half_width, 5)
        if half_width > NOISY_HALF_WIDTH:
            reasons.append(f"the median is known to {half_width:.1%} only")
    return {"noisy": bool(reasons), "reasons": reasons, **found}


# What was asked for and its record: one of several that were measured in turns
Measured = tuple[Pair, Mapping[str, Any]]


def comparisons(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Every record's time per picture against the first one's, turn by turn."""
    found: list[dict[str, Any]] = []
    for new in measured[1:]:
        interval = _against(new, measured[0])
        if interval is not None:
            record, first = new[1], measured[0][1]
            found.append(
                {
                    "model": record["file"],
                    "backend": record["backend"],
                    "against": {"model": first["file"], "backend": first["backend"]},
                    "ratio": interval.to_dict(),
                }
            )
    return found


def judge_baseline(measured: Sequence[Measured], baseline: str) -> list[Verdict]:
    """New against old, measured in turns; ``baseline`` is the old file's path.

    Old and new belong together by the backend that was asked for: ``auto`` may be another one for
    either.
    """
    old = {one[0].backend: one for one in measured if one[0].path == baseline}
    return [
        Verdict(
            record["file"],
            record["backend"],
            baseline,
            _against((pair, record), old[pair.backend]),
            MEANINGFUL,
        )
        for pair, record in measured
        if pair.path != baseline and pair.backend in old
    ]


def _against(new: Measured, old: Measured) -> Interval | None:
    """The ratio of their times per picture."""
    return ratio_by_turns(*([_scaled(turns, one) for turns in one[0].turns] for one in (new, old)))


def _scaled(turns: Sequence[float], one: Measured) -> list[float]:
    return [time / one[1]["pictures_per_query"] for time in turns]


def judge_session(
    records: Sequence[Mapping[str, Any]], old: Mapping[str, Any], name: str
) -> list[Verdict]:
    """New records against those of an earlier session on this machine, matched by :data:`KEY`."""
    earlier = {tuple(record[k] for k in KEY): record for record in old["records"]}
    found = []
    for record in records:
        other = earlier.get(tuple(record[k] for k in KEY))
        if other is not None:
            interval = ratio_of_sessions(_per_picture(record), _per_picture(other))
            found.append(
                Verdict(
                    record["file"], record["backend"], name, interval, MEANINGFUL + SESSIONS_APART
                )
            )
    if not found:
        raise InputError(
            f"{name}: holds none of these measurements; a record matches by {', '.join(KEY)}"
        )
    return found


def _per_picture(record: Mapping[str, Any]) -> list[float]:
    return [v / record["pictures_per_query"] for v in record.get("round_p50_ms", [])]


def machine_id(environment: Mapping[str, Any]) -> str:
    """12 hex digits of what makes times comparable: processor, cores, memory, accelerator."""
    memory = round(environment.get("memory_mb", 0) / 1000)
    parts = [
        environment.get(key)
        for key in ("cpu", "architecture", "board", "physical_cores", "logical_cores", "simd")
    ]
    text = json.dumps([*parts, memory, environment.get("gpus", [])])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def identity(report: Mapping[str, Any]) -> str:
    """The file name (without ``.json``) that a report has: what was measured, where.

    The same measurement on the same machine has the same name, and replaces the older file.
    """
    environment = report["environment"]
    keys = sorted(
        [
            *(str(record.get(k)) for k in ("sha256", *KEY, "backend_version")),
        ]
        for record in report["records"]
    )
    digest = hashlib.sha256(json.dumps([environment["machine_id"], keys]).encode()).hexdigest()
    cpu = re.sub(r"[^a-z0-9]+", "-", environment["cpu"].lower()).strip("-")
    return f"bench-{cpu}-{environment['physical_cores']}c-{digest[:10]}"


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a file that ``bench -o`` wrote; anything else is an :class:`InputError`."""
    data = read_json_object(path)
    schema = data.get("schema")
    if schema != SCHEMA:
        raise InputError(f"{path}: expected the schema {SCHEMA}, got {schema!r}; measure it again")
    environment, records = data.get("environment"), data.get("records")
    fits = (
        isinstance(environment, dict)
        and isinstance(environment.get("machine_id"), str)
        and isinstance(records, list)
        and all(_is_record(record) for record in records)
    )
    if not fits:
        raise InputError(f"{path}: a damaged benchmark: a record or the environment lacks keys")
    return data


def read_json_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A JSON object from a file."""
    with open_binary(path) as file:
        try:
            data = json.load(file)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def same_machine(old: Mapping[str, Any], here: Mapping[str, Any], name: str) -> None:
    """Times of two machines say nothing about a change in the model: refuse."""
    theirs = old["environment"]
    if theirs["machine_id"] != here["machine_id"]:
        raise InputError(
            f"{name}: was measured on another machine ({theirs.get('cpu')}, "
            f"{theirs.get('physical_cores')} cores), this is {here['cpu']}, "
            f"{here['physical_cores']} cores; compare on one machine, or use --baseline OLD.onnx, "
            f"which measures old and new together"
        )


def _is_record(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and all(
            isinstance(record.get(k), str)
            for k in (
                *("model", "file", "backend", "path", "sha256"),
                *("precision", "compute_precision"),
            )
        )
        and all(isinstance(record.get(k), int) for k in ("threads", "batch", "pictures_per_query"))
        and record.get("scenario") in SCENARIOS
        and isinstance(record.get("latency_ms"), dict)
        and isinstance(record.get("round_p50_ms", []), list)
    )


def _figure(value: float) -> float:
    """Five significant digits."""
    return float(f"{value:.5g}")
