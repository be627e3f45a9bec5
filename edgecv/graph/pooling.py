"""Spatial ReduceMean becomes GlobalAveragePool, and a Reshape that only flattens a Flatten.

For x of shape [N, C, H, W], ``ReduceMean(x, axes=[2, 3], keepdims=1)`` and
``GlobalAveragePool(x)`` are the same function; with ``keepdims=0`` a Flatten follows. The rewrite
is for the runtimes' sake: OpenVINO 2024.0 misreads the ReduceMean, and onnxruntime has an INT8
kernel for the pooling only.
"""

from __future__ import annotations

import math

import onnx_ir as ir


def reduce_mean_to_pool(model: ir.Model) -> int:
    """Rewrite every ReduceMean over the last two axes of a 4-D tensor."""
    changed = 0
    for node in list(model.graph):
        if node.op_type == "ReduceMean" and node.domain == "" and _is_spatial(node):
            _to_pool(model.graph, node)
            changed += 1
    return changed


def reshape_to_flatten(model: ir.Model) -> int:
    """Rewrite every Reshape of ``[N, C, H, W]`` to ``[N, C * H * W]``, whatever N is."""
    changed = 0
    for node in list(model.graph):
        if node.op_type != "Reshape" or node.domain != "":
            continue
        source, out = node.inputs[0], node.outputs[0]
        if source is None or source.shape is None or out.shape is None or len(source.shape) != 4:
            continue
        sizes = [size for size in list(source.shape)[1:] if isinstance(size, int)]
        keeps_batch = len(sizes) == 3 and list(out.shape)[1:] == [math.prod(sizes)]
        if keeps_batch:
            _replace(model.graph, node, ir.node("Flatten", [source], {"axis": 1}))
            changed += 1
    return changed


def _is_spatial(node: ir.Node) -> bool:
    source = node.inputs[0]
    if source is None or source.shape is None or len(source.shape) != 4:
        return False
    if len(node.inputs) > 1 and node.inputs[1] is not None:  # opset 18 and later: an input
        constant = ir.convenience.get_const_tensor(node.inputs[1])
        axes = None if constant is None else constant.numpy().tolist()
    else:
        attribute = node.attributes.get("axes")
        axes = None if attribute is None else list(attribute.as_ints())
    return axes is not None and sorted(axis % 4 for axis in axes) == [2, 3]


def _to_pool(graph: ir.Graph, node: ir.Node) -> None:
    source = node.inputs[0]
    keepdims = node.attributes.get("keepdims")
    pool = ir.node("GlobalAveragePool", [source])
    if keepdims is None or keepdims.as_int() == 1:
        _replace(graph, node, pool)
        return
    graph.insert_before(node, pool)
    assert source is not None  # _is_spatial looked
    assert source.shape is not None
    pool.outputs[0].type = source.type
    pool.outputs[0].shape = ir.Shape([source.shape[0], source.shape[1], 1, 1])
    _replace(graph, node, ir.node("Flatten", [pool.outputs[0]], {"axis": 1}))


def _replace(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    """Put ``new`` in the place of ``old``, under its name with the new operator's in it."""
    new.name = (old.name or old.op_type).replace(old.op_type, new.op_type)
    inner = old.outputs[0] not in graph.outputs
    ir.convenience.replace_nodes_and_values(graph, old, [old], [new], old.outputs, new.outputs)
    if inner:
        new.outputs[0].name = f"{new.name}:0"
