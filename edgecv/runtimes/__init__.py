"""Backends, looked up by name.

The built-in ones are in one literal dict; other packages add theirs through the entry-point group
``edgecv.backends`` (name = "package.module:BackendClass"). Nothing is imported before it is asked
for.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import os
import sys
from pathlib import Path

from edgecv.enginefile import is_engine, read_header
from edgecv.errors import BackendUnavailable, EdgeCVError, InputError, RuntimeFailure
from edgecv.runtimes.base import Backend, Probe, RuntimeOptions
from edgecv.runtimes.hardware import nvidia_devices
from edgecv.spec import read_spec

BACKENDS = {
    "onnxruntime": "edgecv.runtimes.ort:OrtBackend",
    "onnxruntime-cuda": "edgecv.runtimes.ort_gpu:OrtCudaBackend",
    "onnxruntime-tensorrt": "edgecv.runtimes.ort_gpu:OrtTensorRtBackend",
    "tensorrt": "edgecv.runtimes.trt:TrtBackend",
    "tensorrt-rtx": "edgecv.runtimes.trt:TrtRtxBackend",
    "openvino": "edgecv.runtimes.ov:OvBackend",
    "fake": "edgecv.runtimes.fake:FakeBackend",
}
ALIASES = {"ort": "onnxruntime"}
# Best first: what uses a GPU, then the CPU. A file that was quantized for a runtime's Q/DQ rules
# tries that one before its neighbours (see `_candidates`).
GPU_BACKENDS = ("tensorrt", "tensorrt-rtx", "onnxruntime-tensorrt", "onnxruntime-cuda")
CPU_BACKENDS = ("onnxruntime", "openvino")
AUTO_ORDER = GPU_BACKENDS + CPU_BACKENDS
ENTRY_POINTS = "edgecv.backends"


def backend_names() -> list[str]:
    """All names that :func:`open_backend` takes, built in and installed, without aliases."""
    return [*BACKENDS, *(name for name in _installed() if name not in BACKENDS)]


def backend_class(name: str) -> type[Backend]:
    """The class behind ``name``; an unknown one is an error that lists the known ones."""
    name = ALIASES.get(name, name)
    if name in BACKENDS:
        module, _, attribute = BACKENDS[name].partition(":")
        found = getattr(importlib.import_module(module), attribute)
    elif (entry := _installed().get(name)) is not None:
        try:
            found = entry.load()
        except Exception as error:  # another's code, which may fail in any way
            raise BackendUnavailable(
                f"backend {name!r} is registered by {entry.value!r}, which does not load ({error})"
            ) from error
    else:
        raise BackendUnavailable(
            f"there is no backend {name!r}; known are auto, {', '.join(backend_names())}"
        )
    if not (isinstance(found, type) and issubclass(found, Backend)):
        raise BackendUnavailable(f"backend {name!r}: {found!r} is not a Backend class")
    return found


def probe_backends() -> dict[str, Probe]:
    """What each backend says of itself on this machine; one that does not load says why."""
    probes = {}
    for name in backend_names():
        try:
            found = backend_class(name)
        except BackendUnavailable as error:
            probes[name] = Probe(False, reason=str(error))
            continue
        try:
            probes[name] = found.probe()
        except Exception as error:  # one that fails must not hide the others
            reason = f"its probe fails ({type(error).__name__}: {error})"
            probes[name] = Probe(False, reason=reason)
    return probes


def open_backend(
    name: str, path: str | os.PathLike[str], options: RuntimeOptions | None = None
) -> Backend:
    """Load the model file ``path`` on the backend ``name``.

    ``auto`` takes the first of :data:`AUTO_ORDER` that is usable and opens this file, and
    ``info.reason`` says which and why. A named backend that is not usable is
    :class:`~edgecv.errors.BackendUnavailable`, never another one in its place.
    """
    engine_of = _engine_of(Path(path))
    if name == "auto" and engine_of is None:
        return _open_auto(path, options)
    found = backend_class(engine_of if name == "auto" and engine_of else name)
    if engine_of is not None and found.reads_onnx:
        raise InputError(
            f"{path}: is an engine for backend {engine_of}; backend {found.name} needs the .onnx "
            f"file that it was built from"
        )
    _require_usable(found.name, found.probe())
    return found(path, options)


def _open_auto(path: str | os.PathLike[str], options: RuntimeOptions | None) -> Backend:
    reasons: list[str] = []
    refused: EdgeCVError | None = None
    for candidate in _candidates(Path(path)):
        if candidate in GPU_BACKENDS and sys.platform == "linux" and not nvidia_devices():
            # asking TensorRT itself would load 100 MB of it to hear the same
            reasons.append(f"{candidate}: there is no NVIDIA driver here")
            continue
        found = backend_class(candidate)
        probe = found.probe()
        if not probe.usable:
            reasons.append(f"{candidate}: {probe.reason}")
            continue
        try:
            runtime = found(path, options)
        except (RuntimeFailure, BackendUnavailable, InputError) as error:
            # works here, not for this file, these options, or sizes that nobody has named
            refused = refused or error
            reasons.append(f"{candidate}: {error}")
            continue
        reason = "; ".join([f"{candidate} {probe.version} is usable", *reasons])
        runtime.info = dataclasses.replace(runtime.info, reason=reason)
        return runtime
    if refused is not None:
        raise refused
    raise BackendUnavailable(
        "no runtime is usable here: " + "; ".join(reasons) + "; pip install 'edgecv[onnxruntime]'"
    )


def _candidates(path: Path) -> list[str]:
    """The order of trial for this file: a file made for a CPU runtime tries that one first of the
    two; a GPU, where one is usable, comes before both."""
    order = list(AUTO_ORDER)
    try:
        target = read_spec(path).target or ""
    except EdgeCVError:  # no contract, no target: the backend will say what is wrong with the file
        target = ""
    if target.partition("-")[0] == "openvino":
        order.sort(key=lambda name: CPU_BACKENDS[::-1].index(name) if name in CPU_BACKENDS else -1)
    return order


def _engine_of(path: Path) -> str | None:
    """The backend that the engine file ``path`` is for; None for any other file."""
    if not path.is_file() or not is_engine(path):
        return None
    return read_header(path).backend


def _require_usable(name: str, probe: Probe) -> None:
    if not probe.usable:
        remedy = f"; {probe.remedy}" if probe.remedy else ""
        raise BackendUnavailable(f"backend {name!r} is not usable here: {probe.reason}{remedy}")


def _installed() -> dict[str, importlib.metadata.EntryPoint]:
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}
