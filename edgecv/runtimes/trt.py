"""TensorRT and TensorRT-RTX: one implementation over two libraries of the same interface.

A file is an engine (``edgecv build``), or an ``.onnx``, whose engine is then taken from the cache
or built into it. CUDA memory and streams go through cuda-python; neither torch nor pycuda is
needed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgecv.enginefile import EngineHeader, is_engine, read_engine
from edgecv.errors import BackendUnavailable, EdgeCVError, RuntimeFailure
from edgecv.runtimes.base import Array, Backend, Compute, Opened, Probe, RuntimeInfo
from edgecv.runtimes.cuda import Cuda, DeviceBuffer, bytes_of
from edgecv.runtimes.trt_build import (
    MODULES,
    REMEDIES,
    ahead_of_time_gpus,
    check_gpus,
    library,
    plan_build,
)
from edgecv.runtimes.trt_cache import cached_engine
from edgecv.spec import TensorSpec


class TrtBackend(Backend):
    """An engine on one GPU. One run at a time: an execution context serves one thread.

    ``run`` returns new arrays each time. ``info.nodes`` are the network's own types: strongly
    typed engines may not deviate from them.
    """

    name: ClassVar[str] = "tensorrt"
    concurrent: ClassVar[bool] = False
    reads_onnx: ClassVar[bool] = False  # or an engine
    has_dla: ClassVar[bool] = True

    @classmethod
    def probe(cls) -> Probe:
        module = MODULES[cls.name]
        if importlib.util.find_spec(module) is None:
            reason = f"the package {module} is not installed"
            return Probe(False, reason=reason, remedy=REMEDIES[cls.name])
        try:
            trt = library(cls.name)
        except BackendUnavailable as error:  # installed, and does not load: say what was said
            return Probe(False, reason=str(error))
        version = str(trt.__version__)
        builds = ahead_of_time_gpus(trt)
        note = f"; engines can be built here for {', '.join(builds)}" if builds else ""
        try:
            cuda = Cuda()
        except BackendUnavailable as error:
            return Probe(False, version=version, reason=f"{error}{note}")
        precisions = ("fp32", "fp16", "int8")
        return Probe(True, version, devices=(f"GPU {cuda.gpu}",), precisions=precisions)

    def _open(self) -> Opened:
        trt = library(self.name)
        self._cuda = Cuda(self.options.gpu_index)
        header, engine = read_engine(self._engine_path())
        self._check(header, str(trt.__version__))
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime: Any = trt.Runtime(self._logger)
        if (core := self._dla_core(header)) is not None:
            self._runtime.DLA_core = core  # the engine does not say on which; without this, on 0
        self._engine: Any = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise RuntimeFailure(
                f"{self.path}: {self.name} {trt.__version__} does not load this engine; build it "
                f"again on this machine"
            )
        self._context: Any = self._engine.create_execution_context()
        if self._context is None:
            raise RuntimeFailure(f"{self.path}: the GPU has not enough memory for this engine")
        inputs, outputs = _specs(header.inputs), _specs(header.outputs)
        for tensor in inputs:
            if self._engine.get_tensor_location(tensor.name) != trt.TensorLocation.DEVICE:
                raise RuntimeFailure(f"{self.path}: input {tensor.name!r} holds a shape; export "
                                     "the model with that size fixed")  # fmt: skip
        self._stream = self._cuda.stream()
        self._buffers = {t.name: DeviceBuffer(self._cuda) for t in (*inputs, *outputs)}
        self._allocators = {t.name: _allocator(trt, self._buffers[t.name]) for t in outputs}
        self._graphs: dict[tuple[tuple[int, ...], ...], Any] = {}
        if inputs and (sizes := header.profile.get(str(next(iter(inputs[0].shape), "")))):
            self.batch_range = sizes[0], sizes[2]
        provider = f"{self.name} on {self._cuda.gpu}"
        return Opened(
            inputs,
            outputs,
            RuntimeInfo(
                backend=self.name,
                version=header.library_version,
                device=f"GPU {self._cuda.device} {self._cuda.gpu}",
                threads=1,
                read=lambda: Compute(provider, header.nodes),
            ),
        )

    def _engine_path(self) -> Path:
        if is_engine(self.path):
            return self.path
        gpus = (self._cuda.gpu,)
        check_gpus(self.name, gpus, self._cuda.gpu)
        return cached_engine(
            plan_build(self.name, self.path, gpus, self.options), self.path, self.options
        )

    def _check(self, header: EngineHeader, version: str) -> None:
        """An engine runs on the library, the version and the GPU that it was built for."""
        wanted = (header.backend, header.library_version)
        if wanted != (self.name, version):
            raise BackendUnavailable(
                f"{self.path}: this engine is for {' '.join(wanted)}, here is {self.name} "
                f"{version}; build it again from its .onnx file"
            )
        if self._cuda.gpu not in header.gpus:
            raise BackendUnavailable(
                f"{self.path}: this engine is for {', '.join(header.gpus)}, the GPU here is "
                f"{self._cuda.gpu}; build it for that one from its .onnx file"
            )

    def _dla_core(self, header: EngineHeader) -> int | None:
        """The DLA core to run on: the one that was asked for, or that of the build."""
        built: int | None = header.settings.get("dla_core")
        asked = self.options.dla_core
        if asked is not None and built is None:
            raise BackendUnavailable(
                f"{self.path}: dla_core={asked} was asked for, and this engine was built for the "
                f"GPU alone; build it with --dla-core {asked}"
            )
        return built if asked is None else asked

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self._cuda.use()  # the current GPU is a property of each thread
        shapes = tuple(feeds[tensor.name].shape for tensor in self.inputs)
        for tensor in self.inputs:
            array = feeds[tensor.name]
            pointer = self._buffers[tensor.name].reserve(array.nbytes)
            self._cuda.upload(array, pointer, self._stream)
            if not self._context.set_input_shape(tensor.name, array.shape):
                raise RuntimeFailure(
                    f"{self.path}: input {tensor.name!r} {list(array.shape)} lies outside of the "
                    f"sizes that this engine was built for; build it with a wider --shape"
                )
            self._context.set_tensor_address(tensor.name, pointer)
        known = self._place_outputs()
        if self.options.cuda_graph and known:
            self._replay(shapes)
        else:
            self._enqueue()
        answers: dict[str, Array] = {}
        if not known:  # shapes that depend on the data are known when the GPU is done
            self._cuda.wait(self._stream)
        for tensor in self.outputs:
            shape = tuple(self._context.get_tensor_shape(tensor.name))
            if min(shape, default=0) < 0:
                shape = self._allocators[tensor.name].shape
            answers[tensor.name] = np.empty(shape, tensor.dtype)
            self._cuda.download(
                self._buffers[tensor.name].pointer, answers[tensor.name], self._stream
            )
        self._cuda.wait(self._stream)
        return answers

    def _place_outputs(self) -> bool:
        """Memory for each output; False where TensorRT has to ask for some while it runs."""
        known = True
        for tensor in self.outputs:
            shape = tuple(self._context.get_tensor_shape(tensor.name))
            if min(shape, default=0) < 0:
                known = False
                self._context.set_output_allocator(tensor.name, self._allocators[tensor.name])
            else:
                pointer = self._buffers[tensor.name].reserve(bytes_of(shape, tensor.dtype))
                self._context.set_tensor_address(tensor.name, pointer)
        return known

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(int(self._stream)):
            raise RuntimeFailure(f"{self.path}: {self.name} failed to run the engine")

    def _replay(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Launch the recorded graph of these shapes; the first run goes without, the second is
        recorded: TensorRT sets itself up in the first, which a recording must not hold."""
        if shapes not in self._graphs:
            self._forget_graphs()  # addresses in older graphs may have been freed since
            self._enqueue()
            self._graphs[shapes] = None
        elif (graph := self._graphs[shapes]) is None:
            recorded: list[Any] = []
            with self._cuda.capture(self._stream, recorded):
                self._enqueue()
            self._graphs[shapes] = recorded[0]
            self._cuda.replay(recorded[0], self._stream)
        else:
            self._cuda.replay(graph, self._stream)

    def _forget_graphs(self) -> None:
        for graph in filter(None, self._graphs.values()):
            self._cuda.call(self._cuda.api.cudaGraphExecDestroy, graph)
        self._graphs.clear()

    def _close(self) -> None:
        self._cuda.use()
        self._forget_graphs()
        for buffer in self._buffers.values():
            buffer.close()
        # in this order: a context must not outlive its engine, nor an engine its runtime
        self._context = None
        self._engine = None
        self._runtime = None
        self._cuda.call(self._cuda.api.cudaStreamDestroy, self._stream)


class TrtRtxBackend(TrtBackend):
    """TensorRT for RTX: engines are compiled ahead of time without a GPU, and finished on it."""

    name: ClassVar[str] = "tensorrt-rtx"
    has_dla: ClassVar[bool] = False


def _specs(tensors: tuple[Mapping[str, Any], ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(t["name"], tuple(t["shape"]), t["dtype"]) for t in tensors)


def _allocator(trt: Any, buffer: DeviceBuffer) -> Any:
    """Gives TensorRT memory for an output whose size it finds out while it runs."""

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.shape: tuple[int, ...] = ()

        def reallocate_output(self, name: str, memory: int, size: int, alignment: int) -> int:
            try:
                return buffer.reserve(size)  # cudaMalloc aligns to 256 bytes, more than is asked
            except EdgeCVError:
                return 0  # which TensorRT understands as: there is no memory

        def reallocate_output_async(
            self, name: str, memory: int, size: int, alignment: int, stream: int
        ) -> int:
            return self.reallocate_output(name, memory, size, alignment)

        def notify_shape(self, name: str, shape: Any) -> None:
            self.shape = tuple(shape)

    return Allocator()
