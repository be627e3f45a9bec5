"""Bias correction: each channel gets back the mean that quantization took from it.

Rounding a layer's weights and cutting off its inputs moves the mean of its outputs; the shift is
the same for every picture, and the bias can take it back (Nagel et al., "Data-Free Quantization
Through Weight Equalization and Bias Correction", ICCV 2019, section 4.2; Finkelstein et al.,
"Fighting Quantization Bias With Bias", 2019). The shift is measured on calibration pictures, layer
by layer, each fed with the float net's values: once the layers before it are corrected, their means
are the float net's. So one pass measures all layers.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from edgecv.progress import Progress, silent
from edgecv.quantize.beside import Beside
from edgecv.quantize.ranges import Ranges
from edgecv.quantize.run import Batches, Probe
from edgecv.quantize.structure import constant, new_initializer, replace_constant
from edgecv.quantize.targets import Policy


def correct(
    model: ir.Model,
    policy: Policy,
    ranges: Ranges,
    batches: Batches,
    keep_float: Collection[str] = (),
    progress: Progress = silent,
) -> ir.Model:
    """A copy of the float ``model`` whose biases make up for what ``policy`` will do to it.

    Layers without a constant bias are left as they are.
    """
    beside = Beside(model, policy, ranges, keep_float)
    layers = [
        (index, unit)
        for index, unit in enumerate(beside.units)
        if unit.is_mac and len(unit.node.inputs) > 2 and constant(unit.node.inputs[2]) is not None
    ]
    if not layers:
        return model.clone()
    axes: dict[int, ir.Value] = {}  # all but the channels, by the number of dimensions
    for index, unit in layers:
        truth = beside.values[unit.node.outputs[0].name or ""]
        shift = beside.difference(index, beside.before_activation(index), truth)
        weight = constant(unit.node.inputs[1])
        assert weight is not None  # plan() looked
        if weight.ndim not in axes:
            others = np.asarray([0, *range(2, weight.ndim)], np.int64)
            axes[weight.ndim] = new_initializer(beside.graph, f"beside_axes_{weight.ndim}", others)
        mean = ir.node("ReduceMean", [shift, axes[weight.ndim]], {"keepdims": 0})
        beside.output(mean, f"shift{index}")
    beside.graph.sort()
    probe = Probe(beside.model)
    totals: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]] = {}
    count = 0
    for batch in batches():
        count += 1
        for name, shift_now in probe(batch).items():
            totals[name] = totals.get(name, np.zeros(1)) + shift_now
        progress("bias correction", count, 0)
    corrected = model.clone()
    nodes = {node.name: node for node in corrected.graph}
    for index, unit in layers:
        node = nodes[unit.node.name]
        bias = constant(node.inputs[2])
        assert bias is not None  # layers have one
        replace_constant(node, 2, (bias - totals[f"shift{index}"] / count).astype(np.float32))
    return corrected
