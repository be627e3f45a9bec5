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

from edgecv.errors import BackendUnavailable
from edgecv.runtimes.base import Backend, Probe, RuntimeOptions

BACKENDS = {
    "onnxruntime": "edgecv.runtimes.ort:OrtBackend",
    "openvino": "edgecv.runtimes.ov:OvBackend",
    "fake": "edgecv.runtimes.fake:FakeBackend",
}
ALIASES = {"ort": "onnxruntime"}
AUTO_ORDER = ("onnxruntime",)  # best first
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
        except (ImportError, AttributeError) as error:
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
            probes[name] = backend_class(name).probe()
        except BackendUnavailable as error:
            probes[name] = Probe(False, reason=str(error))
    return probes


def open_backend(
    name: str, path: str | os.PathLike[str], options: RuntimeOptions | None = None
) -> Backend:
    """Load the model file ``path`` on the backend ``name``.

    ``auto`` takes the first of :data:`AUTO_ORDER` that is usable, and ``info.reason`` says why.
    A named backend that is not usable is :class:`~edgecv.errors.BackendUnavailable`, never
    another one in its place.
    """
    if name != "auto":
        found = backend_class(name)
        _require_usable(found.name, found.probe())
        return found(path, options)
    reasons: list[str] = []
    for candidate in AUTO_ORDER:
        found = backend_class(candidate)
        probe = found.probe()
        if probe.usable:
            runtime = found(path, options)
            reason = "; ".join([*reasons, f"{candidate} {probe.version} is usable"])
            runtime.info = dataclasses.replace(runtime.info, reason=reason)
            return runtime
        reasons.append(f"{candidate}: {probe.reason}")
    raise BackendUnavailable(
        "no runtime is usable here: " + "; ".join(reasons) + "; pip install 'edgecv[onnxruntime]'"
    )


def _require_usable(name: str, probe: Probe) -> None:
    if not probe.usable:
        remedy = f"; {probe.remedy}" if probe.remedy else ""
        raise BackendUnavailable(f"backend {name!r} is not usable here: {probe.reason}{remedy}")


def _installed() -> dict[str, importlib.metadata.EntryPoint]:
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}
