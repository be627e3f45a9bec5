"""What each layer costs: its own error in one streaming pass, and which to put back to float.

:func:`layer_errors` runs the float net once over the pictures. Beside each layer stands its
integer form, fed with the float input: what differs is the error that this layer brings, not what
it inherited. :func:`put_back` then gives the worst layers back their floats, by what that really
gains at the output (measured, for the candidates) for what it costs in multiply-adds, until the
accuracy is inside the bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgecv.progress import Progress, silent
from edgecv.quantize.place import place
from edgecv.quantize.ranges import Array, Ranges
from edgecv.quantize.run import Batches, Probe
from edgecv.quantize.structure import Unit, constant, plan, weight_axis
from edgecv.quantize.targets import Policy

PICTURES = 8  # on which each layer's effect at the output is measured


@dataclass(frozen=True)
class LayerError:
    """One layer's own error: signal to noise at its output in dB, and its multiply-adds."""

    name: str
    operator: str
    sqnr_db: float
    macs: int


@dataclass(frozen=True)
class PutBack:
    """One layer that computes in float again.

    ``output_sqnr_db`` is the SQNR at the model's output with this layer alone in integers: how
    loud it was.
    """

    name: str
    output_sqnr_db: float
    macs: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def layer_errors(
    model: ir.Model,
    policy: Policy,
    ranges: Ranges,
    batches: Batches,
    progress: Progress = silent,
) -> tuple[LayerError, ...]:
    """Every layer's own error, worst first (ties: graph order). One pass, batch by batch."""
    units = plan(model, policy).units
    probe = Probe(_beside(model, policy, ranges, units), [])
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


def put_back(
    build: Callable[[Collection[str]], ir.Model],
    model: ir.Model,
    policy: Policy,
    ranges: Ranges,
    batches: Batches,
    drop: Callable[[ir.Model], float],
    max_drop: float,
    progress: Progress = silent,
) -> tuple[ir.Model, tuple[PutBack, ...], float]:
    """The quantized model with as few layers in float as keep ``drop`` within ``max_drop``.

    ``build`` quantizes with the layers named left in float; ``drop`` is the accuracy proxy, in
    points. Layers of the float ``model`` are ranked by the noise that each alone brings to the
    output (their own error does not tell: the first layers of MobileNetV2 are the cleanest of
    all and the loudest at the output), per multiply-add, and the shortest prefix of that order
    that suffices is found by doubling and bisection. Returns the model, what was put back, and
    its drop; where nothing suffices, the best that was found: the caller compares.
    """
    whole = build(())
    lost = drop(whole)
    if lost <= max_drop:
        return whole, (), lost
    order = _rank(model, policy, ranges, batches, progress)
    tried: dict[int, tuple[ir.Model, float]] = {0: (whole, lost)}

    def attempt(count: int) -> float:
        if count not in tried:
            candidate = build([entry.name for entry in order[:count]])
            tried[count] = candidate, drop(candidate)
            progress("layers put back", count, len(order))
        return tried[count][1]

    low, high = 0, 1
    while high < len(order) and attempt(high) > max_drop:
        low, high = high, min(2 * high, len(order))
    attempt(high := min(high, len(order)))
    while high - low > 1:
        middle = (low + high) // 2
        if attempt(middle) <= max_drop:
            high = middle
        else:
            low = middle
    enough = [count for count, (_, points) in tried.items() if points <= max_drop]
    count = min(enough) if enough else min(tried, key=lambda n: (tried[n][1], n))
    return tried[count][0], tuple(order[:count]), tried[count][1]


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


def _rank(
    model: ir.Model,
    policy: Policy,
    ranges: Ranges,
    batches: Batches,
    progress: Progress,
) -> list[PutBack]:
    """Layers by the noise that each alone brings to the output, per multiply-add."""
    pictures = list(_first(batches(), PICTURES))
    expected = Probe(model).over(pictures)
    units = plan(model, policy).units
    names = [unit.name for unit in units]
    entries = []
    for number, unit in enumerate(units):
        alone = place(model, policy, ranges, [name for name in names if name != unit.name])
        found = _output_db(alone, expected, pictures)
        if found < math.inf:
            entries.append(PutBack(unit.name, round(found, 2), macs(unit)))
        progress("effects at the output", number + 1, len(units))
    # a small layer costs at least its two conversions, worth about a million multiply-adds
    return sorted(
        entries, key=lambda entry: -(10 ** (-entry.output_sqnr_db / 10)) / (entry.macs + 1_000_000)
    )


def _output_db(model: ir.Model, expected: Mapping[str, Array], pictures: Sequence[Array]) -> float:
    """SQNR over all outputs; of several the worst, as a weak output is a weak model."""
    found = Probe(model).over(pictures)
    return min(
        _db(float(np.square(e, dtype=np.float64).sum()),
            float(np.square(found[name].astype(np.float64) - e).sum()))
        for name, e in expected.items()
    )  # fmt: skip


def _first(batches: Iterator[Array], count: int) -> Iterator[Array]:
    seen = 0
    for batch in batches:
        yield batch
        seen += len(batch)
        if seen >= count:
            return


def _beside(model: ir.Model, policy: Policy, ranges: Ranges, units: Sequence[Unit]) -> ir.Model:
    """The float net with each unit's integer form beside it, and their difference as outputs."""
    whole, integers = model.clone(), place(model, policy, ranges)
    graph = whole.graph
    values = {v.name: v for v in (*graph.inputs, *(v for n in graph for v in n.outputs))}
    placed = {node.name: node for node in integers.graph}
    produced = {v.name: n for n in integers.graph for v in n.outputs}
    graph.outputs.clear()
    for index, unit in enumerate(units):
        prefix = f"beside{index}/"
        copies: dict[str, ir.Value] = {}
        node = placed[unit.name]
        last = placed[unit.activation.name] if unit.activation is not None else node
        result = _copy(last, graph, values, produced, prefix, copies, node)
        output = unit.output.name or ""
        for after in last.outputs[0].consumers():
            if after.op_type == "QuantizeLinear" and f"{output}.int" == after.outputs[0].name:
                back = after.outputs[0].consumers()[0]
                copies[last.outputs[0].name or ""] = result
                result = _copy(back, graph, values, produced, prefix, copies, node)
        truth = values[output]
        difference = ir.node("Sub", [result, truth], name=f"{prefix}Sub")
        noise = ir.node("ReduceSumSquare", [difference.outputs[0]], {"keepdims": 0})
        signal = ir.node("ReduceSumSquare", [truth], {"keepdims": 0})
        for reducer, name in ((noise, _noise(index)), (signal, _signal(index))):
            reducer.name = reducer.outputs[0].name = name
            reducer.outputs[0].type, reducer.outputs[0].shape = truth.type, ir.Shape([])
            graph.outputs.append(reducer.outputs[0])
        difference.outputs[0].name = f"{prefix}difference"
        graph.extend([difference, noise, signal])
    graph.sort()
    return whole


def _copy(
    node: ir.Node,
    graph: ir.Graph,
    values: Mapping[str | None, ir.Value],
    produced: Mapping[str | None, ir.Node],
    prefix: str,
    copies: dict[str, ir.Value],
    core: ir.Node,
) -> ir.Value:
    """``node`` and the Q/DQ nodes before it, copied into ``graph`` on the float net's values."""
    inputs: list[ir.Value | None] = []
    for value in node.inputs:
        if value is None:
            inputs.append(None)
            continue
        name = value.name or ""
        before = produced.get(name)
        if name in copies:
            inputs.append(copies[name])
        elif value.is_initializer():
            if name not in graph.initializers:
                graph.register_initializer(
                    ir.Value(name=name, shape=value.shape, type=value.type,
                             const_value=value.const_value)
                )  # fmt: skip
            inputs.append(graph.initializers[name])
        elif before is not None and (
            before.op_type in ("QuantizeLinear", "DequantizeLinear") or before is core
        ):
            copied = _copy(before, graph, values, produced, prefix, copies, core)
            inputs.append(copied)
        else:
            inputs.append(values[name.removesuffix(".real")])
    copy = ir.node(node.op_type, inputs, node.attributes, domain=node.domain,
                   num_outputs=len(node.outputs), name=f"{prefix}{node.name}")  # fmt: skip
    for mine, theirs in zip(copy.outputs, node.outputs, strict=True):
        mine.name = f"{prefix}{theirs.name}"
        mine.type, mine.shape = theirs.type, theirs.shape
        copies[theirs.name or ""] = mine
    graph.append(copy)
    return copy.outputs[0]


def _noise(index: int) -> str:
    return f"noise{index}"


def _signal(index: int) -> str:
    return f"signal{index}"


def _db(signal: float, noise: float) -> float:
    return math.inf if noise <= 0 else 10 * math.log10(max(signal, 1e-300) / noise)
