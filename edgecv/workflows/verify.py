"""``edgecv verify``: does this file still compute what its parent does?

The reference is a recipe (torch builds the net), another ``.onnx``, a ``.npz`` that was recorded
earlier, or, where none is named, the self-test inside the file. Each side prepares the pictures
by its own contract, so that a wrong preparation is found as well as a wrong weight.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgecv.errors import InputError, SpecError, WeightsError
from edgecv.evaluate.imagenet import agreement as top1_agreement
from edgecv.evaluate.imagenet import read_folder, topk_hits
from edgecv.files import atomic_write, sha256_of
from edgecv.measure import selftest
from edgecv.measure.compare import FP32_MAX_REL, Comparison, compare
from edgecv.measure.seeded import seeded_pictures
from edgecv.model import Model, load
from edgecv.preprocess import Picture, list_pictures
from edgecv.progress import Progress, silent
from edgecv.runtimes.base import Array
from edgecv.spec import ModelSpec
from edgecv.workflows.stream import collect, outputs_of

SEED, COUNT = 11, 6  # two seeded pictures of each block size
HEIGHT, WIDTH = 270, 390  # neither square nor any net's size: resize and crop have work to do


@dataclass(frozen=True)
class Check:
    """One gate: the figure, the bound, and whether it held."""

    name: str
    value: float
    bound: float
    passed: bool


@dataclass(frozen=True)
class Verification:
    """The outcome; ``passed`` is whether every check held."""

    reference: str
    inputs: str
    comparison: Comparison
    agreement: float | None
    checks: tuple[Check, ...]
    backend: str
    precision: str

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            **self.comparison.to_dict(),
            "agreement": self.agreement,
            "first_divergent_node": None,
            "reference": self.reference,
            "inputs": self.inputs,
            "backend": self.backend,
            "precision": self.precision,
            "checks": [vars(check) for check in self.checks],
        }


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
    record: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> Verification:
    """Compare the file ``candidate`` with ``against`` on pictures.

    ``data``: a folder of pictures (default: seeded ones). ``record`` keeps the reference's
    answers as ``.npz``, for machines without torch. An FP32 file must be within
    :data:`~edgecv.measure.compare.FP32_MAX_REL` of the largest output; ``min_agreement``,
    ``min_cosine`` and ``max_drop`` (points) are gates of the caller's.
    """
    with load(candidate, backend=backend) as model:
        if against is None:
            if data is not None or record is not None or max_drop is not None:
                raise InputError("--data, --record and --max-drop need a reference: --against")
            return _self_test(model, min_agreement, min_cosine)
        if os.fspath(against) == os.fspath(candidate):
            raise InputError(f"{candidate}: is compared with itself")
        inputs = _Inputs.seeded() if data is None else _Inputs.folder(Path(data))
        reference, name = _reference(model.spec, against, weights, inputs, progress)
        if record is not None:
            _write_record(Path(record), reference, name, inputs)
        outputs = outputs_of(model, inputs.pictures, progress, "candidate")
        verdict = _judge(
            model, outputs, reference, name, inputs.description, min_agreement, min_cosine
        )
        if max_drop is None:
            return verdict
        first = model.spec.outputs[0].name
        drop = _drop(model.spec, inputs, outputs[first], reference[first])
        check = Check("drop in points", drop, max_drop, drop <= max_drop)
        return replace(verdict, checks=(*verdict.checks, check))


@dataclass(frozen=True)
class _Inputs:
    """The pictures of a comparison and how to recognise them again."""

    pictures: Sequence[Picture]
    description: str
    identity: dict[str, Any]
    root: Path | None = None

    @classmethod
    def seeded(cls) -> _Inputs:
        pictures = list(seeded_pictures(SEED, COUNT, HEIGHT, WIDTH))
        identity = {"kind": "seeded", "seed": SEED, "count": COUNT, "size": [HEIGHT, WIDTH]}
        return cls(pictures, f"{COUNT} seeded pictures", identity)

    @classmethod
    def folder(cls, root: Path) -> _Inputs:
        paths = list_pictures(root)
        if not paths:
            raise InputError(f"{root}: there are no pictures in this folder")
        digests = {path.relative_to(root).as_posix(): sha256_of(path) for path in paths}
        identity = {"kind": "pictures", "sha256": digests}
        return cls(paths, f"{len(paths)} pictures of {root}", identity, root)


def _self_test(model: Model, min_agreement: float | None, min_cosine: float | None) -> Verification:
    spec = model.spec
    if not spec.self_test:
        raise SpecError(f"{spec.name}: the file carries no self-test; name a reference: --against")
    expected = selftest.expected_outputs(spec)
    return _judge(
        model,
        selftest.run(model),
        expected,
        "the file's own self-test",
        f"{spec.self_test['count']} seeded pictures",
        min_agreement,
        min_cosine,
    )


def _judge(
    model: Model,
    outputs: Mapping[str, Array],
    reference: Mapping[str, Array],
    name: str,
    inputs: str,
    min_agreement: float | None,
    min_cosine: float | None,
) -> Verification:
    """Compare two sides' outputs and hold the figures against the gates."""
    comparison = compare(outputs, reference)
    first = model.spec.outputs[0].name
    agreement = top1_agreement(outputs[first], reference[first])
    checks = _checks(model.spec, comparison, agreement, min_agreement, min_cosine)
    info = model.info
    return Verification(
        name, inputs, comparison, agreement, tuple(checks), info.backend, info.precision
    )


def _checks(
    spec: ModelSpec,
    comparison: Comparison,
    agreement: float,
    min_agreement: float | None,
    min_cosine: float | None,
) -> list[Check]:
    bound = float(spec.self_test.get("max_rel", FP32_MAX_REL))
    checks = [Check("max_rel", comparison.max_rel, bound, comparison.max_rel <= bound)]
    if min_agreement is not None:
        checks.append(Check("agreement", agreement, min_agreement, agreement >= min_agreement))
    if min_cosine is not None:
        passed = comparison.cosine >= min_cosine
        checks.append(Check("cosine", comparison.cosine, min_cosine, passed))
    return checks


def _drop(spec: ModelSpec, inputs: _Inputs, candidate: Array, reference: Array) -> float:
    """Points of top-1 lost where the pictures are labelled; points of disagreement otherwise."""
    if inputs.root is not None:
        try:
            truth = read_folder(inputs.root, spec).classes
        except InputError:  # not a folder per class: there are no labels to score by
            pass
        else:
            before, after = (topk_hits(s, truth, 1).mean() for s in (reference, candidate))
            return float(before - after) * 100
    return (1 - top1_agreement(candidate, reference)) * 100


def _reference(
    spec: ModelSpec,
    against: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None,
    inputs: _Inputs,
    progress: Progress,
) -> tuple[dict[str, Array], str]:
    """The reference's outputs on ``inputs``, and its name for people."""
    name = os.fspath(against)
    if name.endswith(".npz"):
        return _read_record(Path(name), inputs), name
    if name.endswith(".onnx"):
        with load(name, backend="onnxruntime") as parent:
            return outputs_of(parent, inputs.pictures, progress, "reference"), name
    return _torch_reference(spec, name, weights, inputs, progress), f"{name} in PyTorch"


def _torch_reference(
    spec: ModelSpec,
    name: str,
    weights: str | os.PathLike[str] | None,
    inputs: _Inputs,
    progress: Progress,
) -> dict[str, Array]:
    # here and not above: comparing with a file or a record needs no torch
    from edgecv.export.recipe import InputOverrides, load_recipe, recipe_for
    from edgecv.export.weights import ResolvedWeights, find_by_sha256, load_model, resolve
    from edgecv.workflows.export import torch_outputs

    flags: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in spec.provenance.get("input_flags", {}).items()
    }
    recipe = recipe_for(name, InputOverrides(**flags, labels=spec.labels))
    bundled = recipe.weights.get("bundled")
    if bundled is not None and bundled.recipe and bundled.recipe == spec.provenance.get("recipe"):
        recipe = load_recipe(bundled.recipe)
    recorded = spec.provenance.get("weights", {})
    digest, origin = recorded.get("sha256"), recorded.get("origin")
    if weights is not None:
        resolved = resolve(recipe, os.fspath(weights), progress)
    elif origin in ("random", "program"):
        resolved = resolve(recipe, "random" if origin == "random" else "auto", progress)
    else:
        path = find_by_sha256(recipe, digest or "", Path(recorded.get("file") or ""))
        if path is None:
            raise WeightsError(
                f"{name}: the weights that this file was made from (sha256 {digest}, "
                f"{recorded.get('file')}) are not here; name them with --weights FILE"
            )
        resolved = ResolvedWeights(recipe, "file", path, digest)
    model = load_model(resolved)
    names = [tensor.name for tensor in spec.outputs]
    return collect(
        lambda batch: torch_outputs(model, batch, names),
        inputs.pictures,
        resolved.recipe.preparation,
        progress,
        "reference",
    )


def _write_record(path: Path, outputs: dict[str, Array], reference: str, inputs: _Inputs) -> None:
    meta = {"format": "edgecv.record", "version": 1, "reference": reference}
    text = json.dumps({**meta, "inputs": inputs.identity}, sort_keys=True)
    arrays = {f"output/{name}": values for name, values in outputs.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, meta=np.array(text), **arrays)  # type: ignore[arg-type]
    with atomic_write(path) as file:
        file.write(buffer.getvalue())


def _read_record(path: Path, inputs: _Inputs) -> dict[str, Array]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            meta = json.loads(str(archive["meta"]))
            outputs = {
                key.partition("/")[2]: archive[key]
                for key in archive.files
                if key.startswith("output/")
            }
            recorded = meta["inputs"]
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such record") from error
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(
            f"{path}: not a record that `edgecv verify --record` wrote, or a damaged one ({error})"
        ) from error
    if recorded != inputs.identity:
        raise InputError(
            f"{path}: was recorded on other pictures ({recorded.get('kind')}) than these "
            f"({inputs.description}); give the same folder with --data, or record it again"
        )
    return outputs
