"""Whether an INT8 file runs on what its target names.

An INT8 graph is laid out for one runtime on one kind of processor: elsewhere it may saturate (U8 x
S8 without VNNI sums in 16 bits), or stay in float, and its figures say nothing about the device.
"""

from __future__ import annotations

import platform
from collections.abc import Collection

from edgecv.measure.machine import simd_flags
from edgecv.spec import ModelSpec

# what a target's runtime is called among the backends
BACKENDS = {
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt-rtx", "onnxruntime-tensorrt"),
}
VNNI = ("avx512_vnni", "avx_vnni")
X86, ARM = ("x86_64", "amd64"), ("aarch64", "arm64")


def mismatch(
    spec: ModelSpec,
    backend: str,
    architecture: str | None = None,
    simd: Collection[str] | None = None,
) -> str | None:
    """Why this machine and backend are not the target of an INT8 file; None where they are.

    ``architecture`` and ``simd`` default to this machine's.
    """
    if spec.precision != "int8" or spec.target is None:
        return None
    target = spec.target
    machine = (architecture or platform.machine()).lower()
    flags = simd_flags() if simd is None else simd
    runtime = target.partition("-")[0]
    if backend not in BACKENDS.get(runtime, (runtime,)):
        return f"the file is for {target}, and runs on the backend {backend}"
    if target.startswith("onnxruntime-x86") and machine not in X86:
        return f"the file is for {target}, and this processor is {machine}"
    if target == "onnxruntime-arm" and machine not in ARM:
        return f"the file is for {target}, and this processor is {machine}"
    if target == "onnxruntime-x86" and not set(VNNI) & set(flags):
        return f"the file is for {target}, which needs VNNI: 16-bit sums saturate on this processor"
    return None
