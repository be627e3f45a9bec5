"""``edgecv quantize``: a float file and pictures -> an INT8 file and the proof of what it is."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgecv.errors import CheckFailed, InputError
from edgecv.files import atomic_write
from edgecv.graph.upgrade import read_onnx, upgrade
from edgecv.measure.compare import worst
from edgecv.measure.quantpage import quantization_page
from edgecv.measure.saturation import saturation_note
from edgecv.model import same_shape
from edgecv.preprocess import Picture, list_pictures, stack
from edgecv.progress import Progress, silent
from edgecv.quantize.pipeline import Prepared, Quantized, Quantizer, Search, prepare
from edgecv.quantize.run import Array, Batches
from edgecv.quantize.sensitivity import error_for
from edgecv.quantize.targets import MAC, Policy, policy_for
from edgecv.spec import PARENT_MEAN, ModelSpec, TensorSpec, read_spec, write_spec
from edgecv.workflows.heldout import HeldOut, Seen, Warn, held_out
from edgecv.workflows.proof import DISAGREEMENT, Drop, Proof, Prover, float_summary, machine_target
from edgecv.workflows.putback import Try, judges_of, put_back_until
from edgecv.workflows.stream import prepared_chunks

CALIBRATION = 100  # pictures at most: more move no range by much, and cost time
SEARCHED = 6  # of them judge ranges and layers by the outputs: each costs a run for each tensor
FEW = 32  # below it the ranges depend on which pictures they are
CUT = 4 / 7  # of each side is what a step of learning sees: a third of the time


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


def quantize(
    model: str | os.PathLike[str],
    *,
    calibration: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    target: str | None = None,
    max_drop: float | None = None,
    keep_float: Sequence[str] = (),
    pixels: bool = False,
    learn: int = 0,
    seed: int = 0,
    synthetic: Mapping[str, Any] | None = None,
    force: bool = False,
    html: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
    warn: Warn = lambda text: None,
) -> QuantizeResult:
    """Quantize the FP32 file ``model`` to INT8 for ``target`` (default: this machine's).

    ``calibration``: a folder of pictures; at most :data:`CALIBRATION` of them, drawn by ``seed``,
    give the ranges. The proof is made on ``data`` (a labelled data set as ``edgecv eval`` takes it,
    or a folder of pictures), else on ``calibration``; never on a picture that was drawn.
    ``max_drop`` (points): where the file drops more, layers are put back to float until other
    pictures of ``calibration`` say that it fits, which the proof then leaves out as well.
    ``keep_float`` names nodes that stay in float; with ``pixels`` the file takes uint8 pixels
    ``[N, H, W, C]``. ``html`` is a page with the proof. ``learn`` steps of gradient descent, on
    the pictures that calibrate and towards the parent's answers, move scales, biases and weights
    (needs torch, and about half a second a step for MobileNetV2 on one core). It brings outputs
    closer, not always answers (``benchmarks/README.md``): compare the proof with the file's that
    has not learned. ``synthetic`` (JSON values) says how the pictures of ``calibration`` were made,
    where no camera took them: the file keeps it, and without ``data`` says that they proved it.

    Raises :class:`~edgecv.errors.CheckFailed` where the file drops more than ``max_drop`` all the
    same, or is not faster than its parent on the target at hand, unless ``force``; nothing is
    written then.
    """
    source = Path(model)
    parent = read_spec(source)
    if parent.precision != "fp32":
        raise InputError(
            f"{model}: is {parent.precision} already; quantize the FP32 file that it was made from"
        )
    policy = policy_for(target or machine_target())
    # a share of the folder is spared where somebody is to be judged on it
    spare = max_drop is not None or _overlap(data, Path(calibration))
    drawn, rest = _draw(Path(calibration), seed, spare, warn)
    ready = prepare(upgrade(read_onnx(source), source), policy, parent.preparation, pixels)
    batches = _batches(ready, drawn, parent.inputs[0].shape[0])
    invented = synthetic is not None
    calibrated = {
        "pictures": len(drawn),
        "seed": seed,
        "provenance": "synthetic" if invented else "pictures",
        "synthetic": synthetic,
    }
    quantizer = Quantizer(
        ready,
        policy,
        batches,
        keep_float=keep_float,
        search=_search(parent, ready, drawn),
        finish=_learner(parent, ready, policy, batches, learn, seed, progress, warn)
        if learn
        else None,
        progress=progress,
    )
    path = Path(output) if output is not None else _name(parent, policy)
    with (
        tempfile.TemporaryDirectory(prefix="edgecv-") as folder,
        Prover(source, policy, progress) as prover,
    ):
        draft = Path(folder) / path.name
        job = _Job(source, parent, policy, ready, quantizer, calibrated, prover, draft)
        done = quantizer.quantize()
        spec = job.write(done)
        proof = job.prove(held_out(parent, data, rest, drawn, Seen(drawn), warn, invented), done)
        tries: list[Try] = []
        if max_drop is not None and proof.drop.points > max_drop:
            scored = proof.drop.metric != DISAGREEMENT
            judges = judges_of(parent, Path(calibration), rest, drawn, scored, warn)
            found, tries = put_back_until(quantizer, done, max_drop, partial(job.judge, judges))
            spec = job.write(found)
            if found is not done:  # those who decided are no proof
                asked = {p for half in judges for p in half.pictures if p in rest}
                left = [p for p in rest if p not in asked]
                seen = Seen([*drawn, *asked])
                proof = job.prove(held_out(parent, data, left, drawn, seen, warn, invented), found)
                done = found
        spec = replace(
            spec, quantization={**spec.quantization, "tries": [one.to_dict() for one in tries]}
        )
        spec = _with_proof(spec, source, proof)
        _gate(proof, max_drop, tries, force, path)
        _check_floats(ready, done, proof, warn)
        write_spec(draft, spec, path)
    result = QuantizeResult(path, spec, done.model.opset_imports[""], proof, len(drawn))
    if html is not None:
        with atomic_write(html) as file:
            file.write(
                quantization_page(str(path.name), summary(result), result.to_dict()).encode()
            )
    return result


@dataclass(frozen=True)
class _Job:
    """One file on its way to integers: each copy is written, as the draft, and looked at."""

    source: Path
    parent: ModelSpec
    policy: Policy
    ready: Prepared
    quantizer: Quantizer
    calibration: Mapping[str, Any]  # what the contract says of the pictures that calibrate
    prover: Prover
    draft: Path

    def write(self, done: Quantized) -> ModelSpec:
        spec = _contract(self.parent, self.policy, self.ready, done, self.calibration)
        write_spec(_bytes(done), spec, self.draft)
        return spec

    def prove(self, held: HeldOut, done: Quantized) -> Proof:
        """The proof of ``done``, which is the draft."""
        return self.prover.prove(self.draft, held, self.quantizer.layers(done))

    def judge(self, judges: Sequence[HeldOut], done: Quantized) -> Drop:
        """Write ``done``, and ask ``judges``."""
        self.write(done)
        return self.prover.judge(self.draft, judges)


def _check_floats(ready: Prepared, done: Quantized, proof: Proof, warn: Warn) -> None:
    """onnxruntime makes integers of a float convolution between a DequantizeLinear and a
    QuantizeLinear: what was to stay float is counted where it runs."""
    if proof.readback is None:
        return
    kept = set(done.kept)
    wanted = sum(node.name in kept and node.op_type in MAC for node in ready.model.graph)
    if len(proof.readback.float_macs) < wanted:
        warn(
            f"{wanted} layers were to stay in float, and {proof.readback.runtime} computes "
            f"{len(proof.readback.float_macs)} in float: it makes integers of a layer whose "
            f"neighbours are; keep those in float too"
        )


def _overlap(data: str | os.PathLike[str] | None, calibration: Path) -> bool:
    """Whether the proof is made on pictures of ``calibration``, or may be."""
    if data is None or not Path(data).is_dir():
        return True
    return any(map(Seen(list_pictures(calibration)), list_pictures(data)))


def _draw(folder: Path, seed: int, spare: bool, warn: Warn) -> tuple[list[Path], list[Path]]:
    """The pictures that calibrate, in order, and the others of the folder."""
    pictures = list_pictures(folder)
    if not pictures:
        raise InputError(f"{folder}: there are no pictures to calibrate on in this folder")
    share = len(pictures) * 4 // 5 if spare else len(pictures)
    count = min(CALIBRATION, max(1, share))
    if count < FEW:
        warn(
            f"{folder}: {count} pictures calibrate the ranges; below {FEW} they depend on which "
            f"pictures those are"
        )
    order = np.random.default_rng(seed).permutation(len(pictures))
    return (
        [pictures[i] for i in sorted(order[:count])],
        [pictures[i] for i in sorted(order[count:])],
    )


def _batches(ready: Prepared, pictures: Sequence[Picture], size: int | str) -> Batches:
    """Prepared batches of the graph's batch size (8 where it is free), decoded again each pass."""
    most = size if isinstance(size, int) else 8

    def run() -> Iterator[Array]:
        for chunk in prepared_chunks(pictures, ready.preparation, ready.dtype):
            good = []
            for one in chunk:
                if isinstance(one, InputError):
                    raise one
                good.append(one)
            for group in same_shape(good):
                for start in range(0, len(group), most):
                    batch = stack(group[start : start + most])
                    if isinstance(size, int) and len(batch) < size:
                        # a fixed batch is filled up with its own pictures: zeros are no pictures
                        batch = np.resize(batch, (size, *batch.shape[1:]))
                    yield batch

    return run


def _learner(
    parent: ModelSpec,
    ready: Prepared,
    policy: Policy,
    batches: Batches,
    steps: int,
    seed: int,
    progress: Progress,
    warn: Warn,
) -> Callable[[Quantized], Quantized]:
    """What makes a quantized copy learn for ``steps``."""
    if steps < 1:
        raise InputError(f"learn: expected a number of steps, got {steps}")
    try:
        from edgecv.quantize.gradients.tune import Settings, divergence, relative_noise, tune
    except ImportError as error:
        raise InputError(
            f"learn: needs torch, which does not import ({error}); pip install 'edgecv[train]', or "
            f"quantize without it"
        ) from error
    settings = Settings(steps=steps, crop=CUT if _takes_any_size(ready) else 1.0, seed=seed)

    judge = divergence if parent.decoding.kind == "logits" else relative_noise

    def learned(done: Quantized) -> Quantized:
        tuned = tune(done.model, ready.model, policy, batches, settings, judge, progress)
        about = {"steps": steps, **tuned.to_dict()}
        if not tuned.gained:
            warn(
                f"{steps} steps of learning gained nothing on the {tuned.pictures} calibration "
                f"pictures that they left out: the file is what it was before them"
            )
            return replace(done, learned=about)
        spans = {name: tuned.ranges.get(name, span) for name, span in done.ranges.items()}
        return replace(done, model=tuned.model, ranges=spans, learned=about)

    return learned


def _takes_any_size(ready: Prepared) -> bool:
    """Whether the graph computes on a part of a picture what it was made to on a whole one."""
    operators = {node.op_type for node in ready.model.graph}
    return "GlobalAveragePool" in operators and not operators & {"Reshape", "AveragePool", "Resize"}


def _search(parent: ModelSpec, ready: Prepared, drawn: Sequence[Path]) -> Search:
    """Detectors are searched for what harms their answers; a classifier forgives more."""
    few = drawn[:: max(1, -(-len(drawn) // SEARCHED))]
    batches = _batches(ready, few, parent.inputs[0].shape[0])
    return Search(batches, error_for(parent.decoding), ranges=parent.task == "detect")


def _name(parent: ModelSpec, policy: Policy) -> Path:
    return Path(f"{parent.name}-int8-{policy.name}.onnx")


def _bytes(done: Quantized) -> bytes:
    data: bytes = ir.to_proto(done.model).SerializeToString(deterministic=True)
    return data


def _contract(
    parent: ModelSpec,
    policy: Policy,
    ready: Prepared,
    done: Quantized,
    calibration: Mapping[str, Any],
) -> ModelSpec:
    tensor = parent.inputs[0]
    inputs = parent.inputs
    if ready.dtype != tensor.dtype:
        _, c, h, w = tensor.shape
        inputs = (TensorSpec(tensor.name, (tensor.shape[0], h, w, c), ready.dtype),)
    return replace(
        parent,
        precision="int8",
        target=policy.name,
        preparation=ready.preparation,
        inputs=inputs,
        self_test={},
        quantization={
            "calibration": dict(calibration),
            "ranges": {name: [span.lo, span.hi, span.method] for name, span in done.ranges.items()},
            "units": len(done.plan.units),
            "kept_float": list(done.kept),
            "put_back": done.put_back.to_dict() if done.put_back else None,
            "learned": done.learned,
            "pixels_in": ready.pixels.to_dict() if ready.pixels else None,
            PARENT_MEAN: list(parent.preparation.mean),
        },
    )


def _with_proof(spec: ModelSpec, parent: Path, proof: Proof) -> ModelSpec:
    pooled = worst(list(proof.outputs.values()))
    return replace(
        spec,
        self_test=proof.self_test,
        parity={
            **pooled.to_dict(),
            "reference": f"{parent.name}, fp32",
            "runtime": proof.backend,
            "agreement": proof.agreement,
            "synthetic": proof.synthetic,
        },
        quantization={**spec.quantization, "proof": proof.to_dict()},
    )


def _gate(
    proof: Proof, max_drop: float | None, tries: Sequence[Try], force: bool, path: Path
) -> None:
    problems = []
    if max_drop is not None and proof.drop.points > max_drop:
        problems.append(
            f"it loses {proof.drop}, more than --max-drop {max_drop:g}"
            + (f", though layers were put back to float in {len(tries)} steps" if tries else "")
        )
    if proof.latency is not None and proof.latency.slower:
        assert proof.latency.speedup is not None  # slower says so
        problems.append(
            f"it is not faster than its parent here: {proof.latency.candidate_ms:.2f} against "
            f"{proof.latency.parent_ms:.2f} ms ({proof.latency.speedup.value:.2f} times)"
        )
    if problems and not force:
        raise CheckFailed(
            f"{path}: not written: {'; '.join(problems)}. --force writes it all the same; "
            f"--keep-float NODE keeps a node as it is"
        )


def summary(result: QuantizeResult) -> dict[str, str]:
    """The proof in words, for a terminal and for a page."""
    proof, spec = result.proof, result.spec
    made = spec.quantization["calibration"]["synthetic"]
    pairs = {
        "target": f"{spec.target}, opset {result.opset}",
        "calibrated on": f"{result.calibrated_on} {_kind(bool(made))}",
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
    if proof.latency is None:
        pairs["one thread"] = f"not measured: {spec.target} does not run on this machine"
    else:
        speedup = proof.latency.speedup
        pairs["one thread"] = (
            f"{proof.latency.candidate_ms:.2f} ms, parent {proof.latency.parent_ms:.2f} ms"
        ) + (
            f": {speedup.value:.2f} times as fast ({speedup.low:.2f} to {speedup.high:.2f})"
            if speedup is not None
            else ""
        )
    if proof.readback is not None:
        integer = ", ".join(f"{n} {kind}" for kind, n in proof.readback.integer.items())
        pairs["in integers"] = integer or "none"
        pairs["in float"] = float_summary(proof.readback.floats)
    back = spec.quantization["put_back"]
    if back is not None and back["nodes"]:
        reasons = list(dict.fromkeys(back["nodes"].values()))
        shown = ", ".join(reasons[:5]) + (", ..." if len(reasons) > 5 else "")
        pairs["put back"] = (
            f"{len(back['nodes'])} nodes to float, for {shown}; error {back['error_before']:.3g} "
            f"to {back['error_after']:.3g}"
        )
    if (learned := spec.quantization["learned"]) is not None:
        pairs["learned"] = (
            f"{learned['steps']} steps, {learned['loss_before']:.3g} to "
            f"{learned['loss_after']:.3g} off the parent on {learned['held_out']} calibration "
            f"pictures left out"
        ) + ("" if learned["taken"] else ": not taken")
    for one in spec.quantization["tries"]:
        pairs[f"limit {one['limit']:.2g}"] = (
            f"{one['nodes']} nodes in float, {one['points']:.2f} points of {one['metric']} on "
            f"{one['pictures']} pictures of the calibration folder, the worse of its judges' halves"
        )
    pairs["16-bit sums"] = saturation_note(proof.saturation)
    pairs["instructions"] = ", ".join(proof.instructions)
    return pairs


def _kind(synthetic: bool) -> str:
    return "synthetic pictures" if synthetic else "pictures"
