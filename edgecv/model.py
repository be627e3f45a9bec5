"""A model that takes pictures and gives answers: runtime + preparation + postprocessing."""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from edgecv.closing import Closing
from edgecv.errors import InputError, RuntimeFailure, SpecError
from edgecv.preprocess import Picture, Prepared, prepare, stack
from edgecv.results import Placement, Result
from edgecv.runtimes import open_backend
from edgecv.runtimes.base import Array, Backend, RuntimeInfo, RuntimeOptions
from edgecv.spec import ModelSpec, TensorSpec, read_spec

if TYPE_CHECKING:
    from edgecv.postprocess.classify import HeatMap

MAX_BATCH = 32  # pictures in one run of a dynamic-batch file; more only costs memory on a CPU

# task -> "module:function(outputs, spec, placements, conf, iou) -> one result per picture"
DECODERS = {
    "classify": "edgecv.postprocess.classify:decode",
    "detect": "edgecv.postprocess.detect:decode",
    "embed": "edgecv.postprocess.embed:decode",
    "segment": "edgecv.postprocess.segment:decode",
    "landmarks": "edgecv.postprocess.landmarks:decode",
}


class Model(Closing):
    """An open model file. Call it with a picture or a list of them; close it, or use ``with``.

    ``spec`` is the contract that the file carries, ``runtime`` the open backend, ``info`` what
    really runs. Thread-safe.
    """

    def __init__(self, spec: ModelSpec, runtime: Backend) -> None:
        self.spec, self.runtime = spec, runtime
        _match(spec.inputs, runtime.inputs, "input", runtime.path)
        _match(spec.outputs, runtime.outputs, "output", runtime.path)
        self._decode = decoder(spec, runtime.path)

    @property
    def info(self) -> RuntimeInfo:
        return self.runtime.info

    def __call__(
        self,
        pictures: Picture | Sequence[Picture],
        *,
        color: str = "rgb",
        conf: float | None = None,
        iou: float | None = None,
    ) -> Any:
        """Answer one picture with one result, a list of pictures with a list, in its order.

        A picture is a path, a PIL image, or an array ``[H, W, 3]`` of uint8 in the order
        ``color`` (``rgb`` or ``bgr``). The result is the task's dataclass of
        :mod:`edgecv.results` (typed as Any: which one it is stands in the file). ``conf`` (least
        score) and ``iou`` (overlap that NMS allows) are for tasks that have boxes, and replace the
        contract's; other tasks refuse them.
        """
        many = isinstance(pictures, list | tuple)
        given = cast("Sequence[Picture]", pictures if many else [pictures])
        prepared = [self.prepare(one, color=color) for one in given]
        results = self.answer(prepared, conf=conf, iou=iou)
        return results if many else results[0]

    def prepare(self, picture: Picture, *, color: str = "rgb") -> Prepared:
        """``picture`` as the input tensor that the contract asks for."""
        dtype = self.spec.inputs[0].dtype
        return prepare(picture, self.spec.preparation, dtype=dtype, color=color)

    def check_thresholds(self, conf: float | None, iou: float | None) -> None:
        """Refuse thresholds outside 0 to 1, or that the task or the file's graph would ignore."""
        for name, value in (("conf", conf), ("iou", iou)):
            if value is not None and self.spec.task != "detect":
                raise InputError(f"conf and iou do not apply to task {self.spec.task!r}")
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"{name} must be from 0 to 1, got {value:g}")
        if self.spec.task == "detect":
            self._check_graphs_nms(conf, iou)

    def _check_graphs_nms(self, conf: float | None, iou: float | None) -> None:
        """What the graph has dropped no threshold brings back."""
        from edgecv.postprocess.detect import SUPPRESSED

        kind, options = self.spec.decoding.kind, self.spec.decoding.options
        if iou is not None and kind in SUPPRESSED:
            raise InputError(
                f"{self.runtime.path}: iou does not apply: this file's graph suppresses by itself "
                f"(decoding {kind!r}), at a threshold that is fixed in it"
            )
        least = options.get("conf")
        if conf is not None and kind == "detections" and least is not None and conf < least:
            raise InputError(
                f"{self.runtime.path}: conf must be at least {least:g}, got {conf:g}: the NMS in "
                f"this file's graph has dropped what scores lower; use the file without it"
            )

    def answer(
        self, prepared: Sequence[Prepared], *, conf: float | None = None, iou: float | None = None
    ) -> list[Result]:
        """The answers to prepared pictures, one each, in order."""
        self.check_thresholds(conf, iou)
        results: list[Result] = []
        for group in same_shape(prepared):
            outputs = self.infer(stack(group))
            results += self.decode(outputs, [one.placement for one in group], conf=conf, iou=iou)
        return results

    def heat_map(self, picture: Picture, *, color: str = "rgb") -> HeatMap:
        """What a fully convolutional classifier says at each place of ``picture``.

        Raises :class:`~edgecv.errors.InputError` for another task; see
        :func:`edgecv.postprocess.classify.heat_maps` for what the contract has to say.
        """
        from edgecv.postprocess.classify import heat_maps

        if self.spec.task != "classify":
            raise InputError(
                f"heat maps are for classifiers; this model's task is {self.spec.task!r}"
            )
        prepared = self.prepare(picture, color=color)
        (found,) = heat_maps(self.infer(stack([prepared])), self.spec, [prepared.placement])
        return found

    def raw(self, pictures: Sequence[Picture], *, color: str = "rgb") -> dict[str, Array]:
        """The output tensors for ``pictures`` (at least one), before any decoding.

        The pictures must come to one shape, which they always do unless the file takes any size.
        """
        prepared = [self.prepare(one, color=color) for one in pictures]
        shapes = {one.tensor.shape for one in prepared}
        if len(shapes) > 1:
            raise InputError(f"the pictures come to different shapes {sorted(shapes)}: call singly")
        if not prepared:
            raise InputError("there are no pictures: the batch is empty")
        return self.infer(stack(prepared))

    def infer(self, batch: NDArray[Any]) -> dict[str, Array]:
        """The output tensors for a prepared batch (``spec.inputs[0]``), any N of at least one.

        A file with a fixed batch, or an engine for a range of them, is run as often as it takes;
        what its last run lacks is filled with zeros, and the answers to those are cut off.
        """
        if len(batch) == 0:
            raise InputError("there are no pictures: the batch is empty")
        (tensor,) = self.spec.inputs
        least, most = self.runtime.batch_range
        if isinstance(tensor.shape[0], int):
            least = size = tensor.shape[0]
        else:
            size = max(least, min(MAX_BATCH, most, len(batch)))
        parts: list[Mapping[str, Array]] = []
        for start in range(0, len(batch), size):
            part = batch[start : start + size]
            if len(part) < least:
                padding = np.zeros((least - len(part), *part.shape[1:]), part.dtype)
                part = np.concatenate([part, padding])
            parts.append(self.runtime.run({tensor.name: part}))
        if len(parts) == 1 and len(batch) == size:
            return dict(parts[0])
        return {
            name: np.concatenate([part[name] for part in parts])[: len(batch)] for name in parts[0]
        }

    def decode(
        self,
        outputs: Mapping[str, Array],
        placements: Sequence[Placement],
        *,
        conf: float | None = None,
        iou: float | None = None,
    ) -> list[Result]:
        """The answers that the output tensors of :meth:`infer` mean, one per picture.

        ``placements`` say where each picture lies in the input (:func:`edgecv.preprocess.prepare`).
        """
        return self._decode(outputs, self.spec, placements, conf, iou)

    def close(self) -> None:
        """Give the runtime's memory back. Twice does no harm."""
        self.runtime.close()


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
    options = options or RuntimeOptions()
    options = dataclasses.replace(options, build=build and options.build)
    try:
        runtime = open_backend(backend, path, options)
    except RuntimeFailure as error:
        if spec.parity.get("end2end", {}).get("form") != "tensorrt":
            raise
        raise RuntimeFailure(
            f"{path}: the NMS in its graph is TensorRT's own plugin, which no other runtime has; "
            f"run it in TensorRT, or make the file with --end2end and without --target tensorrt "
            f"({error})"
        ) from error
    try:
        return Model(spec, runtime)
    except BaseException:
        runtime.close()
        raise


def same_shape(prepared: Sequence[Prepared]) -> list[list[Prepared]]:
    """Runs of neighbours whose tensors have one shape, each at most :data:`MAX_BATCH` long."""
    groups: list[list[Prepared]] = []
    for one in prepared:
        fits = groups and len(groups[-1]) < MAX_BATCH
        if fits and groups[-1][0].tensor.shape == one.tensor.shape:
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def decoder(spec: ModelSpec, where: Path | str) -> Callable[..., list[Result]]:
    """The function of :data:`DECODERS` for the task of ``spec``."""
    if spec.task not in DECODERS:
        raise SpecError(f"{where}: this EdgeCV has no decoder for task {spec.task!r}; update it")
    module, _, name = DECODERS[spec.task].partition(":")
    found: Callable[..., list[Result]] = getattr(importlib.import_module(module), name)
    return found


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
