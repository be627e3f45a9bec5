"""The contract that every backend fulfils, and the checks that none of them repeats.

A backend is a context manager with four members::

    with open_backend("onnxruntime", "model.onnx") as runtime:
        runtime.inputs, runtime.outputs     # tuples of TensorSpec; a string in a shape is symbolic
        runtime.run({"input": array})       # {output name: array}
        runtime.close()                     # happens by itself at the end of the block

A new one subclasses :class:`Backend` and writes ``_open``, ``_run``, ``_close`` and ``probe``.
Feeds are validated here, once, so that the same mistake gets the same error everywhere.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, TypeAlias, cast, final

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import FeedError, InputError, RuntimeFailure
from edgecv.spec import TensorSpec

Array: TypeAlias = NDArray[Any]

PROFILES = ("default", "low-power")


@dataclass(frozen=True)
class RuntimeOptions:
    """How a runtime may use the machine; every backend follows what applies to it.

    ``threads``: compute threads; ``None`` takes one per physical core that this process may use.
    ``spin``: idle threads burn CPU for some microseconds less latency; ``None`` takes the
    profile's (``default``: yes, ``low-power``: no).
    ``check_finite``: refuse feeds with NaN or infinity (reads each feed once more).
    """

    threads: int | None = None
    spin: bool | None = None
    profile: str = "default"
    check_finite: bool = False

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads must be at least 1, got {self.threads}")
        if self.profile not in PROFILES:
            raise InputError(f"profile must be one of {', '.join(PROFILES)}, got {self.profile!r}")

    @property
    def resolved_threads(self) -> int:
        return self.threads or physical_cores()

    @property
    def resolved_spin(self) -> bool:
        return self.profile == "default" if self.spin is None else self.spin


@dataclass(frozen=True)
class RuntimeInfo:
    """What really runs, read back from the runtime after it has loaded the model."""

    backend: str
    version: str  # of the runtime's library
    provider: str  # what executes the nodes, in the runtime's own words
    device: str
    precision: str  # that computes; the file's own is in its contract
    threads: int
    reason: str = ""  # why this backend, where `auto` chose it


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


class Backend(ABC):
    """One loaded model on one runtime. Thread-safe: any number of threads may call ``run``."""

    name: ClassVar[str]
    concurrent: ClassVar[bool] = True  # whether _run itself may be entered by several threads

    def __init__(self, path: str | os.PathLike[str], options: RuntimeOptions | None = None) -> None:
        self.path = Path(path)
        self.options = options or RuntimeOptions()
        self._in_flight = _InFlight()
        self._serial = threading.Lock()
        if not self.path.is_file():
            raise InputError(f"{self.path}: there is no such model file")
        opened = self._open()
        self.inputs, self.outputs, self.info = opened.inputs, opened.outputs, opened.info
        self._expected = {tensor.name: (np.dtype(tensor.dtype), tensor) for tensor in self.inputs}

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

    @final
    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model on ``{input: C-contiguous array}``; gives new arrays ``{output: array}``.

        Raises :class:`~edgecv.errors.FeedError` when the feeds do not match ``inputs``, and
        :class:`~edgecv.errors.RuntimeFailure` when the runtime fails or is closed.
        """
        self._validate(feeds)
        if not self._in_flight.enter():
            raise RuntimeFailure(f"{self.path.name}: run() after close(); open the model again")
        try:
            if self.concurrent:
                return self._run(feeds)
            with self._serial:
                return self._run(feeds)
        finally:
            self._in_flight.leave()

    @final
    def close(self) -> None:
        """Wait for the calls under way, then give everything back. Twice does no harm."""
        if self._in_flight.drain():
            self._close()

    def __enter__(self) -> Backend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _validate(self, feeds: Mapping[str, Array]) -> None:
        if feeds.keys() != self._expected.keys():
            missing = [name for name in self._expected if name not in feeds]
            surplus = [name for name in feeds if name not in self._expected]
            raise FeedError(
                f"{self.path.name}: expected the inputs {', '.join(map(repr, self._expected))}; "
                + "; ".join(
                    f"{what} {', '.join(map(repr, names))}"
                    for what, names in (("missing", missing), ("unknown", surplus))
                    if names
                )
            )
        symbols: dict[str, int] = {}
        for name, array in feeds.items():
            dtype, tensor = self._expected[name]
            given = cast(object, array)  # the annotation says an array, callers may not
            if not isinstance(given, np.ndarray):
                raise self._feed_error(tensor, f"a {type(given).__name__}; pass a NumPy array")
            if array.dtype != dtype:
                raise self._feed_error(
                    tensor, f"{array.dtype} {list(array.shape)}; convert it: array.astype({dtype})"
                )
            if len(array.shape) != len(tensor.shape):
                raise self._feed_error(tensor, f"{array.ndim} dimensions {list(array.shape)}")
            for size, want in zip(array.shape, tensor.shape, strict=True):
                if isinstance(want, str):
                    want = symbols.setdefault(want, size)
                if size != want or size == 0:
                    raise self._feed_error(tensor, f"{dtype} {list(array.shape)}")
            if not array.flags.c_contiguous:
                raise self._feed_error(
                    tensor, "a non-contiguous array; pass numpy.ascontiguousarray(array)"
                )
            if self.options.check_finite and array.dtype.kind == "f" and not _finite(array):
                raise self._feed_error(tensor, "values that are NaN or infinite")

    def _feed_error(self, tensor: TensorSpec, got: str) -> FeedError:
        shape = ", ".join(map(str, tensor.shape))
        return FeedError(
            f"{self.path.name}: input {tensor.name!r} takes {tensor.dtype} [{shape}], got {got}"
        )


def _finite(array: Array) -> bool:
    return bool(np.isfinite(array).all())


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
