"""``edgecv bench``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edgecv.cli.output import JsonOption, Output


def command(
    models: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[MODEL...]", help="Default: the models in this folder."),
    ] = None,
    backends: Annotated[
        list[str] | None, typer.Option("--backend", metavar="NAME", help="May be repeated.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: physical cores.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="For files of dynamic batch.")] = None,
    scenario: Annotated[str, typer.Option(metavar="single-stream|offline")] = "single-stream",
    duration: Annotated[float, typer.Option(metavar="SEC", help="Per model and backend.")] = 3.0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A JSON file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure latency, throughput, load time and memory."""
    from edgecv.files import atomic_write
    from edgecv.workflows.bench import bench

    out = Output(as_json)
    with out.progress() as progress:
        report = bench(
            models or [],
            backends=backends or ["auto"],
            threads=threads,
            batch=batch,
            scenario=scenario,
            duration=duration,
            progress=progress,
        )
    env = report.environment
    out.say(f"{env['cpu']}, {env['physical_cores']} cores, {', '.join(env['simd']) or 'no SIMD'}")
    rows = [
        [
            record["model"],
            record["backend"],
            record["compute_precision"],
            record["threads"],
            record["batch"],
            *(_ms(record["latency_ms"].get(p)) for p in ("p50", "p90", "p99")),
            _ms(record["end_to_end_ms"].get("p50")),
            f"{record['throughput']:.1f}",
            f"{record['load_ms']:.0f}",
            f"{record['peak_rss_mb']:.0f}" if "peak_rss_mb" in record else "-",
        ]
        for record in report.records
    ]
    columns = ["model", "backend", "in", "threads", "batch", "p50 ms", "p90 ms", "p99 ms"]
    if rows:
        out.table([*columns, "640x480 p50 ms", "pictures/s", "load ms", "peak MB"], rows)
    if report.partial:
        out.warn("interrupted: this is what had been measured by then")
    data = report.to_dict()
    if output is not None:
        with atomic_write(output) as file:
            file.write((json.dumps(data, indent=2) + "\n").encode())
    if not report.failures:
        out.result(data)
    report.raise_failures()


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
