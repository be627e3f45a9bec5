"""The input's range laid on the grid of its pixels.

A prepared picture takes 256 values per channel, ``(p / divisor - mean) / std``. Where all
channels share mean and std they lie on one grid of step ``g = 1 / (divisor * std)``, and U8
holds them exactly if a level falls on each. With mean 0.5 and divisor 255 the grid lies at half
levels (``p - 127.5``): rounding half to even then merges pixels in pairs, and the input alone
brings 15% of all the noise of a quantized MobileNetV2 (measured). So the net takes its input less
the missing fraction ``d`` of a level, and the first convolutions' biases give it back:

    W * (x - d) + (b + d * sum(W)) = W * x + b

which is exact but for what zero padding adds at the border: there ``d``, half a level. The
subtraction costs nothing: it is the mean in the preparation of the new file's contract, which keeps
the parent's (:data:`edgecv.spec.PARENT_MEAN`): the vectors that come out are of the same net.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgecv.quantize.ranges import Range
from edgecv.quantize.structure import constant, replace_constant
from edgecv.spec import Preparation


def align_input(model: ir.Model, preparation: Preparation) -> tuple[dict[str, Range], Preparation]:
    """Move the input of ``model`` onto the pixels' grid, in place.

    Returns the range that follows, and the preparation whose zero is a whole level. Where the
    channels have different grids, or something other than convolutions with constant weights and a
    bias reads the input, nothing is changed: its range is then calibrated as others are.
    """
    p = preparation
    if len(set(zip(p.mean, p.std, strict=True))) != 1:
        return {}, p
    source = model.graph.inputs[0]
    readers = [use.node for use in source.uses()]
    if source.dtype != ir.DataType.FLOAT or not readers or not all(map(_takes_shift, readers)):
        return {}, p
    step = 1.0 / (p.divisor * p.std[0])
    levels = p.mean[0] * p.divisor  # what a pixel value is reduced by
    whole = math.ceil(levels - 1e-6)
    span = {source.name or "": Range(-whole * step, (255 - whole) * step, "pixels")}
    missing = (whole - levels) * step
    if missing < 1e-6 * step:
        return span, p
    for reader in readers:
        weight, bias = constant(reader.inputs[1]), constant(reader.inputs[2])
        assert weight is not None and bias is not None  # noqa: PT018  # _takes_shift looked
        given = missing * weight.astype(np.float64).sum(axis=(1, 2, 3))
        replace_constant(reader, 2, (bias + given).astype(np.float32))
    return span, replace(p, mean=(whole / p.divisor,) * p.channels)


def _takes_shift(node: ir.Node) -> bool:
    if node.op_type != "Conv" or len(node.inputs) < 3:
        return False
    return constant(node.inputs[1]) is not None and constant(node.inputs[2]) is not None
