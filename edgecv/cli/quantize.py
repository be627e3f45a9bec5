"""``edgecv quantize``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgecv.cli.output import JsonOption, Output

if TYPE_CHECKING:
    from edgecv.workflows.quantize import QuantizeResult


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="An FP32 file.")],
    calibration: Annotated[
        Path, typer.Option(metavar="DIR", help="Pictures that give the ranges.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(metavar="DATASET", help="Pictures, best labelled, that prove the file."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="onnxruntime-x86|onnxruntime-x86-avx2|onnxruntime-arm|openvino|tensorrt",
            help="What will run it; default: this machine's onnxruntime.",
        ),
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(metavar="POINTS", help="The most it may lose.")
    ] = None,
    keep_float: Annotated[
        list[str] | None, typer.Option(metavar="NODE", help="A node that stays in float.")
    ] = None,
    pixels: Annotated[
        bool,
        typer.Option("--pixels-in", help="The file takes uint8 pixels, height x width x channel."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Which pictures calibrate.")] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Write the file though it falls short.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Quantize an FP32 file to INT8, and prove what became of it."""
    from edgecv.workflows.quantize import quantize

    out = Output(as_json)
    with out.progress() as progress:
        result = quantize(
            model,
            calibration=calibration,
            data=data,
            target=target,
            max_drop=max_drop,
            keep_float=keep_float or [],
            pixels=pixels,
            seed=seed,
            force=force,
            output=output,
            progress=progress,
            warn=out.warn,
        )
    show(result, out)
    out.result(result.to_dict())


def show(result: QuantizeResult, out: Output) -> None:
    """The proof, as a table for people."""
    from edgecv.workflows.quantize import float_summary

    proof = result.proof
    pairs: dict[str, object] = {
        "target": f"{result.spec.target}, opset {result.opset}",
        "calibrated on": f"{result.calibrated_on} pictures",
        "proven on": f"{proof.pictures} other pictures, in {proof.backend}",
        "size": f"{proof.size_bytes:,} bytes, {proof.parent_bytes / proof.size_bytes:.2f} times "
        f"smaller",
        "same answer": f"{proof.agreement:.2%}",
        "drop": f"{proof.drop:.2f} points of {proof.metric}",
    }
    for name, one in proof.outputs.items():
        sqnr = "no difference" if one.sqnr_db is None else f"SQNR {one.sqnr_db:.1f} dB"
        pairs[f"output {name}"] = f"cosine {one.cosine:.5f} at worst, {sqnr} on average"
    if proof.latency is not None:
        speedup = proof.latency.speedup
        times = f"{proof.latency.candidate_ms:.2f} ms, parent {proof.latency.parent_ms:.2f} ms"
        if speedup is not None:
            times += (
                f": {speedup.value:.2f} times as fast ({speedup.low:.2f} to {speedup.high:.2f})"
            )
        pairs["one thread"] = times
    else:
        pairs["one thread"] = f"not measured: {result.spec.target} does not run on this machine"
    if proof.readback is not None:
        integer = ", ".join(f"{n} {kind}" for kind, n in proof.readback.integer.items())
        pairs["in integers"] = integer
        pairs["in float"] = float_summary(proof.readback.floats)
    pairs["instructions"] = ", ".join(proof.instructions)
    out.say(f"wrote {result.path}", "bold")
    out.pairs(pairs)
