"""Benchmarks and scores of several machines in one table: by the model's sha256, so that latency
stands beside the accuracy of the very same file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgecv.errors import InputError
from edgecv.measure.record import SCHEMA

EVAL_SCHEMA = "edgecv.eval/1"
METRICS = ("top1", "ap", "accuracy", "miou", "near")  # of eval, one per task; rates from 0 to 1


@dataclass(frozen=True)
class Row:
    """One measured pair; ``machine`` is an index; ``score`` is the metric's name and the rate.

    ``where`` names the machine beside the pair, in a report of several.
    """

    machine: int
    record: Mapping[str, Any]
    score: tuple[str, float] | None
    where: str = ""

    @property
    def p50(self) -> float | None:
        """Milliseconds per query, the median."""
        value = self.record["latency_ms"].get("p50")
        return None if value is None else float(value)

    @property
    def label(self) -> str:
        pair = f"{self.record['file']} on {self.record['backend']}"
        return f"{pair}, {self.where}" if self.where else pair


@dataclass(frozen=True)
class Report:
    """``rows`` in the order of the files; ``notes``: what a reader has to know."""

    machines: tuple[Mapping[str, Any], ...]
    rows: tuple[Row, ...]
    comparisons: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]


def merge(files: Sequence[Mapping[str, Any]]) -> Report:
    """Bench files (schema :data:`~edgecv.measure.record.SCHEMA`) and eval files together.

    A score belongs to every record of the same sha256, whatever machine measured it: of the same
    backend where there is one, else of any. Raises :class:`~edgecv.errors.InputError` where no
    file is a benchmark.
    """
    benches = [data for data in files if data.get("schema") == SCHEMA]
    scores = [data for data in files if data.get("schema") == EVAL_SCHEMA]
    if not benches:
        raise InputError("none of the files is a benchmark of `edgecv bench -o`")
    machines: list[Mapping[str, Any]] = []
    rows: list[Row] = []
    notes: list[str] = []
    for data in benches:
        environment = data["environment"]
        known = [m["machine_id"] for m in machines]
        if environment["machine_id"] not in known:
            machines.append(environment)
            known.append(environment["machine_id"])
        index = known.index(environment["machine_id"])
        rows += [Row(index, record, _score(record, scores)) for record in data["records"]]
        if data.get("partial"):
            notes.append("A run was interrupted: its figures are of fewer rounds.")
        notes += [
            f"Failed: {failure['model']} on {failure['backend']}: {failure['message']}"
            for failure in data.get("failures", [])
        ]
    if len(machines) > 1:
        rows = [replace(row, where=machine_name(machines[row.machine])) for row in rows]
    noisy = [row for row in rows if row.record.get("noise", {}).get("noisy")]
    notes += [f"Noisy: {row.label}: {'; '.join(row.record['noise']['reasons'])}." for row in noisy]
    found = tuple(c for data in benches for c in data.get("comparisons", []))
    return Report(tuple(machines), tuple(rows), found, tuple(notes))


def _score(
    record: Mapping[str, Any], scores: Sequence[Mapping[str, Any]]
) -> tuple[str, float] | None:
    same = [s for s in scores if s.get("sha256") == record["sha256"]]
    same.sort(key=lambda s: s.get("backend") != record["backend"])
    for score in same:
        for metric in METRICS:
            if isinstance(score.get(metric), int | float):
                return metric, float(score[metric])
    return None


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, benefit) that no other beats in both, by rising cost."""
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front: list[int] = []
    for index in order:
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


COLUMNS = (
    "model", "backend", "precision", "threads", "batch", "scenario", "p50 ms", "p90 ms", "p99 ms",
    "pictures/s", "end to end ms", "load ms", "peak MB", "file MB", "score",
)  # fmt: skip


def cells(row: Row) -> dict[str, str]:
    """The texts of one row under :data:`COLUMNS`; what was not measured is empty."""
    record, latency = row.record, row.record["latency_ms"]
    return {
        "model": record["file"],
        "backend": record["backend"],
        "precision": record["precision"]
        + (
            ""
            if record["compute_precision"] == record["precision"]
            else f" (computes in {record['compute_precision']})"
        ),
        "threads": str(record["threads"]),
        "batch": str(record["batch"]),
        "scenario": record["scenario"],
        "p50 ms": number(latency.get("p50")),
        "p90 ms": number(latency.get("p90")),
        "p99 ms": number(latency.get("p99")),
        "pictures/s": number(record.get("throughput")),
        "end to end ms": number(record.get("end_to_end_ms", {}).get("p50")),
        "load ms": number(record.get("load_ms")),
        "peak MB": number(record.get("peak_rss_mb")),
        "file MB": number(record["size_bytes"] / 1e6 if "size_bytes" in record else None),
        "score": "" if row.score is None else f"{row.score[0]} {row.score[1]:.1%}",
    }


def number(value: float | None) -> str:
    """Three significant digits, and no exponent."""
    if value is None:
        return ""
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    digits = 3 - len(f"{abs(value):.0f}") if abs(value) >= 1 else 3
    return f"{value:.{max(digits, 0)}f}"


def machine_name(environment: Mapping[str, Any]) -> str:
    """A machine in some words."""
    board = environment.get("board", environment["cpu"])
    return f"{board}, {environment['physical_cores']} cores ({environment['machine_id']})"


def markdown(report: Report) -> str:
    """Tables for a README: one per machine; columns that are empty throughout are left out."""
    lines: list[str] = []
    for index, environment in enumerate(report.machines):
        rows = [cells(row) for row in report.rows if row.machine == index]
        used = [name for name in COLUMNS if any(row[name] for row in rows)]
        lines += [f"**{_plain(machine_name(environment))}**", ""]
        lines += ["| " + " | ".join(used) + " |"]
        lines += ["|" + "|".join("---" if _is_text(name) else "---:" for name in used) + "|"]
        lines += ["| " + " | ".join(_plain(row[name]) for name in used) + " |" for row in rows]
        lines += [""]
    for comparison in report.comparisons:
        lines.append(f"- {_plain(comparison_text(comparison))}")
    lines += [f"- {_plain(note)}" for note in report.notes]
    return "\n".join(lines).rstrip() + "\n"


def comparison_text(comparison: Mapping[str, Any]) -> str:
    ratio, against = comparison["ratio"], comparison["against"]
    return (
        f"{comparison['model']} on {comparison['backend']} takes {ratio['value']:.3f} times the "
        f"time of {against['model']} on {against['backend']} ({ratio['confidence']:.0%} interval "
        f"{ratio['low']:.3f} to {ratio['high']:.3f}, measured in turns)"
    )


def _is_text(column: str) -> bool:
    return column in ("model", "backend", "precision", "scenario")


def _plain(text: str) -> str:
    """Text that cannot break a Markdown table or start HTML."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
