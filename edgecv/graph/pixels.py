"""Pixels in: the file takes uint8 pixels ``[N, H, W, C]`` and does the preparation's arithmetic.

With ``a = 1 / (divisor * std)`` and the level that normalises to zero, ``v = mean * divisor``, a
prepared value is ``a * (pixel - v)``, per channel. Where the first layer is a convolution with
weights ``W`` and bias ``B``,

    ``conv(a * (pixel - v)) = conv'(pixel - z)``, ``W' = W * a``, ``B' = B + sum(W' * (z - v))``

for any level ``z``, wherever the kernel lies inside the picture. Outside it the prepared tensor is
padded with zeros, which stand for the level ``v``, while ``conv'`` pads with ``z``. So a file is

- float: ``Sub`` of ``v`` before the convolution, unless ``v`` is zero or nothing is padded, when no
  arithmetic is left. This is exact but for the rounding of float32.
- integer: one ``DequantizeLinear`` of scale 1 and zero point ``z``, an integer level, so that the
  pixels are the convolution's quantized input as they are: no float is computed before it. Where
  ``v`` is that level in all channels this is exact. Where it is not, the padding of the picture's
  border is off by ``v - z``: half a level at most, which is less than any quantizer of the
  prepared tensor does, since its zero point is an integer too. Channels whose levels ``v`` are
  further apart are padded one by one, before the convolution, each with its own level.

Where the net does not begin with a convolution, its arithmetic stays explicit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from edgecv.errors import ExportError
from edgecv.spec import NET_COLOR, Preparation

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PixelsIn:
    """The preparation of the new file, and how the arithmetic went into its graph.

    ``net_color``: the order of channels that the net was made for, which the graph restores.
    ``form``: what stands before the first layer. ``padding_error``: how far the level that pads
    the border is from the one that normalises to zero, in levels of 255 (0: exact).
    """

    preparation: Preparation
    net_color: str
    form: str
    padding_error: float

    def to_dict(self) -> dict[str, Any]:
        return {
            NET_COLOR: self.net_color,
            "form": self.form,
            "padding_error_levels": round(self.padding_error, 4),
        }


def pixels_in(
    model: ir.Model, preparation: Preparation, *, integer: bool = False, order: bool | str = True
) -> PixelsIn:
    """Change ``model`` in place: its picture input becomes uint8 ``[N, H, W, C]``.

    ``preparation`` is what the model's float input wants; ``order`` of the channels that the new
    file takes is ``rgb`` or ``bgr``, as a camera gives them, or the same (True).
    ``integer`` chooses the form for quantized files with asymmetric uint8 activations.

    Raises :class:`~edgecv.errors.ExportError` where the input is not one float picture
    ``[N, C, H, W]``.
    """
    p = preparation
    source = _picture_input(model, p)
    scale = 1 / (p.divisor * np.array(p.std, np.float64))
    level = np.array(p.mean, np.float64) * p.divisor
    color = p.color if order is True else str(order)
    swap = _swap(p, color)
    conv = _only_convolution(source)
    front = _Front(model, source)
    if conv is None:
        form, error = _explicit(front, scale, level, swap)
    else:
        kernel = _array(conv.inputs[1]) * scale[None, :, None, None]
        if swap is not None:
            kernel, level = kernel[:, swap], level[list(swap)]
        fold = _integer if integer else _float
        form, error = fold(front, conv, kernel, level)
    front.place()
    common.RemoveUnusedNodesPass()(model)  # the weights that were replaced
    taken = replace(p, layout="nhwc") if swap is None else replace(p.swapped, layout="nhwc")
    return PixelsIn(taken, p.color, form, error)


def _picture_input(model: ir.Model, p: Preparation) -> ir.Value:
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    if len(inputs) != 1:
        raise ExportError(f"expected one picture input, the graph has {len(inputs)}")
    (source,) = inputs
    shape = source.shape
    if source.dtype != ir.DataType.FLOAT or shape is None or len(shape) != 4:
        raise ExportError(
            f"input {source.name!r} is {source.dtype} {shape}; expected float32 [N, C, H, W] to "
            f"put the preparation in front of it"
        )
    if isinstance(shape[1], int) and shape[1] != p.channels:
        raise ExportError(
            f"input {source.name!r} has {shape[1]} channels, the preparation makes {p.channels}"
        )
    return source


def _swap(p: Preparation, color: str) -> tuple[int, ...] | None:
    """The order of channels that undoes the difference between the pixels and the net."""
    if color == p.color:
        return None
    if {color, p.color} != {"rgb", "bgr"}:
        raise ExportError(
            f"pixels in the order {color!r} cannot become the net's, {p.color!r}; expected rgb or "
            f"bgr, for a net of three channels"
        )
    return (2, 1, 0)


def _only_convolution(source: ir.Value) -> ir.Node | None:
    """The convolution that alone takes ``source``, if it is one whose weights can be changed."""
    users = list(source.uses())
    if len(users) != 1 or users[0].idx != 0 or users[0].node.op_type != "Conv":
        return None
    conv = users[0].node
    constants = [value for value in conv.inputs[1:] if value is not None]
    auto = conv.attributes.get_string("auto_pad", "NOTSET")
    if (
        conv.attributes.get_int("group", 1) != 1
        or any(value.const_value is None for value in constants)
        or auto not in ("NOTSET", "VALID")
    ):
        return None
    return conv


class _Front:
    """The nodes that come before the net: collected in order, then placed at once."""

    def __init__(self, model: ir.Model, source: ir.Value) -> None:
        assert source.shape is not None  # _picture_input looked
        self._model, self._source, self._name = model, source, source.name or "input"
        self._nodes: list[ir.Node] = []
        n, c, h, w = source.shape
        self._pixels = ir.Value(
            name=self._name,
            type=ir.TensorType(ir.DataType.UINT8),
            shape=ir.Shape([n, h, w, c]),
        )
        source.name = f"{self._name}:prepared"

    def planes(self) -> ir.Value:
        """The picture in uint8 ``[N, C, H, W]``."""
        return self.add("Transpose", self._pixels, perm=[0, 3, 1, 2])[0]

    def floats(self) -> ir.Value:
        """The picture in float32 ``[N, C, H, W]``. TensorRT takes no bytes but those of a Cast."""
        value = self.add("Cast", self._pixels, to=ir.DataType.FLOAT)[0]
        return self.add("Transpose", value, perm=[0, 3, 1, 2])[0]

    def add(
        self, op: str, *inputs: ir.Value, outputs: int = 1, **attributes: Any
    ) -> Sequence[ir.Value]:
        node = ir.node(op, inputs, attributes, num_outputs=outputs)
        count = sum(other.op_type == op for other in self._nodes)
        node.name = f"{self._name}/{op}" + (f"_{count}" if count else "")
        for index, value in enumerate(node.outputs):
            value.name = f"{node.name}:{index}"
        self._nodes.append(node)
        return node.outputs

    def constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        name = f"{self._name}:{name}"
        kind = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, type=kind, shape=ir.Shape(array.shape), const_value=tensor)
        self._model.graph.register_initializer(value)
        return value

    def feed(self, value: ir.Value) -> None:
        """``value`` takes the place of the float picture everywhere."""
        self._source.replace_all_uses_with(value, replace_graph_outputs=True)

    def place(self) -> None:
        graph = self._model.graph
        graph.insert_before(graph[0], self._nodes)
        graph.inputs[graph.inputs.index(self._source)] = self._pixels


def _explicit(
    front: _Front, scale: Floats, level: Floats, swap: tuple[int, ...] | None
) -> tuple[str, float]:
    value = front.floats()
    if swap is not None:
        order = front.constant("order", np.array(swap, np.int64))
        value = front.add("Gather", value, order, axis=1)[0]
    steps = ["Cast"]
    for op, operand, neutral in (("Sub", level, 0.0), ("Mul", scale, 1.0)):
        if not np.all(operand == neutral):
            value = front.add(op, value, _per_channel(front, op, operand))[0]
            steps.append(op)
    front.feed(value)
    return " + ".join(steps), 0.0


def _float(front: _Front, conv: ir.Node, kernel: Floats, level: Floats) -> tuple[str, float]:
    value = front.floats()
    form = "Cast, the rest folded into the first convolution"
    if not level.any() or not any(_pads(conv)):
        _set_weights(front, conv, kernel, -level)
    else:
        value = front.add("Sub", value, _per_channel(front, "Sub", level))[0]
        _set_weights(front, conv, kernel, np.zeros_like(level))
        form = "Cast + Sub, the rest folded into the first convolution"
    front.feed(value)
    return form, 0.0


def _integer(front: _Front, conv: ir.Node, kernel: Floats, level: Floats) -> tuple[str, float]:
    # a level outside 0 to 255 pads with the nearest one, and the error says so
    nearest = np.clip(np.rint(level), 0, 255)
    zero = int(np.clip(np.rint(level.mean()), 0, 255))
    form, value, error = (
        "the pixels are the first convolution's quantized input",
        front.planes(),
        0.0,
    )
    if any(_pads(conv)):
        error = float(np.abs(level - zero).max())
        if (own := float(np.abs(level - nearest).max())) < error:
            value, error = _pad_channels(front, conv, value, nearest), own
            form += ", each channel padded with its own level"
    one = front.constant("scale", np.array(1.0, np.float32))
    value = front.add(
        "DequantizeLinear", value, one, front.constant("zero_point", np.array(zero, np.uint8))
    )[0]
    _set_weights(front, conv, kernel, zero - level)
    front.feed(value)
    return form, error


def _pad_channels(front: _Front, conv: ir.Node, entry: ir.Value, levels: Floats) -> ir.Value:
    """Pad each channel with its own level, and take the padding off ``conv``."""
    top, left, bottom, right = _pads(conv)
    amounts = np.array((0, 0, top, left, 0, 0, bottom, right), np.int64)
    pads = front.constant("pads", amounts)
    sizes = front.constant("planes", np.ones(len(levels), np.int64))
    planes = front.add("Split", entry, sizes, outputs=len(levels), axis=1)
    padded = [
        front.add("Pad", plane, pads, front.constant(f"level{i}", np.array(level, np.uint8)))[0]
        for i, (plane, level) in enumerate(zip(planes, levels, strict=True))
    ]
    conv.attributes["pads"] = ir.AttrInt64s("pads", [0, 0, 0, 0])
    return front.add("Concat", *padded, axis=1)[0]


def _pads(conv: ir.Node) -> tuple[int, ...]:
    pads = conv.attributes.get_ints("pads", None)
    return tuple(pads) if pads is not None else (0, 0, 0, 0)


def _set_weights(front: _Front, conv: ir.Node, kernel: Floats, shift: Floats) -> None:
    """``kernel`` as the weights, and the bias plus what ``shift``, per channel, adds to it."""
    old = conv.inputs[2] if len(conv.inputs) > 2 else None
    conv.replace_input_with(1, front.constant("weight", kernel.astype(np.float32)))
    if shift.any():
        bias = (kernel * shift[None, :, None, None]).sum((1, 2, 3))
        if old is not None:
            bias += _array(old)
        conv.resize_inputs(3)
        conv.replace_input_with(2, front.constant("bias", bias.astype(np.float32)))


def _array(value: ir.Value | None) -> Floats:
    assert value is not None  # _only_convolution looked
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float64)


def _per_channel(front: _Front, op: str, values: Floats) -> ir.Value:
    return front.constant(op.lower(), values.reshape(1, -1, 1, 1).astype(np.float32))
