"""ONNX Runtime on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgecv.errors import BackendUnavailable, RuntimeFailure
from edgecv.onnxgraph import read_graph
from edgecv.runtimes.base import (
    Array,
    Backend,
    Compute,
    Opened,
    Probe,
    RuntimeInfo,
    RuntimeOptions,
)
from edgecv.runtimes.computes import compute_types
from edgecv.runtimes.library import import_library
from edgecv.spec import TensorSpec

if TYPE_CHECKING:
    import onnxruntime

# ONNX Runtime's names of tensor types -> NumPy's
DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
CPU = "CPUExecutionProvider"


class OrtBackend(Backend):
    """The CPU execution provider. ``run`` returns new arrays each time.

    ``info.precision`` comes from the graph as the runtime optimized it: a Q/DQ file whose pairs
    were not fused computes in FP32, and so does an FP16 file on a CPU without FP16 kernels.
    """

    name: ClassVar[str] = "onnxruntime"

    @classmethod
    def probe(cls) -> Probe:
        try:
            ort = import_library("onnxruntime", "InferenceSession")
        except BackendUnavailable as error:
            return Probe(False, reason=str(error), remedy="pip install 'edgecv[onnxruntime]'")
        return Probe(True, version=ort.__version__, devices=("CPU",), precisions=("fp32", "int8"))

    def _open(self) -> Opened:
        import onnxruntime as ort

        device = str(self.options.device or "CPU")
        if device.upper() != "CPU":
            raise BackendUnavailable(
                f"backend {self.name!r} computes on the CPU, and device {device} was asked for; "
                f"use openvino for Intel's devices, onnxruntime-cuda or tensorrt for NVIDIA's"
            )
        session = open_session(self.file, session_options(self.options), [CPU])
        self._session: ort.InferenceSession | None = session
        self._names = [output.name for output in session.get_outputs()]
        file, threads = self.file, self.options.resolved_threads
        return Opened(
            inputs=tuple(map(tensor_of, session.get_inputs())),
            outputs=tuple(map(tensor_of, session.get_outputs())),
            info=RuntimeInfo(
                backend=self.name,
                version=ort.__version__,
                device="CPU",
                threads=threads,
                read=lambda: Compute(CPU, optimized_types(file, threads)),
            ),
        )

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        assert self._session is not None  # run() refuses closed backends
        try:
            values = self._session.run(self._names, feeds)
        except Exception as error:  # pybind raises classes that share no base but Exception
            raise RuntimeFailure(f"{self.path}: onnxruntime: {message(error)}") from error
        return dict(zip(self._names, values, strict=True))

    def _run_into(self, feeds: Mapping[str, Array], buffers: Mapping[str, Array]) -> None:
        assert self._session is not None
        try:
            binding = self._session.io_binding()
            for name, array in feeds.items():
                binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            for name, array in buffers.items():
                binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise RuntimeFailure(f"{self.path}: onnxruntime: {message(error)}") from error

    def _close(self) -> None:
        self._session = None  # the session's memory goes with its last reference


def session_options(options: RuntimeOptions) -> onnxruntime.SessionOptions:
    """Threads and spinning as ``options`` says; errors only in the log."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.resolved_threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3  # errors; they come as exceptions as well
    spin = "1" if options.resolved_spin else "0"
    settings.add_session_config_entry("session.intra_op.allow_spinning", spin)
    return settings


def open_session(
    path: Path, settings: onnxruntime.SessionOptions, providers: list[Any]
) -> onnxruntime.InferenceSession:
    """A session on ``path``; what the runtime refuses is a :class:`RuntimeFailure`.

    Without onnxruntime's fallback: where a provider fails, to start or in the middle of a run, it
    would print so on stdout and go on with another, on the CPU in the end.
    """
    import onnxruntime as ort

    try:
        session = ort.InferenceSession(str(path), settings, providers=providers, enable_fallback=0)
        session.disable_fallback()  # versions that do not know the argument ignore it
        return session
    except Exception as error:
        raise RuntimeFailure(
            f"{path}: onnxruntime {ort.__version__} refuses this file: {message(error)}"
        ) from error


def optimized_types(path: Path, threads: int) -> dict[str, int]:
    """How many heavy nodes of ``path`` the CPU provider computes in which precision.

    A second session writes down the graph as it optimized it for this machine, which is the one
    that the first runs: optimization depends on the file, the machine and the version only.
    """
    settings = session_options(RuntimeOptions(threads=threads, spin=False))
    settings.log_severity_level = 4  # it warns that the file is for this machine only: it is
    with tempfile.TemporaryDirectory(prefix="edgecv-") as folder:
        optimized = Path(folder) / "optimized.onnx"
        settings.optimized_model_filepath = str(optimized)
        open_session(path, settings, [CPU])
        return compute_types(read_graph(optimized))


def tensor_of(node: Any) -> TensorSpec:
    """An input or output as the session describes it."""
    shape = tuple(
        size if isinstance(size, int) else str(size or f"{node.name}_{axis}")
        for axis, size in enumerate(node.shape)
    )
    if node.type not in DTYPES:
        raise RuntimeFailure(f"tensor {node.name!r} is a {node.type}; EdgeCV runs plain tensors")
    return TensorSpec(node.name, shape, DTYPES[node.type])


def message(error: Exception) -> str:
    """onnxruntime's message on one line."""
    return " ".join(str(error).split())[:600]
