"""Values that are integers already: the pixels, in a file that takes them as they are."""

from __future__ import annotations

import onnx_ir as ir

from edgecv.quantize.ranges import Range


def given_ranges(model: ir.Model) -> dict[str, Range]:
    """The range of each value that a DequantizeLinear of a tensor, not of a weight, makes.

    They replace whatever was calibrated: ``range.hi - range.lo`` is what the integers can say.
    """
    found = {}
    for node in model.graph:
        if node.op_type != "DequantizeLinear":
            continue
        source, scale, zero = node.inputs
        assert scale is not None
        assert zero is not None
        if (
            source is None
            or source.is_initializer()
            or not (scale.const_value and zero.const_value)
        ):
            continue
        step = float(scale.const_value.numpy())
        offset = int(zero.const_value.numpy())
        low = 0 if zero.const_value.dtype == ir.DataType.UINT8 else -128
        found[node.outputs[0].name or ""] = Range(
            step * (low - offset), step * (low + 255 - offset), "given"
        )
    return found
