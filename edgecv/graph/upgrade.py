"""Any third party's ONNX file, brought to the form that the other passes expect.

That form: opset 18 to 20, the lowest IR version of the opset, local functions inlined, constants
and BatchNorm folded, weights as initializers (not as graph inputs, which is how IR 3 had them),
shapes inferred, every node with a name of its own. Names that were there are kept, and so are the
names, types and order of inputs and outputs.

Older opsets are converted by onnx's version converter. Newer ones are relabelled where every
operator in use is the same but for its admissible types, which the schemas decide, not a list.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx import version_converter
from onnx_ir.passes import common
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules.common import (
    fuse_batchnorm_into_conv_rule,
    fuse_batchnorm_into_conv_transpose_rule,
    fuse_batchnorm_into_gemm_rule,
)

from edgecv.errors import ExportError
from edgecv.files import open_binary
from edgecv.graph.clean import set_ir_version, simplify, tidy
from edgecv.graph.naming import name_unnamed

OPSET = 18  # what older files are brought to
NEWEST_OPSET = 20  # what onnxruntime 1.17 and OpenVINO 2024.0 still read
OLDEST_OPSET = 7  # onnxruntime promises nothing for older ones

_CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")
_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "ConvInteger", "MatMulInteger")
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def read_onnx(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """The ONNX file ``path``; :class:`~edgecv.errors.ExportError` where it is not a whole one."""
    path = Path(path)
    with open_binary(path) as file:
        data = file.read()
    try:
        proto = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise ExportError(
            f"{path}: not an ONNX model, or a truncated one ({error}); copy the file again"
        ) from error
    if not proto.graph.node or not proto.opset_import:
        raise ExportError(f"{path}: there is no graph in this file; expected an ONNX model")
    return proto


def upgrade(proto: onnx.ModelProto, where: str | os.PathLike[str] = "the model") -> ir.Model:
    """``proto`` in the form that the module's docstring describes; ``proto`` itself is not changed.

    Raises :class:`~edgecv.errors.ExportError`, naming ``where`` and the node, for weights in
    external files, NaN or (in layers with weights) infinite weights, control flow that constant
    folding does not remove, operators of other domains, opsets below 7 or with newer semantics
    than opset 20's, and for files that are quantized already.
    """
    _refuse_old_opsets(proto, where)
    _refuse_external_data(proto, where)
    _refuse_quantized(proto, where)
    _refuse_custom_operators(proto, where)
    model: ir.Model = ir.from_proto(proto)
    if "ai.onnx" in model.opset_imports:  # the long name of the standard's domain
        model.opset_imports[""] = model.opset_imports.pop("ai.onnx")
    common.InlinePass()(model)
    common.RemoveInitializersFromInputsPass()(model)
    model.ir_version = max(model.ir_version, 4)  # IR 3 knows weights only as inputs
    name_unnamed(model)
    common.ShapeInferencePass()(model)  # some writers leave the outputs without a shape
    try:
        model = simplify(_convert(simplify(model), where))
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{where}: not valid ONNX: {_one_line(error)}") from error
    except RuntimeError as error:  # onnxsim's folding and its checks raise no narrower one
        raise ExportError(f"{where}: cannot be simplified: {_one_line(error)}") from error
    _refuse_control_flow(model, where)
    model = rewrite(
        model,
        [
            fuse_batchnorm_into_conv_rule,
            fuse_batchnorm_into_conv_transpose_rule,
            fuse_batchnorm_into_gemm_rule,
        ],
    )
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.IdentityEliminationPass()(model)
    tidy(model)
    name_unnamed(model)
    _refuse_bad_weights(model, where)
    common.ShapeInferencePass()(model)
    set_ir_version(model)
    return model


def _convert(model: ir.Model, where: str | os.PathLike[str]) -> ir.Model:
    opset = model.opset_imports[""]
    if opset > NEWEST_OPSET:
        _refuse_new_semantics(model, opset, where)
        model.opset_imports[""] = NEWEST_OPSET
    if opset >= OPSET:
        return model
    try:
        converted = version_converter.convert_version(ir.to_proto(model), OPSET)
    except Exception as error:  # the converter's C++ raises RuntimeError and ConvertError alike
        raise ExportError(
            f"{where}: cannot be converted from opset {opset} to {OPSET}: {_one_line(error)}. "
            f"Export the model again with opset {OPSET}"
        ) from error
    result: ir.Model = ir.from_proto(converted)
    return result


def _refuse_new_semantics(model: ir.Model, opset: int, where: str | os.PathLike[str]) -> None:
    for node in model.graph.all_nodes():
        try:
            new = onnx.defs.get_schema(node.op_type, opset)
            old = onnx.defs.get_schema(node.op_type, NEWEST_OPSET)
        except onnx.defs.SchemaError as error:
            raise ExportError(
                f"{where}: node {node.name!r} is a {node.op_type} of opset {opset}, which opset "
                f"{NEWEST_OPSET} does not have; export the model with opset {OPSET} to "
                f"{NEWEST_OPSET}"
            ) from error
        used = set(node.attributes) - set(old.attributes)
        if used or _signature(new) != _signature(old):
            raise ExportError(
                f"{where}: {node.op_type} (node {node.name!r}) means something else in opset "
                f"{opset} than in {NEWEST_OPSET}; export the model with opset {OPSET} to "
                f"{NEWEST_OPSET}"
            )


def _signature(schema: onnx.defs.OpSchema) -> tuple[object, ...]:
    """What decides a node's meaning, short of the types that are admitted."""
    attributes = {
        name: (attribute.type, attribute.default_value.SerializeToString())
        for name, attribute in schema.attributes.items()
        if not name.endswith("dtype")
    }
    ports = [[(p.name, p.option) for p in side] for side in (schema.inputs, schema.outputs)]
    return (attributes, ports)


def _refuse_old_opsets(proto: onnx.ModelProto, where: str | os.PathLike[str]) -> None:
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset < OLDEST_OPSET:
        raise ExportError(
            f"{where}: opset {opset}; expected {OLDEST_OPSET} or later. Export the model again "
            f"with a current exporter"
        )


def _refuse_external_data(proto: onnx.ModelProto, where: str | os.PathLike[str]) -> None:
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            location = next((e.value for e in tensor.external_data if e.key == "location"), "?")
            raise ExportError(
                f"{where}: the weights lie in another file ({location!r} holds {tensor.name!r}); "
                f"merge them first: onnx.save(onnx.load(FILE), MERGED)"
            )


def _refuse_quantized(proto: onnx.ModelProto, where: str | os.PathLike[str]) -> None:
    for node in _protos(proto.graph):
        if node.op_type.startswith(("QLinear", "DynamicQuantize")) or node.op_type in _QUANTIZED:
            raise ExportError(
                f"{where}: quantized already ({node.op_type} {node.name!r}); give the FP32 file "
                f"that it was made from"
            )


def _refuse_custom_operators(proto: onnx.ModelProto, where: str | os.PathLike[str]) -> None:
    known = {"", "ai.onnx"} | {function.domain for function in proto.functions}
    for node in _protos(proto.graph):
        if node.domain not in known:
            raise ExportError(
                f"{where}: node {node.name!r} is {node.domain}.{node.op_type}, an operator outside "
                f"the ONNX standard; export the model without it"
            )


def _refuse_control_flow(model: ir.Model, where: str | os.PathLike[str]) -> None:
    for node in model.graph:
        if node.op_type in _CONTROL_FLOW:
            raise ExportError(
                f"{where}: control flow ({node.op_type} {node.name!r}) that does not fold away; "
                f"export the model for one input size, without data-dependent branches"
            )


def _refuse_bad_weights(model: ir.Model, where: str | os.PathLike[str]) -> None:
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or not tensor.dtype.is_floating_point():
            continue
        array = np.asarray(tensor.numpy(), np.float32)
        weighted = any(node.op_type in _WEIGHTED for node in value.consumers())
        if np.isnan(array).any() or (weighted and not np.isfinite(array).all()):
            users = ", ".join(repr(node.name) for node in value.consumers())
            raise ExportError(
                f"{where}: weights {name!r} (used by {users}) hold NaN or infinite values; the "
                f"training diverged, or the file is damaged"
            )


def _protos(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _protos(inner)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
