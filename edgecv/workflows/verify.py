"""``edgecv verify``: does this file still compute what its parent does?

The reference is a recipe (torch builds the net), another ``.onnx``, a ``.npz`` that was recorded
earlier, or, where none is named, the self-test inside the file. Each side prepares the pictures
by its own contract, so that a wrong preparation is found as well as a wrong weight.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgecv.errors import InputError, SpecError
from edgecv.evaluate.imagenet import agreement as top1_agreement
from edgecv.evaluate.imagenet import read_folder, topk_hits
from edgecv.files import atomic_write, write_json
from edgecv.measure import selftest, targets
from edgecv.measure.agreement import agreements, changed
from edgecv.measure.compare import (
    FP32_MAX_REL,
    Comparison,
    compare_each,
    int8_layer_min_sqnr,
    int8_min_sqnr,
    layer_count,
    worst,
)
from edgecv.measure.layers import Divergence, LayerError, first_divergence, rank_layers
from edgecv.measure.rounding import fp16_margin
from edgecv.model import Model, load
from edgecv.onnxgraph import read_graph
from edgecv.preprocess import open_picture, prepare, stack
from edgecv.progress import Progress, silent
from edgecv.results import Placement, Result
from edgecv.runtimes.base import Array
from edgecv.spec import ModelSpec, read_spec
from edgecv.workflows.reference import (
    Inputs,
    export_reference,
    reference_for,
    write_record,
)
from edgecv.workflows.stream import outputs_of

EXACT_DB = 200.0  # stands for the SQNR of outputs that do not differ at all


@dataclass(frozen=True)
class Check:
    """One gate: the figure, the bound, and whether it held."""

    name: str
    value: float
    bound: float
    passed: bool


@dataclass(frozen=True)
class Verification:
    """The outcome; ``passed`` is whether every check held.

    ``comparison`` is the worst of ``outputs``; ``agreement`` the mean over the pictures of what
    :func:`edgecv.measure.agreement.agreements` says (None where the outputs kept are too few to
    decode); ``divergence`` and ``layers`` are what ``--layers`` found; ``target_note`` says why
    this machine is not an INT8 file's target.
    """

    reference: str
    inputs: str
    comparison: Comparison
    outputs: Mapping[str, Comparison]
    agreement: float | None
    checks: tuple[Check, ...]
    backend: str
    precision: str
    target_note: str | None = None
    divergence: Divergence | None = None
    layers: tuple[LayerError, ...] = ()
    saved: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def first_divergent_node(self) -> str | None:
        """The node that diverges, or an INT8 file's layer that is worse than rounding explains."""
        if self.divergence is not None:
            return self.divergence.node
        least = int8_layer_min_sqnr()
        bad = [one for one in self.layers if one.sqnr_db is not None and one.sqnr_db < least]
        return bad[0].node if bad else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            **self.comparison.to_dict(),
            "agreement": self.agreement,
            "first_divergent_node": self.first_divergent_node,
            "divergence": self.divergence.to_dict() if self.divergence else None,
            "layers": [layer.to_dict() for layer in self.layers],
            "outputs": {name: one.to_dict() for name, one in self.outputs.items()},
            "reference": self.reference,
            "inputs": self.inputs,
            "backend": self.backend,
            "precision": self.precision,
            "target_note": self.target_note,
            "saved": list(self.saved),
            "checks": [vars(check) for check in self.checks],
        }


@dataclass(frozen=True)
class _Gates:
    """What the caller holds the figures against, beside the bound that the precision gives."""

    min_agreement: float | None
    min_cosine: float | None
    max_drop: float | None
    strict_target: bool

    def hold(self, verdict: Verification) -> Verification:
        """``verdict`` with the checks that its own figures decide."""
        checks = list(verdict.checks)
        if self.min_agreement is not None:
            found = verdict.agreement
            if found is None:
                raise InputError("--min-agreement needs answers to compare: name a reference")
            checks.append(
                Check("agreement", found, self.min_agreement, found >= self.min_agreement)
            )
        if self.min_cosine is not None:
            cosine = verdict.comparison.cosine
            checks.append(Check("cosine", cosine, self.min_cosine, cosine >= self.min_cosine))
        return replace(verdict, checks=tuple(checks))

    def hold_target(self, verdict: Verification) -> Verification:
        """``--strict-target`` makes the note about the target a check that failed."""
        if not self.strict_target:
            return verdict
        fits = float(verdict.target_note is None)
        return replace(verdict, checks=(*verdict.checks, Check("target", fits, 1.0, fits == 1.0)))


def verify(
    candidate: str | os.PathLike[str],
    against: str | os.PathLike[str] | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    backend: str = "auto",
    data: str | os.PathLike[str] | None = None,
    min_agreement: float | None = None,
    min_cosine: float | None = None,
    max_drop: float | None = None,
    strict_target: bool = False,
    layers: bool = False,
    save: str | os.PathLike[str] | None = None,
    record: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> Verification:
    """Compare the file ``candidate`` with ``against`` on pictures.

    ``data``: a folder of pictures (default: seeded ones). ``record`` keeps the reference's
    answers as ``.npz``, for machines without torch. The bound is that of the file's precision: an
    FP32 file must be within :data:`~edgecv.measure.compare.FP32_MAX_REL` of the largest output, an
    FP16 file above :func:`~edgecv.measure.rounding.fp16_min_sqnr`, an INT8 file above
    :func:`~edgecv.measure.compare.int8_min_sqnr`; ``min_agreement``, ``min_cosine`` and
    ``max_drop`` (points) are gates of the caller's.

    ``strict_target``: an INT8 file on a machine that its target does not name falls short.
    ``layers``: name the first node that diverges, or rank an INT8 file's layers and hold each to
    :func:`~edgecv.measure.compare.int8_layer_min_sqnr`; the reference has to be an ``.onnx`` or a
    recipe. ``save``: a folder for the pictures whose answer changed.
    """
    gates = _Gates(min_agreement, min_cosine, max_drop, strict_target)
    with load(candidate, backend=backend) as model:
        if against is None:
            if any(v is not None for v in (data, record, max_drop, save)) or layers:
                raise InputError(
                    "--data, --record, --max-drop, --layers and --save need a reference: --against"
                )
            return gates.hold_target(gates.hold(_self_test(model)))
        if os.fspath(against) == os.fspath(candidate):
            raise InputError(f"{candidate}: is compared with itself")
        if layers and os.fspath(against).endswith(".npz"):
            raise InputError(
                f"{against}: a record holds no intermediate tensors; --layers needs the reference "
                f"as an .onnx file or a recipe"
            )
        inputs = Inputs.seeded() if data is None else Inputs.folder(Path(data))
        noisy = record is not None or model.spec.precision == "fp16"
        side = reference_for(model.spec, against, weights, inputs, progress, noisy=noisy)
        if model.spec.precision == "fp16" and side.noise is None:
            raise InputError(
                f"{against}: does not say what rounding to FP16 does to its answers, as records of "
                f"this version do; record it again, where the reference is"
            )
        if record is not None:
            write_record(Path(record), side, inputs)
        placements: list[Placement] = []
        outputs = outputs_of(model, inputs.pictures, progress, "candidate", placements)
        mine = model.decode(outputs, placements)
        theirs = side.results or model.decode(side.outputs, placements)
        same = agreements(mine, theirs)
        verdict = gates.hold(
            _judge(
                model,
                outputs,
                side.outputs,
                side.name,
                inputs.description,
                float(np.mean(same)),
                noise=side.noise,
            )
        )
        if max_drop is not None:
            first = model.spec.outputs[0].name
            drop = _drop(model.spec, inputs, outputs[first], side.outputs[first], same)
            check = Check("drop in points", drop, max_drop, drop <= max_drop)
            verdict = replace(verdict, checks=(*verdict.checks, check))
        if save is not None:
            indices = changed(same, model.spec.task)
            verdict = replace(verdict, saved=_save(Path(save), inputs, indices, mine, theirs))
        if layers:
            verdict = _with_layers(verdict, model, Path(candidate), against, weights, inputs)
        return gates.hold_target(verdict)


def _self_test(model: Model) -> Verification:
    spec = model.spec
    if not spec.self_test:
        raise SpecError(f"{spec.name}: the file carries no self-test; name a reference: --against")
    expected = selftest.expected_outputs(spec)
    outputs = selftest.run(model)
    first = spec.outputs[0].name
    agreement = None
    if spec.task == "classify":
        agreement = top1_agreement(outputs[first], expected[first])
    return _judge(
        model,
        outputs,
        expected,
        "the file's own self-test",
        f"{spec.self_test['count']} seeded pictures",
        agreement,
        bound=float(spec.self_test.get("max_rel", FP32_MAX_REL)),
        noise=spec.self_test.get("noise"),
    )


def _judge(
    model: Model,
    outputs: Mapping[str, Array],
    reference: Mapping[str, Array],
    name: str,
    inputs: str,
    agreement: float | None,
    *,
    bound: float | None = None,
    noise: Mapping[str, float] | None = None,
) -> Verification:
    """Compare two sides' outputs, and hold them to what the file's precision promises."""
    each = compare_each(outputs, reference)
    comparison = worst(list(each.values()))
    info = model.info
    return Verification(
        name,
        inputs,
        comparison,
        each,
        agreement,
        (_own_check(model, each, bound, noise),),
        info.backend,
        info.precision,
        targets.mismatch(model.spec, info.backend),
    )


def _own_check(
    model: Model,
    each: Mapping[str, Comparison],
    bound: float | None,
    noise: Mapping[str, float] | None,
) -> Check:
    """The bound that follows from the file's precision, or from its self-test."""
    precision, found = model.spec.precision, worst(list(each.values()))
    if precision == "fp16" and noise is not None:
        value, least = fp16_margin(each, noise)
        return Check("sqnr_db", min(value, EXACT_DB), least, value >= least)
    if precision == "int8" and bound is None:
        least = int8_min_sqnr(_layer_count(model))
        value = EXACT_DB if found.sqnr_db is None else found.sqnr_db
        return Check("sqnr_db", value, least, value >= least)
    bound = FP32_MAX_REL if bound is None else bound
    return Check("max_rel", found.max_rel, bound, found.max_rel <= bound)


def _layer_count(model: Model) -> int:
    return layer_count(read_graph(model.runtime.path).operators)


def _drop(
    spec: ModelSpec,
    inputs: Inputs,
    candidate: Array,
    reference: Array,
    same: Sequence[float],
) -> float:
    """Points of top-1 lost where the pictures are labelled; points of disagreement otherwise."""
    if inputs.root is not None and spec.task == "classify":
        try:
            truth = read_folder(inputs.root, spec).classes
        except InputError:  # not a folder per class: there are no labels to score by
            pass
        else:
            before, after = (topk_hits(s, truth, 1).mean() for s in (reference, candidate))
            return float(before - after) * 100
    return (1 - float(np.mean(same))) * 100


def _save(
    folder: Path,
    inputs: Inputs,
    indices: Sequence[int],
    mine: Sequence[Result],
    theirs: Sequence[Result],
) -> tuple[str, ...]:
    """The pictures whose answer changed, as PNG, and both answers in ``answers.json``."""
    saved, answers = [], {}
    for index in indices:
        picture = inputs.pictures[index]
        stem = picture.stem if isinstance(picture, Path) else "seeded"
        path = folder / f"{index:05d}-{stem}.png"
        with atomic_write(path) as file:
            open_picture(picture).save(file, "PNG")
        saved.append(str(path))
        answers[path.name] = {
            "source": str(picture) if isinstance(picture, Path) else inputs.description,
            "candidate": mine[index].to_dict(),
            "reference": theirs[index].to_dict(),
        }
    write_json(folder / "answers.json", answers)
    return tuple(saved)


def _with_layers(
    verdict: Verification,
    model: Model,
    candidate: Path,
    against: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None,
    inputs: Inputs,
) -> Verification:
    """Add what ``--layers`` finds, on the first picture."""
    with tempfile.TemporaryDirectory(prefix="edgecv-") as folder:
        parent = Path(against)
        if not os.fspath(against).endswith(".onnx"):
            parent = Path(folder) / "reference.onnx"
            export_reference(model.spec, os.fspath(against), weights, parent)
        spec, other = model.spec, read_spec(parent)
        mine, theirs = (_first_batch(one, inputs) for one in (spec, other))
        if spec.precision == "int8":
            ranked = rank_layers(candidate, parent, theirs, _equalization(spec))
            least = int8_layer_min_sqnr()
            lowest = min((one.sqnr_db for one in ranked if one.sqnr_db is not None), default=200.0)
            check = Check("worst layer, sqnr_db", lowest, least, lowest >= least)
            return replace(verdict, layers=tuple(ranked), checks=(*verdict.checks, check))
        divergence = first_divergence(
            candidate,
            parent,
            {spec.inputs[0].name: mine},
            {other.inputs[0].name: theirs},
            model.info.backend,
            half=spec.precision == "fp16",
        )
        return replace(verdict, divergence=divergence)


def _first_batch(spec: ModelSpec, inputs: Inputs) -> Array:
    (tensor,) = spec.inputs
    count = tensor.shape[0] if isinstance(tensor.shape[0], int) else 1
    pictures = [inputs.pictures[i % len(inputs.pictures)] for i in range(count)]
    return stack([prepare(one, spec.preparation, dtype=tensor.dtype) for one in pictures])


def _equalization(spec: ModelSpec) -> dict[str, list[float]]:
    """The factors per channel that the quantizer kept, ``{tensor: [C]}``; none is an empty one."""
    found = spec.quantization.get("equalization", {})
    return dict(found) if isinstance(found, Mapping) else {}
