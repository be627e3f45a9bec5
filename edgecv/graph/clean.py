"""Small clean-ups: folding by onnxsim, duplicates, leftovers of the exporter, IR version."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import onnxsim
from onnx_ir.passes import common

from edgecv.errors import ExportError

# The lowest IR version that an opset may appear in (onnx, docs/Versioning.md). Older runtimes
# check this number before anything else: onnxruntime 1.17 refuses IR 10.
_IR_VERSIONS = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9}


def simplify(model: ir.Model) -> ir.Model:
    """Constant folding and dead-code removal by onnxsim; its own check is repeated by ours."""
    proto: onnx.ModelProto = ir.to_proto(model)
    simplified, checked = onnxsim.simplify(proto)
    if not checked:
        raise ExportError("onnxsim changed what the graph computes; its result is not used")
    result: ir.Model = ir.from_proto(simplified)
    return result


def tidy(model: ir.Model) -> None:
    """Merge equal initializers, drop what nothing uses, strip the exporter's annotations.

    The annotations hold stack traces with the paths of the machine that exported.
    """
    common.DeduplicateInitializersPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    common.ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    model.producer_name, model.producer_version = "edgecv", None
    model.doc_string = model.graph.doc_string = None


def set_ir_version(model: ir.Model) -> None:
    """The lowest IR version that the model's opset allows."""
    opset = model.opset_imports[""]
    if opset not in _IR_VERSIONS:
        raise ExportError(
            f"opset {opset} is not one that EdgeCV writes; expected {min(_IR_VERSIONS)} to "
            f"{max(_IR_VERSIONS)}"
        )
    model.ir_version = _IR_VERSIONS[opset]
