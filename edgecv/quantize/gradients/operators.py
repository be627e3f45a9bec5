"""What each operator computes, in torch: the literal table of those that prepared files hold.

Each function takes the node and its inputs (None for one that is left out) and gives the output,
or a tuple of them. Semantics are ONNX's, opset 18 to 20; a form that torch has no equal of is a
:class:`~edgecv.errors.QuantizeError` that names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from edgecv.errors import QuantizeError

Inputs: TypeAlias = Sequence["Tensor | None"]
Operator: TypeAlias = Callable[[ir.Node, Inputs], "Tensor | tuple[Tensor, ...]"]


def operator(node: ir.Node) -> Operator:
    """What ``node`` computes."""
    found = OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if found is None:
        domain = f"{node.domain}." if node.domain not in ("", "ai.onnx") else ""
        raise QuantizeError(
            f"node {node.name!r}: there are no gradients for the operator {domain}{node.op_type}; "
            f"quantize this file without learning, or add the operator to "
            f"edgecv/quantize/gradients/operators.py"
        )
    return found


def _refuse(node: ir.Node, what: str) -> QuantizeError:
    return QuantizeError(f"node {node.name!r}: {node.op_type} with {what} has no gradients here")


def _given(node: ir.Node, inputs: Inputs, index: int) -> Tensor:
    found = _optional(inputs, index)
    if found is None:
        raise _refuse(node, f"no input {index}")
    return found


def _optional(inputs: Inputs, index: int) -> Tensor | None:
    return inputs[index] if len(inputs) > index else None


def _integers(node: ir.Node, inputs: Inputs, index: int) -> list[int]:
    return [int(value) for value in _given(node, inputs, index).reshape(-1).tolist()]


def _ints(node: ir.Node, name: str, default: Sequence[int]) -> list[int]:
    return [int(v) for v in node.attributes.get_ints(name, tuple(default)) or ()]


def _int(node: ir.Node, name: str, default: int) -> int:
    found = node.attributes.get_int(name, default)
    return default if found is None else int(found)


def _float(node: ir.Node, name: str, default: float) -> float:
    found = node.attributes.get_float(name, default)
    return default if found is None else float(found)


def _string(node: ir.Node, name: str, default: str) -> str:
    return str(node.attributes.get_string(name, default))


def _elementwise(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda node, inputs: function(_given(node, inputs, 0))


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda node, inputs: function(_given(node, inputs, 0), _given(node, inputs, 1))


def _padded(
    node: ir.Node, x: Tensor, kernel: Sequence[int], value: float
) -> tuple[Tensor, list[int]]:
    """``x`` padded as far as torch's own padding cannot, and the padding that is left to torch."""
    size = len(kernel)
    auto = _string(node, "auto_pad", "NOTSET")
    pads = _ints(node, "pads", [0] * (2 * size))
    if auto == "VALID":
        pads = [0] * (2 * size)
    elif auto != "NOTSET":
        strides = _ints(node, "strides", [1] * size)
        dilations = _ints(node, "dilations", [1] * size)
        pads = _same(auto, x.shape[2:], kernel, strides, dilations)
    begin, end = pads[:size], pads[size:]
    if begin == end:
        return x, begin
    sides = [side for pair in reversed(list(zip(begin, end, strict=True))) for side in pair]
    return functional.pad(x, sides, value=value), [0] * size


def _same(
    auto: str, sizes: Sequence[int], kernel: Sequence[int], strides: list[int], dilations: list[int]
) -> list[int]:
    begin, end = [], []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, (math.ceil(size / stride) - 1) * stride + dilation * (k - 1) + 1 - size)
        less, more = total // 2, total - total // 2
        begin.append(less if auto == "SAME_UPPER" else more)
        end.append(more if auto == "SAME_UPPER" else less)
    return begin + end


def _conv(node: ir.Node, inputs: Inputs) -> Tensor:
    x, weight, bias = _given(node, inputs, 0), _given(node, inputs, 1), _optional(inputs, 2)
    size = weight.ndim - 2
    if size not in (1, 2):
        raise _refuse(node, f"a kernel of {size} dimensions")
    x, padding = _padded(node, x, weight.shape[2:], 0.0)
    function: Any = functional.conv1d if size == 1 else functional.conv2d
    result: Tensor = function(
        x,
        weight,
        bias,
        _ints(node, "strides", [1] * size),
        padding,
        _ints(node, "dilations", [1] * size),
        _int(node, "group", 1),
    )
    return result


def _conv_transpose(node: ir.Node, inputs: Inputs) -> Tensor:
    x, weight, bias = _given(node, inputs, 0), _given(node, inputs, 1), _optional(inputs, 2)
    pads = _ints(node, "pads", [0, 0, 0, 0])
    if weight.ndim != 4 or pads[:2] != pads[2:] or _string(node, "auto_pad", "NOTSET") != "NOTSET":
        raise _refuse(node, f"a kernel of {weight.ndim - 2} dimensions, pads {pads} or auto_pad")
    return functional.conv_transpose2d(
        x,
        weight,
        bias,
        _ints(node, "strides", [1, 1]),
        pads[:2],
        _ints(node, "output_padding", [0, 0]),
        _int(node, "group", 1),
        _ints(node, "dilations", [1, 1]),
    )


def _gemm(node: ir.Node, inputs: Inputs) -> Tensor:
    a, b, c = _given(node, inputs, 0), _given(node, inputs, 1), _optional(inputs, 2)
    a = a.t() if _int(node, "transA", 0) else a
    b = b.t() if _int(node, "transB", 0) else b
    result = _float(node, "alpha", 1.0) * (a @ b)
    return result if c is None else result + _float(node, "beta", 1.0) * c


def _clip(node: ir.Node, inputs: Inputs) -> Tensor:
    bounds = [_optional(inputs, 1), _optional(inputs, 2)]
    low, high = (None if bound is None else float(bound) for bound in bounds)
    return torch.clamp(_given(node, inputs, 0), low, high)  # numbers: 3 times as fast as tensors


def _max_pool(node: ir.Node, inputs: Inputs) -> Tensor:
    kernel = _ints(node, "kernel_shape", ())
    if len(kernel) != 2 or len(node.outputs) > 1:
        raise _refuse(node, f"a kernel of {len(kernel)} dimensions or indices")
    x, padding = _padded(node, _given(node, inputs, 0), kernel, -math.inf)
    if any(2 * pad > k for pad, k in zip(padding, kernel, strict=True)):
        raise _refuse(node, f"pads {padding} of more than half the kernel {kernel}")
    return functional.max_pool2d(
        x,
        kernel,
        _ints(node, "strides", [1, 1]),
        padding,
        _ints(node, "dilations", [1, 1]),
        bool(_int(node, "ceil_mode", 0)),
    )


def _average_pool(node: ir.Node, inputs: Inputs) -> Tensor:
    kernel = _ints(node, "kernel_shape", ())
    included = bool(_int(node, "count_include_pad", 0))
    x = _given(node, inputs, 0)
    padded, padding = _padded(node, x, kernel, 0.0)
    if len(kernel) != 2 or (padded is not x and not included):
        raise _refuse(node, f"the kernel {kernel} and uneven pads that do not count")
    return functional.avg_pool2d(
        padded,
        kernel,
        _ints(node, "strides", [1, 1]),
        padding,
        bool(_int(node, "ceil_mode", 0)),
        included,
    )


def _flatten(node: ir.Node, inputs: Inputs) -> Tensor:
    x = _given(node, inputs, 0)
    axis = _int(node, "axis", 1) % (x.ndim + 1)
    return x.reshape(x.shape[:axis].numel(), -1)


def _reshape(node: ir.Node, inputs: Inputs) -> Tensor:
    """A constant shape that begins with the file's batch takes the batch at hand."""
    x, shape = _given(node, inputs, 0), _integers(node, inputs, 1)
    if not _int(node, "allowzero", 0):
        shape = [x.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    if -1 in shape[1:]:
        if shape[0] == 1:
            shape[0] = x.shape[0]
    elif -1 not in shape and torch.Size(shape).numel() != x.numel():
        shape[0] = -1
    return x.reshape(shape)


def _axes(node: ir.Node, inputs: Inputs, index: int) -> list[int] | None:
    return None if _optional(inputs, index) is None else _integers(node, inputs, index)


def _squeeze(node: ir.Node, inputs: Inputs) -> Tensor:
    x, axes = _given(node, inputs, 0), _axes(node, inputs, 1)
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _unsqueeze(node: ir.Node, inputs: Inputs) -> Tensor:
    x, axes = _given(node, inputs, 0), _integers(node, inputs, 1)
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _transpose(node: ir.Node, inputs: Inputs) -> Tensor:
    x = _given(node, inputs, 0)
    return x.permute(_ints(node, "perm", list(reversed(range(x.ndim)))))


def _slice(node: ir.Node, inputs: Inputs) -> Tensor:
    x = _given(node, inputs, 0)
    starts, ends = _integers(node, inputs, 1), _integers(node, inputs, 2)
    axes = _axes(node, inputs, 3) or list(range(len(starts)))
    steps = _axes(node, inputs, 4) or [1] * len(starts)
    index = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 1:
            raise _refuse(node, f"the step {step}")
        index[axis] = slice(start, end, step)
    return x[tuple(index)]


def _split(node: ir.Node, inputs: Inputs) -> tuple[Tensor, ...]:
    x, axis = _given(node, inputs, 0), _int(node, "axis", 0)
    sizes = _axes(node, inputs, 1)
    return torch.split(x, sizes or math.ceil(x.shape[axis] / len(node.outputs)), axis)


def _gather(node: ir.Node, inputs: Inputs) -> Tensor:
    x, index, axis = _given(node, inputs, 0), _given(node, inputs, 1), _int(node, "axis", 0)
    axis %= x.ndim
    index = torch.where(index < 0, index + x.shape[axis], index)
    found = x.index_select(axis, index.reshape(-1))
    return found.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def _concat(node: ir.Node, inputs: Inputs) -> Tensor:
    return torch.cat([_given(node, inputs, i) for i in range(len(inputs))], _int(node, "axis", 0))


def _shape(node: ir.Node, inputs: Inputs) -> Tensor:
    sizes = list(_given(node, inputs, 0).shape)
    end = _int(node, "end", len(sizes))
    return torch.tensor(sizes[_int(node, "start", 0) : end], dtype=torch.int64)


def _softmax(node: ir.Node, inputs: Inputs) -> Tensor:
    return functional.softmax(_given(node, inputs, 0), _int(node, "axis", -1))


def _reduced(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    def reduce(node: ir.Node, inputs: Inputs) -> Tensor:
        x, axes = _given(node, inputs, 0), _axes(node, inputs, 1)
        if not axes:
            if _int(node, "noop_with_empty_axes", 0):
                return x
            axes = list(range(x.ndim))
        return function(x, axes, bool(_int(node, "keepdims", 1)))

    return reduce


def _resize(node: ir.Node, inputs: Inputs) -> Tensor:
    x = _given(node, inputs, 0)
    mode = _string(node, "mode", "nearest")
    where = _string(node, "coordinate_transformation_mode", "half_pixel")
    scales = _optional(inputs, 2)
    if scales is not None and scales.numel():
        factors = [float(value) for value in scales.tolist()]
        sizes = [math.floor(s * f) for s, f in zip(x.shape, factors, strict=True)]
    else:
        sizes = _integers(node, inputs, 3)
        factors = [new / old for new, old in zip(sizes, x.shape, strict=True)]
    if x.ndim != 4 or factors[:2] != [1.0, 1.0]:
        raise _refuse(node, f"the factors {factors} for {x.ndim} dimensions")
    if mode == "nearest" and all(f == int(f) for f in factors):
        return functional.interpolate(x, sizes[2:], mode="nearest")  # every rule agrees here
    if mode == "linear" and where in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        aligned = where == "align_corners"
        return functional.interpolate(x, sizes[2:], mode="bilinear", align_corners=aligned)
    raise _refuse(node, f"mode {mode}, {where} and the factors {factors[2:]}")


def _pad(node: ir.Node, inputs: Inputs) -> Tensor:
    x, pads = _given(node, inputs, 0), _integers(node, inputs, 1)
    if _string(node, "mode", "constant") != "constant" or _optional(inputs, 3) is not None:
        raise _refuse(node, "a mode other than constant, or axes")
    value = _optional(inputs, 2)
    half = len(pads) // 2
    sides = [side for i in reversed(range(half)) for side in (pads[i], pads[half + i])]
    return functional.pad(x, sides, value=0.0 if value is None else float(value))


def _prelu(node: ir.Node, inputs: Inputs) -> Tensor:
    x, slope = _given(node, inputs, 0), _given(node, inputs, 1)
    return torch.where(x < 0, x * slope, x)


def _depth_to_space(node: ir.Node, inputs: Inputs) -> Tensor:
    x, block = _given(node, inputs, 0), _int(node, "blocksize", 1)
    if _string(node, "mode", "DCR") == "CRD":
        return functional.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // block**2, h * block, w * block)


def _space_to_depth(node: ir.Node, inputs: Inputs) -> Tensor:
    x, block = _given(node, inputs, 0), _int(node, "blocksize", 1)
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * block**2, h // block, w // block)


def _cast(node: ir.Node, inputs: Inputs) -> Tensor:
    kinds = {
        ir.DataType.FLOAT: torch.float32,
        ir.DataType.INT64: torch.int64,
        ir.DataType.INT32: torch.int32,
        ir.DataType.UINT8: torch.uint8,
    }
    kind = ir.DataType(_int(node, "to", 0))
    if kind not in kinds:
        raise _refuse(node, f"the type {kind}")
    return _given(node, inputs, 0).to(kinds[kind])


OPERATORS: dict[str, Operator] = {
    "Add": _binary(torch.add),
    "AveragePool": _average_pool,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _depth_to_space,
    "Div": _binary(torch.div),
    "Exp": _elementwise(torch.exp),
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": _elementwise(lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True)),
    "HardSigmoid": lambda node, inputs: torch.clamp(
        _float(node, "alpha", 0.2) * _given(node, inputs, 0) + _float(node, "beta", 0.5), 0, 1
    ),
    "HardSwish": _elementwise(functional.hardswish),
    "Identity": _elementwise(lambda x: x),
    "LeakyRelu": lambda node, inputs: functional.leaky_relu(
        _given(node, inputs, 0), _float(node, "alpha", 0.01)
    ),
    "MatMul": _binary(torch.matmul),
    "MaxPool": _max_pool,
    "Mul": _binary(torch.mul),
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _binary(torch.pow),
    "ReduceL2": _reduced(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep)),
    "ReduceMean": _reduced(lambda x, axes, keep: x.mean(axes, keep)),
    "ReduceSum": _reduced(lambda x, axes, keep: x.sum(axes, keep)),
    "Relu": _elementwise(torch.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Sigmoid": _elementwise(torch.sigmoid),
    "Slice": _slice,
    "Softmax": _softmax,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Sqrt": _elementwise(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _binary(torch.sub),
    "Tanh": _elementwise(torch.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
