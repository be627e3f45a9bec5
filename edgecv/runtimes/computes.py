"""In which type an ONNX graph computes: read from the graph that a runtime made of the file."""

from __future__ import annotations

from collections import Counter

from edgecv.onnxgraph import OnnxGraph
from edgecv.onnxproto import ELEMENT_TYPES

# types of tensors -> the names that contracts use
_PRECISIONS = {
    ELEMENT_TYPES[name]: precision
    for name, precision in {
        "float32": "fp32", "float16": "fp16", "float64": "fp64", "bfloat16": "bf16",
        "uint8": "int8", "int8": "int8",
    }.items()
}  # fmt: skip
# Operators that do nearly all of the arithmetic; a net computes in the type that these have
HEAVY = (
    "Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "ConvInteger", "Gemm", "FusedGemm",
    "MatMul", "FusedMatMul", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QGemm",
    "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearConvTranspose", "LSTM", "GRU",
    "Attention", "MultiHeadAttention", "MatMulNBits",
)  # fmt: skip
INTEGER_PREFIXES = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul")


def compute_types(graph: OnnxGraph) -> dict[str, int]:
    """How many of the :data:`HEAVY` nodes compute in which precision, most frequent first."""
    counts: Counter[str] = Counter()
    # the casts that a runtime puts in have no value_info
    types = graph.types | {
        name: node.ints["to"]
        for node in graph.nodes
        if node.op == "Cast" and "to" in node.ints
        for name in node.outputs
    }
    for node in graph.nodes:
        if node.op not in HEAVY:
            continue
        if node.op.startswith(INTEGER_PREFIXES):
            counts["int8"] += 1
            continue
        # the weight's type, where known: activations may still carry the type that the file
        # gave them before the runtime put casts around this node
        known = [types[name] for name in (*node.inputs[1::-1], *node.outputs) if name in types]
        counts[_PRECISIONS.get(known[0], f"type {known[0]}") if known else "unknown"] += 1
    return dict(counts.most_common())
