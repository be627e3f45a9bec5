"""What each runtime wants to see in a file: one explicit policy per target.

The rules come from the runtimes' own sources and were read back from their optimized graphs:
onnxruntime fuses a Conv only where every input has a DequantizeLinear and every consumer of its
output is a QuantizeLinear (``core/optimizer/qdq_transformer``); OpenVINO's low-precision passes
take the same files; TensorRT refuses zero points and int32 biases, and wants the residual input
of an Add quantized so that the Add goes into the convolution.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from edgecv.errors import InputError

# Operators that move values without changing them: output and input share one scale
PASS_THROUGH = frozenset(
    {"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze", "MaxPool", "Slice", "Split",
     "DepthToSpace", "SpaceToDepth", "Gather", "Identity"}
)  # fmt: skip
VNNI = frozenset({"avx512_vnni", "avx_vnni"})  # U8 x S8 summed in 32 bits
MAC = frozenset({"Conv", "Gemm", "MatMul"})  # where the multiply-adds are


@dataclass(frozen=True)
class Policy:
    """How a graph is quantized for one target.

    ``operators`` are quantized where their inputs are; the others compute in float between
    DequantizeLinear and QuantizeLinear. ``fused_activations`` vanish into the operator before
    them. ``conv_output``: whether a Conv must be followed by a QuantizeLinear to run in INT8.
    ``add_input``: an Add's non-residual input stays unquantized so that it fuses with its Conv.
    """

    name: str
    backend: str | None  # that runs such files, as `edgecv backends` names it; None: not here
    activations: str  # "uint8" or "int8"
    symmetric: bool  # zero points are 0
    bias: str  # "int32" or "float32"
    operators: frozenset[str]
    fused_activations: frozenset[str] = frozenset({"Relu", "Clip"})
    weight_bits: int = 8
    conv_output: bool = True
    fuse_add: bool = False

    @property
    def activation_range(self) -> tuple[int, int]:
        """Smallest and largest integer of an activation."""
        return (0, 255) if self.activations == "uint8" else (-128, 127)

    @property
    def weight_max(self) -> int:
        """Largest integer of a weight; weights are symmetric, the smallest is its negative."""
        return int(2 ** (self.weight_bits - 1) - 1)


_ORT = MAC | {"Add", "Mul", "GlobalAveragePool", "AveragePool", "Concat", "Resize", "Sigmoid",
              "LeakyRelu"}  # fmt: skip

POLICIES = {
    policy.name: policy
    for policy in (
        Policy("onnxruntime-x86", "onnxruntime", "uint8", False, "int32", _ORT),
        # vpmaddubsw adds two U8 x S8 products in 16 bits: with 7-bit weights they cannot overflow
        Policy("onnxruntime-x86-avx2", "onnxruntime", "uint8", False, "int32", _ORT,
               weight_bits=7),
        Policy("onnxruntime-arm", "onnxruntime", "uint8", False, "int32", _ORT),
        Policy("openvino", "openvino", "uint8", False, "int32", _ORT),
        Policy("tensorrt", "tensorrt-rtx", "int8", True, "float32",
               MAC | {"Add", "GlobalAveragePool", "AveragePool", "Mul", "Concat", "Resize"},
               conv_output=False, fuse_add=True),
    )
}  # fmt: skip


def policy_for(target: str) -> Policy:
    """The policy named ``target``."""
    if target not in POLICIES:
        raise InputError(f"there is no target {target!r}; expected one of {', '.join(POLICIES)}")
    return POLICIES[target]


def onnxruntime_target(architecture: str, simd: Collection[str]) -> str:
    """onnxruntime's target on a CPU of ``architecture`` with the instruction sets ``simd``."""
    if architecture.lower() in ("aarch64", "arm64"):
        return "onnxruntime-arm"
    return "onnxruntime-x86" if VNNI & set(simd) else "onnxruntime-x86-avx2"
