"""The pairs of QuantizeLinear and DequantizeLinear in a graph: what they store and share."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgecv.errors import QuantizeError
from edgecv.quantize.ranges import Affine, Array
from edgecv.quantize.targets import PASS_THROUGH

ONE_GRID = PASS_THROUGH | {"Concat", "Resize"}  # what they give has the grid of what they take


def shared_grids(graph: ir.Graph) -> dict[str, str]:
    """For each QuantizeLinear's output the first one that it shares its grid with.

    Those do between which values are only moved, where scale and zero point are equal now: a
    runtime copies their bytes, and is to go on doing so.
    """
    parents: dict[str, str] = {}
    found: dict[str, Affine] = {}
    behind: dict[str, str] = {}  # a value to a QuantizeLinear's output, the grid that it lies on

    def leader(name: str) -> str:
        while parents[name] != name:
            name = parents[name]
        return name

    for node in graph:
        output = str(node.outputs[0].name)
        sources = [behind[str(v.name)] for v in node.inputs if v and str(v.name) in behind]
        if node.op_type == "QuantizeLinear":
            parents[output], found[output] = output, affine_of(node)
            sources = [*sources, output]
        elif node.op_type not in ONE_GRID | {"DequantizeLinear"}:
            continue
        if not sources:
            continue
        for other in sources[1:]:
            one, two = leader(sources[0]), leader(other)
            if found[one] == found[two]:
                parents[two] = one
        behind.update({str(v.name): sources[-1] for v in node.outputs})
    return {name: leader(name) for name in parents}


def input_name(node: ir.Node, index: int) -> str:
    """The name of input ``index``; empty where it is left out."""
    value = node.inputs[index]
    return "" if value is None else str(value.name)


def stored_name(node: ir.Node, index: int) -> str:
    """The initializer of integers behind input ``index``; empty where there is none."""
    value = node.inputs[index]
    maker = None if value is None else value.producer()
    return input_name(maker, 0) if maker is not None and is_stored(maker) else ""


def is_stored(node: ir.Node) -> bool:
    """Whether ``node`` gives a constant that is stored in integers."""
    source = node.inputs[0]
    is_constant = source is not None and source.is_initializer()
    return node.op_type == "DequantizeLinear" and is_constant


def constant_input(node: ir.Node, index: int) -> Array:
    """Input ``index`` of ``node``, which must be an initializer."""
    value = node.inputs[index] if len(node.inputs) > index else None
    if value is None or value.const_value is None:
        raise QuantizeError(
            f"node {node.name!r}: input {index} of {node.op_type} is no constant; expected a file "
            f"as `edgecv quantize` writes it"
        )
    return np.asarray(value.const_value.numpy())


def affine_of(node: ir.Node) -> Affine:
    """The one scale and zero point of an activation's ``node``."""
    scale, zero = constant_input(node, 1), constant_input(node, 2)
    if scale.size != 1:
        raise QuantizeError(
            f"node {node.name!r}: expected one scale for an activation, got {scale.size}; expected "
            f"a file as `edgecv quantize` writes it"
        )
    return Affine(np.float32(scale.reshape(())), int(zero.reshape(())), str(zero.dtype))


def latent_of(q: Array, scales: Array, axis: int, parent: ir.Node | None) -> NDArray[np.float32]:
    """The float weight that gave ``q``, where ``parent`` has it; else that in the grid's middle."""
    shape = [1] * q.ndim
    shape[axis] = -1
    steps = scales.reshape(shape)
    value = None if parent is None else parent.inputs[1]
    if value is not None and value.const_value is not None:
        found = np.array(value.const_value.numpy(), np.float32)
        if found.shape == q.shape and bool((np.abs(found / steps - q) < 0.501).all()):
            return found
    return np.asarray(q * steps, np.float32)
