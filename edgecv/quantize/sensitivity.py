"""How much each tensor's quantization moves the answer, and what is put back to float for it.

Each tensor is quantized alone, in every range proposed for it, and the net's own outputs say what
that does: a squared error inside the net weighs a rare large logit, which is the detection, like
any other value, and picks ranges that lose it. Errors of single tensors add up to the error of the
whole, as far as they are independent and small, so the largest are removed until what is left is
small enough.

A tensor is freed of its integers when what makes it and what reads it compute in float. A layer
and the activation behind it go together, since a float convolution whose output is quantized at
once would have gained nothing.

SiLU, ``x * sigmoid(x)``, is close to zero below -6 (-0.015 there), whatever ``x`` is. So a range
for ``x`` that ends there is proposed too: the levels that long negative tails would take are
better spent above.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir

from edgecv.progress import Progress, silent
from edgecv.quantize.calibrate import Histogram, least_squares, percentile
from edgecv.quantize.ranges import Affine, Array, Range, affine
from edgecv.quantize.run import Batches, Probe, open_session, run
from edgecv.quantize.structure import plan, sources
from edgecv.quantize.targets import MAC, PASS_THROUGH, Policy

SILU_LOW = -6.0
SHARES = (0.9999, 0.999)  # of the values that a percentile range keeps
# Tensors below this share of the summed error keep the first proposal: the order in which they
# would be ranked is noise, and each further one costs a run over the pictures.
NEGLIGIBLE = 1e-3
_ELEMENTWISE = frozenset(
    {"Relu", "Clip", "Sigmoid", "Mul", "HardSigmoid", "HardSwish", "LeakyRelu"}
)

Outputs = Mapping[str, Array]
Error = Callable[[Outputs, Outputs], float]  # (reference, candidate) of one batch


@dataclass(frozen=True)
class Sensitivity:
    """One tensor: the range that does the least harm, and the error that it alone brings."""

    value: str
    range: Range
    error: float


@dataclass(frozen=True)
class PutBack:
    """``nodes`` compute in float, each for the tensor that it was put back for, or the reason that
    the caller gave."""

    nodes: dict[str, str]
    before: float  # the sum of the errors of all quantized tensors
    after: float

    def to_dict(self) -> dict[str, Any]:
        return {"nodes": self.nodes, "error_before": self.before, "error_after": self.after}


def relative_error(reference: Outputs, candidate: Outputs) -> float:
    """The squared error over the reference's square, the mean of the outputs."""
    errors = []
    for name, wanted in reference.items():
        power = float(np.square(wanted, dtype=np.float64).sum())
        noise = float(np.square(candidate[name] - wanted, dtype=np.float64).sum())
        errors.append(noise / max(power, 1e-30))
    return float(np.mean(errors))


def measure(
    model: ir.Model,
    policy: Policy,
    histograms: Mapping[str, Histogram],
    batches: Batches,
    *,
    error: Error = relative_error,
    whole: Collection[str] = (),
    ranges: Mapping[str, Range] | None = None,
    keep_float: Collection[str] = (),
    progress: Progress = silent,
) -> dict[str, Sensitivity]:
    """The best range of every value that ``policy`` quantizes, by the error at the outputs.

    ``whole`` values, and the outputs of a Sigmoid, have one proposal: their full range; with
    ``ranges`` every value has the one that is there. ``keep_float`` names nodes that are not
    quantized: an activation among them leaves the layer before it a value of its own. The
    pictures of ``batches`` are run once for each proposal, so a few are enough.
    """
    pictures = list(batches())
    net = Probe(model)
    references = [net(picture) for picture in pictures]
    values = {v.name or "": v for v in (*model.graph.inputs, *_outputs(model))}
    quantized = sources(model, plan(model, policy, keep_float))
    names = [name for name in quantized if name in histograms]

    def harm(gate: _Gate, span: Range) -> float:
        errors = [
            error(reference, gate(picture, affine(span, policy)))
            for reference, picture in zip(references, pictures, strict=True)
        ]
        return float(np.mean(errors))

    proposals = {
        name: [ranges[name]]
        if ranges is not None
        else _proposals(values[name], histograms[name], policy, name in whole)
        for name in names
    }
    found: dict[str, Sensitivity] = {}
    for number, name in enumerate(names):
        first = proposals[name][0]
        found[name] = Sensitivity(name, first, harm(_Gate(model, name, policy), first))
        progress("sensitivity", number + 1, len(names))
    floor = NEGLIGIBLE * sum(item.error for item in found.values())
    for name in names:
        if found[name].error <= floor:
            continue
        gate = _Gate(model, name, policy)
        for span in proposals[name][1:]:
            if (got := harm(gate, span)) < found[name].error:
                found[name] = Sensitivity(name, span, got)
    return found


def put_back(
    model: ir.Model,
    policy: Policy,
    found: Mapping[str, Sensitivity],
    limit: float,
    keep_float: Mapping[str, str] = MappingProxyType({}),
) -> PutBack:
    """Free the tensors of the largest errors until the others' sum is at most ``limit``.

    ``keep_float`` nodes are float to begin with, for the reasons given. Ties go to the tensor that
    comes first.
    """
    makers = {v.name or "": v for v in _outputs(model)}
    kept = dict(keep_float)
    left = _quantized(model, policy, found, kept)
    before = sum(item.error for item in left)
    stuck: set[str] = set()
    while sum(item.error for item in left) > limit:
        free = [item for item in left if item.value not in stuck]
        if not free:
            break
        worst = max(free, key=lambda item: item.error)
        stuck.add(worst.value)  # an input of the net, say, is read by what was freed already
        for node in _around(makers.get(worst.value), model, worst.value):
            kept.setdefault(node, worst.value)
        left = _quantized(model, policy, found, kept)
    return PutBack(kept, before, sum(item.error for item in left))


def _quantized(
    model: ir.Model, policy: Policy, found: Mapping[str, Sensitivity], kept: Mapping[str, str]
) -> list[Sensitivity]:
    names = sources(model, plan(model, policy, tuple(kept)))
    return [found[name] for name in names if name in found]


def _outputs(model: ir.Model) -> list[ir.Value]:
    return [value for node in model.graph for value in node.outputs]


def _around(value: ir.Value | None, model: ir.Model, name: str) -> list[str]:
    """The layers that make and that read a value, each with its activation."""
    if value is None:
        value = next(v for v in model.graph.inputs if v.name == name)
    producer = value.producer()
    nodes = [] if producer is None else _layer(producer)
    readers = list(value.consumers())
    while readers:
        reader = readers.pop(0)
        if reader.op_type in PASS_THROUGH:  # what only moves the numbers is not what reads them
            readers += [after for output in reader.outputs for after in output.consumers()]
        nodes += _layer(reader)
    return list(dict.fromkeys(node.name or "" for node in nodes))


def _layer(node: ir.Node) -> list[ir.Node]:
    """The MAC operator of ``node`` and the elementwise operators behind it; else ``node`` alone."""
    root: ir.Node | None = node
    while root is not None and root.op_type in _ELEMENTWISE:
        source = root.inputs[0]
        root = None if source is None else source.producer()
    if root is None or root.op_type not in MAC:
        return [node]
    layer, inside = [root], set(root.outputs)
    queue = list(root.outputs[0].consumers())
    while queue:
        after = queue.pop(0)
        dynamic = [v for v in after.inputs if v is not None and not v.is_initializer()]
        if after.op_type in _ELEMENTWISE and after not in layer and inside.issuperset(dynamic):
            layer.append(after)
            inside.update(after.outputs)
            queue += after.outputs[0].consumers()
    return layer


def _proposals(
    value: ir.Value, histogram: Histogram, policy: Policy, whole: bool
) -> Sequence[Range]:
    producer = value.producer()
    if producer is not None and producer.op_type == "Sigmoid":
        return [Range(0.0, 255 / 256, "sigmoid")]  # a step of 1 / 256, whatever the pictures were
    full = Range(histogram.lo, histogram.hi)
    if whole:
        return [full]
    spans = [Range(*percentile(histogram, share), "percentile") for share in SHARES]
    spans += [full, Range(*least_squares(histogram, policy), "mse")]
    if any(node.op_type == "Sigmoid" for node in value.consumers()) and histogram.lo < SILU_LOW:
        spans = [
            Range(max(span.lo, low), span.hi, span.method + ("" if low == span.lo else "+silu"))
            for span in spans
            for low in dict.fromkeys((max(span.lo, SILU_LOW), span.lo))
        ]
    return spans


class _Gate:
    """The net with one value quantized by a scale and a zero point that are given at each run."""

    def __init__(self, model: ir.Model, name: str, policy: Policy) -> None:
        clone = model.clone()
        self._names = [str(output.name) for output in clone.graph.outputs]
        self._input = str(clone.graph.inputs[0].name)
        value = next(v for v in (*clone.graph.inputs, *_outputs(clone)) if v.name == name)
        users = list(value.uses())
        integer = ir.DataType.from_numpy(np.dtype(policy.activations))
        scale = ir.Value(
            name="gate.scale", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(())
        )
        zero = ir.Value(name="gate.zero_point", type=ir.TensorType(integer), shape=ir.Shape(()))
        to_int = ir.node("QuantizeLinear", [value, scale, zero], name="gate/QuantizeLinear")
        to_real = ir.node(
            "DequantizeLinear", [to_int.outputs[0], scale, zero], name="gate/DequantizeLinear"
        )
        to_int.outputs[0].name, to_real.outputs[0].name = "gate.int", "gate.real"
        for node, index in users:
            node.replace_input_with(index, to_real.outputs[0])
        if value.is_graph_output():
            to_real.outputs[0].type, to_real.outputs[0].shape = value.type, value.shape
            clone.graph.outputs[self._names.index(name)] = to_real.outputs[0]
        clone.graph.inputs.extend([scale, zero])
        clone.graph.extend([to_int, to_real])
        clone.graph.sort()
        # the graph runs a few times only: fusing its nodes would take longer than it saves
        self._session = open_session(ir.to_proto(clone).SerializeToString(), optimize=False)

    def __call__(self, picture: Array, found: Affine) -> dict[str, Array]:
        feeds = {
            self._input: picture,
            "gate.scale": np.asarray(found.scale, np.float32),
            "gate.zero_point": np.asarray(found.zero_point, found.dtype),
        }
        return dict(zip(self._names, run(self._session, None, feeds), strict=True))
