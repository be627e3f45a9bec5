"""``edgecv bench``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from edgecv.cli.output import JsonOption, Output
from edgecv.errors import CheckFailed, EdgeCVError


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
    scenario: Annotated[
        str, typer.Option(metavar="single-stream|multi-stream|offline|server")
    ] = "single-stream",
    duration: Annotated[float, typer.Option(metavar="SEC", help="Per model and backend.")] = 3.0,
    rounds: Annotated[int | None, typer.Option(min=1, help="Default: 20 to 60, by time.")] = None,
    latency_bound: Annotated[
        float, typer.Option(metavar="MS", help="Of the server scenario.")
    ] = 100.0,
    profile: Annotated[bool, typer.Option("--profile", help="Times per layer, roofline.")] = False,
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="OLD.onnx", help="Measured in turns with it; a regression exits 1."),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="OLD.json", help="An earlier report of this machine."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A JSON file, or a folder to name it in.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="One self-contained page.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Tables for a README.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure latency, throughput, load time, memory and energy, in turns."""
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
            rounds=rounds,
            latency_bound_ms=latency_bound,
            profile=profile,
            baseline=baseline,
            compare=compare,
            progress=progress,
        )
    data = report.to_dict()
    _show(out, data)
    error = report.error()
    if error is None and report.partial and not report.records:
        error = CheckFailed("interrupted before anything was measured")
    if error is not None and not report.records:
        raise error
    # what was measured is told first: the disk may be full, or the folder another's
    out.result(data)
    if error is not None:
        out.errors.print(f"error: {error}", style="red", markup=False)
    lost = _write(data, output, html, markdown, out)
    if error is not None or report.regressions:
        raise typer.Exit(CheckFailed.exit_code)
    if lost is not None:
        raise typer.Exit(lost.exit_code)


def _write(
    data: dict[str, Any],
    output: Path | None,
    html: Path | None,
    markdown: Path | None,
    out: Output,
) -> EdgeCVError | None:
    """Write what was asked for; one that cannot be is said, and the others are written yet."""
    from edgecv.files import write_json
    from edgecv.measure.record import identity
    from edgecv.workflows.report import report_on, write_html, write_markdown

    writers: list[tuple[Path, Callable[[Path], None]]] = []
    if output is not None:
        path = output / f"{identity(data)}.json" if output.is_dir() else output
        writers.append((path, lambda path: write_json(path, data)))
    if html is not None:
        writers.append((html, lambda path: write_html(report_on([data]), path)))
    if markdown is not None:
        writers.append((markdown, lambda path: write_markdown(report_on([data]), path)))
    lost = None
    for path, write in writers:
        try:
            write(path)
            out.say(f"written to {path}")
        except EdgeCVError as error:
            lost = error
            out.errors.print(f"error: {error}", style="red", markup=False)
    return lost


def _show(out: Output, data: dict[str, Any]) -> None:
    env = data["environment"]
    out.say(f"{env['cpu']}, {env['physical_cores']} cores, {', '.join(env['simd']) or 'no SIMD'}")
    for record in data["records"]:
        out.pairs(_lines(record), f"{record['file']} ({record['scenario']})")
        for layer in sorted(record.get("layers", []), key=lambda one: -one["ms"])[:10]:
            rate = f"{layer['gmacs']:.1f} GMAC/s" if "gmacs" in layer else ""
            out.say(
                f"    {layer['share']:6.1%} {layer['ms']:8.3f} ms  {layer['op']:<20} "
                f"{rate:>14}  {layer['name']}"
            )
    for comparison in data["comparisons"]:
        ratio, against = comparison["ratio"], comparison["against"]
        out.say(
            f"{comparison['model']} on {comparison['backend']} takes {_interval(ratio)} times the "
            f"time of {against['model']} on {against['backend']}"
        )
    for verdict in data["verdicts"]:
        style = {"regression": "bold red", "improvement": "green"}.get(verdict["verdict"], "")
        ratio = _interval(verdict["ratio"]) if "ratio" in verdict else "too few rounds"
        out.say(
            f"{verdict['verdict']}: {verdict['model']} on {verdict['backend']} against "
            f"{verdict['against']}: {ratio}",
            style,
        )
    if data["partial"]:
        out.warn("interrupted: this is what had been measured by then")


def _lines(record: dict[str, Any]) -> dict[str, object]:
    threads = f"{record['threads']} thread{'s' if record['threads'] > 1 else ''}"
    lines: dict[str, object] = {
        "ran on": f"{record['backend']} {record['backend_version']}, "
        f"{record['compute_precision']}, {threads}, batch {record['batch']}",
        "inference": f"{_ms(record['latency_ms'])} ({record['count']} runs)",
    }
    if server := record.get("server"):
        lines["bound"] = (
            f"{server['bound_percentile']} within {server['latency_bound_ms']:g} ms "
            f"{'held' if server['held'] else 'NOT held at any rate'}"
        )
    for stage, title in (
        ("preprocess", "preprocessing"),
        ("postprocess", "postprocessing"),
        ("end_to_end", "640x480 array to answer"),
    ):
        if record.get(f"{stage}_ms"):
            lines[title] = _ms(record[f"{stage}_ms"])
    lines["throughput"] = f"{record['throughput']:.1f} pictures/s"
    lines["load"] = f"{record['load_ms']:.0f} ms, first run {record['first_run_ms']:.1f} ms"
    if "peak_rss_mb" in record:
        lines["peak memory"] = f"{record['peak_rss_mb']:.0f} MB" + (
            f", of which model and runtime {record['model_memory_mb']:.0f} MB"
            if "model_memory_mb" in record
            else ""
        )
    if "cpu_cores_used" in record:
        lines["processor"] = f"{record['cpu_cores_used']:.2f} cores busy"
    telemetry = record.get("telemetry", {})
    if "energy_mj_per_run" in telemetry:
        lines["energy"] = f"{telemetry['energy_mj_per_run']:.1f} mJ a run"
    if record["noise"]["noisy"]:
        lines["NOISY"] = "; ".join(record["noise"]["reasons"])
    return lines


def _ms(percentiles: dict[str, float]) -> str:
    if not percentiles:
        return "too few runs for any percentile"
    return ", ".join(f"{name} {value:.3g}" for name, value in percentiles.items()) + " ms"


def _interval(ratio: dict[str, float]) -> str:
    return (
        f"{ratio['value']:.3f} ({ratio['confidence']:.0%} interval {ratio['low']:.3f} to "
        f"{ratio['high']:.3f})"
    )
