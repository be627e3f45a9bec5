"""QuantizeLinear and DequantizeLinear put where the target's runtime fuses them.

Every value of the plan gets one pair behind it; every weight becomes integers with a
DequantizeLinear; biases are int32 in units of input scale times weight scale, or stay float.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from edgecv.errors import QuantizeError
from edgecv.quantize.ranges import (
    Affine,
    Array,
    Range,
    Ranges,
    affine,
    quantize_weight,
    weight_scales,
)
from edgecv.quantize.structure import (
    Unit,
    constant,
    dequantized,
    new_initializer,
    origin,
    plan,
    weight_axis,
)
from edgecv.quantize.targets import PASS_THROUGH, Policy

BIAS_LIMIT = 2**30  # of an int32 bias: half the range, the sum of products needs the rest


def place(
    model: ir.Model,
    policy: Policy,
    ranges: Ranges,
    keep_float: Collection[str] = (),
) -> ir.Model:
    """A quantized copy of ``model``.

    ``ranges`` must hold every value of ``plan(model, policy, keep_float)``.
    """
    model = model.clone()
    chosen = plan(model, policy, keep_float)
    placer = _Placer(model.graph, policy, ranges)
    for unit in chosen.units:
        if unit.is_mac:
            placer.weights(unit)
        else:
            placer.constants(unit)
    for name in chosen.values:
        placer.value(name)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]  # the floats that became integers
    model.graph.sort()
    return model


class _Placer:
    def __init__(self, graph: ir.Graph, policy: Policy, ranges: Ranges) -> None:
        self.graph, self.policy, self.ranges = graph, policy, ranges
        self.values = {
            value.name: value
            for value in (*graph.inputs, *(v for node in graph for v in node.outputs))
        }

        # before the graph changes: what only moves values passes its input's range on
        self.sources = {name: origin(value).name or "" for name, value in self.values.items()}

    def affine(self, value: ir.Value) -> Affine:
        """The map of a value of the unquantized graph."""
        source = self.sources[value.name]
        if (node := dequantized(value)) is not None:  # the pixels themselves
            step, offset = node.inputs[1:3]
            assert step is not None and offset is not None  # noqa: PT018  # pixels_in wrote them
            scale, zero = step.const_value, offset.const_value
            assert scale is not None and zero is not None  # noqa: PT018
            return Affine(np.float32(scale.numpy()), int(zero.numpy()), str(zero.numpy().dtype))
        if source not in self.ranges:
            raise QuantizeError(f"value {source!r} has no calibrated range")
        return affine(self.ranges[source], self.policy)

    def value(self, name: str) -> None:
        """Put a pair behind the value ``name``; all its consumers read the second half."""
        value = self.values[name]
        found = self.affine(value)
        scale = self._constant(f"{name}.scale", np.asarray(found.scale))
        zero = self._constant(f"{name}.zero_point", np.asarray(found.zero_point, found.dtype))
        to_int = ir.node("QuantizeLinear", [value, scale, zero], name=f"{name}/QuantizeLinear")
        to_real = ir.node(
            "DequantizeLinear", [to_int.outputs[0], scale, zero], name=f"{name}/DequantizeLinear"
        )
        to_int.outputs[0].name = f"{name}.int"
        to_real.outputs[0].name = f"{name}.dq"
        to_real.outputs[0].shape, to_real.outputs[0].type = value.shape, value.type
        for node, index in list(value.uses()):
            node.replace_input_with(index, to_real.outputs[0])
        self.graph.extend([to_int, to_real])
        to_int.replace_input_with(0, value)
        for index, output in enumerate(self.graph.outputs):
            if output is value:
                value.name, to_real.outputs[0].name = f"{name}.real", name
                self.graph.outputs[index] = to_real.outputs[0]

    def weights(self, unit: Unit) -> None:
        """Integers for the weight of a MAC operator, and for its bias where the target has them."""
        node = unit.node
        source, weight = node.inputs[0], constant(node.inputs[1])
        assert source is not None and weight is not None  # noqa: PT018  # plan() looked
        axis, largest = weight_axis(node), self.policy.weight_max
        scales = weight_scales(weight, axis, largest)
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if bias is not None and bias.shape == (1, len(scales)):
            bias = bias[0]  # a Gemm's may be a row, and scales per channel are a list
        step = float(self.affine(source).scale)
        if bias is not None and self.policy.bias == "int32":
            # a channel of tiny weights and a large bias: coarser weights keep the bias in int32
            scales = np.maximum(scales, (np.abs(bias) / (BIAS_LIMIT * step)).astype(np.float32))
        q = quantize_weight(weight, scales, axis, largest)
        node.replace_input_with(1, self._dequantize(f"{unit.name}.weight", q, scales, axis))
        if bias is not None and self.policy.bias == "int32":
            unit_scale = (scales.astype(np.float64) * step).astype(np.float32)
            q32 = np.rint(bias.astype(np.float64) / unit_scale).astype(np.int32)
            node.replace_input_with(2, self._dequantize(f"{unit.name}.bias", q32, unit_scale, 0))

    def constants(self, unit: Unit) -> None:
        """Integers for a constant operand of Add, Mul or Concat."""
        for index, value in enumerate(unit.node.inputs):
            array = constant(value)
            if array is None or unit.node.op_type in PASS_THROUGH | {"Resize"}:
                continue
            found = affine(Range(float(array.min()), float(array.max())), self.policy)
            info = np.iinfo(found.dtype)
            q = (np.rint(array / found.scale) + found.zero_point).clip(info.min, info.max)
            name = f"{unit.name}.operand{index}"
            scale = self._constant(f"{name}.scale", np.asarray(found.scale))
            zero = self._constant(f"{name}.zero_point", np.asarray(found.zero_point, found.dtype))
            stored = self._constant(f"{name}.int", q.astype(found.dtype))
            back = ir.node("DequantizeLinear", [stored, scale, zero], name=f"{name}/Dequantize")
            back.outputs[0].name = f"{name}.dq"
            self.graph.append(back)
            unit.node.replace_input_with(index, back.outputs[0])

    def _dequantize(self, name: str, q: Array, scales: Array, axis: int) -> ir.Value:
        stored = self._constant(f"{name}.int", q)
        scale = self._constant(f"{name}.scale", scales.astype(np.float32))
        zero = self._constant(f"{name}.zero_point", np.zeros(scales.shape, q.dtype))
        node = ir.node(
            "DequantizeLinear", [stored, scale, zero], {"axis": axis}, name=f"{name}/Dequantize"
        )
        node.outputs[0].name = f"{name}.dq"
        self.graph.append(node)
        return node.outputs[0]

    def _constant(self, name: str, array: Array) -> ir.Value:
        return new_initializer(self.graph, name, array)
