"""ONNX Runtime on NVIDIA GPUs: the CUDA and the TensorRT execution providers.

onnxruntime falls back to the CPU without an error, and ``get_providers()`` lists what is
registered, not what runs. So one run is profiled when the model is opened, and the provider of
every node that ran is read from the profile.
"""

from __future__ import annotations

import ctypes
import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar

import numpy as np

from edgecv.errors import BackendUnavailable, InputError, RuntimeFailure
from edgecv.runtimes.base import Array, Backend, Compute, Opened, Probe, RuntimeInfo, RuntimeOptions
from edgecv.runtimes.computes import HEAVY, INTEGER_PREFIXES
from edgecv.runtimes.filecheck import content_folder
from edgecv.runtimes.ort import (
    CPU,
    DTYPES,
    OrtBackend,
    message,
    open_session,
    session_options,
    tensor_of,
)
from edgecv.runtimes.trt_cache import default_cache
from edgecv.spec import TensorSpec

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
REMEDY = (
    "pip uninstall onnxruntime; pip install 'edgecv[onnxruntime-gpu]' (both are one package; on a "
    "Jetson take NVIDIA's wheel for its JetPack)"
)
TF32_SWITCH = "NVIDIA_TF32_OVERRIDE"
PRECISIONS = {"float32": "fp32", "float16": "fp16", "float64": "fp64"}


class OrtCudaBackend(OrtBackend):
    """The CUDA execution provider. ``run`` returns new arrays each time.

    Nodes that onnxruntime keeps on the CPU by design (sizes and indices) may stay there; a
    convolution or a product there is an error. TF32 is off unless ``precision="tf32"``.
    """

    name: ClassVar[str] = "onnxruntime-cuda"
    provider: ClassVar[str] = CUDA
    memory: ClassVar[str] = "cuda"  # onnxruntime's name of the device
    _graph: FixedMemory | None = None  # where a CUDA graph is replayed

    @classmethod
    def probe(cls) -> Probe:
        base = super().probe()
        if not base.usable:
            return base
        import onnxruntime as ort

        available = ort.get_available_providers()
        if cls.provider not in available:
            return Probe(
                False,
                version=base.version,
                reason=f"onnxruntime {base.version} was built without {cls.provider}, it has "
                f"{', '.join(available)}",
                remedy=REMEDY,
            )
        if reason := _library_problem(cls.provider):
            return Probe(
                False,
                version=base.version,
                reason=reason,
                remedy="install the CUDA and cuDNN that this onnxruntime was built for "
                "(onnxruntime's documentation, 'CUDA Execution Provider', has the table)",
            )
        return Probe(True, base.version, devices=("GPU",), precisions=("fp32", "fp16"))

    def _providers(self, options: RuntimeOptions) -> list[Any]:
        settings = {
            "device_id": str(options.gpu_index),
            "use_tf32": "1" if options.precision == "tf32" else "0",
        }
        if options.cuda_graph:
            settings["enable_cuda_graph"] = "1"
        return [(CUDA, settings), CPU]

    def _open(self) -> Opened:
        import onnxruntime as ort

        if self.options.precision == "tf32" and os.environ.get(TF32_SWITCH) == "0":
            raise BackendUnavailable(
                f"precision tf32 was asked for, and TF32 is off in this process ({TF32_SWITCH}=0, "
                f"set outside or by an earlier session of onnxruntime-tensorrt); use a process of "
                f"its own"
            )
        if hasattr(ort, "preload_dlls"):  # 1.21: finds CUDA in NVIDIA's Python packages
            ort.preload_dlls()
        providers = self._providers(self.options)
        settings = session_options(self.options)
        if self.options.cuda_graph:
            for symbol, (_, usual, _) in self.options.shapes.items():
                settings.add_free_dimension_override_by_name(symbol, usual)
        try:
            session = open_session(self.file, settings, providers)
        except RuntimeFailure as error:
            open_session(self.file, settings, [CPU])  # or the file is what is wrong
            raise BackendUnavailable(
                f"backend {self.name!r}: {self.provider} could not be started ({error}); see "
                f"`edgecv doctor`"
            ) from error
        if self.provider not in session.get_providers():
            reason = _library_problem(self.provider) or "onnxruntime did not say why"
            raise BackendUnavailable(
                f"backend {self.name!r}: {self.provider} could not be started ({reason}); see "
                f"`edgecv doctor`"
            )
        inputs = tuple(map(tensor_of, session.get_inputs()))
        outputs = tuple(map(tensor_of, session.get_outputs()))
        plain = providers
        if self.options.cuda_graph:  # one run shows nothing of a recording
            plain = self._providers(replace(self.options, cuda_graph=False))
        ran = profile_nodes(self.file, self.options, plain, inputs)
        compute = self._check(ran)
        if self.options.cuda_graph:
            place = (self.memory, self.options.gpu_index)
            self._graph = FixedMemory(session, inputs, outputs, place, self.path)
            if inputs and inputs[0].shape and isinstance(size := inputs[0].shape[0], int):
                self.batch_range = size, size
        self._session = session
        self._names = [output.name for output in session.get_outputs()]
        return Opened(
            inputs=inputs,
            outputs=outputs,
            info=RuntimeInfo(
                backend=self.name,
                version=ort.__version__,
                device=f"GPU {self.options.gpu_index}",
                threads=self.options.resolved_threads,
                read=lambda: compute,
            ),
        )

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if self._graph is None:
            return super()._run(feeds)
        try:
            return self._graph.run(feeds)
        except Exception as error:
            raise RuntimeFailure(f"{self.path}: onnxruntime: {message(error)}") from error

    def _run_into(self, feeds: Mapping[str, Array], buffers: Mapping[str, Array]) -> None:
        if self._graph is None:
            super()._run_into(feeds, buffers)
        else:  # the graph knows its own memory only
            Backend._run_into(self, feeds, buffers)

    def _close(self) -> None:
        self._graph = None
        super()._close()

    def _check(self, ran: list[NodeRun]) -> Compute:
        """The compute that the profile shows; arithmetic on the CPU is an error."""
        strays = [node for node in ran if node.provider == CPU and node.op_type in HEAVY]
        if strays or not any(node.provider == self.provider for node in ran):
            kinds = Counter(node.op_type for node in strays)
            what = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "everything"
            raise BackendUnavailable(
                f"{self.path}: onnxruntime runs {what} of it on the CPU, not by {self.provider}; "
                f"run it with backend onnxruntime, or export those operators differently"
            )
        places = Counter(node.provider for node in ran)
        text = ", ".join(f"{name} ({count} nodes)" for name, count in places.most_common())
        heavy = Counter(
            node.precision for node in ran if node.op_type in HEAVY or node.provider == TENSORRT
        )
        if self.options.precision == "tf32" and "fp32" in heavy:
            heavy["tf32"] = heavy.pop("fp32")
        return Compute(text, dict(heavy.most_common()))

    def run_on_device(self, feeds: Mapping[str, Array]) -> dict[str, Any]:
        """As :meth:`run`, and the answers stay on the GPU, as onnxruntime's ``OrtValue``.

        For callers who go on computing there: ``value.data_ptr()``, ``value.shape()``.
        """
        self._validate(feeds, self._expected, "input")
        if self._graph is not None:
            raise InputError(
                f"{self.path.name}: answers of a CUDA graph lie in memory that its next run "
                f"overwrites; leave cuda_graph out to keep them on the GPU"
            )
        self._enter()
        try:
            assert self._session is not None  # _enter() refuses closed backends
            binding = self._session.io_binding()
            for name, array in feeds.items():
                binding.bind_cpu_input(name, array)
            for name in self._names:
                binding.bind_output(name, self.memory, self.options.gpu_index)
            self._session.run_with_iobinding(binding)
            return dict(zip(self._names, binding.get_outputs(), strict=True))
        except Exception as error:
            raise RuntimeFailure(f"{self.path}: onnxruntime: {message(error)}") from error
        finally:
            self._in_flight.leave()


class OrtTensorRtBackend(OrtCudaBackend):
    """The TensorRT execution provider; what TensorRT cannot do runs by CUDA.

    Engines and kernel timings are kept in the cache folder: the first start takes minutes.
    """

    name: ClassVar[str] = "onnxruntime-tensorrt"
    provider: ClassVar[str] = TENSORRT
    has_dla: ClassVar[bool] = True

    def _providers(self, options: RuntimeOptions) -> list[Any]:
        tf32 = options.precision == "tf32"
        if not tf32:
            # The provider has no option for it and TensorRT's default is on; NVIDIA's libraries
            # read this variable when they start, which they do with the first session
            os.environ[TF32_SWITCH] = "0"
        # a folder per content: the provider's key is made of the names in the graph, so that it
        # gives the engine of one training to the file of the next
        base = Path(options.cache_dir) if options.cache_dir else default_cache() / "onnxruntime"
        folder = content_folder(base, self.file, "-tf32" if tf32 else "")
        settings = {
            "device_id": str(options.gpu_index),
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(folder),
        }
        if options.cuda_graph:
            settings["trt_cuda_graph_enable"] = "1"
        if options.dla_core:
            # github.com/microsoft/onnxruntime issue 26680: engines run on core 0, whatever is asked
            raise BackendUnavailable(
                f"backend {self.name!r}: onnxruntime runs engines on DLA core 0 only, and "
                f"{options.dla_core} was asked for; use backend tensorrt"
            )
        if options.dla_core is not None:
            settings |= {"trt_dla_enable": "1", "trt_dla_core": str(options.dla_core)}
        return [(TENSORRT, settings), *super()._providers(options)]


class FixedMemory:
    """A session's inputs and outputs at addresses that stay: a CUDA graph is a recording of them.

    With inputs anywhere else a graph answers what lay at its own addresses, the picture of an
    earlier run. One run at a time. Raises :class:`~edgecv.errors.InputError` for symbolic sizes.
    """

    def __init__(
        self,
        session: Any,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        place: tuple[str, int],
        path: Path,
    ) -> None:
        from onnxruntime import OrtValue

        self._lock, self._session, self._binding = Lock(), session, session.io_binding()
        values: dict[str, Any] = {}
        for tensor in (*inputs, *outputs):
            if symbols := [size for size in tensor.shape if isinstance(size, str)]:
                raise InputError(
                    f"{path}: cuda_graph needs fixed sizes, and {tensor.name!r} has "
                    f"{', '.join(symbols)}; give each by RuntimeOptions(shapes="
                    f"{{{symbols[0]!r}: (1, 1, 1)}}), or export the model with fixed sizes"
                )
            values[tensor.name] = OrtValue.ortvalue_from_shape_and_type(
                list(tensor.shape), np.dtype(tensor.dtype).type, *place
            )
        self._inputs = {tensor.name: values[tensor.name] for tensor in inputs}
        self._outputs = {tensor.name: values[tensor.name] for tensor in outputs}
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        with self._lock:
            for name, value in self._inputs.items():
                value.update_inplace(feeds[name])
            self._session.run_with_iobinding(self._binding)
            return {name: np.array(value.numpy()) for name, value in self._outputs.items()}


@dataclass(frozen=True)
class NodeRun:
    """A node as it ran: its operator, who executed it, and in which precision."""

    op_type: str
    provider: str
    precision: str


def profile_nodes(
    path: Path, options: RuntimeOptions, providers: list[Any], inputs: tuple[TensorSpec, ...]
) -> list[NodeRun]:
    """The nodes of one run on zeros, from onnxruntime's own profile, in the order they ran.

    Symbolic sizes are those of ``options.shapes``, else 1 for the batch and 224 for the rest.
    """
    with tempfile.TemporaryDirectory(prefix="edgecv-") as folder:
        settings = session_options(options)
        settings.enable_profiling = True
        settings.profile_file_prefix = str(Path(folder) / "profile")
        session = open_session(path, settings, providers)
        try:
            session.run(None, {tensor.name: _zeros(tensor, options) for tensor in inputs})
        except Exception as error:
            raise InputError(
                f"{path}: a trial run failed; give the sizes of its inputs by "
                f"RuntimeOptions(shapes=...): {message(error)}"
            ) from error
        events = json.loads(Path(session.end_profiling()).read_text())
    return [
        _node_run(event["args"])
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]


def _node_run(facts: Mapping[str, Any]) -> NodeRun:
    kind = facts["op_name"]
    if kind.startswith(INTEGER_PREFIXES):
        return NodeRun(kind, facts["provider"], "int8")
    # [{"float": [1, 3, 224, 224]}, ...], one per input, in order
    types = [name for entry in facts.get("input_type_shape", []) for name in entry]
    dtype = DTYPES.get(f"tensor({types[0]})", types[0]) if types else "unknown"
    return NodeRun(kind, facts["provider"], PRECISIONS.get(dtype, dtype))


def _zeros(tensor: TensorSpec, options: RuntimeOptions) -> Array:
    shape = []
    for axis, size in enumerate(tensor.shape):
        if isinstance(size, str):
            size = options.shapes[size][1] if size in options.shapes else (224 if axis else 1)
        shape.append(size)
    return np.zeros(shape, tensor.dtype)


def _library_problem(provider: str) -> str:
    """Why the provider's library does not load, in the loader's words; empty where it does."""
    import onnxruntime as ort

    stem = {CUDA: "cuda", TENSORRT: "tensorrt"}[provider]
    folder = Path(ort.__file__).parent / "capi"
    for name in (
        f"libonnxruntime_providers_{stem}.so",
        f"onnxruntime_providers_{stem}.dll",
    ):
        if (folder / name).exists():
            try:
                # the shared part must be there first, as it is when onnxruntime loads it
                shared = folder / name.replace(stem, "shared")
                ctypes.CDLL(str(shared), mode=ctypes.RTLD_GLOBAL)
                ctypes.CDLL(str(folder / name))
            except OSError as error:
                return str(error)
    return ""
