"""``edgecv verify``: does this file still compute what its parent does?

The reference is a recipe (torch builds the net), another ``.onnx``, a ``.npz`` that was recorded
earlier, or, where none is named, the self-test inside the file. Each side prepares the pictures
by its own contract, so that a wrong preparation is found as well as a wrong weight.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgecv.errors import InputError, SpecError
from edgecv.evaluate.imagenet import agreement as top1_agreement
from edgecv.evaluate.imagenet import read_folder, topk_hits
from edgecv.files import atomic_write, write_json
from edgecv.measure import selftest
from edgecv.measure.agreement import agreements, changed
from edgecv.model import Model, load
from edgecv.postprocess.classify import ranking
from edgecv.preprocess import open_picture
from edgecv.progress import Progress, silent
from edgecv.results import Placement, Result
from edgecv.runtimes.base import Array, RuntimeOptions
from edgecv.spec import ModelSpec
from edgecv.workflows.reference import Inputs, Reference, reference_for, write_record
from edgecv.workflows.stream import outputs_of
from edgecv.workflows.verdict import Gates, Verification, judge
from edgecv.workflows.verifylayers import with_layers


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
    if weights is not None and (against is None or os.fspath(against).endswith((".onnx", ".npz"))):
        raise InputError(
            "--weights are those of a reference that is a recipe (--against NAME); any other has "
            "its own, and they would not be looked at"
        )
    gates = Gates(min_agreement, min_cosine, strict_target)
    with load(candidate, backend=backend, options=RuntimeOptions(progress=progress)) as model:
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
        side = _reference(model.spec, against, weights, inputs, record, progress)
        both = _Answers.of(model, inputs, side, progress)
        verdict = gates.hold(both.verdict(model))
        if max_drop is not None:
            drop = both.drop(model.spec)
            verdict = verdict.with_check("drop in points", drop, max_drop, drop <= max_drop)
        if save is not None:
            verdict = replace(verdict, saved=both.save_changed(model.spec.task, Path(save)))
        if layers:
            verdict = with_layers(verdict, model, Path(candidate), against, weights, inputs)
        return gates.hold_target(verdict)


def _reference(
    spec: ModelSpec,
    against: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None,
    inputs: Inputs,
    record: str | os.PathLike[str] | None,
    progress: Progress,
) -> Reference:
    """The reference's side, kept as ``record`` where that is wanted."""
    half = spec.precision == "fp16"
    noisy = half or record is not None
    side = reference_for(spec, against, weights, inputs, progress, noisy=noisy)
    if half and side.noise is None:
        raise InputError(
            f"{against}: does not say what rounding to FP16 does to its answers, as records of "
            f"this version do; record it again, where the reference is"
        )
    if record is not None:
        write_record(Path(record), side, inputs)
    return side


@dataclass(frozen=True)
class _Answers:
    """Both sides' answers to the same pictures; ``same``: how far each two agree, 0 to 1."""

    inputs: Inputs
    outputs: Mapping[str, Array]
    side: Reference
    mine: Sequence[Result]
    theirs: Sequence[Result]
    same: Sequence[float]

    @classmethod
    def of(cls, model: Model, inputs: Inputs, side: Reference, progress: Progress) -> _Answers:
        placements: list[Placement] = []
        outputs = outputs_of(model, inputs.pictures, progress, "candidate", placements)
        mine = model.decode(outputs, placements)
        theirs = side.results or model.decode(side.outputs, placements)
        return cls(inputs, outputs, side, mine, theirs, agreements(mine, theirs))

    def verdict(self, model: Model) -> Verification:
        return judge(
            model,
            self.outputs,
            self.side.outputs,
            self.side.name,
            self.inputs.description,
            float(np.mean(self.same)),
            noise=self.side.noise,
        )

    def drop(self, spec: ModelSpec) -> float:
        """Points of top-1 lost where the pictures are labelled; of disagreement otherwise."""
        if self.inputs.root is not None and spec.task == "classify":
            try:
                truth = read_folder(self.inputs.root, spec).classes
            except InputError:  # not a folder per class: there are no labels to score by
                pass
            else:
                first = spec.outputs[0].name
                before, after = (
                    topk_hits(ranking(side[first], spec.decoding.kind, spec.labels), truth, 1)
                    for side in (self.side.outputs, self.outputs)
                )
                return float(before.mean() - after.mean()) * 100
        return (1 - float(np.mean(self.same))) * 100

    def save_changed(self, task: str, folder: Path) -> tuple[str, ...]:
        """The pictures whose answer changed, as PNG, and both answers in ``answers.json``."""
        saved, answers = [], {}
        for index in changed(self.same, task):
            picture = self.inputs.pictures[index]
            stem = picture.stem if isinstance(picture, Path) else "seeded"
            path = folder / f"{index:05d}-{stem}.png"
            with atomic_write(path) as file:
                open_picture(picture).save(file, "PNG")
            saved.append(str(path))
            answers[path.name] = {
                "source": str(picture) if isinstance(picture, Path) else self.inputs.description,
                "candidate": self.mine[index].to_dict(),
                "reference": self.theirs[index].to_dict(),
            }
        write_json(folder / "answers.json", answers)
        return tuple(saved)


def _self_test(model: Model) -> Verification:
    spec = model.spec
    if not spec.self_test:
        raise SpecError(f"{spec.name}: the file carries no self-test; name a reference: --against")
    expected = selftest.expected_outputs(spec)
    outputs, bound = selftest.run(model), spec.self_test.get("max_rel")
    first = spec.outputs[0].name
    agreement = None
    if spec.task == "classify":
        agreement = top1_agreement(outputs[first], expected[first])
    return judge(
        model,
        outputs,
        expected,
        "the file's own self-test",
        f"{spec.self_test['count']} seeded pictures",
        agreement,
        bound=None if bound is None else float(bound),
        noise=spec.self_test.get("noise"),
    )
