"""What a graph is made of: units of one operator and the activation that fuses into it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgecv.quantize.targets import MAC, PASS_THROUGH, Policy


@dataclass(frozen=True)
class Unit:
    """An operator and, where a runtime fuses it, the activation behind it."""

    node: ir.Node
    activation: ir.Node | None = None

    @property
    def name(self) -> str:
        return self.node.name or self.node.outputs[0].name or self.node.op_type

    @property
    def output(self) -> ir.Value:
        return (self.activation or self.node).outputs[0]

    @property
    def is_mac(self) -> bool:
        return self.node.op_type in MAC


@dataclass(frozen=True)
class Plan:
    """Which units compute in integers, and which values are quantized for it, in graph order."""

    units: tuple[Unit, ...]
    values: tuple[str, ...]


def constant(value: ir.Value | None) -> NDArray[np.float32] | None:
    """The float array of an initializer; None for anything else."""
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    if value.const_value.dtype != ir.DataType.FLOAT:
        return None
    return np.asarray(value.const_value.numpy())


def is_activation(value: ir.Value | None) -> bool:
    """Whether ``value`` is a float tensor that depends on the input."""
    if value is None or value.is_initializer():
        return False
    return value.dtype in (None, ir.DataType.FLOAT) or dequantized(value) is not None


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """The only node that reads ``value``, where that is all that happens to it."""
    consumers = value.consumers()
    if len(consumers) != 1 or value.is_graph_output() or len(value.uses()) != 1:
        return None
    return consumers[0]


def origin(value: ir.Value) -> ir.Value:
    """Where the numbers of ``value`` come from: behind operators that only move them."""
    producer = value.producer()
    while producer is not None and producer.op_type in PASS_THROUGH:
        source = producer.inputs[0]
        assert source is not None  # an operator that moves values has something to move
        value, producer = source, source.producer()
    return value


def sources(model: ir.Model, chosen: Plan) -> list[str]:
    """The values that ``chosen`` needs ranges of: where the numbers of its values come from."""
    values = {
        v.name: v for v in (*model.graph.inputs, *(v for n in model.graph for v in n.outputs))
    }
    return list(dict.fromkeys(origin(values[name]).name or "" for name in chosen.values))


def dequantized(value: ir.Value) -> ir.Node | None:
    """The DequantizeLinear that ``value`` comes out of: it is integers already (pixels in)."""
    producer = origin(value).producer()
    return producer if producer is not None and producer.op_type == "DequantizeLinear" else None


def new_initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """A constant of ``graph`` under ``name``."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def replace_constant(node: ir.Node, index: int, array: NDArray[np.float32]) -> None:
    """Give ``node`` an initializer of its own with new numbers, under the name of the old one."""
    old = node.inputs[index]
    graph = node.graph
    assert old is not None and old.name is not None and isinstance(graph, ir.Graph)  # noqa: PT018
    if len(old.uses()) > 1:  # shared: the others keep theirs
        node.replace_input_with(index, new_initializer(graph, f"{node.name}.{index}", array))
    else:
        old.const_value = ir.tensor(array, name=old.name)


def add_biases(graph: ir.Graph) -> None:
    """Zeros for every Conv and Gemm that has no bias: what the input's grid moves, and the means
    that quantization takes, are given back there."""
    for node in graph:
        if node.domain not in ("", "ai.onnx") or node.op_type not in ("Conv", "Gemm"):
            continue
        biased = len(node.inputs) > 2 and node.inputs[2] is not None
        weight = constant(node.inputs[1])
        if not biased and weight is not None:
            zeros = np.zeros(weight.shape[weight_axis(node)], np.float32)
            node.resize_inputs(3)
            node.replace_input_with(2, new_initializer(graph, f"{node.name}.zeros", zeros))


def clip_bounds(node: ir.Node) -> tuple[float, float] | None:
    """What Relu or Clip limits to; None for other operators and for bounds that are computed."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    if node.op_type != "Clip":
        return None
    bounds = [-float("inf"), float("inf")]
    for index in (0, 1):
        value = node.inputs[index + 1] if len(node.inputs) > index + 1 else None
        if value is not None:
            array = constant(value)
            if array is None:
                return None
            bounds[index] = float(array.reshape(()))
    return bounds[0], bounds[1]


def weight_axis(node: ir.Node) -> int:
    """The axis of the weight that counts the output's channels."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        transposed = node.attributes.get("transB")
        return 0 if transposed is not None and transposed.as_int() else 1
    weight = node.inputs[1]
    assert weight is not None and weight.shape is not None  # noqa: PT018
    return len(weight.shape) - 1


def is_quantizable(node: ir.Node, policy: Policy) -> bool:
    """Whether the policy has integers for this node, by its operator and operands."""
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type not in policy.operators and node.op_type not in PASS_THROUGH:
        return False
    if not is_activation(node.inputs[0]):
        return node.op_type in ("Add", "Mul", "Concat") and any(map(is_activation, node.inputs))
    if node.op_type in MAC:
        weight = constant(node.inputs[1])
        return weight is not None and weight.ndim >= 2
    return True


def plan(model: ir.Model, policy: Policy, keep_float: Collection[str] = ()) -> Plan:
    """Decide what computes in integers.

    Convolutions and matrix products do where the policy allows. What lies between two of them
    does too, if it can; what follows the last one (a detector's decoding, say) stays float: it
    has little work and much dynamic range. ``keep_float`` names nodes that stay as they are.
    """
    graph = model.graph
    kept = set(keep_float)
    candidates = {node for node in graph if is_quantizable(node, policy) and node.name not in kept}
    useful = _leads_to_mac(graph, candidates)
    units: list[Unit] = []
    values: dict[str, None] = {}
    integers: set[ir.Value] = set()  # values that come out of an integer unit
    for node in graph:
        if node not in candidates or node not in useful:
            continue
        inputs = [v for v in node.inputs if v is not None and is_activation(v)]
        if node.op_type not in MAC and not all(value in integers for value in inputs):
            continue
        unit = Unit(node, _fused(node, policy, kept))
        units.append(unit)
        for value in inputs:
            if dequantized(value) is None and not _stays_inside(value, node, policy, integers):
                values[value.name or ""] = None
        output = unit.output
        integers.update(node.outputs if unit.activation is None else [output])
        if _needs_output(unit, policy):
            for value in node.outputs if unit.activation is None else [output]:
                values[value.name or ""] = None
    return Plan(tuple(units), tuple(values))


def ends(model: ir.Model, chosen: Plan) -> list[str]:
    """Quantized values that nothing quantized reads: the logits and boxes, which are not cut."""
    readers = {value for unit in chosen.units for value in unit.node.inputs}
    values = {value.name: value for node in model.graph for value in node.outputs}
    return [n for n in chosen.values if n in values and values[n] not in readers]


def _fused(node: ir.Node, policy: Policy, kept: set[str]) -> ir.Node | None:
    if node.op_type not in MAC | {"Add"}:
        return None
    after = sole_consumer(node.outputs[0])
    if after is None or after.op_type not in policy.fused_activations or after.name in kept:
        return None
    bounds = clip_bounds(after)
    return after if bounds is not None and bounds[0] == 0 else None


def _needs_output(unit: Unit, policy: Policy) -> bool:
    """Whether the unit's own output must be quantized for it to run in integers."""
    if unit.node.op_type == "Conv":
        return policy.conv_output
    if unit.node.op_type in ("Gemm", "MatMul"):
        return policy.conv_output and not unit.output.is_graph_output()
    return policy.conv_output


def _stays_inside(value: ir.Value, node: ir.Node, policy: Policy, integers: set[ir.Value]) -> bool:
    """TensorRT's residual rule: the Conv that feeds an Add alone is fused with it."""
    if not (policy.fuse_add and node.op_type == "Add"):
        return False
    producer = value.producer()
    if producer is None or producer.op_type != "Conv" or sole_consumer(value) is not node:
        return False
    first = next(
        v for v in node.inputs
        if v is not None and v.producer() is not None and v.producer().op_type == "Conv"  # type: ignore[union-attr]
        and sole_consumer(v) is node
    )  # fmt: skip
    return value is first


def _leads_to_mac(graph: ir.Graph, candidates: set[ir.Node]) -> set[ir.Node]:
    """Nodes that are a MAC operator, or from which one is reached over candidates."""
    found: set[ir.Node] = set()
    for node in reversed(list(graph)):
        if node.op_type in MAC or any(
            after in found and (after in candidates or after.op_type in ("Relu", "Clip"))
            for after in _successors(node)
        ):
            found.add(node)
    return found


def _successors(node: ir.Node) -> Iterator[ir.Node]:
    for value in node.outputs:
        yield from value.consumers()
