"""Cross-layer equalization: every channel of a tensor made to span the tensor's range.

A tensor has one scale for all its channels, so a channel that spans a tenth of the range has a
tenth of the steps. Where the layers around the tensor are linear in a channel, that channel can
be multiplied by any s > 0 at the layer that makes it and divided by s at the layers that read it,
and the net computes what it did (Nagel et al., "Data-Free Quantization Through Weight Equalization
and Bias Correction", ICCV 2019, arXiv:1906.04721). The paper balances two layers' weights; here
the ranges that pictures gave are balanced, and tied tensors are scaled together:

- An Add ties its operands and its sum: the whole residual stream of a stage is one group, scaled
  by the project convolutions that write to it and unscaled by all that read it.
- A depthwise convolution has its own scale per channel on both sides; its weights, quantized per
  channel, take both without any loss.
- Relu commutes with s. Clip(0, 6) does so only as far as the channel stays below the bound: a
  channel whose largest value is m may be scaled by up to 6 / m and the bound stays what it is.
  What lies between m and 6 on other pictures is cut off at ``MARGIN * m``.
- A sigmoid, a hard-swish, an input or an output of the graph ties its tensor to s = 1.

Weights that read a scaled channel are quantized per output channel, so a wide spread of s would
cost them what it gives the activations; ``STRENGTH`` and ``LIMIT`` bound it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgecv.quantize.calibrate import Extremes
from edgecv.quantize.structure import clip_bounds, constant, new_initializer

MARGIN = 1.1  # how far above the largest value seen a bounded channel may still go
STRENGTH = 1.0  # 1: every channel to the full range, 0: nothing
LIMIT = 64.0  # the largest ratio of two scales in a group

Scales = NDArray[np.float32]
_TRANSPARENT = frozenset(
    {"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity", "Dropout"}
)


@dataclass(frozen=True)
class Equalization:
    """What was scaled: the factors by value name, for whoever compares tensors later."""

    scales: Mapping[str, Scales]


def equalize(
    model: ir.Model, found: Mapping[str, Extremes], strength: float = STRENGTH
) -> Equalization:
    """Scale the channels of ``model`` in place, by the ranges ``found`` per value and channel.

    Returns the factor of every value that was scaled: ``new = old * factor`` along axis 1.
    """
    groups = _Groups(model.graph)
    scaled: dict[str, Scales] = {}
    for members in groups.free():
        factors = _factors(members, found, strength)
        if factors is None:
            continue
        for value in members:
            scaled[value.name or ""] = factors
    for node in model.graph:
        if node.op_type in ("Conv", "Gemm"):
            _rescale(node, scaled)
    return Equalization(scaled)


class _Groups:
    """Values whose channels must carry one scale: union-find over the graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self._parent: dict[ir.Value, ir.Value] = {}
        self._fixed: set[ir.Value] = set()
        for value in (*graph.inputs, *graph.outputs):
            self._fix(value)
        for node in graph:
            self._visit(node)

    def free(self) -> list[list[ir.Value]]:
        """The groups that may be scaled, each with its values in graph order."""
        members: dict[ir.Value, list[ir.Value]] = {}
        for value in self._parent:
            members.setdefault(self._root(value), []).append(value)
        fixed = {self._root(value) for value in self._fixed}
        return [values for root, values in members.items() if root not in fixed]

    def _visit(self, node: ir.Node) -> None:
        activations = [v for v in node.inputs if v is not None and not v.is_initializer()]
        out = node.outputs[0]
        if node.op_type in ("Conv", "Gemm") and _is_linear(node):
            for value in (*activations, out):
                self._root(value)  # its channels are free on both sides
        elif node.op_type == "Add" and len(activations) == 2 and _same_channels(activations):
            self._tie(activations[0], activations[1])
            self._tie(activations[0], out)
        elif node.op_type in _TRANSPARENT or _is_bounded(node) or _is_flatten(node):
            self._tie(activations[0], out)
        else:
            for value in (*activations, *node.outputs):
                self._fix(value)

    def _root(self, value: ir.Value) -> ir.Value:
        parent = self._parent.setdefault(value, value)
        while parent is not self._parent[parent]:
            parent = self._parent[parent]
        self._parent[value] = parent
        return parent

    def _tie(self, a: ir.Value, b: ir.Value) -> None:
        self._parent[self._root(b)] = self._root(a)

    def _fix(self, value: ir.Value) -> None:
        self._root(value)
        self._fixed.add(value)


def _is_linear(node: ir.Node) -> bool:
    """A convolution or product with constant weights whose channels can be told apart."""
    weight = constant(node.inputs[1])
    if weight is None or (len(node.inputs) > 2 and constant(node.inputs[2]) is None):
        return False
    if node.op_type == "Gemm":
        alpha, beta = node.attributes.get("alpha"), node.attributes.get("beta")
        plain = all(a is None or a.as_float() == 1.0 for a in (alpha, beta))
        transposed = node.attributes.get("transA")
        return plain and weight.ndim == 2 and not (transposed and transposed.as_int())
    return _group(node) in (1, weight.shape[0])


def _group(node: ir.Node) -> int:
    attribute = node.attributes.get("group")
    return 1 if attribute is None else attribute.as_int()


def _same_channels(values: list[ir.Value]) -> bool:
    shapes = [value.shape for value in values]
    return all(s is not None and len(s) == 4 for s in shapes) and shapes[0][1] == shapes[1][1]  # type: ignore[index]


def _is_bounded(node: ir.Node) -> bool:
    bounds = clip_bounds(node)
    return bounds is not None and bounds[0] == 0


def _is_flatten(node: ir.Node) -> bool:
    """A Flatten of ``[N, C, 1, 1]``: the channels stay what they are."""
    source = node.inputs[0]
    if node.op_type != "Flatten" or source is None or source.shape is None:
        return False
    return list(source.shape)[2:] == [1, 1]


def _factors(
    members: list[ir.Value], found: Mapping[str, Extremes], strength: float
) -> Scales | None:
    """One factor per channel: the inverse of the widest share of a member's range it spans."""
    spans: list[Scales] = []
    ceiling: Scales = np.asarray(np.inf, np.float32)
    for value in members:
        producer = value.producer()
        extremes = found.get(value.name or "")
        if extremes is None:
            continue
        peaks = np.maximum(np.abs(extremes.channel_lo), np.abs(extremes.channel_hi))
        bound = None if producer is None else clip_bounds(producer)
        if bound is not None and np.isfinite(bound[1]):
            # a bounded channel may rise to the bound; one that reaches it may not move at all
            largest = np.float32(bound[1])
            room = np.maximum(largest / np.maximum(peaks * MARGIN, 1e-6), 1.0)
            stuck = (peaks >= largest * 0.999) | (peaks < largest / LIMIT)
            ceiling = np.minimum(ceiling, np.where(stuck, 1.0, room))
            spans.append((peaks / largest).astype(np.float32))
        elif peaks.max() > 0:
            spans.append((peaks / peaks.max()).astype(np.float32))
    if not spans or len({span.shape for span in spans}) != 1:
        return None
    share = np.maximum(np.max(spans, axis=0), 1.0 / LIMIT)
    factors = np.minimum(share ** np.float32(-strength), ceiling).astype(np.float32)
    return None if np.all(factors == 1) else factors


def _rescale(node: ir.Node, scaled: Mapping[str, Scales]) -> None:
    """Fold the factors of a node's input and output into its weights and bias."""
    source, out = node.inputs[0], node.outputs[0]
    assert source is not None
    before, after = scaled.get(source.name or ""), scaled.get(out.name or "")
    weight = constant(node.inputs[1])
    if weight is None or (before is None and after is None):
        return
    transposed = node.attributes.get("transB")
    out_axis = 1 if node.op_type == "Gemm" and not (transposed and transposed.as_int()) else 0
    weight = weight.astype(np.float64)
    if before is not None:
        depthwise = node.op_type == "Conv" and _group(node) > 1
        weight /= _along(before, weight.ndim, out_axis if depthwise else 1 - out_axis)
    if after is not None:
        weight *= _along(after, weight.ndim, out_axis)
        if len(node.inputs) > 2:
            bias = constant(node.inputs[2])
            assert bias is not None  # _is_linear looked
            replace_constant(node, 2, (bias * after).astype(np.float32))
    replace_constant(node, 1, weight.astype(np.float32))


def _along(factors: Scales, rank: int, axis: int) -> NDArray[np.float64]:
    shape = [1] * rank
    shape[axis] = -1
    return factors.astype(np.float64).reshape(shape)


def replace_constant(node: ir.Node, index: int, array: NDArray[np.float32]) -> None:
    """Give ``node`` an initializer of its own with new numbers, under the name of the old one."""
    old = node.inputs[index]
    graph = node.graph
    assert old is not None and old.name is not None and isinstance(graph, ir.Graph)  # noqa: PT018
    if len(old.uses()) > 1:  # shared: the others keep theirs
        node.replace_input_with(index, new_initializer(graph, f"{node.name}.{index}", array))
    else:
        old.const_value = ir.tensor(array, name=old.name)
