"""A float net with integer forms of its layers beside it, each fed with the float values.

What a layer's integer form gives there differs from the layer by its own error alone; all layers
are compared in one run.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from edgecv.quantize.place import place
from edgecv.quantize.ranges import Ranges
from edgecv.quantize.structure import plan
from edgecv.quantize.targets import Policy


class Beside:
    """``graph`` is a copy of the net without outputs, to which its user adds; ``units`` are the
    layers that the policy quantizes."""

    def __init__(
        self, model: ir.Model, policy: Policy, ranges: Ranges, keep_float: Collection[str] = ()
    ) -> None:
        self.model = model.clone()
        self.graph = self.model.graph
        self.units = plan(model, policy, keep_float).units
        self.values = {
            v.name or "": v
            for v in (*self.graph.inputs, *(v for n in self.graph for v in n.outputs))
        }
        integers = place(model, policy, ranges, keep_float).graph
        self._placed = {node.name: node for node in integers}
        self._makers = {v.name or "": node for node in integers for v in node.outputs}
        self._copies: dict[int, dict[str, ir.Value]] = {}
        self.graph.outputs.clear()

    def before_activation(self, index: int) -> ir.Value:
        """The output of the operator of unit ``index``, its inputs and weights in integers."""
        node = self._placed[self.units[index].node.name]
        return self._copy(index, node, node)

    def whole(self, index: int) -> ir.Value:
        """The output of unit ``index``, through its activation and its own integers."""
        unit = self.units[index]
        core = self._placed[unit.node.name]
        last = core if unit.activation is None else self._placed[unit.activation.name]
        result = self._copy(index, last, core)
        for after in last.outputs[0].consumers():
            if after.outputs[0].name == f"{unit.output.name}.int":
                (back,) = after.outputs[0].consumers()
                result = self._copy(index, back, core)
        return result

    def difference(self, index: int, found: ir.Value, truth: ir.Value) -> ir.Value:
        """``found - truth``, a new value of the graph."""
        node = ir.node("Sub", [found, truth], name=f"beside{index}/Sub")
        node.outputs[0].name = f"beside{index}/difference"
        self.graph.append(node)
        return node.outputs[0]

    def output(self, node: ir.Node, name: str) -> None:
        """Append ``node``, whose first output becomes the graph's output ``name``."""
        node.name = node.outputs[0].name = name
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        self.graph.append(node)
        self.graph.outputs.append(node.outputs[0])

    def _copy(self, index: int, node: ir.Node, core: ir.Node) -> ir.Value:
        """``node`` and what makes it integer, copied beside; other inputs are the float net's."""
        copies = self._copies.setdefault(index, {})
        name = node.outputs[0].name or ""
        if name in copies:
            return copies[name]
        inputs = [None if v is None else self._input(index, v, core) for v in node.inputs]
        copy = ir.node(
            node.op_type,
            inputs,
            node.attributes,
            domain=node.domain,
            num_outputs=len(node.outputs),
            name=f"beside{index}/{node.name}",
        )
        for mine, theirs in zip(copy.outputs, node.outputs, strict=True):
            mine.name = f"beside{index}/{theirs.name}"
            mine.type, mine.shape = theirs.type, theirs.shape
            copies[theirs.name or ""] = mine
        self.graph.append(copy)
        return copies[name]

    def _input(self, index: int, value: ir.Value, core: ir.Node) -> ir.Value:
        name = value.name or ""
        maker = self._makers.get(name)
        if maker is not None and (
            maker is core or maker.op_type in ("QuantizeLinear", "DequantizeLinear")
        ):
            return self._copy(index, maker, core)
        if not value.is_initializer():
            return self.values[name.removesuffix(".real")]
        if name not in self.graph.initializers:
            self.graph.register_initializer(
                ir.Value(
                    name=name, shape=value.shape, type=value.type, const_value=value.const_value
                )
            )
        return self.graph.initializers[name]
