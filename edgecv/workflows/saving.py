"""What ``edgecv predict --save`` writes: drawn pictures and videos, and a line of JSON for each.

A segmenter's answer to a picture is saved as ``NAME-mask.png`` too, of classes and not of colours.

``results.jsonl`` is written line by line as the answers come, and a video is closed properly
whatever ends the run, so that an interrupt or a power cut keeps what is done.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from edgecv.closing import Closing
from edgecv.errors import InputError
from edgecv.files import atomic_write
from edgecv.postprocess.segment import mask_picture
from edgecv.preprocess import open_picture
from edgecv.results import Segmentation
from edgecv.workflows.drawing import draw
from edgecv.workflows.predict import Prediction
from edgecv.workflows.sources import Source

LINES = "results.jsonl"
CAMERA_FPS = 10.0  # of the video that is made of a camera's answers


class Saver(Closing):
    """Saves predictions of ``sources`` to ``folder``; a context manager.

    Raises :class:`~edgecv.errors.InputError` where a drawing would take a source's own place.
    """

    def __init__(self, folder: Path, sources: Sequence[Source]) -> None:
        self._folder = folder
        distinct = list(dict.fromkeys(sources))
        self._names = dict(zip(distinct, saved_names(distinct), strict=True))
        masks = mask_names(list(self._names.values()))
        self._masks = dict(zip(distinct, masks, strict=True))
        self._video: _Video | None = None
        _spare_sources(folder, self._names)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lines: IO[str] = (folder / LINES).open("w", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{folder}: cannot be written to ({error.strerror})") from error

    def save(self, prediction: Prediction) -> dict[str, Any]:
        """Write what there is to draw, and the line; gives the line's keys and values."""
        data = prediction.to_dict()
        result = prediction.result
        if result is not None:
            path = self._folder / self._names[prediction.source]
            data["saved"] = str(path)
            if prediction.pixels is not None:
                self._add_frame(prediction, path)
            else:
                _save_picture(prediction, path)
                if isinstance(result, Segmentation):
                    mask = self._folder / self._masks[prediction.source]
                    data["mask"] = str(mask)
                    _write(mask_picture(result), mask)
        try:
            self._lines.write(json.dumps(data) + "\n")
            self._lines.flush()
        except OSError as error:
            raise InputError(
                f"{self._folder / LINES}: could not be written ({error.strerror}); free space or "
                f"write elsewhere"
            ) from error
        return data

    def _add_frame(self, prediction: Prediction, path: Path) -> None:
        assert prediction.result is not None
        assert prediction.pixels is not None
        if self._video is None or self._video.path != path:
            self._end_video()
            self._video = _Video(path, prediction.fps)
        picture = open_picture(prediction.pixels, color="bgr")
        drawn = np.asarray(draw(picture, prediction.result))
        live = prediction.source.kind == "camera"
        self._video.add(drawn, prediction.seconds if live else None)

    def _end_video(self) -> None:
        if self._video is not None:
            self._video.close()
            self._video = None

    def close(self) -> None:
        """Finish the video and the lines."""
        self._end_video()
        self._lines.close()


def saved_names(sources: Sequence[Source]) -> list[str]:
    """A file name for each source's drawing; a name that is taken already gets a number."""
    names: dict[str, None] = {}  # in order
    for source in sources:
        if source.kind == "camera":
            stem, suffix = f"camera-{source.name}", ".mp4"
        elif source.kind == "video":
            stem, suffix = source.path.stem, ".mp4"
        else:
            stem, suffix = source.path.stem, source.path.suffix
            suffix = suffix if suffix.lower() in (".jpg", ".jpeg", ".png") else ".png"
        names[_unused(stem, suffix, names)] = None
    return list(names)


def mask_names(names: Sequence[str]) -> list[str]:
    """A file name for each drawing's mask, beside the drawings ``names``; none comes twice."""
    taken = dict.fromkeys(names)
    for name in names:
        taken[_unused(f"{Path(name).stem}-mask", ".png", taken)] = None
    return list(taken)[len(names) :]


def _unused(stem: str, suffix: str, taken: Container[str]) -> str:
    name, count = f"{stem}{suffix}", 0
    while name in taken:
        count += 1
        name = f"{stem}-{count}{suffix}"
    return name


def _spare_sources(folder: Path, names: Mapping[Source, str]) -> None:
    """Refuse a folder in which a drawing's name is that of a source: it would be lost."""
    own = {os.path.realpath(source.path) for source in names if source.kind != "camera"}
    for name in names.values():
        if os.path.realpath(folder / name) in own:
            raise InputError(
                f"{folder}: the drawings would be written over the sources that lie there, such as "
                f"{folder / name}; save to another folder"
            )


def _save_picture(prediction: Prediction, path: Path) -> None:
    assert prediction.result is not None
    _write(draw(open_picture(prediction.source.path), prediction.result), path)


def _write(picture: Image.Image, path: Path) -> None:
    with atomic_write(path) as file:
        if path.suffix.lower() in (".jpg", ".jpeg"):
            picture.save(file, "JPEG", quality=92)
        else:
            picture.save(file, "PNG")


class _Video:
    """A video that is being written; it takes its name when it is closed."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self._fps = path, fps or CAMERA_FPS
        self._part = path.with_name(f".{path.stem}.part{path.suffix}")
        self._writer: Any = None
        self._size = (0, 0)
        self._written = 0

    def add(self, pixels: Any, seconds: float | None) -> None:
        """Append RGB ``pixels``. ``seconds``: when it was seen, for a source that drops frames;
        the frame is repeated until then, so that the video runs in real time."""
        import cv2

        height, width = pixels.shape[:2]
        if self._writer is None:
            self._size = (width, height)
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._part), codec, self._fps, self._size)
            if not self._writer.isOpened():
                raise InputError(f"{self.path}: OpenCV cannot write this video here")
        frame = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        if (width, height) != self._size:  # the bar below a picture grows with its lines
            frame = cv2.resize(frame, self._size)
        due = self._written + 1 if seconds is None else int(seconds * self._fps) + 1
        while self._written < due:
            self._writer.write(frame)
            self._written += 1

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()
            self._part.replace(self.path)
