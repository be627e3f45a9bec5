"""The contract of a backend: a context manager with a few nouns.

::

    with OrtBackend("model.onnx", RuntimeOptions(threads=2)) as runtime:
        runtime.inputs, runtime.outputs     # tuples of TensorSpec; a string in a shape is symbolic
        runtime.run({"input": array})       # {output name: array}
        runtime.run_into(feeds, buffers)    # the same, into arrays that the caller owns
        runtime.run_many(feeds_of_many)     # as many at a time as the runtime takes, in order
        runtime.info.precision              # what really computes, read back from the runtime
        runtime.close()                     # happens by itself at the end of the block

A new one subclasses :class:`Backend` and writes ``_open``, ``_run``, ``_close`` and ``probe``.
Feeds are validated here, once, so that the same mistake gets the same error everywhere.
"""

from __future__ import annotations

import os
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias, cast, final

import numpy as np
from numpy.typing import NDArray

from edgecv.closing import Closing
from edgecv.errors import BackendUnavailable, FeedError, InputError, RuntimeFailure
from edgecv.progress import Progress, silent
from edgecv.runtimes.filecheck import check_file
from edgecv.spec import TensorSpec

Array: TypeAlias = NDArray[Any]

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
    ``device``: ``CPU``, ``GPU``, ``NPU`` for OpenVINO, the index of the GPU for CUDA backends.
    ``streams``: how many runs OpenVINO carries out side by side in ``run_many``.
    ``cache_dir``: where compiled models and engines are kept. ``None``: no cache for OpenVINO,
    ``$XDG_CACHE_HOME/edgecv/engines`` for the TensorRT family, whose engines take minutes.
    ``build``: whether an engine that is not there yet may be built; ``False`` raises instead.
    ``shapes``: for engines of files with symbolic sizes, ``{symbol: (least, usual, most)}``.
    ``dla_core``: run on this core of a Jetson's DLA (with the GPU for what it cannot do).
    ``cuda_graph``: replay a recorded CUDA graph; for fixed shapes only.
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


class _InFlight:
    """How many calls of ``run`` are under way: ``close`` waits for them."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._count = 0
        self._closed = False

    def enter(self) -> bool:
        """Count one call in; False once closing has begun."""
        with self._condition:
            if not self._closed:
                self._count += 1
                return True
            return False

    def leave(self) -> None:
        with self._condition:
            self._count -= 1
            if self._closed:
                self._condition.notify_all()

    def drain(self) -> bool:
        """Let nobody in any more and wait for those inside; False if that was done before."""
        with self._condition:
            if self._closed:
                return False
            self._closed = True
            self._condition.wait_for(lambda: self._count == 0)
            return True


class Backend(Closing):
    """One loaded model on one runtime. Thread-safe: any number of threads may call ``run``."""

    name: ClassVar[str]
    concurrent: ClassVar[bool] = True  # whether _run itself may be entered by several threads
    reads_onnx: ClassVar[bool] = True  # whether the file must be ONNX, which is then checked

    def __init__(self, path: str | os.PathLike[str], options: RuntimeOptions | None = None) -> None:
        self.path = Path(path)
        self.options = options or RuntimeOptions()
        self._in_flight = _InFlight()
        self._serial = threading.Lock()
        if not self.path.is_file():
            raise InputError(f"{self.path}: there is no such model file")
        if self.reads_onnx:
            check_file(self.path)
        opened = self._open()
        self.inputs, self.outputs, self.info = opened.inputs, opened.outputs, opened.info
        self._expected = {tensor.name: (np.dtype(tensor.dtype), tensor) for tensor in self.inputs}
        self._given = {tensor.name: (np.dtype(tensor.dtype), tensor) for tensor in self.outputs}
        if self.options.precision is not None:
            try:
                self._require_precision(self.options.precision)
            except BaseException:
                self.close()
                raise

    @classmethod
    @abstractmethod
    def probe(cls) -> Probe:
        """Whether this backend can be used here; never raises."""

    @abstractmethod
    def _open(self) -> Opened:
        """Load ``self.path`` under ``self.options``; errors of the library become EdgeCV's."""

    @abstractmethod
    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run validated feeds. The arrays returned belong to the caller."""

    @abstractmethod
    def _close(self) -> None:
        """Give back what ``_open`` took."""

    def _run_into(self, feeds: Mapping[str, Array], buffers: Mapping[str, Array]) -> None:
        """Run validated feeds into validated buffers; override where no copy is needed."""
        for name, array in self._run(feeds).items():
            if array.shape != buffers[name].shape:  # a symbolic size that the buffer got wrong
                raise RuntimeFailure(
                    f"{self.path.name}: output {name!r} is {list(array.shape)} for these feeds, "
                    f"its buffer {list(buffers[name].shape)}"
                )
            np.copyto(buffers[name], array)

    def _run_many(self, many: Iterator[Mapping[str, Array]]) -> Iterator[dict[str, Array]]:
        """Run validated feeds one after the other; override where several can be under way."""
        for feeds in many:
            yield self._run(feeds)

    @final
    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model on ``{input: C-contiguous array}``; gives new arrays ``{output: array}``.

        Raises :class:`~edgecv.errors.FeedError` when the feeds do not match ``inputs``, and
        :class:`~edgecv.errors.RuntimeFailure` when the runtime fails or is closed.
        """
        self._validate(feeds, self._expected, "input")
        self._enter()
        try:
            if self.concurrent:
                return self._run(feeds)
            with self._serial:
                return self._run(feeds)
        finally:
            self._in_flight.leave()

    @final
    def run_into(self, feeds: Mapping[str, Array], buffers: Mapping[str, Array]) -> None:
        """Run the model and leave its answers in ``buffers`` ``{output: C-contiguous array}``.

        For callers who own their memory: nothing is allocated, and where the runtime can
        (onnxruntime, OpenVINO) it reads ``feeds`` and writes ``buffers`` in place. Every output
        needs a buffer of its dtype and of the shape that these feeds give. Errors as of
        :meth:`run`; a buffer that does not fit is a :class:`~edgecv.errors.FeedError` too, or a
        :class:`~edgecv.errors.RuntimeFailure` where only the run shows it (a symbolic size).
        """
        self._validate(feeds, self._expected, "input")
        self._validate(buffers, self._given, "output")
        self._enter()
        try:
            if self.concurrent:
                self._run_into(feeds, buffers)
            else:
                with self._serial:
                    self._run_into(feeds, buffers)
        finally:
            self._in_flight.leave()

    @final
    def run_many(self, many: Iterable[Mapping[str, Array]]) -> Iterator[dict[str, Array]]:
        """The answers to ``many`` feeds, in their order, several under way at a time.

        OpenVINO keeps its queue of requests full; other runtimes take one after the other. Feeds
        are taken from the iterable as they are needed, and must stay as they are until their
        answer has come. Errors as of :meth:`run`; the model stays open until the last answer.
        """
        self._enter()
        try:
            if self.concurrent:
                yield from self._run_many(map(self._validated, many))
            else:
                for feeds in many:
                    self._validated(feeds)
                    with self._serial:
                        answer = self._run(feeds)
                    yield answer
        finally:
            self._in_flight.leave()

    @final
    def close(self) -> None:
        """Wait for the calls under way, then give everything back. Twice does no harm."""
        if self._in_flight.drain():
            self._close()

    def _enter(self) -> None:
        if not self._in_flight.enter():
            raise RuntimeFailure(f"{self.path.name}: run() after close(); open the model again")

    def _require_precision(self, asked: str) -> None:
        """Most of the arithmetic must be in the precision that the user named."""
        nodes = self.info.nodes
        if asked != next(iter(nodes), None):
            found = ", ".join(f"{count} in {name}" for name, count in nodes.items()) or "none"
            raise BackendUnavailable(
                f"{self.path}: precision {asked} was asked for, and {self.info.backend} "
                f"{self.info.version} computes its convolutions and products as follows: {found}; "
                f"precision lives in the file: export or quantize it to {asked}, or run it where "
                f"the hardware has {asked}"
            )

    def _validated(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        self._validate(feeds, self._expected, "input")
        return feeds

    def _validate(
        self,
        arrays: Mapping[str, Array],
        expected: Mapping[str, tuple[np.dtype[Any], TensorSpec]],
        what: str,
    ) -> None:
        """``arrays`` against what the model declares; ``what`` is ``input`` or ``output``."""
        if arrays.keys() != expected.keys():
            missing = [name for name in expected if name not in arrays]
            surplus = [name for name in arrays if name not in expected]
            raise FeedError(
                f"{self.path.name}: expected the {what}s {', '.join(map(repr, expected))}; "
                + "; ".join(
                    f"{which} {', '.join(map(repr, names))}"
                    for which, names in (("missing", missing), ("unknown", surplus))
                    if names
                )
            )
        symbols: dict[str, int] = {}
        for name, array in arrays.items():
            dtype, tensor = expected[name]
            given = cast(object, array)  # the annotation says an array, callers may not
            if not isinstance(given, np.ndarray):
                got = f"a {type(given).__name__}; pass a NumPy array"
                raise self._mismatch(what, tensor, got)
            shape = array.shape
            if array.dtype != dtype:
                got = f"{array.dtype} {list(shape)}; convert it: array.astype({dtype.name!r})"
                raise self._mismatch(what, tensor, got)
            if len(shape) != len(tensor.shape):
                raise self._mismatch(what, tensor, f"{array.ndim} dimensions {list(shape)}")
            if shape != tensor.shape:
                for size, want in zip(shape, tensor.shape, strict=True):
                    if isinstance(want, str):
                        want = symbols.setdefault(want, size)
                    if size != want or (size == 0 and what == "input"):
                        raise self._mismatch(what, tensor, f"{dtype} {list(shape)}")
            if not array.flags.c_contiguous:
                raise self._mismatch(
                    what, tensor, "a non-contiguous array; pass numpy.ascontiguousarray(array)"
                )
            if what == "output" and not array.flags.writeable:
                raise self._mismatch(what, tensor, "a read-only array; pass one to write into")
            if self.options.check_finite and what == "input" and not _finite(array):
                raise self._mismatch(what, tensor, "values that are NaN or infinite")

    def _mismatch(self, what: str, tensor: TensorSpec, got: object) -> FeedError:
        shape = ", ".join(map(str, tensor.shape))
        return FeedError(
            f"{self.path.name}: {what} {tensor.name!r} takes {tensor.dtype} [{shape}], got {got}"
        )


def _finite(array: Array) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def nvidia_devices() -> list[str]:
    """Device nodes of an NVIDIA driver (desktop, Jetson, WSL); empty where there is no driver,
    whatever hardware there is, and on systems that have no such nodes."""
    patterns = ("nvidia[0-9]*", "nvhost-gpu", "nvgpu/igpu*", "dxg")
    return sorted(str(path) for pattern in patterns for path in Path("/dev").glob(pattern))


def physical_cores() -> int:
    """Physical cores that this process may run on: two hyper-threads share one FMA unit."""
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1
    cores = set()
    for cpu in allowed:
        try:
            siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
            cores.add(siblings.read_text().strip())
        except OSError:  # containers may hide it: count each CPU as a core
            cores.add(str(cpu))
    return len(cores) or 1
