"""The engines that this machine has built, so that each is built once."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from edgecv.enginefile import read_engine, write_engine
from edgecv.errors import BackendUnavailable, InputError, SpecError
from edgecv.files import make_folder
from edgecv.runtimes.base import RuntimeOptions
from edgecv.runtimes.trt_build import BuildPlan, build_engine


def cached_engine(plan: BuildPlan, path: Path, options: RuntimeOptions) -> Path:
    """The engine of ``plan``, from the cache or built into it; safe with several processes.

    A damaged entry is built again, with a warning. With ``options.build`` off an engine that is
    not there is a :class:`~edgecv.errors.BackendUnavailable`.
    """
    folder = Path(options.cache_dir) if options.cache_dir is not None else default_cache()
    target = folder / f"{path.stem}-{plan.key}.engine"
    if _usable(target):
        return target
    if not options.build:
        raise BackendUnavailable(
            f"{path}: its engine for {', '.join(plan.gpus)} has to be built first, and build=False "
            f"was given; `edgecv build {path.name} --backend {plan.backend}` builds it"
        )
    make_folder(folder)
    with _locked(target.with_suffix(".lock")):
        if not _usable(target):  # another process may have built it while this one waited
            header, engine = build_engine(plan, path, options.progress, folder)
            write_engine(target, header, engine)
    return target


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/edgecv/engines``, or the same under ``~/.cache``."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "edgecv" / "engines"


def _usable(target: Path) -> bool:
    if not target.exists():
        return False
    try:
        read_engine(target)
    except SpecError as error:
        warnings.warn(f"engine cache: {error}; it is built anew", RuntimeWarning, stacklevel=3)
        return False
    return True


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold ``path`` as a lock between processes. Without fcntl (Windows) two may build the same
    engine; each still appears whole."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    try:
        file = path.open("ab")
    except OSError as error:
        raise InputError(
            f"{path.parent}: engines cannot be kept there ({error.strerror}); give another folder"
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file closes, also by a crash
        yield
