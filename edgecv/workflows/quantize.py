"""``edgecv quantize``: a float file and pictures -> an INT8 file and the proof of what it is."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgecv.errors import CheckFailed, InputError, QuantizeError
from edgecv.files import atomic_write
from edgecv.graph.upgrade import read_onnx, upgrade
from edgecv.measure.compare import worst
from edgecv.measure.quantpage import quantization_page
from edgecv.progress import Progress, silent
from edgecv.quantize.detections import mixed_heads
from edgecv.quantize.pipeline import Prepared, Quantized, Quantizer, prepare
from edgecv.quantize.targets import MAC, Policy, policy_for
from edgecv.spec import PARENT_MEAN, PIXELS_IN, ModelSpec, TensorSpec, read_spec, write_spec
from edgecv.workflows.calibration import Pool, batches_of, draw, overlap, search_for
from edgecv.workflows.heldout import HeldOut, Seen, Warn, held_out
from edgecv.workflows.learn import learner
from edgecv.workflows.proof import DISAGREEMENT, Drop, Proof, Prover, machine_target
from edgecv.workflows.putback import Try, judges_of, put_back_until
from edgecv.workflows.quantresult import QuantizeResult, summary

ASKED = "asked for"  # why a node of --keep-float is in float


def quantize(
    model: str | os.PathLike[str],
    *,
    calibration: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    target: str | None = None,
    max_drop: float | None = None,
    keep_float: Sequence[str] = (),
    pixels: bool | str = False,
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

    ``calibration``: a folder of pictures; at most :data:`~edgecv.workflows.calibration.MOST` of
    them, drawn by ``seed``, give the ranges. The proof is made on ``data`` (a labelled data set as
    ``edgecv eval`` takes it, or a folder of pictures), else on ``calibration``; never on a picture
    that was drawn.
    ``max_drop`` (points): where the file drops more, layers are put back to float until other
    pictures of ``calibration`` say that it fits, which the proof then leaves out as well.
    ``keep_float`` names nodes that stay in float; with ``pixels`` the file takes uint8 pixels
    ``[N, H, W, C]``, their channels in the parent's order (True), or ``rgb`` or ``bgr``.
    ``html`` is a page with the proof. ``learn`` steps of gradient descent, on
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
    _check_wishes(source, max_drop, seed, output)
    parent = _read_parent(source, warn)
    policy = policy_for(target or machine_target())
    # a share of the folder is spared where somebody is to be judged on it
    spare = max_drop is not None or overlap(data, Path(calibration))
    pool = draw(Path(calibration), seed, spare, warn)
    evidence = _Evidence(parent, data, pool, synthetic is not None, warn)
    judged_on = evidence.for_proof()  # what is wrong with ``data`` is said before the work
    ready = prepare(upgrade(read_onnx(source), source), policy, parent.preparation, pixels)
    batches = batches_of(ready, pool.drawn, parent.inputs[0].shape[0])
    learned = (
        learner(parent, ready, policy, batches, learn, seed, progress, warn) if learn else None
    )
    keep = {**mixed_heads(ready.model, policy, parent), **dict.fromkeys(keep_float, ASKED)}
    quantizer = Quantizer(
        ready,
        policy,
        batches,
        keep_float=keep,
        search=search_for(parent, ready, pool.drawn),
        finish=learned,
        progress=progress,
    )
    about = {
        "pictures": len(pool.drawn),
        "seed": seed,
        "provenance": "pictures" if synthetic is None else "synthetic",
        "synthetic": synthetic,
    }
    path = Path(output) if output is not None else _name(parent, policy)
    with (
        tempfile.TemporaryDirectory(prefix="edgecv-") as folder,
        Prover(source, policy, progress) as prover,
    ):
        draft = Path(folder) / path.name
        job = _Job(parent, policy, ready, quantizer, about, prover, draft)
        done = quantizer.quantize()
        _refuse_float(done, policy, keep)
        job.write(done)
        proof = job.prove(judged_on, done)
        tries: list[Try] = []
        if max_drop is not None and proof.drop.points > max_drop:
            done, proof, tries = _put_back(job, evidence, done, proof, max_drop)
        spec = _with_proof(job.contract(done), source, proof, tries)
        _gate(proof, max_drop, tries, force, path)
        _check_floats(ready, done, proof, warn)
        write_spec(draft, spec, path)
    result = QuantizeResult(path, spec, done.model.opset_imports[""], proof, len(pool.drawn))
    if html is not None:
        page = quantization_page(path.name, summary(result), result.to_dict())
        with atomic_write(html) as file:
            file.write(page.encode())
    return result


@dataclass(frozen=True)
class _Job:
    """One file on its way to integers: each copy is written, as the draft, and looked at."""

    parent: ModelSpec
    policy: Policy
    ready: Prepared
    quantizer: Quantizer
    calibration: Mapping[str, Any]  # what the contract says of the pictures that calibrate
    prover: Prover
    draft: Path

    def contract(self, done: Quantized) -> ModelSpec:
        """What the file of ``done`` says of itself, but for its proof."""
        tensor = self.parent.inputs[0]
        inputs = self.parent.inputs
        if self.ready.dtype != tensor.dtype:
            _, c, h, w = tensor.shape
            inputs = (TensorSpec(tensor.name, (tensor.shape[0], h, w, c), self.ready.dtype),)
        return replace(
            self.parent,
            precision="int8",
            target=self.policy.name,
            preparation=self.ready.preparation,
            inputs=inputs,
            self_test={},
            quantization={
                "calibration": dict(self.calibration),
                "ranges": {
                    name: [span.lo, span.hi, span.method] for name, span in done.ranges.items()
                },
                "units": len(done.plan.units),
                "kept_float": list(done.kept),
                "put_back": done.put_back.to_dict() if done.put_back else None,
                "learned": done.learned,
                PIXELS_IN: self.ready.pixels.to_dict() if self.ready.pixels else None,
                PARENT_MEAN: list(self.parent.preparation.mean),
            },
        )

    def write(self, done: Quantized) -> None:
        write_spec(_bytes(done), self.contract(done), self.draft)

    def prove(self, held: HeldOut, done: Quantized) -> Proof:
        """The proof of ``done``, which is the draft."""
        return self.prover.prove(self.draft, held, self.quantizer.layers(done))

    def judge(self, judges: Sequence[HeldOut], done: Quantized) -> Drop:
        """Write ``done``, and ask ``judges``."""
        self.write(done)
        return self.prover.judge(self.draft, judges)


@dataclass(frozen=True)
class _Evidence:
    """Which pictures may judge the file: never those that made it."""

    parent: ModelSpec
    data: str | os.PathLike[str] | None
    pool: Pool
    synthetic: bool  # the pool's pictures
    warn: Warn

    def for_proof(self, decided: Collection[Path] = ()) -> HeldOut:
        """Those for the proof, without those of the pool that ``decided`` what is put back."""
        pool = self.pool
        left = [path for path in pool.rest if path not in decided]
        seen = Seen([*pool.drawn, *decided])
        return held_out(self.parent, self.data, left, pool.drawn, seen, self.warn, self.synthetic)

    def judges(self, scored: bool) -> list[HeldOut]:
        """Those that decide what is put back; ``scored``: the proof is a score by labels."""
        pool = self.pool
        return judges_of(self.parent, pool.folder, pool.rest, pool.drawn, scored, self.warn)


def _check_wishes(
    model: Path, max_drop: float | None, seed: int, output: str | os.PathLike[str] | None
) -> None:
    """Say what is wrong with the wishes before minutes of work."""
    if max_drop is not None and not (math.isfinite(max_drop) and max_drop >= 0):
        raise InputError(f"--max-drop {max_drop:g}: expected points, 0 or more")
    if seed < 0:
        raise InputError(f"--seed {seed}: expected a whole number, 0 or more")
    if output is not None and Path(output).exists() and model.exists():
        if Path(output).is_dir():
            raise InputError(f"{output}: is a folder; expected the name of a file to write")
        if Path(output).samefile(model):
            raise InputError(
                f"{output}: is the FP32 file that is read, which the proof, `verify --against` and "
                f"the next attempt need; give the INT8 file another name"
            )


def _read_parent(model: Path, warn: Warn) -> ModelSpec:
    """The contract of ``model``, which has to be in float still."""
    parent = read_spec(model)
    if parent.precision != "fp32":
        raise InputError(
            f"{model}: is {parent.precision} already; quantize the FP32 file that it was made from"
        )
    if parent.decoding.kind == "detections":
        warn(
            f"{model}: NMS is in the graph, which shows nothing of what scores below its conf: the "
            f"search sees few errors, or none. Better: quantize the file without it, and then "
            f"edgecv export FILE-int8.onnx --end2end"
        )
    return parent


def _refuse_float(done: Quantized, policy: Policy, keep: Collection[str]) -> None:
    """A file without integers is its parent, whatever it says of itself."""
    if not any(unit.is_mac for unit in done.plan.units):
        back = set(done.kept) - set(keep)
        why = (
            f"{len(back)} nodes would have to stay in float for the outputs to hold"
            if back
            else "--keep-float names every layer"
        )
        raise QuantizeError(
            f"nothing is left to quantize for {policy.name}: {why}; such a file is the FP32 one, "
            f"which is there"
        )


def _put_back(
    job: _Job, evidence: _Evidence, done: Quantized, proof: Proof, max_drop: float
) -> tuple[Quantized, Proof, list[Try]]:
    """``done``, which drops more than ``max_drop``, with layers in float; its proof; the tries."""
    judges = evidence.judges(scored=proof.drop.metric != DISAGREEMENT)
    found, tries = put_back_until(job.quantizer, done, max_drop, partial(job.judge, judges))
    job.write(found)
    if found is not done:  # those who decided are no proof
        decided = {p for half in judges for p in half.pictures if p in evidence.pool.rest}
        proof = job.prove(evidence.for_proof(decided), found)
    return found, proof, tries


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


def _name(parent: ModelSpec, policy: Policy) -> Path:
    return Path(f"{parent.name}-int8-{policy.name}.onnx")


def _bytes(done: Quantized) -> bytes:
    data: bytes = ir.to_proto(done.model).SerializeToString(deterministic=True)
    return data


def _with_proof(spec: ModelSpec, parent: Path, proof: Proof, tries: Sequence[Try]) -> ModelSpec:
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
        quantization={
            **spec.quantization,
            "tries": [one.to_dict() for one in tries],
            "proof": proof.to_dict(),
        },
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
            f"{path}: not written: {'; '.join(problems)}. edgecv quantize --force writes "
            f"it all the same; its --keep-float NODE keeps a node as it is"
        )
