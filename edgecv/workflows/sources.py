"""What ``edgecv predict`` is given: pictures, folders, video files and cameras."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgecv.errors import InputError
from edgecv.preprocess import PICTURE_SUFFIXES

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ts", ".mjpeg")
)
CAMERA = "camera:"  # followed by a number, or by CSI
CSI = "csi"
MOST_DIGITS = 4  # of a camera's number: what is longer overflows in drivers


@dataclass(frozen=True)
class Source:
    """One picture, video or camera: ``kind`` is ``picture``, ``video`` or ``camera``.

    ``name`` is a path, or for a camera its number, or :data:`CSI`.
    """

    kind: str
    name: str

    @property
    def path(self) -> Path:
        return Path(self.name)

    def __str__(self) -> str:
        return f"{CAMERA}{self.name}" if self.kind == "camera" else self.name


def find_sources(
    given: Sequence[str | os.PathLike[str]], saved: Path | None = None
) -> tuple[list[Source], list[Path]]:
    """What is meant by ``given``, in its order, and the files of folders that are left out.

    A folder stands for the pictures and videos under it, sorted by path; hidden files do not
    count, files of other kinds are returned as left out. A file that is named is taken whatever it
    is called: one that ends like a video is read as such, any other as a picture. ``saved`` is
    where drawings go: what lies there from another time is no source of a folder around it.

    Raises :class:`~edgecv.errors.InputError` for a folder with neither, and for an unknown camera.
    """
    sources: list[Source] = []
    others: list[Path] = []
    for one in given:
        text = os.fspath(one)
        path = Path(text)
        if text.startswith(CAMERA):
            sources.append(_camera(text))
        elif path.is_dir():
            found, left_out = _folder(path, saved)
            sources += found
            others += left_out
        else:
            sources.append(_file(path))
    return sources, others


def _camera(text: str) -> Source:
    name = text.removeprefix(CAMERA)
    if name != CSI and not (name.isdecimal() and len(name) <= MOST_DIGITS):
        raise InputError(
            f"{text}: expected camera:0, camera:1, ... (the number of a /dev/video device) or "
            f"camera:csi (the ribbon-cable camera of a Raspberry Pi)"
        )
    return Source("camera", name)


def _file(path: Path) -> Source:
    kind = "video" if path.suffix.lower() in VIDEO_SUFFIXES else "picture"
    return Source(kind, str(path))


def _folder(folder: Path, saved: Path | None) -> tuple[list[Source], list[Path]]:
    own = None  # where drawings of another time may lie
    if saved is not None and folder.resolve() in saved.resolve().parents:
        own = folder / saved.resolve().relative_to(folder.resolve())
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and (own is None or own not in path.parents)
    )
    known = PICTURE_SUFFIXES | VIDEO_SUFFIXES
    found = [_file(path) for path in files if path.suffix.lower() in known]
    others = [path for path in files if path.suffix.lower() not in known]
    if not found:
        raise InputError(
            f"{folder}: there are no pictures or videos in this folder"
            + (f", only other files such as {others[0].name}" if others else "")
        )
    return found, others
