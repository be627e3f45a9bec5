"""Labelled pictures for training: a folder per class, on the disk or in a zip file."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from edgecv.errors import InputError
from edgecv.preprocess import PICTURE_SUFFIXES, decode, fit_pixels, open_picture
from edgecv.spec import Preparation


@dataclass(frozen=True)
class LabelledPictures:
    """A whole data set in memory, already at the net's input size.

    ``pixels`` is uint8 ``[N, H, W, 3]``, ``labels`` int64 ``[N]``, indices into ``classes``.
    """

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]


def load_pictures(
    source: Path,
    preparation: Preparation,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LabelledPictures:
    """Read ``source`` (a folder or a zip of ``.../CLASS/picture``), prepared as at inference.

    Classes are the names of the folders right above the pictures, in sorted order. A picture
    that cannot be read is an error that names it: training on a silently smaller set is worse.
    """
    entries = sorted(_entries(source), key=lambda entry: entry[0].as_posix())
    if not entries:
        raise InputError(
            f"{source}: no pictures in it; expected CLASS/picture.jpg, one folder each"
        )
    classes = tuple(sorted({path.parent.name for path, _ in entries}))
    if len(classes) < 2 or "" in classes:
        raise InputError(
            f"{source}: expected a folder per class, at least two; found {list(classes)}"
        )
    pixels = np.empty((len(entries), preparation.height, preparation.width, 3), np.uint8)
    index = {name: i for i, name in enumerate(classes)}
    for i, (_, read) in enumerate(entries):
        pixels[i] = fit_pixels(read(), preparation)[0]
        if i % 500 == 0 or i + 1 == len(entries):
            progress(i + 1, len(entries))
    labels = torch.tensor([index[path.parent.name] for path, _ in entries])
    return LabelledPictures(torch.from_numpy(pixels), labels, classes)


def _entries(source: Path) -> Iterator[tuple[PurePosixPath, Callable[[], Image.Image]]]:
    if source.is_dir():
        for found in source.rglob("*"):
            if found.suffix.lower() in PICTURE_SUFFIXES:
                yield (
                    PurePosixPath(found.relative_to(source).as_posix()),
                    partial(open_picture, found),
                )
        return
    if not source.is_file():
        raise InputError(f"{source}: there is no such folder or zip file")
    try:
        archive = zipfile.ZipFile(source)
    except zipfile.BadZipFile as error:
        raise InputError(f"{source}: neither a folder nor a whole zip file") from error
    for name in archive.namelist():
        path = PurePosixPath(name)
        if path.suffix.lower() in PICTURE_SUFFIXES:
            yield path, partial(_read_zipped, archive, name)


def _read_zipped(archive: zipfile.ZipFile, name: str) -> Image.Image:
    where = f"{archive.filename}: {name}"
    try:
        data = archive.read(name)
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{where}: damaged in the zip file ({error})") from error
    return decode(io.BytesIO(data), where)
