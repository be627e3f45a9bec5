"""Memory of the first NVIDIA GPU, read without a package: NVML, or the CUDA runtime on a Jetson."""

from __future__ import annotations

import ctypes
import ctypes.util
import sys

MB = 1_000_000
NVML = ("libnvidia-ml.so.1", "nvml.dll")
CUDART = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")


class _NvmlMemory(ctypes.Structure):
    _fields_ = (  # nvmlMemory_t
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


def used_mb(device: int = 0) -> float | None:
    """MB (10^6 bytes) in use on the GPU, by all processes; None where there is none to ask."""
    if sys.platform == "darwin":
        return None
    used = _nvml(device)
    return _cuda() if used is None else used


def growth_mb(before: float | None) -> float | None:
    """How much more is in use than ``before``; None where that cannot be said."""
    now = used_mb()
    return None if now is None or before is None else round(now - before, 1)


def _nvml(device: int) -> float | None:
    library = _load(NVML)
    if library is None or library.nvmlInit_v2() != 0:
        return None
    try:
        handle, memory = ctypes.c_void_p(), _NvmlMemory()
        if library.nvmlDeviceGetHandleByIndex_v2(device, ctypes.byref(handle)) != 0:
            return None
        if library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) != 0:
            return None  # a Jetson: its memory is the system's, and NVML does not speak of it
        return int(memory.used) / MB
    finally:
        library.nvmlShutdown()


def _cuda() -> float | None:
    """``cudaMemGetInfo``; it makes a context, so it is asked only where NVML has no answer."""
    library = _load(CUDART)
    if library is None:
        return None
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    if library.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)) != 0:
        return None
    return (total.value - free.value) / MB


def _load(names: tuple[str, ...]) -> ctypes.CDLL | None:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None
