"""Writing files so that nobody ever reads half of one, and reading them with errors that help."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from edgecv.errors import InputError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path``; it takes that name only when the block succeeds.

    Both the file and its new name are flushed to the disk, so that a power cut leaves the old
    file or the new one, and after the block returned it leaves the new one: a device that is
    unplugged right after "done" has what it was told. On an error, or an interrupt, the
    temporary file is removed and ``path`` is as it was; folders made for it stay. Only a killed
    process leaves one behind (hidden, ``.edgecv-*.part``).

    A new file has the permissions that the umask gives, a file that is replaced keeps its own: a
    private gallery stays private. A symbolic link is followed, as ``open`` would: the link stays,
    what it points at is replaced.

    Raises :class:`~edgecv.errors.InputError` where ``path`` cannot be written (no folder there, no
    right to write, no space left), or is a folder or a device. What the block itself raises, its
    own ``OSError`` included (a download that times out), passes unchanged; but after a write that
    failed it is that, whatever a library has made of it (``torch.save`` a ``RuntimeError``).
    """
    path = Path(path)
    try:
        target = Path(os.path.realpath(path))
        mode = _mode_of(target, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.parent / f".edgecv-{secrets.token_hex(8)}.part"
        raw = _OutputFile(part, "xb")  # exclusive: never another one's file
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise _cannot_write(path, error) from error
    returned = False  # whether the block has, and each OSError from there on is ours
    try:
        with io.BufferedWriter(raw) as file:
            if mode is not None:
                part.chmod(mode)
            yield file
            returned = True
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
        _sync_folder(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if raw.error is not None and isinstance(error, Exception):
            raise _cannot_write(path, raw.error) from error
        if isinstance(error, OSError) and returned:
            raise _cannot_write(path, error) from error
        raise


def _mode_of(target: Path, path: Path) -> int | None:
    """The permissions of the file that is replaced; ``None`` where there is none yet."""
    try:
        status = target.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path}: is a folder; expected the name of a file to write")
    if not stat.S_ISREG(status.st_mode):  # renaming over /dev/null would replace the device
        raise InputError(f"{path}: is not a regular file; give the name of a file to write")
    return stat.S_IMODE(status.st_mode) & 0o777


class _OutputFile(io.FileIO):
    """Remembers its own failure, which is how the block's errors are told from the disk's."""

    error: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def _cannot_write(path: Path, error: OSError | ValueError) -> InputError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return InputError(f"{path}: could not be written ({reason}); free space or write elsewhere")


def _sync_folder(folder: Path) -> None:
    """Flush a rename to the disk. File systems that cannot (SMB, FUSE) have it in place already."""
    if os.name == "nt":  # Windows opens no folders
        return
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def make_folder(path: str | os.PathLike[str]) -> Path:
    """``path``, made where it is not there yet; what prevents it is an
    :class:`~edgecv.errors.InputError`."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise _cannot_write(Path(path), error) from error
    return Path(path)


def open_binary(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading; what prevents it is an :class:`~edgecv.errors.InputError`."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # a named pipe would block, a device never end
            kind = "a folder" if path.is_dir() else "not a regular file"
            raise InputError(f"{path}: cannot be read: it is {kind}; expected a file")
        return path.open("rb")
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{path}: cannot be read ({reason})") from error


def write_json(path: str | os.PathLike[str], data: Mapping[str, Any]) -> None:
    """``data`` as indented JSON, atomically."""
    with atomic_write(path) as file:
        file.write((json.dumps(data, indent=2) + "\n").encode())


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file, as 64 hex digits."""
    digest = hashlib.sha256()
    with open_binary(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
