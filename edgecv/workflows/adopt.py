"""``edgecv adopt``: a third party's ONNX file gets its contract, and a self-test."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgecv import __version__
from edgecv.errors import InputError, RecipeError, SpecError
from edgecv.export.adopt import check_outputs, contract, input_size, recipe_of
from edgecv.export.recipe import Recipe, list_adoptable, load_recipe
from edgecv.export.ultralytics import UltralyticsNote, read_note
from edgecv.files import sha256_of
from edgecv.measure import selftest
from edgecv.measure.compare import FP32_MAX_REL
from edgecv.model import Model
from edgecv.onnxfile import read_metadata
from edgecv.onnxgraph import OnnxGraph, read_graph
from edgecv.results import Placement
from edgecv.runtimes import open_backend
from edgecv.runtimes.base import Backend
from edgecv.spec import METADATA_KEY, ModelSpec, write_spec

RUNTIME = "onnxruntime"  # whose answers the self-test holds


@dataclass(frozen=True)
class AdoptResult:
    """What was written."""

    path: Path
    spec: ModelSpec
    graph: OnnxGraph
    size_bytes: int
    licence: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "task": self.spec.task,
            "precision": self.spec.precision,
            "target": self.spec.target,
            "opset": self.graph.opset,
            "size_bytes": self.size_bytes,
            "parity": {},
            "classes": len(self.spec.labels),
            "licence": self.licence,
            "preparation": self.spec.preparation.describe(),
            "decoding": self.spec.decoding.kind,
        }


def adopt(
    model: str | os.PathLike[str],
    *,
    recipe: str | None = None,
    labels: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
) -> AdoptResult:
    """Write a copy of the ONNX file ``model`` that carries a contract; its graph stays as it is.

    ``recipe`` is a shipped recipe's name or a ``.toml`` file; a file by Ultralytics' exporter needs
    none. ``labels`` is a text file with a class name per line. ``output`` defaults to the
    contract's name in the current folder. The file is run once, on a picture of its size, so that
    the shapes of its outputs are known and its answers can be kept as its self-test.

    Raises :class:`~edgecv.errors.SpecError` for what the graph contradicts,
    :class:`~edgecv.errors.RecipeError` where no recipe fits.
    """
    source = Path(model)
    metadata, graph = read_metadata(source), read_graph(source)
    if METADATA_KEY in metadata:
        raise InputError(
            f"{source}: this file carries a contract already; `edgecv inspect` shows it"
        )
    if graph.external:
        raise InputError(
            f"{source}: its weights lie in other files, and a model of EdgeCV is one file; save it "
            f"as one first: onnx.save_model(onnx.load(path), path, save_as_external_data=False)"
        )
    note = read_note(metadata, str(source))
    chosen = load_recipe(recipe, adopted=True) if recipe is not None else None
    if chosen is None and note is None:
        raise RecipeError(
            f"{source}: what its input and outputs mean cannot be known: give --recipe NAME "
            f"({', '.join(list_adoptable())}) or --recipe FILE.toml (export/README.md)"
        )
    with open_backend(RUNTIME, source) as runtime:
        spec, chosen = _contract(runtime, chosen, note, labels, str(source))
        licence = note.licence if note is not None and note.licence else chosen.licence
        spec = replace(
            spec,
            precision=graph.precision,
            provenance={
                "recipe": chosen.name,
                "producer": graph.producer,
                "weights": {
                    "origin": "adopted",
                    "file": source.name,
                    "sha256": sha256_of(source),
                    "licence": licence,
                },
                "opset": graph.opset,
                "tools": {"edgecv": __version__, runtime.info.backend: runtime.info.version},
            },
        )
        spec = replace(spec, self_test=_self_test(runtime, spec, source))
    path = Path(output) if output is not None else _default_output(spec.name, source)
    write_spec(source, spec, path)
    return AdoptResult(path, spec, graph, path.stat().st_size, licence)


def _contract(
    runtime: Backend,
    recipe: Recipe | None,
    note: UltralyticsNote | None,
    labels: str | os.PathLike[str] | None,
    where: str,
) -> tuple[ModelSpec, Recipe]:
    """The contract by what one run of the file gives, and the recipe it came from."""
    if len(runtime.inputs) != 1 or len(runtime.inputs[0].shape) != 4:
        shown = ", ".join(f"{t.name} {list(t.shape)}" for t in runtime.inputs)
        raise SpecError(
            f"{where}: expected one picture as input, [N, 3, H, W] or [N, H, W, 3], the graph "
            f"takes {shown}"
        )
    (tensor,) = runtime.inputs
    if recipe is None:
        assert note is not None
        declared = [[s if isinstance(s, int) else 0 for s in t.shape] for t in runtime.outputs]
        recipe = recipe_of(note, declared, where)
    check_outputs(recipe, runtime.outputs, where)
    size = input_size(tensor, recipe, note, where)
    p = replace(recipe.preparation, height=size[0], width=size[1])
    wanted = (1, *p.tensor_shape(*size))
    shape = [s if isinstance(s, int) else int(w) for s, w in zip(tensor.shape, wanted, strict=True)]
    if shape[1:] != list(wanted[1:]):
        raise SpecError(
            f"{where}: the graph takes {list(tensor.shape)}, the recipe {recipe.name} makes "
            f"[N, {', '.join(map(str, wanted[1:]))}]"
        )
    outputs = runtime.run({tensor.name: np.zeros(shape, tensor.dtype)})
    spec = contract(
        recipe,
        size,
        runtime.inputs,
        runtime.outputs,
        {name: array.shape for name, array in outputs.items()},
        labels=Path(labels) if labels is not None else None,
        note=note,
        where=where,
    )
    return spec, recipe


def _self_test(runtime: Backend, spec: ModelSpec, source: Path) -> dict[str, Any]:
    """The file's answers to seeded pictures, after the contract's decoder has taken them."""
    model = Model(spec, runtime)
    dtype, p = spec.inputs[0].dtype, spec.preparation
    batch = selftest.inputs(p, selftest.SEED, selftest.COUNT, dtype)
    outputs = model.infer(batch)
    placement = Placement(p.width, p.height, 1.0, 1.0, 0.0, 0.0, p.width, p.height)
    model.decode(outputs, [placement] * selftest.COUNT)
    recorded = selftest.record(outputs, FP32_MAX_REL)
    if spec.precision == "int8":
        # another CPU's integers round otherwise, by whole steps: held to what INT8 may cost at all
        del recorded["max_rel"]
    return recorded


def _default_output(name: str, source: Path) -> Path:
    path = Path(f"{name}.onnx")
    if path.resolve() == source.resolve():  # the third party's file stays as it is
        return Path(f"{name}-adopted.onnx")
    return path
