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
import sys
import threading
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, cast, final

import numpy as np
from numpy.typing import NDArray

from edgecv.closing import Closing
from edgecv.errors import BackendUnavailable, FeedError, InputError, RuntimeFailure
from edgecv.runtimes.filecheck import check_file
from edgecv.runtimes.info import Compute, Opened, Probe, RuntimeInfo, RuntimeOptions
from edgecv.spec import TensorSpec

Array: TypeAlias = NDArray[Any]

# all that the author of a backend needs
__all__ = ["Array", "Backend", "Compute", "Opened", "Probe", "RuntimeInfo", "RuntimeOptions"]


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
    has_dla: ClassVar[bool] = False  # whether `dla_core` means something to it
    # least and most that one run takes of the first input where its first size is symbolic
    batch_range: tuple[int, int] = (1, sys.maxsize)

    def __init__(self, path: str | os.PathLike[str], options: RuntimeOptions | None = None) -> None:
        self.path = Path(path)
        # what the library opens. Not the link that was given: external data would be looked for
        # beside the link, and it is checked beside the file
        self.file = Path(os.path.realpath(self.path))
        self.options = options or RuntimeOptions()
        self._in_flight = _InFlight()
        self._serial = threading.Lock()
        if not self.path.is_file():
            raise InputError(f"{self.path}: there is no such model file")
        if self.options.dla_core is not None and not self.has_dla:
            raise BackendUnavailable(
                f"backend {self.name!r} has no DLA, and dla_core={self.options.dla_core} was asked "
                f"for; use backend tensorrt on a Jetson that has one"
            )
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
        answer has come. Errors as of :meth:`run`: after :meth:`close` the next answer is one.
        """
        if not self.concurrent:
            yield from map(self.run, many)
            return
        # counted in for each answer, not from first to last: a caller who keeps this iterator and
        # asks no more of it would make close() wait for ever
        answers = self._run_many(map(self._validated, many))
        while True:
            self._enter()
            try:
                answer = next(answers, None)
            finally:
                self._in_flight.leave()
            if answer is None:
                return
            yield answer

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
