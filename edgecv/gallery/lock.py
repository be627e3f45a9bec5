"""One writer at a time, across processes and threads; a killed writer holds nothing."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from edgecv.errors import InputError

POLL = 0.02  # seconds between two tries


@contextlib.contextmanager
def lock(path: Path, timeout: float) -> Iterator[None]:
    """Hold the file ``path`` (made where it is not there) against every other :func:`lock` of it.

    The operating system lets go of it when the process ends, however it ends. Raises
    :class:`~edgecv.errors.InputError` when another one still holds it after ``timeout`` seconds,
    or where the file cannot be opened. Not for network file systems without locks.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be written ({error.strerror})") from error
    try:
        deadline = time.monotonic() + timeout
        while not _try(handle):
            if time.monotonic() >= deadline:
                raise InputError(
                    f"{path.parent}: another process has been writing here for {timeout:g} "
                    f"seconds; wait for it, or end it, and try again"
                )
            time.sleep(POLL)
        yield
    finally:
        os.close(handle)  # which unlocks it


if sys.platform == "win32":
    import msvcrt

    def _try(handle: int) -> bool:
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try(handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
