"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from edgecv.errors import RuntimeFailure
from edgecv.runtimes.base import Array, Backend, Opened, Probe, RuntimeInfo
from edgecv.spec import TensorSpec

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


class OrtBackend(Backend):
    """The CPU execution provider. ``run`` returns new arrays each time."""

    name: ClassVar[str] = "onnxruntime"

    @classmethod
    def probe(cls) -> Probe:
        try:
            import onnxruntime
        except ImportError as error:
            return Probe(
                False,
                reason=f"the package onnxruntime does not import ({error})",
                remedy="pip install 'edgecv[onnxruntime]'",
            )
        return Probe(
            True, version=onnxruntime.__version__, devices=("CPU",), precisions=("fp32", "int8")
        )

    def _open(self) -> Opened:
        import onnxruntime as ort

        settings = ort.SessionOptions()
        settings.intra_op_num_threads = self.options.resolved_threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3  # errors; they come as exceptions as well
        spin = "1" if self.options.resolved_spin else "0"
        settings.add_session_config_entry("session.intra_op.allow_spinning", spin)
        try:
            session = ort.InferenceSession(
                str(self.path), settings, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # pybind raises classes that share no base but Exception
            raise RuntimeFailure(
                f"{self.path}: onnxruntime {ort.__version__} refuses this file: {_message(error)}"
            ) from error
        self._session: ort.InferenceSession | None = session
        self._names = [output.name for output in session.get_outputs()]
        return Opened(
            inputs=tuple(map(_tensor, session.get_inputs())),
            outputs=tuple(map(_tensor, session.get_outputs())),
            info=RuntimeInfo(
                backend=self.name,
                version=ort.__version__,
                provider=", ".join(session.get_providers()),
                device="CPU",
                precision="fp32",
                threads=self.options.resolved_threads,
            ),
        )

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        assert self._session is not None  # run() refuses closed backends
        try:
            values = self._session.run(self._names, feeds)
        except Exception as error:
            raise RuntimeFailure(f"{self.path}: onnxruntime: {_message(error)}") from error
        return dict(zip(self._names, values, strict=True))

    def _close(self) -> None:
        self._session = None  # the session's memory goes with its last reference


def _tensor(node: Any) -> TensorSpec:
    shape = tuple(
        size if isinstance(size, int) else str(size or f"{node.name}_{axis}")
        for axis, size in enumerate(node.shape)
    )
    if node.type not in DTYPES:
        raise RuntimeFailure(f"tensor {node.name!r} is a {node.type}; EdgeCV runs plain tensors")
    return TensorSpec(node.name, shape, DTYPES[node.type])


def _message(error: Exception) -> str:
    """onnxruntime's message without its prefix of status codes, on one line."""
    return " ".join(str(error).split())[:600]
