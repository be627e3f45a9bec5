"""FP16 in the graph: weights and arithmetic in float16, inputs and outputs as they were.

Which tensors of a node may be float16 is read off its ONNX schema (the scales of a Resize and all
of NonMaxSuppression may not). Nodes that are to stay in float32 are named by the caller; casts
stand where the two meet, one per value and direction.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import onnx
import onnx_ir as ir

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
# Their output's type is an attribute, or their float32 values are exact for a reason
_STAY = frozenset(
    {"Constant", "ConstantOfShape", "EyeLike", "Range", "QuantizeLinear", "DequantizeLinear"}
    | {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli"}
)


def to_half(model: ir.Model, keep: Collection[str] = ()) -> int:
    """Change ``model`` in place; nodes named in ``keep`` stay in float32.

    Returns how many nodes compute in float16. Every value must have its type inferred.
    """
    graph, opset = model.graph, model.opset_imports[""]
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    halves = 0
    fixed = {value: value.dtype for value in graph.outputs}
    for node in list(graph):
        inputs, outputs = _half_ports(node, opset)
        if node.name in keep or not (inputs or outputs):
            inputs, outputs = set(), set()
        else:
            halves += 1
            if node.op_type == "Cast" and outputs:
                node.attributes["to"] = ir.AttrInt64("to", HALF)
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype not in (FLOAT, HALF):
                continue
            wanted = HALF if index in inputs else FLOAT
            if value.dtype != wanted:
                node.replace_input_with(index, _cast(graph, node, value, wanted, casts))
        for index in outputs:
            _retype(node.outputs[index], HALF)
    for index, value in enumerate(graph.outputs):
        if value.dtype != fixed[value]:
            graph.outputs[index] = _restore_output(graph, value)
    return halves


def rounding_error(weights: np.ndarray) -> float:
    """The relative error (in the 2-norm) that float16 puts into ``weights``; inf: one overflows.

    Weights in float16's normal range have at most 2**-11, its unit roundoff; below 6.1e-5 the
    steps do not shrink any more.
    """
    exact = weights.astype(np.float64)
    with np.errstate(over="ignore"):
        rounded = weights.astype(np.float16).astype(np.float64)
    if not np.isfinite(rounded).all():
        return float("inf")
    size = float(np.linalg.norm(exact))
    return float(np.linalg.norm(exact - rounded)) / size if size else 0.0


def _half_ports(node: ir.Node, opset: int) -> tuple[set[int], set[int]]:
    """The indices of the float32 inputs and outputs that may be float16 instead."""
    if node.domain or node.op_type in _STAY:
        return set(), set()
    schema = onnx.defs.get_schema(node.op_type, opset)
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}

    def admits(ports: Iterable[onnx.defs.OpSchema.FormalParameter], index: int) -> bool:
        declared = list(ports)
        port = declared[min(index, len(declared) - 1)]  # the last one may be variadic
        return "tensor(float16)" in allowed.get(port.type_str, [port.type_str])

    inputs = {
        index
        for index, value in enumerate(node.inputs)
        if value is not None and value.dtype in (FLOAT, HALF) and admits(schema.inputs, index)
    }
    outputs = {
        index
        for index, value in enumerate(node.outputs)
        if value.dtype == FLOAT and admits(schema.outputs, index)
    }
    return inputs, outputs


def _cast(
    graph: ir.Graph,
    user: ir.Node,
    value: ir.Value,
    wanted: ir.DataType,
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value],
) -> ir.Value:
    if (value, wanted) in casts:
        return casts[value, wanted]
    if value.const_value is not None and value.is_initializer():
        name = f"{value.name}:{wanted.name.lower()}"
        with np.errstate(over="ignore"):  # `keep` is there for what overflows
            array = value.const_value.numpy().astype(wanted.numpy())
        result = ir.Value(name=name, const_value=ir.tensor(array, name=name), shape=value.shape)
        graph.register_initializer(result)
    else:
        node = ir.node("Cast", [value], {"to": wanted}, name=f"{value.name}:{wanted.name.lower()}")
        producer = value.producer()
        if producer is None:
            graph.insert_before(user, node)  # users come in order: the first one is this
        else:
            graph.insert_after(producer, node)
        result = node.outputs[0]
        result.name, result.shape = f"{node.name}:0", value.shape
    result.type = ir.TensorType(wanted)
    casts[value, wanted] = result
    return result


def _retype(value: ir.Value, dtype: ir.DataType) -> None:
    value.type = ir.TensorType(dtype)


def _restore_output(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """A float32 output under the name of ``value``, which becomes an inner value."""
    node = ir.node("Cast", [value], {"to": FLOAT}, name=f"{value.name}:output")
    graph.append(node)
    result = node.outputs[0]
    result.name, value.name = value.name, f"{value.name}:float16"
    result.type, result.shape = ir.TensorType(FLOAT), value.shape
    return result
