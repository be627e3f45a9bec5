"""``edgecv verify --layers``: where in the graph a candidate leaves its reference."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

from edgecv.measure.compare import int8_layer_min_sqnr
from edgecv.measure.layers import first_divergence, rank_layers
from edgecv.model import Model
from edgecv.preprocess import fit_pixels, open_picture, prepare, stack
from edgecv.runtimes.base import Array
from edgecv.spec import ModelSpec, read_spec
from edgecv.workflows.reference import Inputs, export_reference
from edgecv.workflows.verdict import EXACT_DB, Verification


def with_layers(
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
            ranked = rank_layers(candidate, parent, theirs, own_feed=mine)
            least = int8_layer_min_sqnr()
            lowest = min(
                (one.sqnr_db for one in ranked if one.sqnr_db is not None), default=EXACT_DB
            )
            verdict = verdict.with_check("worst layer, sqnr_db", lowest, least, lowest >= least)
            return replace(verdict, layers=tuple(ranked))
        divergence = first_divergence(
            candidate,
            parent,
            {spec.inputs[0].name: mine},
            {other.inputs[0].name: theirs},
            model.info.backend,
            half=spec.precision == "fp16",
            seen=_pixels(spec, other, inputs) if mine.dtype != theirs.dtype else None,
        )
        return replace(verdict, divergence=divergence)


def _first_batch(spec: ModelSpec, inputs: Inputs) -> Array:
    (tensor,) = spec.inputs
    count = tensor.shape[0] if isinstance(tensor.shape[0], int) else 1
    pictures = [inputs.pictures[i % len(inputs.pictures)] for i in range(count)]
    return stack([prepare(one, spec.preparation, dtype=tensor.dtype) for one in pictures])


def _pixels(spec: ModelSpec, other: ModelSpec, inputs: Inputs) -> tuple[Array, Array]:
    """What a file that takes uint8 pixels and one that takes numbers have in common: the pixels."""
    color = spec.preparation.color
    picture = open_picture(inputs.pictures[0])
    mine, theirs = (
        fit_pixels(picture, replace(one.preparation, color=color))[0] for one in (spec, other)
    )
    return mine, theirs
