"""``edgecv predict``: answers for files and folders, in their order, nothing skipped silently."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from edgecv.errors import InputError
from edgecv.files import atomic_write
from edgecv.model import Model
from edgecv.preprocess import list_pictures, open_picture
from edgecv.progress import Progress, silent
from edgecv.results import Classification, Result
from edgecv.workflows.stream import prepared_chunks


@dataclass(frozen=True)
class Prediction:
    """What became of one picture: a ``result``, or the ``error`` that kept it from being read."""

    source: Path
    result: Result | None
    error: InputError | None = None


def find_sources(sources: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Files as they are named, folders as the pictures under them; an empty folder is an error."""
    found: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            pictures = list_pictures(source)
            if not pictures:
                raise InputError(f"{source}: there are no pictures in this folder")
            found += pictures
        else:
            found.append(source)
    return found


def predict(
    model: Model,
    sources: Sequence[Path],
    progress: Progress = silent,
    *,
    conf: float | None = None,
    iou: float | None = None,
) -> Iterator[Prediction]:
    """One :class:`Prediction` per source, in order; a broken picture does not stop the others."""
    done = 0
    dtype = model.spec.inputs[0].dtype
    for chunk in prepared_chunks(sources, model.spec.preparation, dtype):
        good = [one for one in chunk if not isinstance(one, InputError)]
        answers = iter(model.answer(good, conf=conf, iou=iou))
        for one in chunk:
            if isinstance(one, InputError):
                yield Prediction(sources[done], None, one)
            else:
                yield Prediction(sources[done], next(answers))
            done += 1
        progress("pictures", done, len(sources))


def saved_names(sources: Sequence[Path]) -> list[str]:
    """A file name for each source's drawing; a name that is taken already gets a number."""
    names: dict[str, None] = {}  # in order
    for source in sources:
        suffix = source.suffix if source.suffix.lower() in (".jpg", ".jpeg", ".png") else ".png"
        name, count = f"{source.stem}{suffix}", 0
        while name in names:
            count += 1
            name = f"{source.stem}-{count}{suffix}"
        names[name] = None
    return list(names)


def save_drawn(prediction: Prediction, folder: Path, name: str) -> Path:
    """The picture with its answer written under it, as ``folder/name``.

    The text stands on a bar of its own below the picture, so that no background hides it.
    """
    if not isinstance(prediction.result, Classification):
        raise InputError(f"{prediction.source}: there is no classification to draw")
    picture = open_picture(prediction.source)
    size = max(12, picture.width // 28)
    lines = [f"{c.label}  {c.probability:.1%}" for c in prediction.result.top(3)]
    font = _font(size)
    line_height = round(size * 1.4)
    canvas = Image.new(
        "RGB", (picture.width, picture.height + line_height * len(lines) + size), "black"
    )
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    for index, line in enumerate(lines):
        y = picture.height + size // 2 + index * line_height
        draw.text((size // 2, y), line, fill="white" if index == 0 else "#b0b0b0", font=font)
    path = folder / name
    with atomic_write(path) as file:
        canvas.save(file, "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG")
    return path


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1 has one size only
        return ImageFont.load_default()
