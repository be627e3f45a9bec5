"""The few calls of the CUDA runtime that a backend needs, through cuda-python.

NVIDIA's package gives each call's result as ``(error, value...)``; here an error is an exception.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import BackendUnavailable, RuntimeFailure

REMEDY = (
    "install NVIDIA's driver, and cuda-python of its CUDA version: 'edgecv[tensorrt-cu12]' or "
    "'edgecv[tensorrt-cu13]'"
)


def bindings() -> Any:
    """cuda-python's runtime module; its place moved in 12.6."""
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise BackendUnavailable(f"the package cuda-python is not installed; {REMEDY}")


class Cuda:
    """One GPU: its memory and its streams. Raises :class:`BackendUnavailable` where it has none."""

    def __init__(self, device: int = 0) -> None:
        self.api = bindings()
        try:
            (count,) = self.call(self.api.cudaGetDeviceCount)
        except RuntimeFailure as error:
            raise BackendUnavailable(f"there is no usable CUDA here: {error}; {REMEDY}") from error
        if device >= count:
            raise BackendUnavailable(f"there is no GPU {device} here, only {count} of them")
        self.device = device
        kinds = self.api.cudaDeviceAttr
        capability = (
            kinds.cudaDevAttrComputeCapabilityMajor,
            kinds.cudaDevAttrComputeCapabilityMinor,
        )
        try:
            self.use()
            found = [self.call(self.api.cudaDeviceGetAttribute, one, device) for one in capability]
        except RuntimeFailure as error:
            raise BackendUnavailable(f"GPU {device} cannot be used: {error}") from error
        self.gpu = "sm" + "".join(str(value) for (value,) in found)

    def call(self, function: Any, *arguments: Any) -> tuple[Any, ...]:
        """The values that ``function`` gives; its error as a :class:`RuntimeFailure`."""
        try:
            error, *values = function(*arguments)
        except RuntimeError as missing:  # cuda-python loads the driver's functions when called
            raise RuntimeFailure(str(missing)) from missing
        if int(error) != 0:
            text = self.api.cudaGetErrorString(error)[1]
            raise RuntimeFailure(f"{error.name} ({text.decode() if text else '?'})")
        return tuple(values)

    def use(self) -> None:
        """Make this GPU the one of the calling thread."""
        self.call(self.api.cudaSetDevice, self.device)

    def stream(self) -> Any:
        return self.call(self.api.cudaStreamCreate)[0]

    def allocate(self, size: int) -> int:
        return int(self.call(self.api.cudaMalloc, max(size, 1))[0])

    def free(self, pointer: int) -> None:
        self.call(self.api.cudaFree, pointer)

    def upload(self, array: NDArray[Any], pointer: int, stream: Any) -> None:
        kind = self.api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call(self.api.cudaMemcpyAsync, pointer, array.ctypes.data, array.nbytes, kind, stream)

    def download(self, pointer: int, array: NDArray[Any], stream: Any) -> None:
        kind = self.api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call(self.api.cudaMemcpyAsync, array.ctypes.data, pointer, array.nbytes, kind, stream)

    def wait(self, stream: Any) -> None:
        self.call(self.api.cudaStreamSynchronize, stream)

    @contextlib.contextmanager
    def capture(self, stream: Any, into: list[Any]) -> Any:
        """Record what the block enqueues as a graph, which is appended to ``into``."""
        mode = self.api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call(self.api.cudaStreamBeginCapture, stream, mode)
        try:
            yield
        finally:
            (graph,) = self.call(self.api.cudaStreamEndCapture, stream)
        (executable,) = self.call(self.api.cudaGraphInstantiate, graph, 0)
        self.call(self.api.cudaGraphDestroy, graph)
        into.append(executable)

    def replay(self, graph: Any, stream: Any) -> None:
        self.call(self.api.cudaGraphLaunch, graph, stream)


class DeviceBuffer:
    """Memory on a GPU that grows when it must, and is freed by :meth:`close`."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda, self.pointer, self.size = cuda, 0, 0

    def reserve(self, size: int) -> int:
        """At least ``size`` bytes; the pointer to them. What was in it is lost when it grows."""
        if size > self.size or not self.pointer:
            self.close()
            self.pointer, self.size = self._cuda.allocate(size), size
        return self.pointer

    def close(self) -> None:
        if self.pointer:
            self._cuda.free(self.pointer)
            self.pointer = self.size = 0


def bytes_of(shape: tuple[int, ...], dtype: str) -> int:
    """The bytes of a dense tensor."""
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
