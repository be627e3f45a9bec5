"""Building engines with TensorRT or TensorRT-RTX, ahead of time or on first use.

Networks are strongly typed: precision is what the file's types and Q/DQ pairs say, and TensorRT may
not choose another one (TensorRT 11 knows no other way). TF32 is off unless it is asked for, though
TensorRT-RTX's builder has it on.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgecv.enginefile import EngineHeader
from edgecv.errors import BackendUnavailable, InputError, RuntimeFailure
from edgecv.files import sha256_of
from edgecv.onnxfile import read_metadata
from edgecv.progress import Progress
from edgecv.runtimes.base import RuntimeOptions
from edgecv.runtimes.filecheck import check_file
from edgecv.spec import METADATA_KEY, ModelSpec, TensorSpec

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
REMEDIES = {
    "tensorrt-rtx": "pip install 'edgecv[tensorrt-rtx]'",
    "tensorrt": "on a Jetson: sudo apt install python3-libnvinfer, and a virtual environment made "
    "with --system-site-packages; elsewhere: pip install tensorrt, and 'edgecv[tensorrt-cu12]' or "
    "'edgecv[tensorrt-cu13]' for its CUDA",
}
# TensorRT's names of types -> NumPy's
DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
PRECISIONS = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8"}
HEAVY = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")
BATCH = (1, 1, 32)  # of a symbolic batch, where nobody says otherwise: tuned for single pictures


def library(backend: str) -> Any:
    """The module of ``backend``; not installed is a :class:`BackendUnavailable`."""
    try:
        return importlib.import_module(MODULES[backend])
    except ImportError as error:
        raise BackendUnavailable(
            f"backend {backend!r} is not usable here: the package {MODULES[backend]} does not "
            f"import ({error}); {REMEDIES[backend]}"
        ) from error


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
    model_sha256: str
    shapes: Mapping[str, tuple[int, int, int]]
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]


def plan_build(
    backend: str, path: Path, gpus: tuple[str, ...], options: RuntimeOptions
) -> BuildPlan:
    """The plan for building ``path`` for ``gpus`` under ``options``."""
    return BuildPlan(
        backend=backend,
        library_version=str(library(backend).__version__),
        gpus=gpus,
        model_sha256=sha256_of(path),
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
    check_file(path)
    trt = library(plan.backend)
    logger = _logger(trt)
    builder = trt.Builder(logger)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        problems = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise _refusal(plan, path, [*problems, *logger.errors])
    config = builder.create_builder_config()
    config.progress_monitor = _monitor(trt, progress)
    (config.set_flag if plan.settings["tf32"] else config.clear_flag)(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if plan.backend == "tensorrt-rtx":
        config.num_compute_capabilities = len(plan.gpus)
        for index, gpu in enumerate(plan.gpus):
            config.set_compute_capability(getattr(trt.ComputeCapability, gpu.upper()), index)
    if plan.settings["dla_core"] is not None:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = plan.settings["dla_core"]
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    metadata = read_metadata(path)
    inputs = _tensors(network.num_inputs, network.get_input)
    outputs = _tensors(network.num_outputs, network.get_output)
    profile_ranges = _ranges(inputs, plan.shapes, metadata, path)
    if profile_ranges:
        profile = builder.create_optimization_profile()
        for tensor in inputs:
            profile.set_shape(
                tensor.name,
                *(
                    tuple(profile_ranges[s][i] if isinstance(s, str) else s for s in tensor.shape)
                    for i in range(3)
                ),
            )
        config.add_optimization_profile(profile)
    with _timing_cache(plan, config, timing_folder):
        engine = builder.build_serialized_network(network, config)
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
        profile=profile_ranges,
        settings=plan.settings,
        nodes=_nodes(network, "tf32" if plan.settings["tf32"] else "fp32"),
        metadata=metadata,
    )
    return header, data


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
    """TensorRT's phases, each as a line of progress. Ctrl-C ends the build at its next step."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.totals: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.totals[phase] = steps
            progress(phase, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            try:
                progress(phase, step, self.totals.get(phase, 0))
            except KeyboardInterrupt:
                return False
            return True

        def phase_finish(self, phase: str) -> None:
            total = self.totals.pop(phase, 0)
            progress(phase, total, total)

    return Monitor()


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


def _tensors(count: int, get: Any) -> tuple[TensorSpec, ...]:
    found = []
    for tensor in map(get, range(count)):
        dtype = tensor.dtype.name
        if dtype not in DTYPES:
            raise RuntimeFailure(f"tensor {tensor.name!r} is {dtype}; EdgeCV runs plain tensors")
        shape = tuple(
            size if size >= 0 else tensor.get_dimension_name(axis) or f"{tensor.name}_{axis}"
            for axis, size in enumerate(tensor.shape)
        )
        found.append(TensorSpec(tensor.name, shape, DTYPES[dtype]))
    return tuple(found)


def _ranges(
    inputs: tuple[TensorSpec, ...],
    asked: Mapping[str, tuple[int, int, int]],
    metadata: Mapping[str, str],
    path: Path,
) -> dict[str, tuple[int, int, int]]:
    """The range of each symbolic size of the inputs: what was asked, or what the contract says."""
    ranges: dict[str, tuple[int, int, int]] = {}
    for tensor in inputs:
        for axis, symbol in enumerate(tensor.shape):
            if isinstance(symbol, int):
                continue
            if symbol in asked:
                ranges[symbol] = asked[symbol]
            elif axis == 0:
                ranges.setdefault(symbol, BATCH)
            elif (size := _size_of_contract(metadata, axis, path)) is not None:
                ranges.setdefault(symbol, size)
            else:
                raise InputError(
                    f"{path}: input {tensor.name!r} has the symbolic size {symbol!r}, for which an "
                    f"engine needs a range: --shape {symbol}=LEAST,USUAL,MOST"
                )
    if unknown := set(asked) - set(ranges):
        raise InputError(
            f"{path}: has no symbolic size {', '.join(sorted(unknown))}; it has "
            f"{', '.join(sorted(ranges)) or 'none'}"
        )
    return ranges


def _size_of_contract(
    metadata: Mapping[str, str], axis: int, path: Path
) -> tuple[int, int, int] | None:
    """Pictures of any size (fit = multiple) come to at most the contract's height and width."""
    text = metadata.get(METADATA_KEY)
    if text is None:
        return None
    p = ModelSpec.from_json(text, str(path)).preparation
    first = 1 if p.layout == "nhwc" else 2
    if axis not in (first, first + 1):
        return None
    size = p.height if axis == first else p.width
    most = -(-size // p.multiple) * p.multiple
    return (min(p.multiple, most), most, most) if p.fit == "multiple" else (size, size, size)


def _nodes(network: Any, fp32: str) -> dict[str, int]:
    """How many convolutions and products are typed how; a strongly typed engine keeps to that."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    made_by = {
        layer.get_output(i).name: layer.type.name
        for layer in layers
        for i in range(layer.num_outputs)
    }
    counts: Counter[str] = Counter()
    for layer in layers:
        if layer.type.name not in HEAVY:
            continue
        tensor = layer.get_input(0)
        if made_by.get(tensor.name) == "DEQUANTIZE":  # fused with it: integers are multiplied
            counts["int8"] += 1
        else:
            precision = PRECISIONS.get(tensor.dtype.name, tensor.dtype.name.lower())
            counts[fp32 if precision == "fp32" else precision] += 1
    return dict(counts.most_common())


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
