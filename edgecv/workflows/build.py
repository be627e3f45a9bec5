"""``edgecv build``: an engine ahead of time, in a file that carries the model's contract."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecv.enginefile import EngineHeader, is_engine, write_engine
from edgecv.errors import BackendUnavailable, InputError
from edgecv.progress import Progress, silent
from edgecv.runtimes.base import RuntimeOptions
from edgecv.runtimes.cuda import Cuda
from edgecv.runtimes.trt_build import (
    MODULES,
    ahead_of_time_gpus,
    build_engine,
    check_gpus,
    library,
    plan_build,
)


@dataclass(frozen=True)
class Built:
    """The engine file that was written, its header, and how long TensorRT took."""

    path: Path
    header: EngineHeader
    size_bytes: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "backend": self.header.backend,
            "backend_version": self.header.library_version,
            "gpus": list(self.header.gpus),
            "model_sha256": self.header.model_sha256,
            "profile": {name: list(sizes) for name, sizes in self.header.profile.items()},
            "nodes": dict(self.header.nodes),
            "size_bytes": self.size_bytes,
            "seconds": round(self.seconds, 3),
        }


def build(
    model: str | os.PathLike[str],
    *,
    backend: str,
    gpus: Sequence[str] = (),
    shapes: Mapping[str, tuple[int, int, int]] | None = None,
    tf32: bool = False,
    dla_core: int | None = None,
    output: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> Built:
    """Compile ``model`` for ``gpus`` (``sm86``); none means the GPU of this machine.

    The default name is ``MODEL-BACKEND-GPUS.engine`` in the current folder. Raises
    :class:`~edgecv.errors.BackendUnavailable` where the backend is not installed or has no kernels
    for a GPU, :class:`~edgecv.errors.RuntimeFailure` where it refuses the model.
    """
    path = Path(model)
    if backend not in MODULES:
        raise InputError(
            f"--backend {backend}: engines are built with {' or '.join(MODULES)}; the other "
            f"backends take the .onnx file as it is"
        )
    trt = library(backend)
    if is_engine(path):
        raise InputError(f"{path}: is an engine already; build from its .onnx file")
    if output is not None and os.path.realpath(output) == os.path.realpath(path):
        raise InputError(f"{output}: is the model itself, which the engine would replace")
    here = _gpu_here()
    chosen = tuple(dict.fromkeys(gpus)) or ((here,) if here else ())
    if not chosen and (known := ahead_of_time_gpus(trt)):
        raise InputError(f"there is no GPU here: name some, --gpu {','.join(known)}")
    check_gpus(backend, chosen, here)
    precision = "tf32" if tf32 else None
    options = RuntimeOptions(shapes=dict(shapes or {}), precision=precision, dla_core=dla_core)
    plan = plan_build(backend, path, chosen, options)
    started = time.perf_counter()
    header, engine = build_engine(plan, path, progress)
    seconds = time.perf_counter() - started
    target = Path(output or f"{path.stem}-{backend}-{'-'.join(chosen)}.engine")
    write_engine(target, header, engine)
    return Built(target, header, target.stat().st_size, seconds)


def _gpu_here() -> str | None:
    try:
        return Cuda().gpu
    except BackendUnavailable:
        return None
