"""What ``edgecv verify`` finds, and the bounds that it is held to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgecv.errors import InputError
from edgecv.measure import targets
from edgecv.measure.compare import (
    FP32_MAX_REL,
    Comparison,
    compare_each,
    int8_layer_min_sqnr,
    int8_min_sqnr,
    layer_count,
    worst,
)
from edgecv.measure.layers import Divergence, LayerError
from edgecv.measure.rounding import fp16_margin
from edgecv.model import Model
from edgecv.onnxgraph import read_graph
from edgecv.runtimes.base import Array

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

    def with_check(self, name: str, value: float, bound: float, passed: bool) -> Verification:
        """The same, held to one bound more."""
        return replace(self, checks=(*self.checks, Check(name, value, bound, passed)))

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
class Gates:
    """What the caller holds the figures against, beside the bound that the precision gives."""

    min_agreement: float | None = None
    min_cosine: float | None = None
    strict_target: bool = False

    def hold(self, verdict: Verification) -> Verification:
        """``verdict`` with the checks that its own figures decide."""
        if self.min_agreement is not None:
            found, least = verdict.agreement, self.min_agreement
            if found is None:
                raise InputError("--min-agreement needs answers to compare: name a reference")
            verdict = verdict.with_check("agreement", found, least, found >= least)
        if self.min_cosine is not None:
            cosine, least = verdict.comparison.cosine, self.min_cosine
            verdict = verdict.with_check("cosine", cosine, least, cosine >= least)
        return verdict

    def hold_target(self, verdict: Verification) -> Verification:
        """``--strict-target`` makes the note about the target a check that failed."""
        if not self.strict_target:
            return verdict
        fits = verdict.target_note is None
        return verdict.with_check("target", float(fits), 1.0, fits)


def judge(
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
        least = int8_min_sqnr(layer_count(read_graph(model.runtime.path).operators))
        value = EXACT_DB if found.sqnr_db is None else found.sqnr_db
        return Check("sqnr_db", value, least, value >= least)
    bound = FP32_MAX_REL if bound is None else bound
    return Check("max_rel", found.max_rel, bound, found.max_rel <= bound)
