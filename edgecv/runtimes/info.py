"""What is asked of a runtime and what it says of itself, before and after it is open."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from edgecv.errors import InputError
from edgecv.progress import Progress, silent
from edgecv.runtimes.hardware import physical_cores
from edgecv.spec import TensorSpec

PROFILES = ("default", "low-power")
COMPUTE_PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "int8")


@dataclass(frozen=True)
class RuntimeOptions:
    """How a runtime may use the machine; every backend follows what applies to it.

    ``threads``: compute threads; ``None`` takes one per physical core that this process may use.
    ``spin``: idle threads burn CPU for some microseconds less latency; ``None`` takes the
    profile's (``default``: yes, ``low-power``: no). OpenVINO has no such switch.
    ``check_finite``: refuse feeds with NaN or infinity (reads each feed once more).
    ``precision``: what most of the convolutions and products must compute in, one of
    :data:`COMPUTE_PRECISIONS`; ``None`` takes what the file's types give. It is an error where
    the runtime computes in another one. ``bf16`` turns on OpenVINO's BF16, ``tf32`` NVIDIA's TF32.
    ``device``: ``CPU``, ``GPU``, ``NPU`` for OpenVINO, the index of the GPU (or ``GPU``, the first)
    for CUDA backends. One that a backend has not is an error, never another device.
    ``streams``: how many runs OpenVINO carries out side by side in ``run_many``.
    ``cache_dir``: where compiled models and engines are kept. ``None``: no cache for OpenVINO,
    ``$XDG_CACHE_HOME/edgecv/engines`` for the TensorRT family, whose engines take minutes.
    ``build``: whether an engine that is not there yet may be built; ``False`` raises instead.
    ``shapes``: for engines of files with symbolic sizes, ``{symbol: (least, usual, most)}``.
    ``dla_core``: run on this core of a Jetson's DLA (with the GPU for what it cannot do); an error
    where the backend has no DLA.
    ``cuda_graph``: replay a recorded CUDA graph; for fixed shapes only (onnxruntime takes those of
    symbolic sizes from ``shapes``).
    ``progress``: hears of the stages of an engine's build.
    """

    threads: int | None = None
    spin: bool | None = None
    profile: str = "default"
    check_finite: bool = False
    precision: str | None = None
    device: str | None = None
    streams: int = 1
    cache_dir: str | os.PathLike[str] | None = None
    build: bool = True
    shapes: Mapping[str, tuple[int, int, int]] = field(
        default_factory=lambda: MappingProxyType({}), hash=False
    )
    dla_core: int | None = None
    cuda_graph: bool = False
    progress: Progress = field(default=silent, repr=False, compare=False)

    def __post_init__(self) -> None:
        for what, value in (("threads", self.threads), ("streams", self.streams)):
            if value is not None and value < 1:
                raise InputError(f"{what} must be at least 1, got {value}")
        if self.dla_core is not None and self.dla_core < 0:
            raise InputError(f"dla_core must be 0 or more, got {self.dla_core}")
        if self.profile not in PROFILES:
            raise InputError(f"profile must be one of {', '.join(PROFILES)}, got {self.profile!r}")
        if self.precision not in (None, *COMPUTE_PRECISIONS):
            raise InputError(
                f"precision must be one of {', '.join(COMPUTE_PRECISIONS)}, got {self.precision!r}"
            )
        for symbol, sizes in self.shapes.items():
            if len(sizes) != 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
                raise InputError(
                    f"shapes of {symbol!r} must be (least, usual, most), rising; got {sizes}"
                )

    @property
    def gpu_index(self) -> int:
        """``device`` as CUDA counts them; not one of CUDA's is an
        :class:`~edgecv.errors.InputError`."""
        device = str(self.device or 0).upper()
        if device == "GPU":
            return 0
        if not (device.isascii() and device.isdigit()):
            raise InputError(
                f"device {self.device}: a CUDA backend takes the index of a GPU, such as 0, or GPU"
            )
        return int(device)

    @property
    def resolved_threads(self) -> int:
        return self.threads or physical_cores()

    @property
    def resolved_spin(self) -> bool:
        return self.profile == "default" if self.spin is None else self.spin


@dataclass(frozen=True)
class Compute:
    """What computes: ``provider`` in the runtime's own words, and ``nodes``, how many of the
    convolutions and products compute in which precision, most frequent first."""

    provider: str
    nodes: Mapping[str, int]

    @property
    def precision(self) -> str:
        """The precisions of ``nodes``, the most frequent first: ``fp32``, ``int8+fp32``."""
        return "+".join(self.nodes) or "none"


@dataclass(frozen=True)
class RuntimeInfo:
    """What really runs, read back from the runtime after it has loaded the model.

    ``provider``, ``precision`` and ``nodes`` are read from the runtime when first asked for: that
    takes tens of milliseconds, which loading a model should not.
    """

    backend: str
    version: str  # of the runtime's library
    device: str
    threads: int
    read: Callable[[], Compute] = field(repr=False, compare=False)
    reason: str = ""  # why this backend, where `auto` chose it

    @cached_property
    def compute(self) -> Compute:
        return self.read()

    @property
    def provider(self) -> str:
        """What executes the nodes."""
        return self.compute.provider

    @property
    def precision(self) -> str:
        """That computes; the file's own is in its contract. ``int8+fp32``: mostly the first."""
        return self.compute.precision

    @property
    def nodes(self) -> Mapping[str, int]:
        """How many convolutions and products compute in which precision."""
        return self.compute.nodes


@dataclass(frozen=True)
class Probe:
    """Whether a backend can be used here, and if not, why and what to do."""

    usable: bool
    version: str | None = None
    reason: str = ""
    remedy: str = ""
    devices: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Opened:
    """What ``Backend._open`` returns."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    info: RuntimeInfo
