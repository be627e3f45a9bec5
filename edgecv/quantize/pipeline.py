"""The passes in their order: from a float graph and pictures to a graph of integers."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from edgecv.errors import QuantizeError
from edgecv.graph.focus import fold_focus
from edgecv.graph.pixels import PixelsIn, pixels_in
from edgecv.progress import Progress, silent
from edgecv.quantize.calibrate import choose, extremes, histograms
from edgecv.quantize.correct import correct
from edgecv.quantize.grid import align_input
from edgecv.quantize.place import place
from edgecv.quantize.ranges import Array, Range
from edgecv.quantize.run import Batches
from edgecv.quantize.sensitivity import Error, PutBack, measure, put_back, relative_error
from edgecv.quantize.structure import Plan, origin, plan
from edgecv.quantize.targets import Policy
from edgecv.quantize.unify import unify
from edgecv.spec import Preparation

CORRECTION = 32  # batches that measure the shifts of means, each over all positions of a layer


@dataclass(frozen=True)
class Prepared:
    """A float graph made ready: ``model`` takes what ``preparation`` and ``dtype`` say, ``fixed``
    are the ranges that follow from the pixels and need no calibration."""

    model: ir.Model
    preparation: Preparation
    dtype: str
    fixed: Mapping[str, Range]
    pixels: PixelsIn | None


@dataclass(frozen=True)
class Search:
    """What "right" means to the search for ranges and for layers to put back.

    ``error`` judges the outputs of one of the few ``batches``; ``limit`` is the sum of errors up
    to which tensors stay quantized.
    """

    batches: Batches
    error: Error = relative_error
    # YOLOX-Nano, AP of FP32 and times its speed: 0.15 94% 1.32, 0.09 95% 1.29, 0.06 101% 1.24
    limit: float = 0.06


@dataclass(frozen=True)
class Quantized:
    """``model`` in integers, and what was decided on the way: a range per quantized value, and
    what computes in float after all."""

    model: ir.Model
    plan: Plan
    ranges: Mapping[str, Range]
    put_back: PutBack | None = None


def prepare(model: ir.Model, policy: Policy, preparation: Preparation, pixels: bool) -> Prepared:
    """Lay the input on the grid of its pixels, or let the graph take the pixels themselves.

    ``model`` is changed. Raises :class:`~edgecv.errors.QuantizeError` where there is nothing to
    quantize.
    """
    fixed: Mapping[str, Range] = {}
    taken = None
    fold_focus(model)
    if pixels:
        taken = pixels_in(model, preparation, integer=not policy.symmetric)
    elif not policy.symmetric:
        fixed, preparation = align_input(model, preparation)
    if not any(unit.is_mac for unit in plan(model, policy).units):
        raise QuantizeError(
            f"there is nothing to quantize for {policy.name}: no convolution or matrix product "
            f"with constant float weights"
        )
    prepared = taken.preparation if taken else preparation
    return Prepared(model, prepared, "uint8" if taken else "float32", fixed, taken)


def quantize_graph(
    ready: Prepared,
    policy: Policy,
    batches: Batches,
    *,
    keep_float: Collection[str] = (),
    search: Search | None = None,
    progress: Progress = silent,
) -> Quantized:
    """Calibrate ``ready.model`` on ``batches`` and quantize a copy of it for ``policy``.

    ``keep_float`` names nodes that stay as they are; an unknown one is a
    :class:`~edgecv.errors.QuantizeError`. With ``search`` the ranges are those that do the least
    harm at the outputs, and layers are put back to float; without it each tensor's own error
    decides, which takes two runs over the pictures.
    """
    model = ready.model
    names = {node.name for node in model.graph}
    if unknown := sorted(set(keep_float) - names):
        raise QuantizeError(
            f"--keep-float {unknown[0]}: the graph has no node of that name; it has "
            f"{', '.join(sorted(name or '' for name in names)[:5])}, ..."
        )
    chosen = plan(model, policy, keep_float)
    values = {
        value.name: value
        for value in (*model.graph.inputs, *(v for node in model.graph for v in node.outputs))
    }
    wanted = dict.fromkeys(
        source
        for name in chosen.values
        if (source := origin(values[name]).name or "") not in ready.fixed
    )
    found = extremes(model, list(wanted), batches, progress)
    measured = histograms(model, found, batches, progress)
    if search is None:
        ranges = {**choose(measured, policy), **ready.fixed}
        few = partial(_first, batches, CORRECTION)
        corrected = correct(model, policy, ranges, few, keep_float, progress)
        return Quantized(place(corrected, policy, ranges, keep_float), chosen, ranges)
    sensitive = measure(
        model,
        policy,
        measured,
        search.batches,
        error=search.error,
        whole=_ends(model, chosen),
        progress=progress,
    )
    back = put_back(model, policy, sensitive, search.limit, keep_float)
    spans = unify(model, {name: item.range for name, item in sensitive.items()})
    ranges = {**spans, **ready.fixed}
    chosen = plan(model, policy, tuple(back.nodes))
    return Quantized(place(model, policy, ranges, tuple(back.nodes)), chosen, ranges, back)


def _first(batches: Batches, count: int) -> Iterator[Array]:
    return itertools.islice(batches(), count)


def _ends(model: ir.Model, chosen: Plan) -> list[str]:
    """Quantized values that nothing quantized reads: the logits and boxes, which are not cut."""
    readers = {value for unit in chosen.units for value in unit.node.inputs}
    values = {value.name: value for node in model.graph for value in node.outputs}
    return [n for n in chosen.values if n in values and values[n] not in readers]
