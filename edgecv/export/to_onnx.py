"""From a torch module to the bytes of a clean ONNX file."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence

import onnx
import onnx_ir as ir
import torch
from torch import nn

from edgecv.errors import ExportError
from edgecv.graph.clean import set_ir_version, simplify, tidy
from edgecv.graph.naming import name_nodes
from edgecv.graph.pooling import reduce_mean_to_pool, reshape_to_flatten
from edgecv.models.layers import check_input

DEFAULT_OPSET = 18
OPSETS = range(18, 21)  # what the exporter writes by itself, up to what onnxruntime 1.17 reads
INPUT = "input"
BATCH = "N"  # the symbolic size of a dynamic batch


def export_module(
    model: nn.Module,
    shape: tuple[int, int, int],
    *,
    batch: int | None = 1,
    opset: int = DEFAULT_OPSET,
    outputs: Sequence[str] = ("logits",),
) -> ir.Model:
    """``model`` in eval mode as an ONNX graph: input ``[N, C, H, W]``, the named outputs.

    ``shape`` is (C, H, W); ``batch`` a fixed size, or ``None`` for a symbolic one. The graph is
    simplified, named after the torch modules, and of the lowest IR version that its opset
    allows. Exporting the same module twice gives the same graph. Raises
    :class:`~edgecv.errors.ExportError` where torch cannot trace the module.
    """
    if opset not in OPSETS:
        raise ExportError(
            f"opset {opset} cannot be written; expected {OPSETS.start} to {OPSETS.stop - 1} "
            f"(onnxruntime 1.17 and OpenVINO 2024.0 read those)"
        )
    check_input(model, shape)
    traced_batch = batch or 2  # a traced size of 1 would be taken for a constant
    example = torch.zeros((traced_batch, *shape))
    axes = {0: torch.export.Dim(BATCH)} if batch is None else {}
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                model.eval(),
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=list(outputs),
                dynamic_shapes=(axes,) if axes else None,
                verbose=False,
            )
        except Exception as error:  # torch.onnx raises what its many layers raise
            raise ExportError(
                f"torch could not export {type(model).__name__}: {_first_line(error)}"
            ) from error
    if program is None:
        raise ExportError(f"torch exported nothing for {type(model).__name__}")
    if (count := len(program.model.graph.outputs)) != len(outputs):
        raise ExportError(
            f"{type(model).__name__} returns {count} tensors, the recipe names {len(outputs)}: "
            f"{', '.join(outputs)}; name each in output.names"
        )
    return finish(program.model, opset)


def finish(graph: ir.Model, opset: int) -> ir.Model:
    """The clean-up that every exported graph goes through."""
    if (came := graph.opset_imports.get("")) != opset:
        raise ExportError(f"asked torch for opset {opset}, it wrote {came}; choose --opset {came}")
    name_nodes(graph)
    graph = simplify(graph)
    reduce_mean_to_pool(graph)
    reshape_to_flatten(graph)
    tidy(graph)
    set_ir_version(graph)
    return graph


def to_bytes(graph: ir.Model) -> bytes:
    """Serialize, after onnx's own checker and strict shape inference have passed.

    The same graph gives the same bytes.
    """
    proto: onnx.ModelProto = ir.to_proto(graph)
    try:
        onnx.checker.check_model(proto, full_check=True)
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid ONNX: {_first_line(error)}") from error
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's notes that no user can act on (torchvision is optional, and so on)."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
