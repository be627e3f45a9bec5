"""A space-to-depth of slices before a convolution becomes one convolution with a larger stride.

YOLOX's and YOLOv5's "Focus" cuts the picture into ``s * s`` pictures of every s-th pixel (one
strided Slice or two for each), concatenates them as channels, and convolves with a ``k x k``
kernel of stride 1. Picture ``j`` starts at ``(dy, dx)``, so its pixel ``(y, x)`` is the pixel
``(s * y + dy, s * x + dx)`` of the whole, and

    ``W'[o, c, s * i + dy, s * l + dx] = W[o, j * C + c, i, l]``

is a kernel of ``s * k`` pixels a side and stride ``s`` that computes the same, where zeros pad
``s`` times as many pixels. The products are the same ones, and so are the sums but for their
order. Without it a quantized YOLOX-Nano spends a tenth of its time on slicing.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

_SPATIAL = (2, 3)


def fold_focus(model: ir.Model) -> int:
    """Rewrite every such group of Slices, Concat and Conv; how many there were."""
    changed = sum(_fold(model, node) for node in list(model.graph) if node.op_type == "Conv")
    common.RemoveUnusedNodesPass()(model)
    return changed


def _fold(model: ir.Model, conv: ir.Node) -> int:
    concat = _only_producer(conv.inputs[0], "Concat")
    weight = conv.inputs[1]
    if concat is None or weight is None or weight.const_value is None:
        return 0
    attributes = conv.attributes
    pads = list(attributes.get_ints("pads", [0, 0, 0, 0]))
    plain = (
        attributes.get_int("group", 1) == 1
        and set(attributes.get_ints("strides", [1, 1])) == {1}
        and set(attributes.get_ints("dilations", [1, 1])) == {1}
        and attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
        and concat.attributes.get_int("axis", 0) == 1
    )
    parts = [_offsets(value) for value in concat.inputs]
    if not plain or any(part is None for part in parts):
        return 0
    (source, step, _), *_ = found = [part for part in parts if part is not None]
    corners = [corner for _, _, corner in found]
    every = {(dy, dx) for dy in range(step) for dx in range(step)}
    same = all(part[0] is source and part[1] == step for part in found)
    if not same or len(corners) != step * step or set(corners) != every or source.shape is None:
        return 0
    sizes = [size for size in list(source.shape)[1:] if isinstance(size, int)]
    old = weight.const_value.numpy()
    if len(sizes) != 3 or sizes[0] * step * step != old.shape[1]:
        return 0
    channels, height, width = sizes
    if height % step or width % step:  # the last slice of each would be shorter
        return 0
    new = np.zeros((old.shape[0], channels, old.shape[2] * step, old.shape[3] * step), old.dtype)
    for index, (dy, dx) in enumerate(corners):
        part = old[:, index * channels : (index + 1) * channels]
        new[:, :, dy::step, dx::step] = part
    name = f"{weight.name}:focus"
    kernel = ir.Value(
        name=name,
        type=weight.type,
        shape=ir.Shape(new.shape),
        const_value=ir.tensor(new, name=name),
    )
    model.graph.register_initializer(kernel)
    conv.replace_input_with(0, source)
    conv.replace_input_with(1, kernel)
    attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", list(new.shape[2:]))
    attributes["strides"] = ir.AttrInt64s("strides", [step, step])
    attributes["pads"] = ir.AttrInt64s("pads", [pad * step for pad in pads])
    return 1


def _only_producer(value: ir.Value | None, op: str) -> ir.Node | None:
    """The node of kind ``op`` that makes ``value``, where nothing else uses it."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != op or len(list(node.outputs[0].uses())) != 1:
        return None
    return None if node.outputs[0].is_graph_output() else node


def _offsets(value: ir.Value | None) -> tuple[ir.Value, int, tuple[int, int]] | None:
    """The picture, the step and the corner of a chain of strided Slices down to ``value``."""
    steps, corner = {2: 1, 3: 1}, {2: 0, 3: 0}
    while (node := _only_producer(value, "Slice")) is not None:
        constants = [ir.convenience.get_const_tensor(v) if v is not None else None
                     for v in node.inputs[1:]]  # fmt: skip
        if len(constants) != 4 or any(tensor is None for tensor in constants):
            return None
        starts, ends, axes, strides = (t.numpy().tolist() for t in constants if t is not None)
        for start, end, axis, stride in zip(starts, ends, axes, strides, strict=True):
            if axis not in _SPATIAL or stride < 2 or steps[axis] != 1 or not 0 <= start < stride:
                return None
            if not _to_the_end(end, node.inputs[0], axis):
                return None
            steps[axis], corner[axis] = stride, start
        value = node.inputs[0]
    if value is None or steps[2] != steps[3] or steps[2] == 1:
        return None
    return value, steps[2], (corner[2], corner[3])


def _to_the_end(end: int, source: ir.Value | None, axis: int) -> bool:
    size = None if source is None or source.shape is None else source.shape[axis]
    return isinstance(size, int) and end >= size
