"""``edgecv bench``."""

from __future__ import annotations

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
    from edgecv.files import write_json
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
    for record in report.records:
        latency, whole = record["latency_ms"], record["end_to_end_ms"]
        peak = record.get("peak_rss_mb")
        out.pairs(
            {
                "ran on": f"{record['backend']} {record['backend_version']}, "
                f"{record['compute_precision']}, {record['threads']} threads, batch "
                f"{record['batch']}",
                "inference": f"{_ms(latency)} ({record['count']} runs)",
                "640x480 array to answer": _ms(whole),
                "throughput": f"{record['throughput']:.1f} pictures/s",
                "load": f"{record['load_ms']:.0f} ms, first run {record['first_run_ms']:.1f} ms",
                "peak memory": "not known here" if peak is None else f"{peak:.0f} MB",
            },
            f"{record['model']} ({record['scenario']})",
        )
    if report.partial:
        out.warn("interrupted: this is what had been measured by then")
    data = report.to_dict()
    if output is not None:
        write_json(output, data)
    if not report.failures:
        out.result(data)
    report.raise_failures()


def _ms(percentiles: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in percentiles.items()) + " ms"
