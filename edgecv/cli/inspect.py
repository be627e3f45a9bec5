"""``edgecv inspect``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edgecv.cli.output import JsonOption, Output


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx file.")],
    as_json: JsonOption = False,
) -> None:
    """Show the contract that a model file carries."""
    from edgecv.enginefile import is_engine
    from edgecv.gallery import Likeness
    from edgecv.measure.saturation import Saturation, saturation, saturation_note
    from edgecv.spec import read_spec

    spec = read_spec(model)
    out = Output(as_json)
    shown = ", ".join(spec.labels[:5]) + (", ..." if len(spec.labels) > 5 else "")
    weights = spec.provenance.get("weights", {})
    likeness = Likeness.of(spec)
    out.say(f"{model}", "bold")
    pairs = {
        "name": spec.name,
        "task": spec.task,
        "precision": spec.precision,
        "inputs": ", ".join(f"{t.name} {list(t.shape)} {t.dtype}" for t in spec.inputs),
        "preparation": spec.preparation.describe(),
        "outputs": ", ".join(f"{t.name} {list(t.shape)} {t.dtype}" for t in spec.outputs),
        "decoding": spec.decoding.kind,
        **({"likeness": str(likeness)} if likeness else {}),
        "labels": f"{len(spec.labels)}: {shown}",
        "weights": f"{weights.get('origin')} {weights.get('file') or ''}".strip(),
        "weights' licence": weights.get("licence") or "not stated",
        "weights' sha256": weights.get("sha256"),
        "opset": spec.provenance.get("opset"),
        "made with": ", ".join(f"{k} {v}" for k, v in spec.provenance.get("tools", {}).items()),
        "contract": f"version {spec.version}, readers from {spec.min_reader}",
    }
    if "max_rel" in spec.parity:  # a file that was adopted has been compared with nothing
        pairs["parity"] = (
            f"max_rel {spec.parity['max_rel']:.1e}, cosine {spec.parity['cosine']:.9f}, "
            f"{spec.parity['reference']} against {spec.parity['runtime']}"
        )
    if calibration := spec.quantization.get("calibration"):
        kind = "synthetic pictures" if calibration.get("synthetic") else "pictures"
        pairs["calibrated on"] = f"{calibration['pictures']} {kind}"
    layers: tuple[Saturation, ...] = ()
    if spec.precision == "int8" and not is_engine(model):  # an engine is for a GPU
        layers = saturation(model)
        pairs["16-bit sums"] = saturation_note(layers)
    out.pairs(pairs)
    size = model.stat().st_size
    out.result(
        {
            "path": str(model),
            "size_bytes": size,
            "saturation_without_vnni": [layer.to_dict() for layer in layers],
            "contract": json.loads(spec.to_json()),
        }
    )
