"""``edgecv doctor``."""

from __future__ import annotations

import typer

from edgecv.cli.output import JsonOption, Output
from edgecv.errors import CheckFailed


def command(as_json: JsonOption = False) -> None:
    """Say what this machine is, what is installed, and what to mend; exit 1 if it is broken."""
    from edgecv.workflows.doctor import diagnose

    out = Output(as_json)
    diagnosis = diagnose()
    env = dict(diagnosis.environment)
    packages = env.pop("packages")
    shown = {k: ", ".join(v) if isinstance(v, list) else v for k, v in env.items()}
    out.pairs({**shown, "nvidia gpus": ", ".join(diagnosis.gpus) or "none"}, "machine")
    out.pairs(packages, "installed")
    usable = {
        name: f"usable ({probe.version})" if probe.usable else f"no: {probe.reason}"
        for name, probe in diagnosis.backends.items()
    }
    out.pairs(usable, "backends")
    for finding in diagnosis.findings:
        word, style = ("BROKEN", "bold red") if finding.broken else ("note", "yellow")
        out.say(f"{word}: {finding.message}. {finding.remedy}", style)
    if not diagnosis.findings:
        out.say("nothing to mend", "green")
    out.result(diagnosis.to_dict())
    if not diagnosis.to_dict()["healthy"]:
        raise typer.Exit(CheckFailed.exit_code)
