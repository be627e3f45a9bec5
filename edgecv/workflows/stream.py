"""Pictures through a model, many at a time, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.model import Model, same_shape
from edgecv.preprocess import Picture, Prepared, prepare, stack
from edgecv.progress import Progress, silent
from edgecv.results import Placement
from edgecv.runtimes.base import Array
from edgecv.spec import Preparation

CHUNK = 32  # pictures decoded ahead: at 224 pixels 19 MB


def prepared_chunks(
    pictures: Sequence[Picture], preparation: Preparation, dtype: str = "float32"
) -> Iterator[list[Prepared | InputError]]:
    """Prepared pictures, or the error that kept one out, :data:`CHUNK` at a time in their order.

    They are decoded by threads: Pillow lets go of the interpreter lock.
    """

    def one(picture: Picture) -> Prepared | InputError:
        try:
            return prepare(picture, preparation, dtype=dtype)
        except InputError as error:
            return error

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        pending = [pool.submit(one, picture) for picture in pictures[:CHUNK]]
        for start in range(0, len(pictures), CHUNK):
            results = [future.result() for future in pending]
            upcoming = pictures[start + CHUNK : start + 2 * CHUNK]
            pending = [pool.submit(one, picture) for picture in upcoming]
            yield results


def outputs_of(
    model: Model,
    pictures: Sequence[Picture],
    progress: Progress = silent,
    what: str = "pictures",
    placements: list[Placement] | None = None,
) -> dict[str, Array]:
    """All output tensors of ``model`` for ``pictures``; the first unreadable one is raised."""
    preparation, dtype = model.spec.preparation, model.spec.inputs[0].dtype
    return collect(model.infer, pictures, preparation, progress, what, dtype, placements)


def collect(
    infer: Callable[[NDArray[Any]], dict[str, Array]],
    pictures: Sequence[Picture],
    preparation: Preparation,
    progress: Progress = silent,
    what: str = "pictures",
    dtype: str = "float32",
    placements: list[Placement] | None = None,
) -> dict[str, Array]:
    """``infer`` over all pictures, its outputs joined ``{name: [N, ...]}``.

    ``placements`` gets where each picture lies in the input, in order.

    Pictures that come to different shapes (a net that takes any size) cannot be joined, which is
    an :class:`~edgecv.errors.InputError`.
    """
    if not pictures:
        raise InputError("there are no pictures")
    parts: list[dict[str, Array]] = []
    done = 0
    for chunk in prepared_chunks(pictures, preparation, dtype):
        good = []
        for one in chunk:
            if isinstance(one, InputError):
                raise one
            good.append(one)
        if placements is not None:
            placements += [one.placement for one in good]
        parts += [infer(stack(group)) for group in same_shape(good)]
        done += len(chunk)
        progress(what, done, len(pictures))
    joined = {}
    for name in parts[0]:
        shapes = {part[name].shape[1:] for part in parts}
        if len(shapes) > 1:
            raise InputError(
                f"output {name!r} has different shapes for these pictures {sorted(shapes)[:3]}: "
                f"the net takes any size; give pictures of one size"
            )
        joined[name] = np.concatenate([part[name] for part in parts])
    return joined
