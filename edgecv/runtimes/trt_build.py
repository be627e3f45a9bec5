"""Building engines with TensorRT or TensorRT-RTX, ahead of time or on first use.

Networks are strongly typed: precision is what the file's types and Q/DQ pairs say, and TensorRT may
not choose another one (TensorRT 11 knows no other way). TF32 is off unless it is asked for, though
TensorRT-RTX's builder has it on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgecv.enginefile import EngineHeader
from edgecv.errors import BackendUnavailable, InputError, RuntimeFailure
from edgecv.onnxfile import read_metadata
from edgecv.progress import Progress
from edgecv.runtimes.base import RuntimeOptions
from edgecv.runtimes.filecheck import check_file, content_sha256
from edgecv.runtimes.library import import_library
from edgecv.runtimes.trt_network import heavy_nodes, size_ranges, tensors
from edgecv.spec import TensorSpec

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
OLDEST_TENSORRT = 10
REMEDIES = {
    "tensorrt-rtx": "pip install 'edgecv[tensorrt-rtx]'",
    "tensorrt": "on a Jetson: sudo apt install python3-libnvinfer, and a virtual environment made "
    "with --system-site-packages; elsewhere: pip install tensorrt, and 'edgecv[tensorrt-cu12]' or "
    "'edgecv[tensorrt-cu13]' for its CUDA",
}


def library(backend: str) -> Any:
    """The module of ``backend``; not installed, or too old, is a :class:`BackendUnavailable`."""
    try:
        trt = import_library(MODULES[backend], "Builder")
    except BackendUnavailable as error:
        raise BackendUnavailable(
            f"backend {backend!r} is not usable here: {error}; {REMEDIES[backend]}"
        ) from error
    if backend == "tensorrt" and int(trt.__version__.partition(".")[0]) < OLDEST_TENSORRT:
        raise BackendUnavailable(
            f"backend {backend!r} is not usable here: TensorRT {trt.__version__} has no strongly "
            f"typed networks, in which precision is the file's; it takes {OLDEST_TENSORRT} or "
            f"newer (JetPack 6.1)"
        )
    return trt


def ahead_of_time_gpus(trt: Any) -> tuple[str, ...]:
    """The GPUs that this library compiles for without having them; none for TensorRT itself."""
    names = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    return tuple(name.lower() for name in names if name.startswith("SM"))


def check_gpus(backend: str, gpus: tuple[str, ...], here: str | None) -> None:
    """Refuse GPUs that ``backend`` cannot build for; ``here`` is the one in this machine."""
    for gpu in gpus:
        if not re.fullmatch(r"sm\d{2,3}", gpu):
            raise InputError(f"--gpu {gpu}: expected sm and the compute capability, such as sm86")
    if backend == "tensorrt":
        if here is None:
            raise BackendUnavailable(
                "tensorrt builds on the GPU that will run the engine, and there is none here; "
                "build there, or use --backend tensorrt-rtx, which builds without a GPU"
            )
        if wrong := [gpu for gpu in gpus if gpu != here]:
            raise BackendUnavailable(
                f"tensorrt builds for the GPU of this machine, {here}, not for {', '.join(wrong)}; "
                f"build there, or use --backend tensorrt-rtx"
            )
        return
    known = ahead_of_time_gpus(library(backend))
    notes = {"sm87": " (Jetson Orin)", "sm90": " (Hopper)", "sm72": " (Jetson Xavier)"}
    for gpu in gpus:
        if gpu not in known:
            raise BackendUnavailable(
                f"tensorrt-rtx has no kernels for {gpu}{notes.get(gpu, '')}, only for "
                f"{', '.join(known)}; use --backend tensorrt on that machine"
            )


@dataclass(frozen=True)
class BuildPlan:
    """What determines an engine, apart from the machine: its cache key is made of this."""

    backend: str
    library_version: str
    gpus: tuple[str, ...]
    model_sha256: str  # with its external data
    shapes: Mapping[str, tuple[int, int, int]]
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]


def plan_build(
    backend: str, path: Path, gpus: tuple[str, ...], options: RuntimeOptions
) -> BuildPlan:
    """The plan for building ``path`` for ``gpus`` under ``options``; a file that no library should
    be asked to read is a :class:`~edgecv.errors.SpecError`."""
    check_file(path)
    if options.dla_core is not None and backend != "tensorrt":
        raise BackendUnavailable(
            f"backend {backend!r} builds for GPUs alone, and DLA core {options.dla_core} was asked "
            f"for; use --backend tensorrt on a Jetson that has one"
        )
    return BuildPlan(
        backend=backend,
        library_version=str(library(backend).__version__),
        gpus=gpus,
        model_sha256=content_sha256(path),
        shapes=dict(options.shapes),
        settings={"tf32": options.precision == "tf32", "dla_core": options.dla_core},
    )


def build_engine(
    plan: BuildPlan, path: Path, progress: Progress, timing_folder: Path | None = None
) -> tuple[EngineHeader, bytes]:
    """Compile the ONNX file ``path``; nothing of it is cached but TensorRT's kernel timings.

    Raises :class:`~edgecv.errors.RuntimeFailure` with TensorRT's own words where it refuses, and
    :class:`~edgecv.errors.InputError` where a symbolic size has no range.
    """
    trt = library(plan.backend)
    logger = _logger(trt)
    builder = trt.Builder(logger)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)  # the network's weights are its: kept to the end
    if not parser.parse_from_file(os.path.realpath(path)):  # whose external data was checked
        problems = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise _refusal(plan, path, [*problems, *logger.errors])
    metadata = read_metadata(path)
    inputs = tensors(network.num_inputs, network.get_input)
    outputs = tensors(network.num_outputs, network.get_output)
    ranges = size_ranges(inputs, plan.shapes, metadata, path)
    config = _config(trt, builder, plan)
    monitor = config.progress_monitor = _monitor(trt, progress)
    if ranges:
        config.add_optimization_profile(_profile(builder, inputs, ranges))
    with _timing_cache(plan, config, timing_folder), _interruptible(monitor):
        engine = builder.build_serialized_network(network, config)
    if monitor.error is not None:
        raise monitor.error
    if engine is None:
        raise _refusal(plan, path, logger.errors)
    data = bytes(engine)
    header = EngineHeader(
        backend=plan.backend,
        library_version=plan.library_version,
        gpus=plan.gpus,
        model_sha256=plan.model_sha256,
        engine_sha256=hashlib.sha256(data).hexdigest(),
        inputs=tuple(map(asdict, inputs)),
        outputs=tuple(map(asdict, outputs)),
        profile=ranges,
        settings=plan.settings,
        nodes=heavy_nodes(network, "tf32" if plan.settings["tf32"] else "fp32"),
        metadata=metadata,
    )
    return header, data


def _config(trt: Any, builder: Any, plan: BuildPlan) -> Any:
    """How ``plan`` wants the engine built, for which GPUs, on which of the machine's cores."""
    config = builder.create_builder_config()
    (config.set_flag if plan.settings["tf32"] else config.clear_flag)(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if plan.backend == "tensorrt-rtx":
        config.num_compute_capabilities = len(plan.gpus)
        for index, gpu in enumerate(plan.gpus):
            config.set_compute_capability(getattr(trt.ComputeCapability, gpu.upper()), index)
    if plan.settings["dla_core"] is not None:
        if plan.settings["dla_core"] >= builder.num_DLA_cores:  # TensorRT would take the GPU
            raise BackendUnavailable(
                f"there is no DLA core {plan.settings['dla_core']} for {plan.backend} "
                f"{plan.library_version} here: it finds {builder.num_DLA_cores} (TensorRT 10.8 to "
                f"11.3 have none on a Jetson)"
            )
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = plan.settings["dla_core"]
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    return config


def _profile(
    builder: Any, inputs: tuple[TensorSpec, ...], ranges: Mapping[str, tuple[int, int, int]]
) -> Any:
    """The least, usual and greatest shape of each input."""
    profile = builder.create_optimization_profile()
    for tensor in inputs:
        shapes = [
            tuple(ranges[size][i] if isinstance(size, str) else size for size in tensor.shape)
            for i in range(3)
        ]
        profile.set_shape(tensor.name, *shapes)
    return profile


def _logger(trt: Any) -> Any:
    """A logger that keeps errors for our own message and drops the rest."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Logger()


def _monitor(trt: Any, progress: Progress) -> Any:
    """TensorRT's phases, each as a line of progress. ``error`` ends the build at its next step: an
    exception that is raised in a callback is printed by TensorRT and forgotten."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.totals: dict[str, int] = {}
            self.error: BaseException | None = None

        def tell(self, phase: str, done: int, total: int) -> None:
            try:
                progress(phase, done, total)
            except BaseException as error:
                self.error = self.error or error

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.totals[phase] = steps
            self.tell(phase, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            self.tell(phase, step, self.totals.get(phase, 0))
            return self.error is None

        def phase_finish(self, phase: str) -> None:
            total = self.totals.pop(phase, 0)
            self.tell(phase, total, total)

    return Monitor()


@contextlib.contextmanager
def _interruptible(monitor: Any) -> Iterator[None]:
    """Ctrl-C becomes the monitor's error. Python's own handler raises it on entry to a callback,
    where nothing can catch it. Another handler than Python's is left alone."""
    python = signal.default_int_handler
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not python:
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        monitor.error = monitor.error or KeyboardInterrupt()

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, python)


@contextlib.contextmanager
def _timing_cache(plan: BuildPlan, config: Any, folder: Path | None) -> Iterator[None]:
    """TensorRT measures kernels; what it measured once on a GPU need not be measured again.
    TensorRT-RTX measures nothing ahead of time."""
    if plan.backend != "tensorrt" or folder is None:
        yield
        return
    from edgecv.files import atomic_write

    path = folder / f"timing-{plan.library_version}-{'-'.join(plan.gpus)}.cache"
    cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    yield
    with atomic_write(path) as file:
        file.write(bytes(config.get_timing_cache().serialize()))


def _refusal(plan: BuildPlan, path: Path, problems: list[str]) -> RuntimeFailure:
    """TensorRT's words, and what to do where that is known."""
    text = " ".join(" | ".join(dict.fromkeys(problems)).split()) or "it gave no reason"
    remedy = ""
    if "Turing (SM75)" in text:
        remedy = (
            "TensorRT-RTX lacks these kernels for sm75; export the model with --precision fp16, or "
            "build without sm75: "
        )
    elif "Int32" in text and "Dequantize" in text:
        remedy = (
            "its Q/DQ pairs are placed for another runtime; quantize with --target tensorrt "
            "(symmetric, float bias): "
        )
    return RuntimeFailure(
        f"{path}: {plan.backend} {plan.library_version} cannot build it for "
        f"{', '.join(plan.gpus)}: {remedy}{text[:800]}"
    )
