"""The proof of a quantized file as one HTML page, in the form of :mod:`edgecv.measure.page`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgecv.measure.page import bars, document, pairs, section


def quantization_page(name: str, summary: Mapping[str, str], data: Mapping[str, Any]) -> str:
    """The page of the file ``name``: ``summary`` in words, ``data`` as ``--json`` prints it."""
    return document(
        f"EdgeCV quantization: {name}",
        [
            section("Proof", pairs(list(summary.items()))),
            _layers(data["proof"]["layers"]),
            _put_back(data["quantization"]["put_back"]),
        ],
    )


def _layers(layers: list[dict[str, Any]]) -> str:
    """The noise of each layer as an amplitude: 6 dB more are half of it."""
    if not layers:
        return ""
    noise = [0.0 if one["sqnr_db"] is None else 10 ** (-one["sqnr_db"] / 20) for one in layers]
    most = max(noise) or 1.0
    lines = []
    for one, own in zip(layers, noise, strict=True):
        level = "exact" if one["sqnr_db"] is None else f"{one['sqnr_db']:.1f} dB"
        facts = [level, f"{one['macs']:,} multiply-adds"]
        lines.append((f"{one['operator']} {one['name']}", facts, own / most))
    return section(
        "Layers by error",
        bars(lines, "Noise that each layer brings"),
        "Signal to noise at the output of each layer, fed with the float net's values; the bar is "
        "the noise. What it does at the net's output is another matter.",
    )


def _put_back(back: Mapping[str, Any] | None) -> str:
    """Which nodes compute in float, by the value for whose sake."""
    if back is None or not back["nodes"]:
        return ""
    reasons: dict[str, list[str]] = {}
    for node, reason in back["nodes"].items():
        reasons.setdefault(reason, []).append(node)
    return section("Put back to float", pairs(list(reasons.items())), "The value, and its nodes.")
