"""What a runtime really computes in float: its optimized graph, read back.

A file full of QuantizeLinear says little: a runtime fuses what its patterns match and computes
the rest in float, under names such as ``FusedConv`` or the blocked-layout ``Conv`` of
``com.microsoft.nchwc``. So the optimized graph itself is asked.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from edgecv.errors import BackendUnavailable
from edgecv.quantize.run import open_session

# Integer operators by the beginnings of their names: QLinearConv, QLinearAdd, QGemm, MatMulInteger
_INTEGER = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "QAttention", "DynamicQuantize")
_FLOAT_OUT = frozenset({"DequantizeLinear", "MatMulIntegerToFloat"})  # from integers to float
# They move values; their cost is that of a copy, whatever the type
_MOVES = frozenset(
    {"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat",
     "Gather", "Identity", "Cast", "Shape", "Constant", "Pad", "Expand", "ReorderInput",
     "ReorderOutput"}
)  # fmt: skip
_DATA = {"Where": 1}  # the input whose type decides, where it is not the first
_BOUNDARY = frozenset({"QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True)
class FloatNode:
    """One node that computes in float in the optimized graph."""

    name: str
    operator: str  # with its domain, where it is not ONNX's own

    @property
    def is_mac(self) -> bool:
        """Whether it multiplies and adds: any Conv, Gemm or MatMul, fused or blocked."""
        return any(word in self.operator for word in ("Conv", "Gemm", "MatMul", "FullyConnected"))


@dataclass(frozen=True)
class Readback:
    """``integer`` counts the operators that compute in integers, ``floats`` lists the others."""

    runtime: str
    integer: Mapping[str, int]
    floats: tuple[FloatNode, ...]

    @property
    def float_macs(self) -> tuple[FloatNode, ...]:
        return tuple(node for node in self.floats if node.is_mac)


def onnxruntime_readback(data: bytes) -> Readback:
    """What onnxruntime makes of the model ``data`` at its highest optimization level."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory(prefix="edgecv-") as folder:
        path = Path(folder) / "optimized.onnx"
        open_session(data, optimized=path)
        graph = onnx.load(path).graph
    floats = {value.name for value in graph.input if _is_float(value.type.tensor_type.elem_type)}
    floats |= {tensor.name for tensor in graph.initializer if _is_float(tensor.data_type)}
    integer: Counter[str] = Counter()
    found = []
    for node in graph.node:
        names = [name for name in node.input if name]
        if node.op_type.startswith(_INTEGER):
            integer[node.op_type] += 1
            if node.op_type in _FLOAT_OUT or _has_float_output(node):
                floats.update(node.output)
            continue
        if node.op_type in _BOUNDARY:
            if node.op_type in _FLOAT_OUT:
                floats.update(node.output)
            continue
        if node.op_type == "Cast":  # the first float of a file that takes pixels
            to = next(attribute.i for attribute in node.attribute if attribute.name == "to")
            if _is_float(to):
                floats.update(node.output)
            continue
        if not (names and names[_DATA.get(node.op_type, 0)] in floats):
            continue
        floats.update(node.output)
        if node.op_type not in _MOVES:
            domain = f"{node.domain}." if node.domain not in ("", "ai.onnx") else ""
            found.append(FloatNode(node.name or node.output[0], f"{domain}{node.op_type}"))
    return Readback(f"onnxruntime {ort.__version__}", dict(integer), tuple(found))


def openvino_readback(data: bytes) -> Readback:
    """What OpenVINO's CPU plugin executes, by the precision that it reports per layer.

    It is compiled as the backend does it, floats in FP32. A Subgraph (elementwise operators in one
    kernel) computes in float whatever its precision, which is that of its output: it is listed,
    as the operators of the file in it, unless it only quantizes and moves.
    """
    try:
        import openvino
    except ImportError as error:
        raise BackendUnavailable(
            f"the package openvino does not import ({error}); pip install 'edgecv[openvino]'"
        ) from error
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(data), "CPU", settings)
    operators = {node.name: node.op_type for node in onnx.load_model_from_string(data).graph.node}
    integer: Counter[str] = Counter()
    found = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        kind, precision = str(info["layerType"].value), str(info["runtimePrecision"].value)
        if kind in ("Input", "Output", "Const", "Parameter", "Result", "Reorder"):
            continue
        if kind == "Subgraph":
            names = str(info["originalLayersNames"].value).split(",")
            inner = [operators[name] for name in names if name in operators]
            if inner := [op for op in inner if op not in _BOUNDARY | _MOVES]:
                found.append(FloatNode(node.get_friendly_name(), "+".join(inner)))
            continue
        if precision.lower() in ("i8", "u8"):
            integer[kind] += 1
        elif kind not in _MOVES:
            found.append(FloatNode(node.get_friendly_name(), kind))
    return Readback(f"OpenVINO {openvino.__version__}", dict(integer), tuple(found))


def _is_float(kind: int) -> bool:
    return kind in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


def _has_float_output(node: onnx.NodeProto) -> bool:
    """QGemm without the scale of its output (input 7) returns float."""
    return node.op_type == "QGemm" and (len(node.input) < 8 or not node.input[7])
