"""Labelled pictures for training: a folder per class, on the disk or in a zip file."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Callable, Sequence
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
from edgecv.train.job import Job


@dataclass(frozen=True)
class LabelledPictures:
    """A whole data set in memory, already at the net's input size.

    ``pixels`` is uint8 ``[N, H, W, C]``, ``labels`` int64 ``[N]``, indices into ``classes``.
    """

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    skipped: tuple[str, ...] = ()  # what could not be read, and why

    def subset(self, index: Tensor) -> LabelledPictures:
        """The pictures at ``index``, int64 ``[n]``."""
        return LabelledPictures(self.pixels[index], self.labels[index], self.classes)

    def of_classes(self, names: Sequence[str]) -> LabelledPictures:
        """The pictures of the classes ``names``, which are then all the classes."""
        index = torch.full((len(self.classes),), -1)
        for i, name in enumerate(names):
            index[self.classes.index(name)] = i
        labels = index[self.labels]
        kept = labels >= 0
        return LabelledPictures(self.pixels[kept], labels[kept], tuple(names))


def load_pictures(
    source: Path,
    preparation: Preparation,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    classes: Sequence[str] | None = None,
    others: bool = False,
    skip_broken: bool = False,
) -> LabelledPictures:
    """Read ``source`` (a folder or a zip of ``.../CLASS/picture``), prepared as at inference.

    Classes are the names of the folders right above the pictures: those of ``classes`` in its
    order, or all, sorted; with ``others`` all, too, where they are not those of ``classes``. Hidden
    files and folders do not count. A class without a picture or in two places is an error, and so
    is a picture that cannot be read, which is named: training on a silently smaller set is worse.
    With ``skip_broken`` such pictures are left out and named in the result.
    """
    entries, folders = _entries(source)
    found = {path.parent.name for path, _ in entries}
    every = _class_names(source, {path.parent for path, _ in entries}, folders)
    own = classes is None or (others and set(classes) != set(every))
    named = every if own or classes is None else tuple(classes)
    if surplus := sorted(set(every) - set(named)):
        raise InputError(
            f"{source}: its classes {surplus} are not the recipe's labels {list(named)}"
        )
    if empty := [name for name in named if name not in found]:
        raise InputError(
            f"{source}: no pictures of {', '.join(empty)}; add some "
            f"({', '.join(sorted(PICTURE_SUFFIXES))}), or remove the folder"
        )
    shape = (preparation.height, preparation.width, preparation.channels)
    try:
        pixels = np.empty((len(entries), *shape), np.uint8)
    except MemoryError as error:
        raise InputError(
            f"{source}: its {len(entries)} pictures take {len(entries) * math.prod(shape):,} bytes "
            f"at {preparation.width}x{preparation.height} pixels, more memory than there is; "
            f"set a smaller input size, or learn from fewer"
        ) from error
    index = {name: i for i, name in enumerate(named)}
    labels: list[int] = []
    skipped: list[str] = []
    for i, (path, read) in enumerate(entries):
        try:
            pixels[len(labels)] = fit_pixels(read(), preparation)[0]
            labels.append(index[path.parent.name])
        except InputError as error:
            if not skip_broken:
                raise InputError(f"{error}; --set skip_broken=true leaves such out") from error
            skipped.append(str(error))
        if i % 500 == 0 or i + 1 == len(entries):
            progress(i + 1, len(entries))
    pictures = LabelledPictures(
        torch.from_numpy(pixels[: len(labels)]), torch.tensor(labels), named, tuple(skipped)
    )
    if missing := [n for i, n in enumerate(named) if not torch.any(pictures.labels == i)]:
        raise InputError(f"{source}: not one readable picture of {', '.join(missing)}")
    return pictures


def read_labelled(
    job: Job,
    name: str,
    title: str,
    classes: Sequence[str] | None = None,
    *,
    others: bool = False,
) -> LabelledPictures:
    """The pictures of the job's file or folder ``name``; what is left out is said."""
    pictures = load_pictures(
        job.path(name),
        job.preparation,
        job.titled(f"reading {title}"),
        classes=classes,
        others=others,
        skip_broken=job.files.skip_broken,
    )
    for text in pictures.skipped:
        job.say(f"left out: {text}")
    return pictures


def split(
    pictures: LabelledPictures, fraction: float, seed: int
) -> tuple[LabelledPictures, LabelledPictures]:
    """Two parts, ``fraction`` of each class (at least one picture) in the second, by ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    first, second = [], []
    for label, name in enumerate(pictures.classes):
        members = torch.nonzero(pictures.labels == label)[:, 0]
        if len(members) < 2:
            raise InputError(
                f"class {name}: one picture cannot be both learned from and held out; add more, "
                f"or name held_out data"
            )
        members = members[torch.randperm(len(members), generator=generator)]
        held = min(max(1, round(fraction * len(members))), len(members) - 1)
        second.append(members[:held])
        first.append(members[held:])
    return (
        pictures.subset(torch.cat(first).sort().values),
        pictures.subset(torch.cat(second).sort().values),
    )


def _class_names(
    source: Path, pictured: set[PurePosixPath], folders: set[PurePosixPath]
) -> tuple[str, ...]:
    """The classes of ``source``, those that are empty included, sorted.

    ``pictured`` are the folders with pictures, among all the ``folders``.
    """
    inner = folders - {folder.parent for folder in folders}
    every = {folder.name for folder in pictured | inner}
    if not every:
        raise InputError(
            f"{source}: no pictures in it; expected CLASS/picture.jpg, one folder each"
        )
    if len(every) < 2 or "" in every:
        raise InputError(
            f"{source}: expected a folder per class, at least two; found {sorted(every)}"
        )
    places: dict[str, PurePosixPath] = {}
    for folder in sorted(pictured):
        other = places.setdefault(folder.name, folder)
        if other != folder:
            parts = (
                f"--set data={other.parent} --set held_out={folder.parent}"
                if source.is_dir()
                else "a zip file each"
            )
            raise InputError(
                f"{source}: {other} and {folder} are both of the class {folder.name}; name what to "
                f"learn from and what to hold out ({parts}), or put a class into one folder"
            )
        if folder.parent in pictured:
            raise InputError(
                f"{source}: pictures lie in {folder.parent} and in {folder} below it; which of "
                f"both is the class? Put them into one folder"
            )
    return tuple(sorted(every))


def _entries(
    source: Path,
) -> tuple[list[tuple[PurePosixPath, Callable[[], Image.Image]]], set[PurePosixPath]]:
    """The pictures by their paths in ``source``, sorted, and the folders in it."""
    files: list[tuple[PurePosixPath, Callable[[], Image.Image]]] = []
    folders: set[PurePosixPath] = set()
    if source.is_dir():
        for found in source.rglob("*"):
            path = PurePosixPath(found.relative_to(source).as_posix())
            if found.is_dir():
                folders.add(path)
            elif path.suffix.lower() in PICTURE_SUFFIXES:
                files.append((path, partial(open_picture, found)))
    elif source.is_file():
        try:
            archive = zipfile.ZipFile(source)
        except zipfile.BadZipFile as error:
            raise InputError(f"{source}: neither a folder nor a whole zip file") from error
        for name in archive.namelist():
            path = PurePosixPath(name)
            folders.update(path.parents if not name.endswith("/") else (path, *path.parents))
            if path.suffix.lower() in PICTURE_SUFFIXES and not name.endswith("/"):
                files.append((path, partial(_read_zipped, archive, name)))
        folders.discard(PurePosixPath())
    else:
        raise InputError(f"{source}: there is no such folder or zip file")
    files = [entry for entry in files if not _hidden(entry[0])]
    return sorted(files, key=lambda entry: entry[0].as_posix()), {
        folder for folder in folders if not _hidden(folder)
    }


def _hidden(path: PurePosixPath) -> bool:
    """Whether a file browser does not show it: thumbnails, checkpoints, what macOS adds to a zip
    file."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _read_zipped(archive: zipfile.ZipFile, name: str) -> Image.Image:
    where = f"{archive.filename}: {name}"
    try:
        data = archive.read(name)
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        # RuntimeError: it is encrypted, or packed by a method that Python does not have
        raise InputError(f"{where}: cannot be read from the zip file ({error})") from error
    return decode(io.BytesIO(data), where)
