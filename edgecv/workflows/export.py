"""``edgecv export``: recipe + weights -> one ONNX file that carries its contract and its proof."""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import nn

from edgecv import __version__
from edgecv.errors import InputError
from edgecv.export.overrides import InputOverrides, recipe_for
from edgecv.export.precision import Half, make_half
from edgecv.export.recipe import Recipe
from edgecv.export.synthetic import informative_norms
from edgecv.export.to_onnx import BATCH, DEFAULT_OPSET, INPUT, export_module, to_bytes
from edgecv.export.weights import ResolvedWeights, load_model, resolve
from edgecv.graph.pixels import PixelsIn, pixels_in
from edgecv.measure import selftest
from edgecv.measure.compare import FP32_MAX_REL
from edgecv.preprocess import list_pictures
from edgecv.progress import Progress, silent
from edgecv.quantize.targets import policy_for
from edgecv.spec import PIXELS_IN, ModelSpec, Preparation, TensorSpec, write_spec
from edgecv.workflows.end2end import PLUGIN_TARGET, form_for, with_nms
from edgecv.workflows.likeness import with_likeness
from edgecv.workflows.parity import fp16_noise, prove, torch_outputs
from edgecv.workflows.proof import machine_target
from edgecv.workflows.quantize import quantize
from edgecv.workflows.quantresult import QuantizeResult
from edgecv.workflows.synthetic import synthetic_folder

RANGES_SEED = 11  # of the pictures on which FP16's headroom is measured
RANGES_COUNT = 6
FLOATS = ("fp32", "fp16")
TOOLS = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxsim", "onnxruntime")


@dataclass(frozen=True)
class ExportResult:
    """What was written and how far it is from PyTorch."""

    path: Path
    spec: ModelSpec
    opset: int
    size_bytes: int
    weights: ResolvedWeights
    nodes: dict[str, int]
    quantized: QuantizeResult | None = None

    def to_dict(self) -> dict[str, Any]:
        proven = self.quantized.to_dict() if self.quantized is not None else {}
        return {
            **proven,
            "path": str(self.path),
            "precision": self.spec.precision,
            "target": self.spec.target,
            "opset": self.opset,
            "size_bytes": self.size_bytes,
            "parity": dict(self.spec.parity),
            "nodes": self.nodes,
            "weights": {
                "origin": self.weights.origin,
                "sha256": self.weights.sha256,
                "licence": self.weights.licence,
            },
            "preparation": self.spec.preparation.describe(),
        }


def export(
    name: str,
    *,
    weights: str = "auto",
    overrides: InputOverrides | None = None,
    opset: int = DEFAULT_OPSET,
    batch: int | None = 1,
    end2end: bool = False,
    precision: str = "fp32",
    pixels: bool | str = False,
    calibration: str | os.PathLike[str] | None = None,
    target: str | None = None,
    output: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
    warn: Callable[[str], None] = lambda text: None,
) -> ExportResult:
    """Export ``name`` (a recipe, a recipe file, or a model source) to an ONNX file.

    ``batch`` is a fixed size, or ``None`` for a dynamic one; ``precision`` is ``fp32``, ``fp16``
    or ``int8``, which is :func:`edgecv.quantize` on the FP32 file, by the pictures of the folder
    ``calibration`` or, without it, by synthetic ones (:mod:`edgecv.export.synthetic`; as many as
    the recipe's ``calibration.pictures``), for ``target``; with ``pixels`` the file takes uint8
    pixels ``[N, H, W, C]``, their channels in the net's order (True), or ``rgb`` or ``bgr``.
    ``output`` defaults to the recipe's name (``NAME-fp16.onnx``, ``NAME-int8-TARGET.onnx``) in the
    current folder. ``end2end`` appends decoding and NMS to a detector's graph
    (:mod:`edgecv.workflows.end2end`); with ``target`` ``tensorrt`` NMS is TensorRT's own plugin.
    The file is compared with PyTorch before it gets its name: where the outputs differ by more than
    :data:`~edgecv.measure.compare.FP32_MAX_REL` of the largest, or those of an FP16 file have less
    SQNR than :func:`~edgecv.measure.rounding.fp16_min_sqnr` asks for, nothing is written and
    :class:`~edgecv.errors.ExportError` is raised.
    """
    _check_wishes(precision, calibration, target, end2end=end2end)
    wanted = recipe_for(name, overrides)
    resolved = resolve(wanted, weights, progress)
    if resolved.warning:
        warn(resolved.warning)
    recipe = resolved.recipe
    if recipe is not wanted and overrides is not None and overrides.to_dict():
        warn(
            f"the input flags are ignored: the bundled weights were trained with the preparation "
            f"of {recipe.name}"
        )
        overrides = None
    progress("building the net", 1, 4)
    net = _Net(resolved, load_model(resolved), overrides)
    write = partial(_write, net, opset=opset, batch=batch, progress=progress)
    if precision != "int8":
        return write(
            precision=precision, pixels=pixels, end2end=end2end, target=target, output=output
        )
    if calibration is None:
        informative_norms(net.model)  # before minutes of work
    with tempfile.TemporaryDirectory(prefix="edgecv-") as folder:
        whole = write(output=Path(folder) / "parent.onnx")
        made = None
        if calibration is None:
            calibration = Path(folder) / "synthetic"
            p, number = recipe.preparation, recipe.calibration
            made = synthetic_folder(net.model, p, number, calibration, progress, warn)
        return _integers(whole, calibration, made, target, pixels, output, progress, warn)


@dataclass(frozen=True)
class _Net:
    """What is exported: its weights, with the recipe that they are for, and the input flags."""

    weights: ResolvedWeights
    model: nn.Module
    overrides: InputOverrides | None


def _write(
    net: _Net,
    *,
    opset: int,
    batch: int | None,
    progress: Progress,
    output: str | os.PathLike[str] | None,
    precision: str = "fp32",
    pixels: bool | str = False,
    end2end: bool = False,
    target: str | None = None,
) -> ExportResult:
    """``net`` as a float file, proven."""
    resolved, model, overrides = net.weights, net.model, net.overrides
    recipe = resolved.recipe
    p = recipe.preparation
    progress("exporting", 2, 4)
    shape = (p.channels, p.height, p.width)
    graph = export_module(model, shape, batch=batch, opset=opset, outputs=recipe.outputs)
    taken = pixels_in(graph, p, order=pixels) if pixels else None
    prepared = taken.preparation if taken else p
    half = make_half(graph, _range_feeds(prepared, batch, pixels)) if precision == "fp16" else None
    data = to_bytes(graph)
    nodes = dict(Counter(node.op_type for node in graph.graph))
    spec = _contract(recipe, resolved, overrides, graph.graph.outputs, model, batch, opset)
    spec = _as_written(spec, precision, taken, half)
    suffix = "" if precision == "fp32" else f"-{precision}"
    path = Path(output) if output is not None else Path(f"{recipe.name}{suffix}.onnx")
    progress("proving parity", 3, 4)
    if half is not None:
        seen = selftest.inputs(p, selftest.SEED, selftest.COUNT)
        noise = fp16_noise(model, seen, recipe.outputs)
        spec = replace(spec, self_test=selftest.with_noise(spec.self_test, noise))
    spec = replace(spec, parity=prove(data, spec, p, model))
    if end2end:
        data, spec = with_nms(data, spec, form_for(target))
    write_spec(data, spec, path)
    progress("proving parity", 4, 4)
    return ExportResult(path, spec, opset, path.stat().st_size, resolved, nodes)


def _check_wishes(
    precision: str,
    calibration: str | os.PathLike[str] | None,
    target: str | None,
    *,
    end2end: bool,
) -> None:
    """Say what is wrong with the wishes before minutes of work."""
    if precision not in (*FLOATS, "int8"):
        raise InputError(f"precision {precision!r} is not one of {', '.join(FLOATS)}, int8")
    if precision != "int8":
        plugin = end2end and target == PLUGIN_TARGET
        if calibration is not None or (target is not None and not plugin):
            raise InputError(
                f"--calibration and --target are for precision int8, not for {precision}; with "
                f"--end2end, --target {PLUGIN_TARGET} takes TensorRT's own NMS"
            )
        return
    if end2end:
        raise InputError(
            "decoding and NMS stay in float: export with int8 first, then put them behind it: "
            "edgecv export NAME-int8-TARGET.onnx --end2end"
        )
    policy_for(target or machine_target())
    if calibration is not None:
        list_pictures(calibration)


def _integers(
    parent: ExportResult,
    calibration: str | os.PathLike[str],
    synthetic: dict[str, Any] | None,
    target: str | None,
    pixels: bool | str,
    output: str | os.PathLike[str] | None,
    progress: Progress,
    warn: Callable[[str], None],
) -> ExportResult:
    done = quantize(
        parent.path,
        calibration=calibration,
        synthetic=synthetic,
        target=target,
        pixels=pixels,
        output=output,
        progress=progress,
        warn=warn,
    )
    return replace(
        parent,
        path=done.path,
        spec=done.spec,
        opset=done.opset,
        size_bytes=done.path.stat().st_size,
        quantized=done,
    )


def _contract(
    recipe: Recipe,
    weights: ResolvedWeights,
    overrides: InputOverrides | None,
    outputs: Sequence[ir.Value],
    model: nn.Module,
    batch: int | None,
    opset: int,
) -> ModelSpec:
    p = recipe.preparation
    size: int | str = BATCH if batch is None else batch
    tensors = tuple(map(_tensor, outputs))
    labels = recipe.labels
    if recipe.task == "classify" and not labels:
        labels = tuple(f"class {i}" for i in range(int(tensors[0].shape[-1])))
    prepared = selftest.inputs(p, selftest.SEED, selftest.COUNT)
    expected = torch_outputs(model, prepared, recipe.outputs)
    return ModelSpec(
        name=recipe.name,
        task=recipe.task,
        inputs=(TensorSpec(INPUT, (size, p.channels, p.height, p.width)),),
        outputs=tensors,
        preparation=p,
        decoding=with_likeness(recipe.decoding, model),
        labels=labels,
        label_ids=recipe.label_ids,
        provenance={
            "model": recipe.source,
            "recipe": recipe.name,
            "input_flags": overrides.to_dict() if overrides else {},
            "weights": {
                "origin": weights.origin,
                "file": weights.path.name if weights.path else None,
                "sha256": weights.sha256,
                "licence": weights.licence,
            },
            "opset": opset,
            "tools": {"edgecv": __version__, **_versions()},
        },
        self_test=selftest.record(expected, FP32_MAX_REL),
    )


def _range_feeds(p: Preparation, batch: int | None, pixels: bool | str) -> Iterator[NDArray[Any]]:
    """Batches of seeded pictures, in the form that the graph takes."""
    feed = selftest.inputs(p, RANGES_SEED, RANGES_COUNT, "uint8" if pixels else "float32")
    for start in range(RANGES_COUNT):
        yield np.take(feed, range(start, start + (batch or 1)), axis=0, mode="wrap")


def _as_written(
    spec: ModelSpec, precision: str, taken: PixelsIn | None, half: Half | None
) -> ModelSpec:
    """The contract of the FP32 graph, changed as the passes after it changed the graph."""
    if taken is not None:
        p, (tensor,) = taken.preparation, spec.inputs
        shape = (tensor.shape[0], *p.tensor_shape(p.height, p.width))
        spec = replace(
            spec,
            inputs=(TensorSpec(tensor.name, shape, "uint8"),),
            preparation=p,
            provenance={**spec.provenance, PIXELS_IN: taken.to_dict()},
        )
    if half is not None:
        spec = replace(spec, precision=precision, quantization=half.to_dict())
    return spec


def _tensor(value: ir.Value) -> TensorSpec:
    assert value.name is not None
    assert value.dtype is not None
    shape = tuple(d if isinstance(d, int) else BATCH for d in value.shape or ())
    return TensorSpec(value.name, shape, value.dtype.numpy().name)


def _versions() -> dict[str, str]:
    return {tool: importlib.metadata.version(tool) for tool in TOOLS}
