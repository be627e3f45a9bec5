"""What ``edgecv verify`` compares with: pictures, and the reference's answers to them.

A recipe (torch builds the net), another ``.onnx``, or a ``.npz`` recorded earlier.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecv.errors import InputError, WeightsError
from edgecv.files import atomic_write, sha256_of
from edgecv.measure.rounding import rough_file, roughened, rounding_noise
from edgecv.measure.seeded import seeded_pictures
from edgecv.model import load
from edgecv.preprocess import Picture, list_pictures
from edgecv.progress import Progress, silent
from edgecv.results import Placement, Result
from edgecv.runtimes.base import Array
from edgecv.spec import ModelSpec
from edgecv.workflows.stream import collect, outputs_of

if TYPE_CHECKING:
    from edgecv.export.overrides import InputOverrides
    from edgecv.export.weights import ResolvedWeights

SEED, COUNT = 11, 6  # two seeded pictures of each block size
NOISE_PICTURES = 16  # enough for a root mean square; each costs five more runs
HEIGHT, WIDTH = 270, 390  # neither square nor any net's size: resize and crop have work to do


@dataclass(frozen=True)
class Inputs:
    """The pictures of a comparison and how to recognise them again."""

    pictures: Sequence[Picture]
    description: str
    identity: dict[str, Any]
    root: Path | None = None

    def some(self) -> Sequence[Picture]:
        """At most :data:`NOISE_PICTURES` of them, evenly spaced."""
        return self.pictures[:: -(-len(self.pictures) // NOISE_PICTURES)]

    @classmethod
    def seeded(cls) -> Inputs:
        pictures = list(seeded_pictures(SEED, COUNT, HEIGHT, WIDTH))
        identity = {"kind": "seeded", "seed": SEED, "count": COUNT, "size": [HEIGHT, WIDTH]}
        return cls(pictures, f"{COUNT} seeded pictures", identity)

    @classmethod
    def folder(cls, root: Path) -> Inputs:
        paths = list_pictures(root)
        if not paths:
            raise InputError(f"{root}: there are no pictures in this folder")
        digests = {path.relative_to(root).as_posix(): sha256_of(path) for path in paths}
        identity = {"kind": "pictures", "sha256": digests}
        return cls(paths, f"{len(paths)} pictures of {root}", identity, root)


@dataclass(frozen=True)
class Reference:
    """The reference's side: ``results`` where it decodes by a contract of its own."""

    outputs: dict[str, Array]
    name: str
    results: list[Result] | None = None
    noise: Mapping[str, float] | None = None  # what rounding to FP16 does to each output


def reference_for(
    spec: ModelSpec,
    against: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None,
    inputs: Inputs,
    progress: Progress,
    *,
    noisy: bool = False,
) -> Reference:
    """The reference's outputs on ``inputs``, and its name for people.

    ``noisy``: also what rounding to FP16 does to them, which is measured on at most
    :data:`NOISE_PICTURES` of the pictures; a record has it from where it was made.
    """
    name = os.fspath(against)
    if name.endswith(".npz"):
        return read_record(Path(name), inputs)
    if name.endswith(".onnx"):
        noise = rounding_noise(lambda rng: _rough_file(name, rng, inputs)) if noisy else None
        with load(name, backend="onnxruntime") as parent:
            placements: list[Placement] = []
            outputs = outputs_of(parent, inputs.pictures, progress, "reference", placements)
            return Reference(outputs, name, parent.decode(outputs, placements), noise)
    return _torch_reference(spec, name, weights, inputs, progress, noisy)


def _rough_file(name: str, rng: np.random.Generator | None, inputs: Inputs) -> dict[str, Array]:
    """The outputs of the file ``name``, its weights and inputs roughened by ``rng``."""
    if rng is None:
        with load(name, backend="onnxruntime") as model:
            return outputs_of(model, inputs.some())
    with tempfile.TemporaryDirectory(prefix="edgecv-") as folder:
        path = Path(folder) / "rough.onnx"
        path.write_bytes(rough_file(name, rng))
        with load(path, backend="onnxruntime") as model:
            spec = model.spec
            return collect(
                lambda batch: model.infer(roughened(batch, rng)),
                inputs.some(),
                spec.preparation,
                dtype=spec.inputs[0].dtype,
            )


def _torch_reference(
    spec: ModelSpec,
    name: str,
    weights: str | os.PathLike[str] | None,
    inputs: Inputs,
    progress: Progress,
    noisy: bool,
) -> Reference:
    # here and not above: comparing with a file or a record needs no torch
    from edgecv.export.rough import rough_net
    from edgecv.export.weights import load_model
    from edgecv.workflows.parity import torch_outputs

    _, resolved = _weights_of(spec, name, weights, progress)
    model, preparation = load_model(resolved), resolved.recipe.preparation
    names = [tensor.name for tensor in spec.outputs]

    def exact(batch: Array) -> dict[str, Array]:
        return torch_outputs(model, batch, names)

    def some(rng: np.random.Generator | None) -> dict[str, Array]:
        if rng is None:
            return collect(exact, inputs.some(), preparation)
        rough = rough_net(model, rng)
        return collect(
            lambda batch: torch_outputs(rough, roughened(batch, rng), names),
            inputs.some(),
            preparation,
        )

    noise = rounding_noise(some) if noisy else None
    outputs = collect(exact, inputs.pictures, preparation, progress, "reference")
    return Reference(outputs, f"{name} in PyTorch", noise=noise)


def _overrides(spec: ModelSpec) -> InputOverrides:
    """The input flags that the candidate was exported with."""
    from edgecv.export.overrides import InputOverrides

    flags: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in spec.provenance.get("input_flags", {}).items()
    }
    return InputOverrides(**flags, labels=spec.labels)


def _weights_of(
    spec: ModelSpec, name: str, weights: str | os.PathLike[str] | None, progress: Progress
) -> tuple[str, ResolvedWeights]:
    """The recipe that the reference ``name`` comes to, and the weights of the candidate."""
    from edgecv.export.overrides import recipe_for
    from edgecv.export.recipe import load_recipe
    from edgecv.export.weights import ResolvedWeights, find_by_sha256, resolve

    recipe = recipe_for(name, _overrides(spec))
    bundled = recipe.weights.get("bundled")
    if bundled is not None and bundled.recipe and bundled.recipe == spec.provenance.get("recipe"):
        name = bundled.recipe
        recipe = load_recipe(name)
    recorded = spec.provenance.get("weights", {})
    digest, origin = recorded.get("sha256"), recorded.get("origin")
    if weights is not None:
        return name, resolve(recipe, os.fspath(weights), progress)
    if origin in ("random", "program"):
        return name, resolve(recipe, "random" if origin == "random" else "auto", progress)
    path = find_by_sha256(recipe, digest or "", Path(recorded.get("file") or ""))
    if path is None:
        raise WeightsError(
            f"{name}: the weights that this file was made from (sha256 {digest}, "
            f"{recorded.get('file')}) are not here; name them with --weights FILE"
        )
    return name, ResolvedWeights(recipe, "file", path, digest)


def export_reference(
    spec: ModelSpec, name: str, weights: str | os.PathLike[str] | None, path: Path
) -> None:
    """The reference as an ONNX file whose tensors have the candidate's names."""
    from edgecv.export.to_onnx import DEFAULT_OPSET  # the export extra; the command says so
    from edgecv.workflows.export import export

    size = spec.inputs[0].shape[0]
    found, resolved = _weights_of(spec, name, weights, silent)
    chosen = str(resolved.path) if resolved.path is not None else resolved.origin
    export(
        found,
        weights="auto" if chosen == "program" else chosen,
        overrides=_overrides(spec) if found == name else None,
        batch=size if isinstance(size, int) else None,
        opset=int(spec.provenance.get("opset", DEFAULT_OPSET)),
        output=path,
    )


def write_record(path: Path, side: Reference, inputs: Inputs) -> None:
    noise = None if side.noise is None else dict(side.noise)
    meta = {"format": "edgecv.record", "version": 1, "reference": side.name, "noise": noise}
    text = json.dumps({**meta, "inputs": inputs.identity}, sort_keys=True)
    arrays = {f"output/{name}": values for name, values in side.outputs.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, meta=np.array(text), **arrays)  # type: ignore[arg-type]
    with atomic_write(path) as file:
        file.write(buffer.getvalue())


def read_record(path: Path, inputs: Inputs) -> Reference:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            meta = json.loads(str(archive["meta"]))
            outputs = {
                key.partition("/")[2]: archive[key]
                for key in archive.files
                if key.startswith("output/")
            }
            recorded, noise = meta["inputs"], meta.get("noise")
            if noise is not None:
                noise = {name: float(noise[name]) for name in outputs}
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
    return Reference(outputs, str(path), noise=noise)
