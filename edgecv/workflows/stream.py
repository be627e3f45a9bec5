"""Pictures through a model, many at a time, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.model import Model
from edgecv.preprocess import Picture, prepare
from edgecv.progress import Progress, silent
from edgecv.runtimes.base import Array
from edgecv.spec import Preparation

CHUNK = 32  # pictures decoded ahead: at 224 pixels 19 MB


def prepared_chunks(
    pictures: Sequence[Picture], preparation: Preparation
) -> Iterator[tuple[NDArray[np.float32], list[InputError | None]]]:
    """Batches of prepared pictures, decoded by threads (Pillow lets go of the interpreter lock).

    Beside each batch stands, per picture of the chunk, the error that kept it out, or None; a
    batch holds the others in their order.
    """

    def one(picture: Picture) -> NDArray[np.float32] | InputError:
        try:
            return prepare([picture], preparation)[0]
        except InputError as error:
            return error

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        pending = [pool.submit(one, picture) for picture in pictures[:CHUNK]]
        for start in range(0, len(pictures), CHUNK):
            results = [future.result() for future in pending]
            upcoming = pictures[start + CHUNK : start + 2 * CHUNK]
            pending = [pool.submit(one, picture) for picture in upcoming]
            good = [r for r in results if not isinstance(r, InputError)]
            empty = np.empty(
                (0, preparation.channels, preparation.height, preparation.width), np.float32
            )
            yield (
                np.concatenate(good) if good else empty,
                [r if isinstance(r, InputError) else None for r in results],
            )


def outputs_of(
    model: Model,
    pictures: Sequence[Picture],
    progress: Progress = silent,
    what: str = "pictures",
) -> dict[str, Array]:
    """All output tensors of ``model`` for ``pictures``; the first unreadable one is raised."""
    return collect(model.infer, pictures, model.spec.preparation, progress, what)


def collect(
    infer: Callable[[NDArray[np.float32]], dict[str, Array]],
    pictures: Sequence[Picture],
    preparation: Preparation,
    progress: Progress = silent,
    what: str = "pictures",
) -> dict[str, Array]:
    """``infer`` over all pictures, its outputs joined ``{name: [N, ...]}``."""
    if not pictures:
        raise InputError("there are no pictures")
    parts: list[dict[str, Array]] = []
    done = 0
    for batch, errors in prepared_chunks(pictures, preparation):
        for error in errors:
            if error is not None:
                raise error
        parts.append(infer(batch))
        done += len(batch)
        progress(what, done, len(pictures))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
