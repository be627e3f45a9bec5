"""The passes in their order: from a float graph and pictures to a graph of integers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any

import onnx_ir as ir

from edgecv.errors import QuantizeError
from edgecv.graph.focus import fold_focus
from edgecv.graph.pixels import PixelsIn, pixels_in
from edgecv.progress import Progress, silent
from edgecv.quantize.calibrate import choose, extremes, histograms
from edgecv.quantize.correct import correct
from edgecv.quantize.grid import align_input
from edgecv.quantize.layers import LayerError, layer_errors
from edgecv.quantize.place import place
from edgecv.quantize.ranges import Array, Range
from edgecv.quantize.run import Batches
from edgecv.quantize.sensitivity import (
    Error,
    PutBack,
    Sensitivity,
    measure,
    put_back,
    relative_error,
)
from edgecv.quantize.structure import Plan, add_biases, ends, plan, sources
from edgecv.quantize.targets import Policy
from edgecv.quantize.unify import unify
from edgecv.spec import Preparation

LAYERS = 8  # batches that measure the layers' own errors
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
    """What "right" means to the search for layers to put back, and for ``ranges`` if it is to.

    ``error`` judges the outputs of one of the few ``batches``; ``limit`` is the sum of errors up
    to which tensors stay quantized where ``ranges`` are searched for.
    """

    batches: Batches
    error: Error = relative_error
    ranges: bool = True
    # YOLOX-Nano, four splits, AP of FP32 and times its speed: 0.06 97.6%, 1.24 to 1.30; 0.04 97.9%,
    # 1.13 to 1.28; 0.03 98.6%, 1.12 to 1.25 (benchmarks/README.md)
    limit: float = 0.06


@dataclass(frozen=True)
class Quantized:
    """``model`` in integers, and what was decided on the way: a range per quantized value, and
    what computes in float after all (``kept`` are all such nodes, ``put_back`` says why)."""

    model: ir.Model
    plan: Plan
    ranges: Mapping[str, Range]
    kept: tuple[str, ...] = ()
    put_back: PutBack | None = None
    learned: Mapping[str, Any] | None = None  # by whoever finishes it, see Quantizer


def prepare(
    model: ir.Model, policy: Policy, preparation: Preparation, pixels: bool | str
) -> Prepared:
    """Lay the input on the grid of its pixels, or let the graph take the pixels themselves.

    ``pixels``: whether, or in which order of channels (:func:`edgecv.graph.pixels.pixels_in`).
    ``model`` is changed. Raises :class:`~edgecv.errors.QuantizeError` where there is nothing to
    quantize.
    """
    fixed: Mapping[str, Range] = {}
    taken = None
    fold_focus(model)
    add_biases(model.graph)
    if pixels:
        taken = pixels_in(model, preparation, integer=not policy.symmetric, order=pixels)
    elif not policy.symmetric:
        fixed, preparation = align_input(model, preparation)
    if not any(unit.is_mac for unit in plan(model, policy).units):
        raise QuantizeError(
            f"there is nothing to quantize for {policy.name}: no convolution or matrix product "
            f"with constant float weights"
        )
    prepared = taken.preparation if taken else preparation
    dtype = model.graph.inputs[0].dtype
    assert dtype is not None  # a graph's inputs say what they are
    return Prepared(model, prepared, dtype.numpy().name, fixed, taken)


class Quantizer:
    """``ready.model``, calibrated on ``batches``: as many quantized copies as are asked for.

    ``keep_float`` names nodes that stay as they are, and why; an unknown one is a
    :class:`~edgecv.errors.QuantizeError`. Without ``search``, or one that does not choose
    ``ranges``, each tensor's own error decides about its range.
    ``finish`` makes what is given out of each copy: one that has learned, say.
    """

    def __init__(
        self,
        ready: Prepared,
        policy: Policy,
        batches: Batches,
        *,
        keep_float: Mapping[str, str] = MappingProxyType({}),
        search: Search | None = None,
        finish: Callable[[Quantized], Quantized] | None = None,
        progress: Progress = silent,
    ) -> None:
        model = ready.model
        names = {node.name for node in model.graph}
        if unknown := sorted(set(keep_float) - names):
            raise QuantizeError(
                f"--keep-float {unknown[0]}: the graph has no node of that name; it has "
                f"{', '.join(sorted(name or '' for name in names)[:5])}, ..."
            )
        self._ready, self._policy, self._batches = ready, policy, batches
        self._keep_float, self._search, self._progress = keep_float, search, progress
        self._finish = finish
        self._plan = plan(model, policy, keep_float)
        wanted = [name for name in sources(model, self._plan) if name not in ready.fixed]
        found = extremes(model, wanted, batches, progress)
        self._histograms = histograms(model, found, batches, progress)

    @cached_property
    def _sensitive(self) -> dict[str, Sensitivity]:
        assert self._search is not None  # who asks for sensitivities says what an error is
        return measure(
            self._ready.model,
            self._policy,
            self._histograms,
            self._search.batches,
            error=self._search.error,
            whole=ends(self._ready.model, self._plan),
            ranges=None if self._search.ranges else self._own,
            keep_float=self._keep_float,
            progress=self._progress,
        )

    @cached_property
    def _own(self) -> dict[str, Range]:
        """The range of each tensor that is best for itself."""
        return choose(self._histograms, self._policy)

    @cached_property
    def error(self) -> float:
        """The sum of the errors of all tensors, which limits of :meth:`quantize` divide."""
        return sum(item.error for item in self._sensitive.values())

    def quantize(self, limit: float | None = None) -> Quantized:
        """A quantized copy; with ``limit`` layers are put back to float until the sum of the
        tensors' errors is no larger. None: the search's own, where it chooses the ranges."""
        model, policy, search = self._ready.model, self._policy, self._search
        if limit is None and search is not None and search.ranges:
            limit = search.limit
        back = None
        kept: Collection[str] = self._keep_float
        if limit is not None:
            back = put_back(model, policy, self._sensitive, limit, self._keep_float)
            kept = tuple(back.nodes)
        if search is not None and search.ranges:
            spans = unify(model, {name: item.range for name, item in self._sensitive.items()})
            ranges = {**spans, **self._ready.fixed}
        else:
            ranges = {**self._own, **self._ready.fixed}
        few = partial(_first, self._batches, CORRECTION)
        model = correct(model, policy, ranges, few, kept, self._progress)
        quantized = place(model, policy, ranges, kept)
        done = Quantized(quantized, plan(model, policy, kept), ranges, tuple(kept), back)
        return done if self._finish is None or not done.plan.units else self._finish(done)

    def layers(self, done: Quantized) -> tuple[LayerError, ...]:
        """The error that each layer of ``done`` brings by itself, worst first."""
        few = partial(_first, self._batches, LAYERS)
        return layer_errors(
            self._ready.model, self._policy, done.ranges, few, done.kept, self._progress
        )


def _first(batches: Batches, count: int) -> Iterator[Array]:
    return itertools.islice(batches(), count)
