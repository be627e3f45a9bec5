"""``edgecv backends``."""

from __future__ import annotations

from dataclasses import asdict

from edgecv.cli.output import JsonOption, Output


def command(as_json: JsonOption = False) -> None:
    """List the backends: which are usable here, and why the others are not."""
    from edgecv.runtimes import probe_backends

    out = Output(as_json)
    probes = probe_backends()
    rows = [
        [
            name,
            probe.version or "-",
            "yes" if probe.usable else "no",
            ", ".join(probe.devices),
            ", ".join(probe.precisions),
        ]
        for name, probe in probes.items()
    ]
    out.table(["backend", "version", "usable", "devices", "precisions"], rows)
    for name, probe in probes.items():
        if not probe.usable:
            out.say(f"{name}: {probe.reason}; {probe.remedy}".rstrip("; "))
    out.result({"backends": [{"name": name, **asdict(p)} for name, p in probes.items()]})
