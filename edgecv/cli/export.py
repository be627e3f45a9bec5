"""``edgecv export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgecv.cli.options import (
    TARGETS,
    LabelsOption,
    OutputOption,
    PixelsColorOption,
    PixelsOption,
    floats,
    pixels_of,
)
from edgecv.cli.output import JsonOption, Output
from edgecv.cli.quantize import show
from edgecv.errors import InputError

if TYPE_CHECKING:
    from edgecv.spec import ModelSpec
    from edgecv.workflows.export import ExportResult


def command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|RECIPE.toml",
            help="A recipe, or module:factory, timm:NAME, torchvision:NAME, FILE.pt2.",
        ),
    ],
    weights: Annotated[
        str, typer.Option(metavar="auto|imagenet|bundled|random|FILE", help="Which weights.")
    ] = "auto",
    precision: Annotated[
        str, typer.Option(metavar="fp32|fp16|int8", help="Of the file; IO stays FP32.")
    ] = "fp32",
    opset: Annotated[int, typer.Option(help="ONNX opset, 18 to 20.")] = 18,
    image_size: Annotated[int | None, typer.Option(help="Input size in pixels.")] = None,
    resize: Annotated[int | None, typer.Option(help="Short side before the crop.")] = None,
    fit: Annotated[str | None, typer.Option(metavar="crop|stretch|letterbox")] = None,
    mean: Annotated[str | None, typer.Option(metavar="R,G,B", help="Of 0 to 1.")] = None,
    std: Annotated[str | None, typer.Option(metavar="R,G,B", help="Of 0 to 1.")] = None,
    labels: LabelsOption = None,
    batch: Annotated[str, typer.Option(metavar="N|dynamic", help="Pictures per run.")] = "1",
    pixels: PixelsOption = False,
    pixels_color: PixelsColorOption = None,
    end2end: Annotated[
        bool, typer.Option("--end2end", help="Decoding and NMS in the graph (detectors).")
    ] = False,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Pictures that give INT8 its ranges; default: synthetic."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar=TARGETS,
            help="What will run the INT8 file (default: this machine), or the NMS of --end2end.",
        ),
    ] = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export a PyTorch model to an ONNX file that carries its contract, parity proven."""
    from edgecv.export.overrides import InputOverrides
    from edgecv.workflows.export import export

    out = Output(as_json)
    if name.endswith(".onnx"):
        _append_nms(Path(name), end2end, target, output, out)
        return
    overrides = InputOverrides(
        image_size, resize, fit, floats(mean, "--mean"), floats(std, "--std"), labels
    )
    with out.progress() as progress:
        result = export(
            name,
            weights=weights,
            overrides=overrides,
            opset=opset,
            batch=_batch(batch),
            end2end=end2end,
            precision=precision,
            pixels=pixels_of(pixels, pixels_color),
            calibration=calibration,
            target=target,
            output=output,
            progress=progress,
            warn=out.warn,
        )
    _show(result, out)
    if result.quantized is not None:
        show(result.quantized, out)
    out.result(result.to_dict())


def _show(result: ExportResult, out: Output) -> None:
    """What was written, and from what; of an INT8 file its proof says the rest."""
    spec = result.spec
    (tensor,) = spec.inputs
    licence = f", {result.weights.licence}" if result.weights.licence else ""
    if result.quantized is None:
        out.say(f"wrote {result.path}", "bold")
    out.pairs(
        {
            "model": f"{spec.name}, {spec.task}"
            + (f", {len(spec.labels)} classes" if spec.labels else ""),
            "weights": f"{result.weights.origin}"
            + (f" {result.weights.path.name}" if result.weights.path else "")
            + licence,
            "preparation": spec.preparation.describe(),
            "input": f"{tensor.name} {list(tensor.shape)} {tensor.dtype}",
            "file": f"{result.size_bytes:,} bytes, opset {result.opset}, {spec.precision}",
            "nodes": ", ".join(f"{count} {kind}" for kind, count in result.nodes.items())
            + (" before quantization" if result.quantized is not None else ""),
        }
        | _parity_lines(spec)
        | _likeness_lines(spec)
        | _nms_lines(spec)
    )


def _append_nms(
    path: Path, end2end: bool, target: str | None, output: Path | None, out: Output
) -> None:
    """``edgecv export FILE.onnx --end2end``: the one thing that is done to a finished file."""
    from edgecv.workflows.end2end import append_to_file

    if not end2end:
        raise InputError(
            f"{path}: this is an ONNX file already; `edgecv adopt` gives it a contract, and "
            f"`edgecv export FILE.onnx --end2end` puts decoding and NMS into the graph of one that "
            f"has it"
        )
    written, spec = append_to_file(path, output, target)
    out.say(f"wrote {written}", "bold")
    out.pairs(_nms_lines(spec))
    out.result(
        {
            "path": str(written),
            "precision": spec.precision,
            "target": spec.target,
            "opset": spec.provenance["opset"],
            "size_bytes": written.stat().st_size,
            "parity": dict(spec.parity),
        }
    )


def _parity_lines(spec: ModelSpec) -> dict[str, str]:
    """How far the file is from PyTorch; that of an INT8 file stands in its proof."""
    if spec.precision == "int8":
        return {}
    parity = spec.parity
    found = f"max |difference| {parity['max_abs']:.2e} ({parity['max_rel']:.1e} of the largest)"
    if (least := parity.get("tolerance_min_sqnr_db")) is not None:
        found += f", SQNR {parity['sqnr_db']:.1f} dB (rounding alone: {least:.1f} or more)"
    return {
        "parity": f"{found}, batches {parity['batches']}, {parity['reference']} against "
        f"{parity['runtime']}"
    }


def _likeness_lines(spec: ModelSpec) -> dict[str, str]:
    """What a Siamese pair has learned beside its embeddings, and how far it is from PyTorch."""
    from edgecv.gallery import Likeness

    if (likeness := Likeness.of(spec)) is None:
        return {}
    if (proof := spec.parity.get("likeness")) is None:
        return {"likeness": str(likeness)}
    return {
        "likeness": f"{likeness}; of {proof['pairs']} pairs at most {proof['max_abs']:.1e} from "
        f"PyTorch's (allowed {proof['tolerance']:.1e})"
    }


def _nms_lines(spec: ModelSpec) -> dict[str, str]:
    """What there is to say of NMS in the graph; nothing where it is not there."""
    if (proof := spec.parity.get("end2end")) is None:
        return {}
    return {
        "outputs": ", ".join(f"{t.name} {list(t.shape)} {t.dtype}" for t in spec.outputs),
        "NMS in the graph": f"conf {spec.decoding.options['conf']:g}; proven on "
        f"{proof['detections']} detections at conf {proof['conf']:g} in seeded pictures, the same "
        f"as by NumPy, boxes at most {proof['max_pixels']:.1e} pixels apart",
    }


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"--batch {text}: expected a number of pictures, or dynamic")
    return int(text)
