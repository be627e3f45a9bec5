"""A model that takes pictures and gives answers: runtime + preparation + postprocessing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import overload

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError, SpecError
from edgecv.postprocess.classify import classifications
from edgecv.preprocess import Picture, prepare
from edgecv.results import Classification
from edgecv.runtimes import open_backend
from edgecv.runtimes.base import Array, Backend, RuntimeInfo, RuntimeOptions
from edgecv.spec import ModelSpec, TensorSpec, read_spec

MAX_BATCH = 32  # pictures in one run of a dynamic-batch file; more only costs memory on a CPU


class Model:
    """An open model file. Call it with a picture or a list of them; close it, or use ``with``.

    ``spec`` is the contract that the file carries, ``runtime`` the open backend, ``info`` what
    really runs. Thread-safe.
    """

    def __init__(self, spec: ModelSpec, runtime: Backend) -> None:
        self.spec, self.runtime = spec, runtime
        _match(spec.inputs, runtime.inputs, "input", runtime.path)
        _match(spec.outputs, runtime.outputs, "output", runtime.path)

    @property
    def info(self) -> RuntimeInfo:
        return self.runtime.info

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str is a Sequence[str] to mypy
        self,
        pictures: Picture,
        *,
        color: str = ...,
        conf: float | None = ...,
        iou: float | None = ...,
    ) -> Classification: ...
    @overload
    def __call__(
        self,
        pictures: Sequence[Picture],
        *,
        color: str = ...,
        conf: float | None = ...,
        iou: float | None = ...,
    ) -> list[Classification]: ...
    def __call__(
        self,
        pictures: Picture | Sequence[Picture],
        *,
        color: str = "rgb",
        conf: float | None = None,
        iou: float | None = None,
    ) -> Classification | list[Classification]:
        """Answer one picture with one result, a list of pictures with a list, in its order.

        A picture is a path, a PIL image, or an array ``[H, W, 3]`` of uint8 in the order
        ``color`` (``rgb`` or ``bgr``). ``conf`` and ``iou`` are for tasks that have boxes; a
        classifier refuses them.
        """
        self.refuse_thresholds(conf, iou)
        if isinstance(pictures, list | tuple):
            return self._answer(pictures, color)
        return self._answer([pictures], color)[0]  # type: ignore[list-item]

    def refuse_thresholds(self, conf: float | None, iou: float | None) -> None:
        """Thresholds of boxes mean nothing to a classifier: say so, and do not ignore them."""
        if conf is not None or iou is not None:
            raise InputError(f"conf and iou do not apply to task {self.spec.task!r}")

    def raw(self, pictures: Sequence[Picture], *, color: str = "rgb") -> dict[str, Array]:
        """The output tensors for ``pictures`` (at least one), before any decoding.

        A file with a fixed batch is run as often as it takes; what its last run lacks is filled
        with zeros, and the answers to those are cut off.
        """
        batch, _ = prepare(pictures, self.spec.preparation, color=color)
        return self.infer(batch)

    def infer(self, batch: NDArray[np.float32]) -> dict[str, Array]:
        """The output tensors for prepared pictures ``[N, C, H, W]``, any N of at least one."""
        if len(batch) == 0:
            raise InputError("there are no pictures: the batch is empty")
        (tensor,) = self.spec.inputs
        size = tensor.shape[0] if isinstance(tensor.shape[0], int) else min(MAX_BATCH, len(batch))
        parts: list[Mapping[str, Array]] = []
        for start in range(0, len(batch), size):
            part = batch[start : start + size]
            if len(part) < size and isinstance(tensor.shape[0], int):
                padding = np.zeros((size - len(part), *part.shape[1:]), part.dtype)
                part = np.concatenate([part, padding])
            parts.append(self.runtime.run({tensor.name: part}))
        if len(parts) == 1 and len(batch) == size:
            return dict(parts[0])
        return {
            name: np.concatenate([part[name] for part in parts])[: len(batch)] for name in parts[0]
        }

    def _answer(self, pictures: Sequence[Picture], color: str) -> list[Classification]:
        if not pictures:
            return []
        return self.decode(self.raw(pictures, color=color))

    def decode(self, outputs: Mapping[str, Array]) -> list[Classification]:
        """The answers that the output tensors of :meth:`infer` mean, one per picture."""
        scores = outputs[self.spec.outputs[0].name]
        return classifications(scores, self.spec.decoding.kind, self.spec.labels)

    def close(self) -> None:
        """Give the runtime's memory back. Twice does no harm."""
        self.runtime.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def load(
    path: str | os.PathLike[str],
    *,
    backend: str = "auto",
    options: RuntimeOptions | None = None,
    build: bool = True,
) -> Model:
    """Open the model file ``path``; everything it needs to know is inside the file.

    ``backend`` is a name of ``edgecv backends``, or ``auto``. ``build=False`` raises
    :class:`~edgecv.errors.BackendUnavailable` where an engine would have to be compiled first.

    Raises :class:`~edgecv.errors.SpecError` where the file has no contract or one that its graph
    contradicts, :class:`~edgecv.errors.BackendUnavailable` where the backend cannot be used.
    """
    spec = read_spec(path)
    runtime = open_backend(backend, path, options)
    try:
        return Model(spec, runtime)
    except BaseException:
        runtime.close()
        raise


def _match(
    declared: Sequence[TensorSpec], actual: Sequence[TensorSpec], what: str, path: Path
) -> None:
    """The contract and the graph must speak of the same tensors."""
    names, found = [t.name for t in declared], [t.name for t in actual]
    if names != found:
        raise SpecError(f"{path}: the contract names the {what}s {names}, the graph has {found}")
    for tensor, other in zip(declared, actual, strict=True):
        sizes = zip(tensor.shape, other.shape, strict=False)
        fits = len(tensor.shape) == len(other.shape) and all(
            a == b for a, b in sizes if isinstance(a, int) and isinstance(b, int)
        )
        if not fits or tensor.dtype != other.dtype:
            raise SpecError(
                f"{path}: the contract says that {what} {tensor.name!r} is {tensor.dtype} "
                f"{list(tensor.shape)}, the graph has {other.dtype} {list(other.shape)}"
            )
