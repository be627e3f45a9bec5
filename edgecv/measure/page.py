"""The report as one HTML file: no script, no font, no picture, nothing from a network.

The charts are SVG drawn here. Colours come from CSS variables, so that dark mode and print need no
second drawing. On a narrow screen each row of the table becomes a card.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from edgecv.measure.report import (
    COLUMNS,
    Report,
    Row,
    cells,
    comparison_text,
    machine_name,
    number,
    pareto,
)

LAYERS_SHOWN = 20
WIDTH = 720  # of a chart, in its own units; it scales to the page
SETTINGS = ("threads", "batch", "scenario")  # said once where all rows have the same
COLORS = 6  # --c0 to --c5
CHARACTER, LINE = 6.8, 13.0  # of a label: about as wide as 12 px text comes, and its height

STYLE = """
:root{--bg:#fff;--fg:#1b1f24;--dim:#57606a;--line:#d0d7de;--card:#f6f8fa;--c0:#0969da;--c1:#bf5600;
--c2:#1a7f37;--c3:#8250df;--c4:#cf222e;--c5:#4d6470}
@media (prefers-color-scheme:dark){:root{--bg:#0d1117;--fg:#e6edf3;--dim:#9198a1;--line:#30363d;
--card:#161b22;--c0:#58a6ff;--c1:#f0883e;--c2:#3fb950;--c3:#bc8cff;--c4:#ff7b72;--c5:#8fa6b2}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:70rem;padding:1rem;background:var(--bg);color:var(--fg);
font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem;margin:.5rem 0}h2{font-size:1.15rem;margin:2rem 0 .5rem;
border-bottom:1px solid var(--line)}h3{font-size:1rem;margin:1.2rem 0 .3rem}
p,li{max-width:46rem}.dim{color:var(--dim)}
table{border-collapse:collapse;width:100%;font-size:.85rem}
th,td{padding:.3rem .5rem;text-align:right;border-bottom:1px solid var(--line);
font-variant-numeric:tabular-nums}
th{color:var(--dim);font-weight:600}.t{text-align:left;white-space:nowrap}
.t:first-child{overflow-wrap:anywhere;white-space:normal;min-width:9rem}.noisy{white-space:nowrap}
.noisy{color:var(--c4);font-weight:600}
svg{width:100%;height:auto;display:block}
svg text{fill:var(--fg);font:12px system-ui,sans-serif}svg .d{fill:var(--dim)}
.grid{stroke:var(--line)}.front{fill:none;stroke:var(--dim);stroke-dasharray:4 3}
.wide{overflow-x:auto}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem;font-size:.9rem;margin:0}
dt{color:var(--dim)}dd{margin:0;overflow-wrap:anywhere}
@media (max-width:44rem){thead{display:none}table,tbody,tr,td{display:block;width:100%}
tr{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:.5rem;
margin:.6rem 0}td{display:flex;justify-content:space-between;gap:1rem;border:0;padding:.1rem 0;
text-align:right}td::before{content:attr(data-k);color:var(--dim)}td:empty{display:none}
.wide svg{min-width:34rem}}
@media print{:root{--bg:#fff;--fg:#000;--dim:#444;--line:#bbb;--card:#fff}body{max-width:none;
font-size:11pt}h2{break-after:avoid}tr,svg,section{break-inside:avoid}}
""".strip()


def page(report: Report) -> str:
    """The whole page."""
    parts = [
        _summary(report),
        _distributions(report),
        _pareto(report),
        _layers(report),
        _environment(report),
    ]
    return document("EdgeCV benchmark", parts)


def document(title: str, parts: Sequence[str]) -> str:
    """A page with the heading ``title`` and its ``parts``, HTML all of them."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<link rel="icon" href="data:,">\n'  # or the browser asks the server for one
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(filter(None, parts)) + "\n</body>\n</html>\n"
    )


def section(title: str, body: str, note: str = "") -> str:
    """A part of the page under its own heading; ``note`` is HTML."""
    about = f'<p class="dim">{note}</p>' if note else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{about}{body}\n</section>"


def _summary(report: Report) -> str:
    parts = []
    for index, environment in enumerate(report.machines):
        rows = [(row, cells(row)) for row in report.rows if row.machine == index]
        shared = [n for n in SETTINGS if len({cell[n] for _, cell in rows}) == 1]
        used = [n for n in COLUMNS if n not in shared and any(cell[n] for _, cell in rows)]
        alike = ", ".join(f"{name} {rows[0][1][name]}" for name in shared) if rows else ""
        text = {"model", "backend", "precision", "scenario"}
        head = "".join(f'<th{_left(n in text)} scope="col">{escape(n)}</th>' for n in used)
        body = ""
        for row, cell in rows:
            noisy = row.record.get("noise", {}).get("noisy")
            body += "<tr>"
            for name in used:
                value = escape(cell[name])
                if name == "p50 ms" and noisy:
                    value = f'<span class="noisy" title="noisy, see below">{value} ~</span>'
                body += f'<td{_left(name in text)} data-k="{escape(name)}">{value}</td>'
            body += "</tr>\n"
        parts.append(
            f"<h3>{escape(machine_name(environment))}</h3>\n"
            + (f'<p class="dim">All with {escape(alike)}.</p>\n' if alike else "")
            + f'<div class="wide">'
            f"<table><thead><tr>{head}</tr></thead>\n"
            f"<tbody>\n{body}</tbody></table></div>"
        )
    sayings = [*map(comparison_text, report.comparisons), *report.notes]
    if sayings:
        parts.append("<ul>" + "".join(f"<li>{escape(text)}</li>" for text in sayings) + "</ul>")
    return section("Summary", "\n".join(parts))


def _left(text: bool) -> str:
    return ' class="t"' if text else ""


def _distributions(report: Report) -> str:
    rows = [(i, row) for i, row in enumerate(report.rows) if row.record.get("quantiles_ms")]
    if not rows:
        return ""
    values = [v for _, row in rows for v in row.record["quantiles_ms"]]
    low, high = max(min(values), 1e-6), max(max(values), 1e-6)
    scale = _log_scale(low, high, 10, WIDTH - 10)
    height = 46 * len(rows) + 30
    shapes = [_axis(low, high, scale, height - 22, "ms")]
    for line, (index, row) in enumerate(rows):
        q = row.record["quantiles_ms"]
        y, last = 46 * line + 34, len(q) - 1
        x = [scale(max(q[round(share * last)], 1e-6)) for share in (0, 0.02, 0.25, 0.5, 0.75, 0.98)]
        color = f"var(--c{index % COLORS})"
        median = number(q[round(0.5 * last)])
        shapes.append(
            f'<text x="10" y="{y - 12}">{escape(row.label)}: median {median} ms</text>'
            f'<line x1="{x[0]:.1f}" x2="{scale(max(q[-1], 1e-6)):.1f}" y1="{y}" y2="{y}" '
            f'stroke="{color}" stroke-opacity=".45"/>'
            f'<rect x="{x[1]:.1f}" width="{max(x[5] - x[1], 1):.1f}" y="{y - 3}" height="6" '
            f'fill="{color}" fill-opacity=".45"/>'
            f'<rect x="{x[2]:.1f}" width="{max(x[4] - x[2], 1):.1f}" y="{y - 6}" height="12" '
            f'fill="{color}"/>'
            f'<line x1="{x[3]:.1f}" x2="{x[3]:.1f}" y1="{y - 9}" y2="{y + 9}" stroke="var(--fg)" '
            f'stroke-width="2"/>'
        )
    return section(
        "Latency distributions",
        _svg(height, shapes, "Latency of every run, one line per pair"),
        "Every run counts. Thick bar: the middle half; thin bar: 2% to 98%; line: all; mark: "
        "median. Logarithmic.",
    )


def _pareto(report: Report) -> str:
    timed = [(i, row) for i, row in enumerate(report.rows) if row.p50]
    charts = []
    scored = [(i, row) for i, row in timed if row.score is not None]
    if scored:
        charts.append(
            _scatter(
                [(row.p50 or 0.0, (row.score or ("", 0.0))[1] * 100) for _, row in scored],
                scored,
                "score, %",
                better_up=True,
            )
        )
    sized = [(i, row) for i, row in timed if "size_bytes" in row.record]
    if len(sized) > 1:
        charts.append(
            _scatter(
                [(row.p50 or 0.0, row.record["size_bytes"] / 1e6) for _, row in sized],
                sized,
                "file, MB",
                better_up=False,
            )
        )
    if not charts:
        return ""
    note = "Dashed: the pairs that no other one beats in both."
    if not scored:
        note += " Accuracy stands here where `edgecv report` also gets files of `edgecv eval -o`."
    return section("What a millisecond buys", "\n".join(charts), escape(note))


def _scatter(
    points: Sequence[tuple[float, float]],
    rows: Sequence[tuple[int, Row]],
    title: str,
    *,
    better_up: bool,
) -> str:
    height, left, bottom = 300, 60, 262
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    scale_x = _log_scale(min(xs) / 1.15, max(xs) * 1.6, left, WIDTH - 20)
    pad = (max(ys) - min(ys)) * 0.15 or max(abs(max(ys)) * 0.1, 0.1)
    low, high = min(ys) - pad, max(ys) + pad

    def scale_y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - 24)

    shapes = [_axis(min(xs) / 1.15, max(xs) * 1.6, scale_x, bottom, "ms, median")]
    for step in range(5):
        value = low + (high - low) * step / 4
        y = scale_y(value)
        shapes.append(
            f'<line class="grid" x1="{left}" x2="{WIDTH - 20}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="d" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">'
            f"{number(value)}</text>"
        )
    shapes.append(f'<text class="d" x="{left}" y="14">{escape(title)}</text>')
    front = pareto([(x, y if better_up else -y) for x, y in points])
    path = " ".join(f"{scale_x(xs[i]):.1f},{scale_y(ys[i]):.1f}" for i in front)
    shapes.append(f'<polyline class="front" points="{path}"/>')
    taken: list[tuple[float, float, float]] = []  # left, right, base line of each label
    for (x, y), (index, row) in zip(points, rows, strict=True):
        px, py = scale_x(x), scale_y(y)
        wide = CHARACTER * len(row.label)
        anchor, left_end = ("start", px + 8) if px + 8 + wide < WIDTH else ("end", px - 8 - wide)
        ty = py - 8
        while any(
            abs(ty - other) < LINE and left_end < end and start < left_end + wide
            for start, end, other in taken
        ):
            ty += LINE
        taken.append((left_end, left_end + wide, ty))
        tx = left_end if anchor == "start" else left_end + wide
        color = f"var(--c{index % COLORS})"
        shapes.append(
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="5" fill="{color}"/>'
            f'<text x="{tx:.1f}" y="{ty:.1f}" text-anchor="{anchor}">{escape(row.label)}</text>'
        )
    return _svg(height, shapes, f"Latency against {title}")


def _layers(report: Report) -> str:
    parts = []
    for index, row in enumerate(report.rows):
        layers = row.record.get("layers")
        if not layers:
            continue
        peak = row.record.get("peak_gmacs")
        shown = sorted(layers, key=lambda layer: -layer["ms"])[:LAYERS_SHOWN]
        longest = shown[0]["ms"] or 1.0
        lines = []
        for layer in shown:
            facts = [f"{layer['ms']:.3f} ms", f"{layer['share']:.1%}"]
            if "gmacs" in layer:
                facts.append(f"{layer['gmacs']:.1f} GMAC/s")
            if "roofline" in layer:
                facts.append(f"{layer['roofline']:.0%} of the roof")
            lines.append((f"{layer['op']} {layer['name']}", facts, layer["ms"] / longest))
        total = f"{len(layers)} layers, the {len(shown)} longest"
        roof = f"; measured peak {peak:.1f} GMAC/s" if peak else ""
        chart = bars(lines, f"Time per layer of {row.label}", index)
        parts.append(
            f'<h3>{escape(row.label)}</h3>\n<p class="dim">{escape(total + roof)}</p>\n{chart}'
        )
    return section("Layers", "\n".join(parts)) if parts else ""


def bars(lines: Sequence[tuple[str, Sequence[str], float]], label: str, color: int = 0) -> str:
    """A bar per line: its name, what there is to say, and its length from 0 to 1."""
    shapes = []
    for line, (name, facts, share) in enumerate(lines):
        y = 30 * line + 4
        short = name if len(name) <= 58 else f"{name[:28]}...{name[-27:]}"
        shapes.append(
            f'<text x="10" y="{y + 11}">{escape(short)}</text>'
            f'<text class="d" x="{WIDTH - 10}" y="{y + 11}" text-anchor="end">'
            f"{escape(', '.join(facts))}</text>"
            f'<rect x="10" y="{y + 15}" width="{max((WIDTH - 20) * share, 1):.1f}" height="8" '
            f'fill="var(--c{color % COLORS})"/>'
        )
    return _svg(30 * len(lines) + 10, shapes, label)


def _environment(report: Report) -> str:
    parts = []
    for environment in report.machines:
        entries = [(k, v) for k, v in environment.items() if k != "packages"]
        entries += [(k, v) for k, v in environment.get("packages", {}).items()]
        parts.append(f"<h3>{escape(machine_name(environment))}</h3>\n{pairs(entries)}")
    return section("Environment", "\n".join(parts))


def pairs(entries: Sequence[tuple[str, Any]]) -> str:
    """Names and values, one per line."""
    body = "".join(
        f"<dt>{escape(str(key))}</dt><dd>{escape(_words(value))}</dd>" for key, value in entries
    )
    return f"<dl>{body}</dl>"


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _svg(height: float, shapes: Sequence[str], label: str) -> str:
    return (
        f'<div class="wide"><svg viewBox="0 0 {WIDTH} {height:g}" role="img" '
        f'aria-label="{escape(label)}">' + "".join(shapes) + "</svg></div>"
    )


def _log_scale(low: float, high: float, left: float, right: float) -> Callable[[float], float]:
    span = math.log(high / low) or 1.0
    return lambda value: left + math.log(value / low) / span * (right - left)


def _axis(low: float, high: float, scale: Callable[[float], float], y: float, unit: str) -> str:
    """Ticks at 1, 2 and 5 times powers of ten between ``low`` and ``high``."""
    ticks = [
        m * 10.0**e
        for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for m in (1, 2, 5)
        if low <= m * 10.0**e <= high
    ]
    if len(ticks) > 10:
        ticks = [tick for tick in ticks if f"{tick:e}".startswith("1.0")]
    parts = []
    for i, tick in enumerate(ticks):
        x = scale(tick)
        text = f"{tick:g}" + (f" {unit}" if i == len(ticks) - 1 else "")
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="16" y2="{y:.1f}"/>'
            f'<text class="d" x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{text}</text>'
        )
    return "".join(parts)
