"""OpenVINO: CPU, and GPU and NPU by name."""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from edgecv.errors import BackendUnavailable, RuntimeFailure
from edgecv.onnxgraph import Symbols, read_ends
from edgecv.runtimes.base import Array, Backend, Compute, Opened, Probe, RuntimeInfo
from edgecv.runtimes.filecheck import content_folder
from edgecv.runtimes.library import import_library
from edgecv.spec import TensorSpec

# OpenVINO's names of element types -> NumPy's
DTYPES = {
    "f32": "float32",
    "f16": "float16",
    "f64": "float64",
    "u8": "uint8",
    "i8": "int8",
    "i32": "int32",
    "i64": "int64",
    "boolean": "bool",
}
PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}
HINTS = {"bf16": "bf16", "fp16": "f16"}  # of a precision that the user named; otherwise f32
# Kinds of layers that do nearly all of the arithmetic, as runtime models spell them
HEAVY = {
    "Convolution",
    "Deconvolution",
    "GroupConvolution",
    "BinaryConvolution",
    "FullyConnected",
    "MatMul",
    "LSTMCell",
    "GRUCell",
    "RNNCell",
    "RNNSeq",
    "ScaledDotProductAttention",
}
FALLING_BACK = ("AUTO", "MULTI", "HETERO", "BATCH")  # devices that choose others behind one's back


class OvBackend(Backend):
    """One compiled model, and as many infer requests as threads ask for at a time.

    FP32 files compute in FP32: OpenVINO's own default is BF16 on CPUs that have it. ``run``
    returns new arrays each time. ``info.precision`` is the runtime precision of each layer, read
    from the compiled model; the hint says nothing of what was made of it.
    """

    name: ClassVar[str] = "openvino"

    @classmethod
    def probe(cls) -> Probe:
        try:
            openvino = import_library("openvino", "Core")
            core = openvino.Core()
            devices = tuple(core.available_devices)
        except (BackendUnavailable, RuntimeError) as error:
            return Probe(False, reason=_message(error), remedy="pip install 'edgecv[openvino]'")
        found: dict[str, None] = {}
        for device in devices:
            with contextlib.suppress(RuntimeError):  # a broken driver of another device
                for capability in core.get_property(device, "OPTIMIZATION_CAPABILITIES"):
                    if (name := capability.lower()) in ("fp32", "bf16", "fp16", "int8"):
                        found[name] = None
        usable = bool(devices)
        return Probe(
            usable,
            version=openvino.__version__.partition("-")[0],
            reason="" if usable else "OpenVINO finds no device, not even the CPU",
            devices=devices,
            precisions=tuple(sorted(found)),
        )

    def _open(self) -> Opened:
        import openvino as ov

        core = ov.Core()
        device = self._device(core.available_devices)
        settings = {
            "INFERENCE_PRECISION_HINT": HINTS.get(self.options.precision or "", "f32"),
            "NUM_STREAMS": str(self.options.streams),
        }
        if device == "CPU":
            settings["INFERENCE_NUM_THREADS"] = str(self.options.resolved_threads)
        if self.options.cache_dir is not None:
            # a folder per content: OpenVINO's key is the path, the size and the time of the file
            settings["CACHE_DIR"] = str(content_folder(Path(self.options.cache_dir), self.file))
        try:
            compiled = core.compile_model(str(self.file), device, settings)
        except RuntimeError as error:
            raise RuntimeFailure(
                f"{self.path}: OpenVINO {ov.__version__} refuses this file: {_message(error)}"
            ) from error
        self._compiled: ov.CompiledModel | None = compiled
        self._idle: deque[Any] = deque()  # infer requests; append and pop are atomic
        self._bound: deque[_Binding] = deque()  # those of run_into
        # a port answers to several names, those of casts and folded nodes beside it among them
        taken, given = read_ends(self.path)
        inputs = tuple(_tensor(port, taken) for port in compiled.inputs)
        outputs = tuple(_tensor(port, given) for port in compiled.outputs)
        self._ports = {tensor.name: index for index, tensor in enumerate(inputs)}
        self._results = {tensor.name: index for index, tensor in enumerate(outputs)}
        threads = compiled.get_property("INFERENCE_NUM_THREADS") if device == "CPU" else 0
        return Opened(
            inputs,
            outputs,
            RuntimeInfo(
                backend=self.name,
                version=ov.__version__.partition("-")[0],
                device=device,
                threads=int(threads),
                read=self._read,
            ),
        )

    def _device(self, available: list[str]) -> str:
        device = str(self.options.device or "CPU").upper()
        if device.partition(":")[0] in FALLING_BACK:
            raise BackendUnavailable(
                f"openvino: device {device} may run the model anywhere; name one of "
                f"{', '.join(available)}"
            )
        if device not in available and f"{device}.0" not in available:
            raise BackendUnavailable(
                f"openvino: there is no device {device} here, only {', '.join(available)}; install "
                f"its driver (OpenVINO's documentation, 'Configurations for Intel GPU' or 'NPU')"
            )
        return device

    def _read(self) -> Compute:
        if self._compiled is None:
            raise RuntimeFailure(f"{self.path.name}: read info.precision before close()")
        counts: Counter[str] = Counter()
        for layer in self._compiled.get_runtime_model().get_ops():
            facts = layer.get_rt_info()
            if _text(facts["layerType"]) in HEAVY:
                precision = _text(facts["runtimePrecision"])
                counts[PRECISIONS.get(precision, precision)] += 1
        devices = self._compiled.get_property("EXECUTION_DEVICES")
        return Compute(", ".join(devices), dict(counts.most_common()))

    def _request(self) -> Any:
        try:
            return self._idle.pop()
        except IndexError:
            assert self._compiled is not None  # run() refuses closed backends
            return self._compiled.create_infer_request()

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        request = self._request()
        try:
            # outputs are copied: a request's own memory is overwritten by its next run
            results = request.infer(feeds, share_inputs=True, share_outputs=False)
            return dict(zip(self._results, results.values(), strict=True))
        except RuntimeError as error:
            raise RuntimeFailure(f"{self.path}: OpenVINO: {_message(error)}") from error
        finally:
            self._idle.append(request)

    def _run_into(self, feeds: Mapping[str, Array], buffers: Mapping[str, Array]) -> None:
        try:
            binding = self._bound.pop()
        except IndexError:
            assert self._compiled is not None  # run_into() refuses closed backends
            binding = _Binding(self._compiled.create_infer_request(), self._ports, self._results)
        try:
            binding.run(feeds, buffers)
        except RuntimeError as error:
            raise RuntimeFailure(f"{self.path}: OpenVINO: {_message(error)}") from error
        self._bound.append(binding)  # not one that failed: it may hold half of other buffers

    def _run_many(self, many: Iterator[Mapping[str, Array]]) -> Iterator[dict[str, Array]]:
        assert self._compiled is not None
        count = max(2, int(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")))
        pending: deque[tuple[Any, Mapping[str, Array]]] = deque()
        try:
            for feeds in many:
                if len(pending) == count:
                    yield self._finish(*pending.popleft())
                request = self._request()
                request.start_async(feeds, share_inputs=True)
                pending.append((request, feeds))
            while pending:
                yield self._finish(*pending.popleft())
        except RuntimeError as error:
            raise RuntimeFailure(f"{self.path}: OpenVINO: {_message(error)}") from error
        finally:
            for request, _ in pending:  # the caller has stopped early, or something failed
                request.wait()

    def _finish(self, request: Any, feeds: Mapping[str, Array]) -> dict[str, Array]:
        request.wait()  # until then `feeds` keeps the memory alive that the request reads
        answer = {
            name: request.get_output_tensor(index).data.copy()
            for name, index in self._results.items()
        }
        self._idle.append(request)
        return answer

    def _close(self) -> None:
        self._idle.clear()
        self._bound.clear()
        self._compiled = None


class _Binding:
    """An infer request that reads and writes the caller's own memory.

    Binding costs more than a small net does: a caller who comes with the same arrays again, as one
    who owns buffers will, pays for it once. Until others come, these arrays are kept alive.
    """

    def __init__(self, request: Any, ports: Mapping[str, int], results: Mapping[str, int]) -> None:
        self._request, self._ports, self._results = request, ports, results
        self._bound: tuple[dict[str, Array], dict[str, Array]] = ({}, {})
        self._shapes: list[tuple[int, ...]] = []

    def run(self, feeds: Mapping[str, Array], buffers: Mapping[str, Array]) -> None:
        shapes = [array.shape for array in (*feeds.values(), *buffers.values())]
        # what cannot be written to cannot be shared with OpenVINO either: it is copied, each time
        shared = all(array.flags.writeable for array in feeds.values())
        known = (
            shared
            and shapes == self._shapes
            and all(
                bound.get(name) is array
                for bound, arrays in zip(self._bound, (feeds, buffers), strict=True)
                for name, array in arrays.items()
            )
        )
        if not known:
            self._bind(feeds, buffers)
        self._request.infer()
        if not known:
            self._check(buffers)
            self._bound, self._shapes = (dict(feeds), dict(buffers)), shapes

    def _bind(self, feeds: Mapping[str, Array], buffers: Mapping[str, Array]) -> None:
        import openvino as ov

        for name, array in feeds.items():
            tensor = ov.Tensor(array, shared_memory=bool(array.flags.writeable))
            self._request.set_input_tensor(self._ports[name], tensor)
        for name, array in buffers.items():
            self._request.set_output_tensor(
                self._results[name], ov.Tensor(array, shared_memory=True)
            )

    def _check(self, buffers: Mapping[str, Array]) -> None:
        """OpenVINO reshapes a buffer that is too large, and says nothing."""
        for name, array in buffers.items():
            shape = tuple(self._request.get_output_tensor(self._results[name]).shape)
            if shape != array.shape:
                raise RuntimeFailure(
                    f"output {name!r} is {list(shape)} for these feeds, its buffer "
                    f"{list(array.shape)}"
                )


def _tensor(port: Any, declared: Mapping[str, Symbols]) -> TensorSpec:
    """A port under the names that the file has for it and its sizes, which OpenVINO drops."""
    known = port.get_names()
    name = next((n for n in declared if n in known), None) or port.get_any_name()
    element = port.get_element_type().get_type_name()
    if element not in DTYPES:
        raise RuntimeFailure(f"tensor {name!r} is of {element}; EdgeCV runs plain tensors")
    symbols = dict(enumerate(declared.get(name, ())))
    shape = tuple(
        size.get_length() if size.is_static else symbols.get(axis) or f"{name}_{axis}"
        for axis, size in enumerate(port.get_partial_shape())
    )
    return TensorSpec(name, shape, DTYPES[element])


def _text(value: Any) -> str:
    """A runtime model's fact: newer versions give a string, older ones an OVAny."""
    return value if isinstance(value, str) else str(value.astype(str))


def _message(error: Exception) -> str:
    """OpenVINO's message on one line, without the C++ positions in it."""
    lines = [line for line in str(error).splitlines() if "src/" not in line]
    return " ".join(" ".join(lines or [str(error)]).split())[:600]
