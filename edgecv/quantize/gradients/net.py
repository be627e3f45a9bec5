"""A quantized graph as a torch module, and the module as a graph again.

Each pair of QuantizeLinear and DequantizeLinear becomes a :class:`~.fake.Grid`, each weight in
integers a :class:`~.fake.Weight`, each bias a float parameter (in int32 it is a multiple of input
step times weight step, 2^16 times finer than what is added to it). A graph without any is executed
as it is: that is the float parent, the teacher.

Forwards the numbers are those of the file, but for the order in which floats are summed: a value
that lies within that on the edge between two integers may fall to the other side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgecv.errors import QuantizeError
from edgecv.quantize.gradients.fake import Grid, Weight
from edgecv.quantize.gradients.operators import Operator, operator
from edgecv.quantize.gradients.pairs import (
    ONE_GRID,
    affine_of,
    constant_input,
    input_name,
    is_stored,
    latent_of,
    shared_grids,
    stored_name,
)
from edgecv.quantize.place import BIAS_LIMIT
from edgecv.quantize.ranges import Array, Range
from edgecv.quantize.structure import weight_axis
from edgecv.quantize.targets import MAC, Policy


@dataclass(frozen=True)
class _Step:
    node: ir.Node
    run: Operator
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    dead: tuple[str, ...]  # values that no later step reads


@dataclass(frozen=True)
class _Layer:
    """A MAC operator's constants, by the names of the initializers that hold them."""

    node: str
    source: str  # the grid of its input, "" where there is none
    step: float  # of that input where it is integers from the start: pixels
    weight: str  # the value that the operator reads
    stored: str  # its integers, "" where the weight is float
    bias: str
    stored_bias: str


class QuantizedNet(nn.Module):
    """``model`` as a module: a float batch ``[N, C, H, W]`` (uint8 ``[N, H, W, C]`` where the file
    takes pixels) to the dictionary of its outputs.

    ``parent`` is the float graph that ``model`` was made of: its weights are where the latent
    weights begin, instead of on the grid, wherever they round to the integers in ``model``.

    Parameters: ``weights`` (latent and steps), ``biases``, ``grids``; see :meth:`groups`. The
    grid of the file's own input is fixed, it is the pixels'.

    Raises :class:`~edgecv.errors.QuantizeError` for an operator that is not in the table of
    :mod:`~edgecv.quantize.gradients.operators`.
    """

    def __init__(
        self,
        model: ir.Model,
        policy: Policy,
        parent: ir.Model | None = None,
    ) -> None:
        super().__init__()
        self._model, self._policy = model, policy
        graph = model.graph
        self._input = str(graph.inputs[0].name)
        self._outputs = [str(value.name) for value in graph.outputs]
        self._nodes = list(graph)
        self.weights, self.grids = nn.ModuleDict(), nn.ModuleDict()
        self.biases = nn.ParameterDict()
        self._read: dict[str, Weight] = {}
        self._read_bias: dict[str, nn.Parameter] = {}
        self._grid_of: dict[str, str] = {}  # QuantizeLinear's output to the key of its grid
        self._layers: list[_Layer] = []
        self._make_grids(graph)
        self._take_weights(graph, {} if parent is None else {n.name or "": n for n in parent.graph})
        self._constants = self._take_constants(graph)
        self._steps = self._order()

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {self._input: batch}
        values.update({name: getattr(self, key) for name, key in self._constants.items()})
        values.update({name: weight() for name, weight in self._read.items()})
        values.update(self._read_bias)
        for step in self._steps:
            found = step.run(step.node, [None if v is None else values[v] for v in step.inputs])
            if isinstance(found, Tensor):
                values[step.outputs[0]] = found
            else:
                values.update(zip(step.outputs, found, strict=True))
            for name in step.dead:
                del values[name]
        return {name: values[name] for name in self._outputs}

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """What may be learned, by kind: ``weights``, ``biases``, ``weight_steps``, ``steps`` and
        ``zeros`` (zero points). Steps are logarithms of factors."""
        weights = list(self._read.values())
        grids = [grid for grid in self.grids.values() if isinstance(grid, Grid) and not grid.fixed]
        return {
            "weights": [w.latent for w in weights],
            "biases": list(self.biases.values()),
            "weight_steps": [w.factor for w in weights],
            "steps": [g.factor for g in grids],
            "zeros": [g.shift for g in grids if g.shifts],
        }

    def ranges(self) -> dict[str, Range]:
        """What the grids span now, by the names of the values that they quantize."""
        found = {}
        for node in self._nodes:
            if node.op_type != "QuantizeLinear":
                continue
            one = self._grid(self._grid_of[str(node.outputs[0].name)]).affine()
            info, scale = np.iinfo(one.dtype), float(one.scale)
            lo, hi = (scale * (end - one.zero_point) for end in (info.min, info.max))
            found[input_name(node, 0).removesuffix(".real")] = Range(lo, hi, "learned")
        return found

    def integer_weights(self) -> list[Weight]:
        """The weights that lie on grids."""
        return list(self._read.values())

    @torch.no_grad()
    def write(self) -> ir.Model:
        """The graph with what was learned: same nodes, same places, other initializers.

        Zero-size steps of the bias are avoided as in :mod:`edgecv.quantize.place`: a channel of
        tiny weights and a large bias takes coarser weights. Raises
        :class:`~edgecv.errors.QuantizeError` where a parameter is no number any more.
        """
        for name, parameter in self.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise QuantizeError(f"{name} is NaN or infinite: learning diverged; lower the rate")
        model = self._model.clone()
        constants = model.graph.initializers

        def store(name: str, array: Array) -> None:
            old = constants[name].const_value
            # what has not changed stays byte for byte as it was
            if old is None or not np.array_equal(old.numpy(), array):
                constants[name].const_value = ir.tensor(array, name=name)

        makers = {str(v.name): node for node in model.graph for v in node.outputs}
        for node in model.graph:
            key = self._grid_of.get(str(node.outputs[0].name))
            if node.op_type == "QuantizeLinear" and key is not None:
                found = self._grid(key).affine()
                store(input_name(node, 1), np.asarray(found.scale, np.float32))
                store(input_name(node, 2), np.asarray(found.zero_point, found.dtype))
        for layer in self._layers:
            self._write_layer(layer, makers, store)
            bias = self._read_bias.get(layer.bias)
            if layer.bias in constants and bias is not None:
                store(layer.bias, np.asarray(bias.numpy()))
        return model

    def _write_layer(
        self,
        layer: _Layer,
        makers: Mapping[str, ir.Node],
        store: Callable[[str, Array], None],
    ) -> None:
        """The integers of a layer's weight and bias, and their steps; ``makers`` give its inputs.

        A bias is a multiple of input step times weight step, which the weight's must be coarse
        enough for.
        """
        if not layer.stored:
            return
        weight = self._read[layer.weight]
        steps, unit = weight.steps.double(), 0.0
        bias = self._read_bias.get(layer.bias) if layer.stored_bias else None
        if bias is not None:
            unit = float(self._grid(layer.source).affine().scale) if layer.source else layer.step
            steps = torch.maximum(steps, bias.abs().double() / (BIAS_LIMIT * unit))
        scales = steps.float()
        store(layer.stored, weight.integers(scales))
        store(input_name(makers[layer.weight], 1), np.asarray(scales.numpy()))
        if bias is not None:
            units = (scales.double() * unit).float()
            q = (bias.double() / units.double()).round().to(torch.int32)
            store(layer.stored_bias, np.asarray(q.numpy()))
            store(input_name(makers[layer.bias], 1), np.asarray(units.numpy()))

    def _grid(self, key: str) -> Grid:
        found = self.grids[key]
        assert isinstance(found, Grid)  # nothing else is put there
        return found

    def _make_grids(self, graph: ir.Graph) -> None:
        leaders = shared_grids(graph)
        for node in graph:
            if node.op_type != "QuantizeLinear":
                continue
            output = str(node.outputs[0].name)
            key = _key(leaders[output])
            self._grid_of[output] = key
            if key not in self.grids:
                self.grids[key] = Grid(affine_of(node), self._policy.symmetric)
            if input_name(node, 0) == self._input:
                self._grid(key).fix()

    def _take_weights(self, graph: ir.Graph, parents: Mapping[str, ir.Node]) -> None:
        for node in graph:
            if node.op_type not in MAC | {"ConvTranspose"}:
                continue
            stored = stored_name(node, 1)
            maker = node.inputs[1].producer() if node.inputs[1] is not None else None
            name = input_name(node, 1)
            if stored and maker is not None:
                integers, scales = constant_input(maker, 0), constant_input(maker, 1)
                axis = weight_axis(node)
                weight = Weight(
                    latent_of(integers, scales, axis, parents.get(node.name or "")),
                    np.atleast_1d(scales).astype(np.float32),
                    axis,
                    self._policy.weight_max,
                )
                self.weights[_key(name)] = weight
                self._read[name] = weight
            bias, stored_bias = "", ""
            if len(node.inputs) > 2 and node.inputs[2] is not None:
                bias, stored_bias = input_name(node, 2), stored_name(node, 2)
                array = self._bias(node, stored_bias)
                if array is None or not stored:
                    bias = stored_bias = ""
                else:
                    parameter = nn.Parameter(torch.from_numpy(np.array(array, np.float32)))
                    self.biases[_key(bias)] = parameter
                    self._read_bias[bias] = parameter
            source, step = self._grid_behind(node.inputs[0])
            layer = _Layer(node.name or "", source, step, name, stored, bias, stored_bias)
            self._layers.append(layer)

    def _grid_behind(self, value: ir.Value | None) -> tuple[str, float]:
        """The key of the grid that ``value`` lies on, or the step of pixels that it comes from."""
        node = None if value is None else value.producer()
        while node is not None and node.op_type in ONE_GRID:
            node = node.inputs[0].producer() if node.inputs[0] is not None else None
        if node is None or node.op_type != "DequantizeLinear":
            return "", 0.0
        return self._grid_of.get(input_name(node, 0), ""), float(affine_of(node).scale)

    def _bias(self, node: ir.Node, stored: str) -> NDArray[np.float32] | None:
        value = node.inputs[2]
        assert value is not None  # the caller looked
        if not stored:
            tensor = value.const_value if value.is_initializer() else None
            return None if tensor is None else np.asarray(tensor.numpy(), np.float32)
        maker = value.producer()
        assert maker is not None  # a stored bias has a DequantizeLinear
        q, scale = (
            constant_input(maker, 0).astype(np.float64),
            constant_input(maker, 1).astype(np.float64),
        )
        return np.asarray(q * scale, np.float32)

    def _take_constants(self, graph: ir.Graph) -> dict[str, str]:
        """Register the other constants that operators read; gives the buffer of each value."""
        found: dict[str, str] = {}
        for name, value in graph.initializers.items():
            tensor = value.const_value
            users = [n.op_type for n in value.consumers()]
            if tensor is None or name in self._read_bias or not users:
                continue
            if all(user in ("QuantizeLinear", "DequantizeLinear") for user in users):
                continue
            found[name] = f"constant{len(found)}"
            self.register_buffer(found[name], torch.from_numpy(np.array(tensor.numpy())))
        for node in graph:  # operands in integers that are no weights: nothing is learned there
            name = str(node.outputs[0].name)
            known = name in self._read or name in self._read_bias
            if node.op_type == "DequantizeLinear" and not known and is_stored(node):
                zero = constant_input(node, 2).astype(np.float32)
                real = (constant_input(node, 0).astype(np.float32) - zero) * constant_input(node, 1)
                found[name] = f"constant{len(found)}"
                self.register_buffer(found[name], torch.from_numpy(np.asarray(real, np.float32)))
        return found

    def _order(self) -> list[_Step]:
        known = {*self._constants, *self._read, *self._read_bias}
        plain: list[tuple[ir.Node, Operator, tuple[str | None, ...]]] = []
        for node in self._nodes:
            if str(node.outputs[0].name) in known:
                continue
            names = tuple(None if v is None else str(v.name) for v in node.inputs)
            if node.op_type == "QuantizeLinear":
                grid = self._grid(self._grid_of[str(node.outputs[0].name)])
                plain.append((node, _through(grid), names[:1]))
            elif node.op_type == "DequantizeLinear":
                plain.append((node, self._back(node), names[:1]))
            elif node.op_type == "Constant":
                raise QuantizeError(f"node {node.name!r}: constants are to be initializers here")
            else:
                plain.append((node, operator(node), names))
        last: dict[str, int] = {}
        for index, (_, _, names) in enumerate(plain):
            last.update({name: index for name in names if name is not None})
        ends = set(self._outputs)
        steps = []
        for index, (node, run, names) in enumerate(plain):
            outputs = tuple(str(v.name) for v in node.outputs)
            dead = [n for n in dict.fromkeys(names) if n is not None and last[n] == index]
            dead += [n for n in outputs if n not in last]
            steps.append(_Step(node, run, names, outputs, tuple(n for n in dead if n not in ends)))
        return steps

    def _back(self, node: ir.Node) -> Operator:
        """A DequantizeLinear: nothing behind a grid, arithmetic behind integers of the input."""
        source = node.inputs[0]
        assert source is not None  # it has one
        behind = source.producer()
        if behind is not None and behind.op_type == "QuantizeLinear":
            if affine_of(behind) != affine_of(node):
                raise QuantizeError(
                    f"node {node.name!r}: another scale or zero point than {behind.name!r}, which "
                    f"it reads; expected a pair"
                )
            return lambda node, inputs: _first(inputs[0])
        found = affine_of(node)
        step, zero = float(found.scale), found.zero_point
        return lambda node, inputs: (_first(inputs[0]).float() - zero) * step


def _first(value: Tensor | None) -> Tensor:
    assert value is not None  # the checker of ONNX wants it
    return value


def _through(grid: Grid) -> Operator:
    def run(node: ir.Node, inputs: object) -> Tensor:
        assert isinstance(inputs, list)
        result: Tensor = grid(inputs[0])
        return result

    return run


def _key(name: str) -> str:
    """``name`` as torch allows it for modules."""
    return name.replace(".", "|")
