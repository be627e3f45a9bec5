"""The error that each layer brings by itself, in one streaming pass.

The float net runs once over the pictures. Beside each layer stands its integer form, fed with the
float input: what differs is the error that this layer brings, not what it inherited. It is what a
table of layers shows; what that error does at the output is another matter
(:mod:`edgecv.quantize.sensitivity`): the first layers of MobileNetV2 are its cleanest (52 dB) and
its loudest at the output.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgecv.progress import Progress, silent
from edgecv.quantize.beside import Beside
from edgecv.quantize.ranges import Ranges
from edgecv.quantize.run import Batches, Probe
from edgecv.quantize.structure import Unit, constant, plan, weight_axis
from edgecv.quantize.targets import Policy


@dataclass(frozen=True)
class LayerError:
    """One layer's own error: signal to noise at its output in dB, and its multiply-adds."""

    name: str
    operator: str
    sqnr_db: float
    macs: int

    def to_dict(self) -> dict[str, Any]:
        """JSON has no infinity: a layer without any error has the SQNR None."""
        exact = math.isinf(self.sqnr_db)
        return {**vars(self), "sqnr_db": None if exact else round(self.sqnr_db, 2)}


def layer_errors(
    model: ir.Model,
    policy: Policy,
    ranges: Ranges,
    batches: Batches,
    keep_float: Collection[str] = (),
    progress: Progress = silent,
) -> tuple[LayerError, ...]:
    """Every layer's own error, worst first (ties: graph order). One pass, batch by batch."""
    if not plan(model, policy, keep_float).units:
        return ()
    beside = Beside(model, policy, ranges, keep_float)
    units = beside.units
    for index, unit in enumerate(units):
        truth = beside.values[unit.output.name or ""]
        noise = beside.difference(index, beside.whole(index), truth)
        for value, name in ((noise, _noise(index)), (truth, _signal(index))):
            beside.output(ir.node("ReduceSumSquare", [value], {"keepdims": 0}), name)
    beside.graph.sort()
    probe = Probe(beside.model)
    totals = np.zeros((len(units), 2))
    for number, batch in enumerate(batches()):
        found = probe(batch)
        for index in range(len(units)):
            totals[index] += float(found[_noise(index)]), float(found[_signal(index)])
        progress("errors of layers", number + 1, 0)
    errors = [
        LayerError(unit.name, unit.node.op_type, _db(signal, noise), macs(unit))
        for unit, (noise, signal) in zip(units, totals, strict=True)
    ]
    return tuple(sorted(errors, key=lambda error: error.sqnr_db))


def macs(unit: Unit) -> int:
    """Multiply-adds of one picture through ``unit``; of other operators their output's size."""
    shape = unit.output.shape
    sizes = [size for size in (shape or ())[1:] if isinstance(size, int)]
    outputs = int(math.prod(sizes))
    weight = constant(unit.node.inputs[1]) if unit.is_mac else None
    if weight is None:
        return outputs
    if unit.node.op_type == "Conv":
        return outputs * int(math.prod(weight.shape[1:]))
    return outputs * int(weight.size // max(1, weight.shape[weight_axis(unit.node)]))


def _noise(index: int) -> str:
    return f"noise{index}"


def _signal(index: int) -> str:
    return f"signal{index}"


def _db(signal: float, noise: float) -> float:
    return math.inf if noise <= 0 else 10 * math.log10(max(signal, 1e-300) / noise)
