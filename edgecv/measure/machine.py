"""What this machine is: the part of a record that makes two figures comparable."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgecv.measure.telemetry import settings
from edgecv.runtimes.hardware import nvidia_devices, physical_cores

# What the kernels of the runtimes ask for, as /proc/cpuinfo spells it (x86, then ARM)
SIMD = (
    "sse4_2", "avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8",
    "asimd", "asimddp", "i8mm", "fphp", "bf16",
)  # fmt: skip
PACKAGES = (
    "edgecv", "numpy", "Pillow", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt",
    "tensorrt-rtx", "torch", "onnx", "onnxscript", "onnx-ir", "onnxsim", "opencv-python-headless",
    "opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Machine, system and versions; what cannot be read is absent."""
    found: dict[str, Any] = {
        "cpu": cpu_model(),
        "board": _read("/proc/device-tree/model"),  # Raspberry Pi 5 Model B Rev 1.0
        "architecture": platform.machine(),
        "physical_cores": physical_cores(),
        "logical_cores": os.cpu_count(),
        "simd": list(simd_flags()),
        "memory_mb": memory_mb("MemTotal"),
        "swap_mb": memory_mb("SwapTotal"),
        **settings(),
        "gpus": nvidia_devices() or None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": installed(),
    }
    return {key: value for key, value in found.items() if value is not None}


def installed(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of those of ``packages`` that are installed."""
    versions = {}
    for package in packages:
        try:
            found = importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        versions[package] = _build_of_torch(found) if package == "torch" else found.version
    return versions


def _build_of_torch(found: importlib.metadata.Distribution) -> str:
    """2.13.0+cpu, 2.13.0+cu130: PyPI's CUDA build says so in the package alone, not in its name."""
    text = _read(str(found.locate_file("torch/version.py"))) or ""
    build = re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE)
    return build[1] if build else found.version


def cpu_model() -> str:
    for key in ("model name", "Model", "Hardware"):
        if value := _cpuinfo(key):
            return value
    return platform.processor() or "unknown"


def simd_flags() -> tuple[str, ...]:
    flags = set((_cpuinfo("flags") or _cpuinfo("Features") or "").split())
    return tuple(flag for flag in SIMD if flag in flags)


def memory_mb(key: str) -> int | None:
    """An entry of /proc/meminfo, in MB (10^6 bytes)."""
    for line in (_read("/proc/meminfo") or "").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024 // 1_000_000
    return None


def _cpuinfo(key: str) -> str | None:
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip("\0 \n")
    except OSError:
        return None
