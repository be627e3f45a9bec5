"""What ``edgecv quantize`` wrote, with its proof, for programs and in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecv.measure.saturation import saturation_note
from edgecv.spec import ModelSpec
from edgecv.workflows.proof import Proof, float_summary


@dataclass(frozen=True)
class QuantizeResult:
    """What was written, and the proof."""

    path: Path
    spec: ModelSpec
    opset: int
    proof: Proof
    calibrated_on: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "precision": self.spec.precision,
            "target": self.spec.target,
            "opset": self.opset,
            "size_bytes": self.path.stat().st_size,
            "parity": dict(self.spec.parity),
            "calibration_pictures": self.calibrated_on,
            "proof": self.proof.to_dict(),
            "quantization": dict(self.spec.quantization),
        }


def summary(result: QuantizeResult) -> dict[str, str]:
    """The proof in words, for a terminal and for a page."""
    proof, spec = result.proof, result.spec
    calibrated = _kind(bool(spec.quantization["calibration"]["synthetic"]))
    pairs = {
        "target": f"{spec.target}, opset {result.opset}",
        "calibrated on": f"{result.calibrated_on} {calibrated}",
        "proven on": f"{proof.pictures} {_kind(proof.synthetic)}, in {proof.backend}",
        "size": f"{proof.size_bytes:,} bytes, {proof.parent_bytes / proof.size_bytes:.2f} times "
        f"smaller",
        "same answer": f"{proof.agreement:.2%}"
        + (" of synthetic pictures, which says nothing of real ones" if proof.synthetic else ""),
        "drop": "not known: no real picture was judged" if proof.synthetic else str(proof.drop),
    }
    for name, one in proof.outputs.items():
        sqnr = "no difference" if one.sqnr_db is None else f"SQNR {one.sqnr_db:.1f} dB"
        pairs[f"output {name}"] = f"cosine {one.cosine:.5f} at worst, {sqnr} on average"
    return {
        **pairs,
        **_speed(proof, str(spec.target)),
        **_what_was_done(spec.quantization),
        "16-bit sums": saturation_note(proof.saturation),
        "instructions": ", ".join(proof.instructions),
    }


def _speed(proof: Proof, target: str) -> dict[str, str]:
    """How fast it is, and what of it computes in integers."""
    if proof.latency is None:
        timed = f"not measured: {target} is not what this machine runs"
    else:
        speedup = proof.latency.speedup
        timed = f"{proof.latency.candidate_ms:.2f} ms, parent {proof.latency.parent_ms:.2f} ms"
        if speedup is not None:
            timed += (
                f": {speedup.value:.2f} times as fast ({speedup.low:.2f} to {speedup.high:.2f})"
            )
    if proof.readback is None:
        return {"one thread": timed}
    integer = ", ".join(f"{n} {kind}" for kind, n in proof.readback.integer.items())
    return {
        "one thread": timed,
        "in integers": integer or "none",
        "in float": float_summary(proof.readback.floats),
    }


def _what_was_done(quantization: Mapping[str, Any]) -> dict[str, str]:
    """What the contract's ``quantization`` says of layers put back, of learning and of tries."""
    pairs = {}
    back, learned = quantization["put_back"], quantization["learned"]
    if back is not None and back["nodes"]:
        reasons = list(dict.fromkeys(back["nodes"].values()))
        shown = ", ".join(reasons[:5]) + (", ..." if len(reasons) > 5 else "")
        pairs["put back"] = (
            f"{len(back['nodes'])} nodes to float, for {shown}; error {back['error_before']:.3g} "
            f"to {back['error_after']:.3g}"
        )
    if learned is not None:
        pairs["learned"] = (
            f"{learned['steps']} steps, {learned['loss_before']:.3g} to "
            f"{learned['loss_after']:.3g} off the parent on {learned['held_out']} calibration "
            f"pictures left out"
        ) + ("" if learned["taken"] else ": not taken")
    for one in quantization["tries"]:
        pairs[f"limit {one['limit']:.2g}"] = (
            f"{one['nodes']} nodes in float, {one['points']:.2f} points of {one['metric']} on "
            f"{one['pictures']} pictures of the calibration folder, the worse of its judges' halves"
        )
    return pairs


def _kind(synthetic: bool) -> str:
    return "synthetic pictures" if synthetic else "pictures"
