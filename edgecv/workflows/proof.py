"""The proof of a quantized file: what it is, measured against the file that it was made from."""

from __future__ import annotations

import platform
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgecv.closing import Closing
from edgecv.errors import InputError
from edgecv.measure import selftest
from edgecv.measure.agreement import agreements
from edgecv.measure.compare import Comparison, compare, compare_each, worst
from edgecv.measure.machine import cpu_model, simd_flags
from edgecv.measure.saturation import Saturation, saturation
from edgecv.measure.statistics import Interval, ratio
from edgecv.measure.timing import by_turns
from edgecv.model import Model, load
from edgecv.progress import Progress, silent
from edgecv.quantize.layers import LayerError
from edgecv.quantize.readback import FloatNode, Readback, onnxruntime_readback, openvino_readback
from edgecv.quantize.targets import Policy, onnxruntime_target
from edgecv.runtimes import probe_backends
from edgecv.runtimes.base import Array, RuntimeOptions
from edgecv.workflows.evaluate import Request, score
from edgecv.workflows.heldout import HeldOut
from edgecv.workflows.stream import prepared_chunks

COMPARED = 400  # pictures at most whose answers are compared one by one
ROUNDS, ROUND_SECONDS = 12, 0.15  # of the interleaved latency, each side
REFERENCE_RUNTIME = "onnxruntime"
DISAGREEMENT = "disagreement"  # the metric where there are no labels
METRICS = ("top1", "ap", "miou", "near", "accuracy")  # a segmenter has the last as well


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
class Drop:
    """``points`` lost of ``metric`` on ``pictures``: ``parent`` and ``candidate`` are the scores,
    from 0 to 1. Without labels ``metric`` is ``disagreement``, and there are no scores."""

    metric: str
    points: float
    pictures: int
    parent: float | None = None
    candidate: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "points": round(self.points, 4)}

    def __str__(self) -> str:
        if self.parent is None or self.candidate is None:
            return f"{self.points:.2f} points of {self.metric} on {self.pictures} pictures"
        return (
            f"{self.points:.2f} points of {self.metric}, {self.parent:.2%} to "
            f"{self.candidate:.2%}, on {self.pictures} pictures"
        )


@dataclass(frozen=True)
class Proof:
    """What the INT8 file is, on ``pictures`` that did not make it; ``layers``: worst first.

    ``synthetic`` pictures show how far the outputs move, not how many answers change on real ones.
    """

    pictures: int
    outputs: dict[str, Comparison]
    agreement: float
    drop: Drop
    latency: Latency | None  # None where the target does not run here
    readback: Readback | None
    layers: tuple[LayerError, ...]
    size_bytes: int
    parent_bytes: int
    backend: str
    instructions: tuple[str, ...]
    saturation: tuple[Saturation, ...]  # layers that can saturate on x86 without VNNI
    self_test: dict[str, Any]  # for the contract, which keeps it beside the proof
    synthetic: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {
            "pictures": self.pictures,
            "synthetic": self.synthetic,
            "outputs": {name: one.to_dict() for name, one in self.outputs.items()},
            "agreement": round(self.agreement, 6),
            "drop": self.drop.to_dict(),
            "latency": self.latency.to_dict() if self.latency else None,
            "float_nodes": [vars(node) for node in self.readback.floats] if self.readback else None,
            "integer_nodes": dict(self.readback.integer) if self.readback else None,
            "layers": [layer.to_dict() for layer in self.layers],
            "saturation_without_vnni": [one.to_dict() for one in self.saturation],
            "size_bytes": self.size_bytes,
            "parent_bytes": self.parent_bytes,
            "backend": self.backend,
            "cpu": cpu_model(),
            "instructions": list(self.instructions),
        }


def machine_target() -> str:
    """The onnxruntime target of this machine."""
    return onnxruntime_target(platform.machine(), simd_flags())


def runs_here(policy: Policy) -> bool:
    """Whether the runtime and the processor that the target names are at hand."""
    if policy.backend is None or policy.backend.startswith("tensorrt"):
        return False
    if policy.name.startswith("onnxruntime") and policy.name != machine_target():
        return False
    return probe_backends()[policy.backend].usable


class Prover(Closing):
    """The float file, open for as long as candidates are held against it, in the target's runtime
    where it is here."""

    def __init__(self, parent: Path, policy: Policy, progress: Progress = silent) -> None:
        self._here = policy.backend if runs_here(policy) else None
        # which nodes onnxruntime computes in integers does not hang on the processor, as speed does
        self._reads = policy.backend if policy.backend == REFERENCE_RUNTIME else self._here
        self._backend = self._here or REFERENCE_RUNTIME
        self._progress = progress
        self._before = load(parent, backend=self._backend)
        self._scores: dict[HeldOut, dict[str, Any]] = {}  # the parent's, which stay the same

    def close(self) -> None:
        self._before.close()

    def prove(self, candidate: Path, held: HeldOut, layers: tuple[LayerError, ...]) -> Proof:
        """All there is to say of the file ``candidate``, on the pictures ``held``."""
        step = max(1, -(-len(held.pictures) // COMPARED))
        pictures = held.pictures[::step]
        with load(candidate, backend=self._backend) as after:
            outputs, same = _compare(self._before, after, pictures, self._progress)
            drop = self._drop(after, held, same)
            self_test = self._self_test(after)
            name = after.info.backend
        parent = self._before.runtime.path
        return Proof(
            pictures=len(pictures),
            outputs=outputs,
            agreement=float(np.mean(same)),
            drop=drop,
            latency=_latency(parent, candidate, self._here) if self._here else None,
            readback=_readback(candidate, self._reads),
            layers=layers,
            size_bytes=candidate.stat().st_size,
            parent_bytes=parent.stat().st_size,
            backend=name,
            instructions=simd_flags(),
            saturation=saturation(candidate),
            self_test=self_test,
            synthetic=held.synthetic,
        )

    def judge(self, candidate: Path, judges: Sequence[HeldOut]) -> Drop:
        """The largest drop of ``candidate`` on any of ``judges``."""
        drops = []
        with load(candidate, backend=self._backend) as after:
            for held in judges:
                same: list[float] = []
                if held.dataset is None:
                    same = _compare(self._before, after, held.pictures, self._progress)[1]
                drops.append(self._drop(after, held, same))
        return max(drops, key=lambda drop: drop.points)

    def _drop(self, after: Model, held: HeldOut, same: list[float]) -> Drop:
        """Points lost on labelled pictures; where there are none, points of disagreement."""
        if held.dataset is None:
            return Drop(DISAGREEMENT, points_of(1 - float(np.mean(same))), len(same))
        request = Request(
            held.dataset, self._backend, leave_out=held.leave_out, progress=self._progress
        )
        if held not in self._scores:
            self._scores[held] = score(self._before, request).to_dict()
        before, now = self._scores[held], score(after, request).to_dict()
        metric = next(name for name in METRICS if before.get(name) is not None)
        points = points_of(before[metric] - now[metric])
        return Drop(metric, points, before["count"], before[metric], now[metric])

    def _self_test(self, after: Model) -> dict[str, Any]:
        """The file's own answers to seeded inputs.

        Another processor may round a tie the other way, and one step more or less runs on through
        the layers: so much may the answers differ elsewhere as they differ from the parent's here.
        """
        mine, theirs = (seeded_answers(model) for model in (after, self._before))
        return selftest.record(mine, compare(mine, theirs).max_rel, selftest.SEED)


def seeded_answers(model: Model) -> dict[str, Array]:
    """In onnxruntime, whose answers self-tests hold, whichever runtime ``model`` is open in."""
    if model.info.backend != REFERENCE_RUNTIME:
        with load(model.runtime.path, backend=REFERENCE_RUNTIME) as other:
            return seeded_answers(other)
    tensor, preparation = model.spec.inputs[0], model.spec.preparation
    return model.infer(selftest.inputs(preparation, selftest.SEED, selftest.COUNT, tensor.dtype))


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
                after.decode(b, [other.placement]), before.decode(a, [one.placement])
            )
        progress("proving", len(same), len(pictures))
    return _pooled(parts), same


def _pooled(parts: list[dict[str, Comparison]]) -> dict[str, Comparison]:
    """Per output: the worst difference and cosine, the mean SQNR (in dB) over pictures."""
    pooled = {}
    for name in parts[0]:
        each = [part[name] for part in parts]
        ratios = [one.sqnr_db for one in each if one.sqnr_db is not None]
        pooled[name] = replace(worst(each), sqnr_db=float(np.mean(ratios)) if ratios else None)
    return pooled


def points_of(share: float) -> float:
    """``share`` in points; 2 of 200 are 1 point, and not the last bit more, which a gate sees."""
    return round(share * 100, 9)


def _latency(parent: Path, candidate: Path, backend: str) -> Latency:
    """Of one picture: both files in turns on one thread."""
    options = RuntimeOptions(threads=1)
    with (
        load(parent, backend=backend, options=options) as before,
        load(candidate, backend=backend, options=options) as after,
    ):
        runs = []
        count = 1
        for model in (before, after):  # of one batch size
            tensor = model.spec.inputs[0]
            count = tensor.shape[0] if isinstance(tensor.shape[0], int) else 1
            p = model.spec.preparation
            feeds = {tensor.name: selftest.inputs(p, selftest.SEED, count, tensor.dtype)}
            runs.append(lambda model=model, feeds=feeds: model.runtime.run(feeds))
        old, new = np.array(by_turns(runs, ROUNDS, ROUND_SECONDS)) / count
    return Latency(float(np.median(old)), float(np.median(new)), ratio(old.tolist(), new.tolist()))


def _readback(candidate: Path, backend: str | None) -> Readback | None:
    if backend == "openvino":
        return openvino_readback(candidate.read_bytes())
    return onnxruntime_readback(candidate.read_bytes()) if backend == "onnxruntime" else None


def float_summary(nodes: Collection[FloatNode]) -> str:
    """``3 Sigmoid, 1 Mul``: the operators that compute in float."""
    counts: dict[str, int] = {}
    for node in nodes:
        counts[node.operator] = counts.get(node.operator, 0) + 1
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"
