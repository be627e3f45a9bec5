"""``edgecv verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgecv.cli.options import BackendOption
from edgecv.cli.output import JsonOption, Output
from edgecv.errors import CheckFailed

if TYPE_CHECKING:
    from edgecv.workflows.verdict import Verification


def command(
    candidate: Annotated[Path, typer.Argument(metavar="CANDIDATE", help="An .onnx file.")],
    against: Annotated[
        str | None, typer.Option(metavar="REFERENCE", help="A recipe, an .onnx, or a .npz record.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="The reference's weights.")
    ] = None,
    backend: BackendOption = "auto",
    data: Annotated[Path | None, typer.Option(help="A folder of pictures to compare on.")] = None,
    min_agreement: Annotated[float | None, typer.Option(min=0, max=1)] = None,
    min_cosine: Annotated[float | None, typer.Option(min=-1, max=1)] = None,
    max_drop: Annotated[float | None, typer.Option(metavar="POINTS")] = None,
    strict_target: Annotated[
        bool, typer.Option("--strict-target", help="An INT8 file has to run on its target.")
    ] = False,
    layers: Annotated[
        bool, typer.Option("--layers", help="Name the first node that diverges; rank INT8 layers.")
    ] = False,
    save: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Pictures whose answer changed.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Keep the reference's answers.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a model file with its parent; exit 1 where it falls short."""
    from edgecv.workflows.verify import verify

    out = Output(as_json)
    with out.progress() as progress:
        outcome = verify(
            candidate,
            against,
            weights=weights,
            backend=backend,
            data=data,
            min_agreement=min_agreement,
            min_cosine=min_cosine,
            max_drop=max_drop,
            strict_target=strict_target,
            layers=layers,
            save=save,
            record=record,
            progress=progress,
        )
    out.say(f"{candidate} against {outcome.reference}, on {outcome.inputs}")
    _show_outputs(outcome, out)
    if outcome.target_note:
        out.warn(outcome.target_note)
    _show_layers(outcome, layers, out)
    if save is not None:
        out.say(f"{len(outcome.saved)} pictures whose answer changed are in {save}")
    for check in outcome.checks:
        word, style = ("passed", "green") if check.passed else ("FAILED", "bold red")
        out.say(f"  {word}: {check.name} {check.value:.4g}, bound {check.bound:.4g}", style)
    if record is not None:
        out.say(f"recorded in {record}")
    out.result(outcome.to_dict())
    if not outcome.passed:
        raise typer.Exit(CheckFailed.exit_code)


def _show_outputs(outcome: Verification, out: Output) -> None:
    c = outcome.comparison
    out.pairs(
        {
            "max |difference|": f"{c.max_abs:.3e}",
            "of the largest output": f"{c.max_rel:.3e}",
            "cosine, worst": f"{c.cosine:.9f}",
            "SQNR": "no difference" if c.sqnr_db is None else f"{c.sqnr_db:.1f} dB",
            "same answer": "-" if outcome.agreement is None else f"{outcome.agreement:.2%}",
            "ran on": f"{outcome.backend}, {outcome.precision}",
        }
    )
    if len(outcome.outputs) > 1:
        out.table(
            ["output", "max |difference|", "of the largest", "cosine", "SQNR, dB"],
            [
                [name, f"{o.max_abs:.3e}", f"{o.max_rel:.3e}", f"{o.cosine:.6f}", o.sqnr_db]
                for name, o in outcome.outputs.items()
            ],
        )


def _show_layers(outcome: Verification, asked: bool, out: Output) -> None:
    if (found := outcome.divergence) is not None:
        out.say(
            f"first node that diverges: {found.node} ({found.op}), tensor {found.tensor}, "
            f"off by {found.error:.2e} (bound {found.bound:.2g}), in the {found.graph} graph",
            "bold red",
        )
    elif asked and not outcome.layers:
        out.say("no node diverges")
    for layer in outcome.layers[:10]:
        own = "exact" if layer.sqnr_db is None else f"{layer.sqnr_db:.1f} dB"
        out.say(f"  noise at the output {layer.contribution:.2e}, own SQNR {own}: {layer.node}")
