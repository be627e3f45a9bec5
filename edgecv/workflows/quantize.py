"""``edgecv quantize``: a float file and pictures -> an INT8 file and the proof of what it is."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgecv.errors import CheckFailed, InputError
from edgecv.graph.upgrade import read_onnx, upgrade
from edgecv.measure import selftest
from edgecv.measure.agreement import agreements
from edgecv.measure.compare import Comparison, compare, compare_each, worst
from edgecv.measure.machine import cpu_model, simd_flags
from edgecv.measure.statistics import Interval, ratio
from edgecv.measure.timing import timed, warm_up
from edgecv.model import Model, load, same_shape
from edgecv.preprocess import Picture, list_pictures, stack
from edgecv.progress import Progress, silent
from edgecv.quantize.pipeline import Prepared, Quantized, Search, prepare, quantize_graph
from edgecv.quantize.readback import FloatNode, Readback, onnxruntime_readback, openvino_readback
from edgecv.quantize.run import Array, Batches
from edgecv.quantize.sensitivity import error_for
from edgecv.quantize.targets import Policy, onnxruntime_target, policy_for
from edgecv.results import Placement, Result
from edgecv.runtimes import probe_backends
from edgecv.runtimes.base import RuntimeOptions
from edgecv.spec import ModelSpec, TensorSpec, read_spec, write_spec
from edgecv.workflows.evaluate import evaluate
from edgecv.workflows.stream import prepared_chunks

CALIBRATION = 100  # pictures at most: more move no range by much, and cost time
SEARCHED = 6  # of them judge ranges and layers by the outputs: each costs a run for each tensor
FEW = 32  # below it the ranges depend on which pictures they are
HELD_OUT = 400  # pictures at most that the proof is made on
SEED_TEST = selftest.SEED
ROUNDS, ROUND_SECONDS = 12, 0.15  # of the interleaved latency, each side
METRICS = ("top1", "ap", "accuracy", "miou")


@dataclass(frozen=True)
class Latency:
    """Median milliseconds of one picture on one thread, and how many times faster the INT8 is."""

    parent_ms: float
    candidate_ms: float
    speedup: Interval | None

    @property
    def slower(self) -> bool:
        """Whether the INT8 file is surely not faster than its parent."""
        return self.speedup is not None and self.speedup.high <= 1.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "threads": 1,
            "parent_ms": round(self.parent_ms, 4),
            "candidate_ms": round(self.candidate_ms, 4),
            "speedup": self.speedup.to_dict() if self.speedup else None,
        }


@dataclass(frozen=True)
class Proof:
    """What the INT8 file is, measured against its parent on pictures that did not calibrate it.

    ``drop`` is in points of the task's metric where the pictures are labelled (``metric`` names
    it), else in points of disagreement. ``latency`` is None where the target does not run here.
    """

    pictures: int
    outputs: dict[str, Comparison]
    agreement: float
    metric: str
    drop: float
    latency: Latency | None
    readback: Readback | None
    size_bytes: int
    parent_bytes: int
    backend: str
    instructions: tuple[str, ...]

    @property
    def float_macs(self) -> tuple[FloatNode, ...]:
        return self.readback.float_macs if self.readback else ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "pictures": self.pictures,
            "outputs": {name: one.to_dict() for name, one in self.outputs.items()},
            "agreement": round(self.agreement, 6),
            "metric": self.metric,
            "drop_points": round(self.drop, 4),
            "latency": self.latency.to_dict() if self.latency else None,
            "float_nodes": [vars(node) for node in self.readback.floats] if self.readback else None,
            "integer_nodes": dict(self.readback.integer) if self.readback else None,
            "size_bytes": self.size_bytes,
            "parent_bytes": self.parent_bytes,
            "backend": self.backend,
            "cpu": cpu_model(),
            "instructions": list(self.instructions),
        }


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
            "size_bytes": self.proof.size_bytes,
            "parity": dict(self.spec.parity),
            "calibration_pictures": self.calibrated_on,
            "proof": self.proof.to_dict(),
            "quantization": dict(self.spec.quantization),
        }


def machine_target() -> str:
    """The onnxruntime target of this machine."""
    return onnxruntime_target(platform.machine(), simd_flags())


def quantize(
    model: str | os.PathLike[str],
    *,
    calibration: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    target: str | None = None,
    max_drop: float | None = None,
    keep_float: Sequence[str] = (),
    pixels: bool = False,
    seed: int = 0,
    force: bool = False,
    output: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
    warn: Any = lambda text: None,
) -> QuantizeResult:
    """Quantize the FP32 file ``model`` to INT8 for ``target`` (default: this machine's).

    ``calibration``: a folder of pictures; at most :data:`CALIBRATION` of them, drawn by ``seed``,
    give the ranges. The proof is made on ``data`` (a labelled data set as ``edgecv eval`` takes it,
    or a folder of pictures), else on the pictures of ``calibration`` that were not drawn.
    ``max_drop`` (points) is a gate; ``keep_float`` names nodes that stay in float; with ``pixels``
    the file takes uint8 pixels ``[N, H, W, C]``.

    Raises :class:`~edgecv.errors.CheckFailed` where the file drops more than ``max_drop``, or is
    not faster than its parent on the target at hand, unless ``force``; nothing is written then.
    """
    parent = read_spec(model)
    if parent.precision != "fp32":
        raise InputError(
            f"{model}: is {parent.precision} already; quantize the FP32 file that it was made from"
        )
    policy = policy_for(target or machine_target())
    drawn, rest = _draw(Path(calibration), seed, warn)
    ready = prepare(upgrade(read_onnx(model), model), policy, parent.preparation, pixels)
    done = quantize_graph(
        ready,
        policy,
        _batches(ready, drawn, parent.inputs[0].shape[0]),
        keep_float=keep_float,
        search=_search(parent, ready, drawn),
        progress=progress,
    )
    path = Path(output) if output is not None else _name(parent, policy)
    with tempfile.TemporaryDirectory(prefix="edgecv-") as folder:
        draft = Path(folder) / path.name
        spec = _contract(parent, policy, ready, done, drawn, seed)
        write_spec(_bytes(done), spec, draft)
        pictures = _held_out(data, rest, drawn, warn)
        proof = _prove(Path(model), draft, policy, pictures, data, progress)
        spec = _with_proof(spec, draft, Path(model), proof)
        _gate(proof, max_drop, policy, force, path)
        write_spec(draft, spec, path)
    return QuantizeResult(path, spec, done.model.opset_imports[""], proof, len(drawn))


def _draw(folder: Path, seed: int, warn: Any) -> tuple[list[Path], list[Path]]:
    """The pictures that calibrate, in order, and the others of the folder."""
    pictures = list_pictures(folder)
    if not pictures:
        raise InputError(f"{folder}: there are no pictures to calibrate on in this folder")
    count = min(CALIBRATION, max(1, len(pictures) * 4 // 5)) if len(pictures) > 1 else 1
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


def _search(parent: ModelSpec, ready: Prepared, drawn: Sequence[Path]) -> Search | None:
    """Detectors are searched for what harms their answers; a classifier forgives more."""
    if parent.task != "detect":
        return None
    few = drawn[:: max(1, -(-len(drawn) // SEARCHED))]
    return Search(_batches(ready, few, parent.inputs[0].shape[0]), error_for(parent.decoding))


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
    drawn: Sequence[Path],
    seed: int,
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
            "calibration": {"pictures": len(drawn), "seed": seed},
            "ranges": {name: [span.lo, span.hi, span.method] for name, span in done.ranges.items()},
            "units": len(done.plan.units),
            "put_back": done.put_back.to_dict() if done.put_back else None,
            "pixels_in": ready.pixels.to_dict() if ready.pixels else None,
        },
    )


def _held_out(
    data: str | os.PathLike[str] | None, rest: list[Path], drawn: list[Path], warn: Any
) -> list[Path]:
    if data is not None and Path(data).is_dir() and (found := list_pictures(data)):
        rest = found
    if not rest:
        warn("no picture is left to prove the file on: it is proven on those that calibrated it")
        rest = drawn
    step = max(1, -(-len(rest) // HELD_OUT))
    return rest[::step]


def _prove(
    parent: Path,
    candidate: Path,
    policy: Policy,
    pictures: list[Path],
    data: str | os.PathLike[str] | None,
    progress: Progress,
) -> Proof:
    backend = policy.backend if _runs_here(policy) else None
    with (
        load(parent, backend=backend or "onnxruntime") as before,
        load(candidate, backend=backend or "onnxruntime") as after,
    ):
        outputs, same = _compare(before, after, pictures, progress)
        name = after.info.backend
    metric, drop = _drop(parent, candidate, backend or "onnxruntime", data, same)
    latency = _latency(parent, candidate, backend) if backend else None
    return Proof(
        pictures=len(pictures),
        outputs=outputs,
        agreement=float(np.mean(same)),
        metric=metric,
        drop=drop,
        latency=latency,
        readback=_readback(candidate, backend),
        size_bytes=candidate.stat().st_size,
        parent_bytes=parent.stat().st_size,
        backend=name,
        instructions=simd_flags(),
    )


def _runs_here(policy: Policy) -> bool:
    """Whether the runtime and the processor that the target names are at hand."""
    if policy.backend is None or policy.backend.startswith("tensorrt"):
        return False
    if policy.name.startswith("onnxruntime") and policy.name != machine_target():
        return False
    return probe_backends()[policy.backend].usable


def _compare(
    before: Model, after: Model, pictures: list[Path], progress: Progress
) -> tuple[dict[str, Comparison], list[float]]:
    """Both models on the same pictures, a chunk at a time; each under its own preparation."""
    parts: list[dict[str, Comparison]] = []
    same: list[float] = []
    chunks = zip(
        prepared_chunks(pictures, before.spec.preparation, before.spec.inputs[0].dtype),
        prepared_chunks(pictures, after.spec.preparation, after.spec.inputs[0].dtype),
        strict=True,
    )
    for left, right in chunks:
        for one, other in zip(left, right, strict=True):
            if isinstance(one, InputError):
                raise one
            assert not isinstance(other, InputError)  # the same file, read a moment ago
            a, b = before.infer(one.tensor[None]), after.infer(other.tensor[None])
            parts.append(compare_each(b, a))
            same += agreements(
                _answers(after, b, other.placement), _answers(before, a, one.placement)
            )
        progress("proving", len(same), len(pictures))
    return _pooled(parts), same


def _answers(model: Model, outputs: dict[str, Array], placement: Placement) -> list[Result]:
    return model.decode(outputs, [placement])


def _pooled(parts: list[dict[str, Comparison]]) -> dict[str, Comparison]:
    """Per output: the worst difference and cosine, the mean SQNR (in dB) over pictures."""
    pooled = {}
    for name in parts[0]:
        each = [part[name] for part in parts]
        ratios = [one.sqnr_db for one in each if one.sqnr_db is not None]
        pooled[name] = replace(worst(each), sqnr_db=float(np.mean(ratios)) if ratios else None)
    return pooled


def _drop(
    parent: Path,
    candidate: Path,
    backend: str,
    data: str | os.PathLike[str] | None,
    same: list[float],
) -> tuple[str, float]:
    """Points lost on labelled pictures; where there are none, points of disagreement."""
    if data is not None:
        try:
            scores = [
                evaluate(path, data, backend=backend).to_dict() for path in (parent, candidate)
            ]
        except InputError:  # pictures without labels that fit the model
            pass
        else:
            metric = next(name for name in METRICS if name in scores[0])
            return metric, (scores[0][metric] - scores[1][metric]) * 100
    return "disagreement", (1 - float(np.mean(same))) * 100


def _latency(parent: Path, candidate: Path, backend: str) -> Latency:
    """Both files in turns on one thread: what the machine does to a round it does to both."""
    options = RuntimeOptions(threads=1)
    with (
        load(parent, backend=backend, options=options) as before,
        load(candidate, backend=backend, options=options) as after,
    ):
        runs = []
        for model in (before, after):
            tensor = model.spec.inputs[0]
            count = tensor.shape[0] if isinstance(tensor.shape[0], int) else 1
            feeds = {
                tensor.name: selftest.inputs(model.spec.preparation, SEED_TEST, count, tensor.dtype)
            }
            runs.append(lambda model=model, feeds=feeds: model.runtime.run(feeds))
            warm_up(runs[-1])
        medians: list[list[float]] = [[], []]
        for _ in range(ROUNDS):
            for run, mine in zip(runs, medians, strict=True):
                mine.append(float(np.median(timed(run, ROUND_SECONDS))) / 1e6)
    return Latency(
        float(np.median(medians[0])), float(np.median(medians[1])), ratio(medians[0], medians[1])
    )


def _readback(candidate: Path, backend: str | None) -> Readback | None:
    if backend == "openvino":
        return openvino_readback(candidate.read_bytes())
    return onnxruntime_readback(candidate.read_bytes()) if backend == "onnxruntime" else None


def _with_proof(spec: ModelSpec, draft: Path, parent: Path, proof: Proof) -> ModelSpec:
    """The contract with its proof, and a self-test of the file's own answers.

    Another processor may round a tie the other way, and one step more or less runs on through the
    layers: so much may the answers differ elsewhere as they differ from the parent's here.
    """
    with load(draft, backend="onnxruntime") as model:
        tensor = spec.inputs[0]
        batch = selftest.inputs(spec.preparation, SEED_TEST, selftest.COUNT, tensor.dtype)
        mine = model.infer(batch)
    with load(parent, backend="onnxruntime") as model:
        own = model.spec
        batch = selftest.inputs(own.preparation, SEED_TEST, selftest.COUNT, own.inputs[0].dtype)
        distance = compare(mine, model.infer(batch)).max_rel
    pooled = worst(list(proof.outputs.values()))
    return replace(
        spec,
        self_test=selftest.record(mine, distance, SEED_TEST),
        parity={
            **pooled.to_dict(),
            "reference": f"{parent.name}, fp32",
            "runtime": proof.backend,
            "agreement": proof.agreement,
        },
        quantization={**spec.quantization, "proof": proof.to_dict()},
    )


def _gate(proof: Proof, max_drop: float | None, policy: Policy, force: bool, path: Path) -> None:
    problems = []
    if max_drop is not None and proof.drop > max_drop:
        problems.append(
            f"it loses {proof.drop:.2f} points ({proof.metric}), more than --max-drop {max_drop:g}"
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


def unused_target_note(policy: Policy) -> str | None:
    """Why the figures were not taken on the target, or None where they were."""
    if _runs_here(policy):
        return None
    return f"{policy.name} does not run on this machine: answers were taken in onnxruntime"


def float_summary(nodes: Collection[FloatNode]) -> str:
    """``3 Sigmoid, 1 Mul``: the operators that compute in float."""
    counts: dict[str, int] = {}
    for node in nodes:
        counts[node.operator] = counts.get(node.operator, 0) + 1
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"
