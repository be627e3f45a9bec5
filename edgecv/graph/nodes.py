"""Nodes appended to a graph, one call each, under names that say what they are for."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape


class Nodes:
    """Appends to ``graph``; names are ``PREFIX/KIND_NUMBER``, numbered as the calls come."""

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        self._tape, self._prefix = Tape(graph), prefix
        self._made = 0

    def op(self, kind: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """One node with one output."""
        name = self._name(kind)
        value = self._tape.op(kind, inputs, attributes or None, name=name)
        value.name = f"{name}:0"
        return value

    def ops(self, kind: str, inputs: list[ir.Value], count: int, **attributes: Any) -> Any:
        """One node with ``count`` outputs; ``domain`` among the attributes is the node's."""
        name = self._name(kind)
        domain = attributes.pop("domain", "")
        values = self._tape.op_multi_out(
            kind, inputs, attributes, num_outputs=count, domain=domain, name=name
        )
        for index, value in enumerate(values):
            value.name = f"{name}:{index}"
        return values

    def constant(self, array: Any, dtype: Any = np.float32) -> ir.Value:
        """An initializer."""
        tensor = ir.tensor(np.asarray(array, dtype))
        return self._tape.initializer(tensor, name=self._name("constant"))

    def ints(self, *values: int) -> ir.Value:
        """An int64 initializer ``[n]``."""
        return self.constant(values, np.int64)

    def slice(self, value: ir.Value, start: int, stop: int, axis: int = 2) -> ir.Value:
        """``value`` from ``start`` to before ``stop`` along ``axis``."""
        bounds = self.ints(start), self.ints(stop), self.ints(axis)
        return self.op("Slice", value, *bounds)

    def _name(self, kind: str) -> str:
        self._made += 1
        return f"{self._prefix}/{kind}_{self._made}"
