"""``edgecv predict``: answers in the order of the sources, nothing skipped silently."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.model import Model
from edgecv.preprocess import Prepared
from edgecv.progress import Progress, silent
from edgecv.results import Result
from edgecv.workflows.sources import CSI, Source
from edgecv.workflows.stream import prepared_chunks
from edgecv.workflows.video import Frame, check_library, file_frames, live_frames, open_camera

FRAMES = 8  # of a video in one batch: at 1920x1080 50 MB


@dataclass(frozen=True, eq=False)
class Prediction:
    """What became of one picture or frame: a ``result``, or the ``error`` that kept it out.

    ``frame``, ``seconds`` and ``pixels`` (BGR) are a video's or camera's; ``fps`` its frames a
    second, 0 where unknown; ``dropped`` how many frames of a camera have gone by unanswered.
    """

    source: Source
    result: Result | None
    error: InputError | None = None
    frame: int | None = None
    seconds: float = 0.0
    fps: float = 0.0
    dropped: int = 0
    pixels: NDArray[np.uint8] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Source and answer as plain JSON values; frame and time where there are any."""
        data: dict[str, Any] = {"source": str(self.source)}
        if self.frame is not None:
            data |= {"frame": self.frame, "seconds": round(self.seconds, 3)}
        if self.error is not None:
            data["error"] = str(self.error)
        return data | (self.result.to_dict() if self.result is not None else {})

    def __str__(self) -> str:
        place = str(self.source)
        if self.frame is not None:
            place += f" frame {self.frame} ({self.seconds:.2f} s)"
        return f"{place}: {self.error if self.result is None else self.result}"


def predict(
    model: Model,
    sources: Sequence[Source],
    progress: Progress = silent,
    *,
    conf: float | None = None,
    iou: float | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Generator[Prediction, None, None]:
    """One :class:`Prediction` per picture and per frame, in order.

    A broken picture or video does not stop the others: it is a prediction with an ``error``. A
    camera goes on until the iterator is closed or the camera is gone; frames that come while the
    model is busy are dropped for the newest. ``note`` is told what is worth knowing and no error.

    Raises :class:`~edgecv.errors.BackendUnavailable`, before the first answer, where OpenCV is
    needed and is not there.
    """
    if any(s.kind == "video" or (s.kind == "camera" and s.name != CSI) for s in sources):
        check_library()
    answering = _Answering(model, progress, conf, iou, note)
    for kind, group in groupby(sources, key=lambda source: source.kind):
        if kind == "picture":
            yield from answering.pictures(list(group))
            continue
        frames = answering.video if kind == "video" else answering.camera
        for source in group:
            try:
                yield from frames(source)
            except InputError as error:
                yield Prediction(source, None, error)


@dataclass(frozen=True, eq=False)
class _Answering:
    """An open model and how the caller wants to be answered, whatever the source is."""

    model: Model
    progress: Progress
    conf: float | None
    iou: float | None
    note: Callable[[str], None]

    def answer(self, prepared: Sequence[Prepared]) -> list[Result]:
        return self.model.answer(prepared, conf=self.conf, iou=self.iou)

    def frame(self, pixels: NDArray[np.uint8]) -> Prepared:
        return self.model.prepare(pixels, color="bgr")

    def pictures(self, sources: Sequence[Source]) -> Iterator[Prediction]:
        done = 0
        spec = self.model.spec
        paths = [source.path for source in sources]
        for chunk in prepared_chunks(paths, spec.preparation, spec.inputs[0].dtype):
            answers = iter(self.answer([one for one in chunk if not isinstance(one, InputError)]))
            for one in chunk:
                if isinstance(one, InputError):
                    yield Prediction(sources[done], None, one)
                else:
                    yield Prediction(sources[done], next(answers))
                done += 1
            self.progress("pictures", done, len(sources))

    def video(self, source: Source) -> Iterator[Prediction]:
        frames = file_frames(source.path, self.note)
        while batch := list(islice(frames, FRAMES)):
            results = self.answer([self.frame(frame.pixels) for frame, _, _ in batch])
            for (frame, count, fps), result in zip(batch, results, strict=True):
                yield _of_frame(source, frame, result, fps=fps)
                self.progress(source.path.name, frame.index + 1, count)

    def camera(self, source: Source) -> Iterator[Prediction]:
        answered = dropped = 0
        frames = live_frames(open_camera(source.name), str(source))
        try:
            for frame, dropped in frames:
                (result,) = self.answer([self.frame(frame.pixels)])
                answered += 1
                self.progress(str(source), answered, 0)
                yield _of_frame(source, frame, result, dropped=dropped)
        finally:
            frames.close()
            self.note(f"{source}: {answered} frames answered, {dropped} dropped for newer ones")


def _of_frame(
    source: Source, frame: Frame, result: Result, *, fps: float = 0.0, dropped: int = 0
) -> Prediction:
    return Prediction(
        source=source,
        result=result,
        frame=frame.index,
        seconds=frame.seconds,
        fps=fps,
        dropped=dropped,
        pixels=frame.pixels,
    )
