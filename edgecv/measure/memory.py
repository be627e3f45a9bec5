"""Resident memory of this process."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

MB = 1_000_000


def peak_rss_mb() -> float | None:
    """The most memory this process has had resident so far, in MB (10^6 bytes)."""
    status = _status("VmHWM")
    if status is not None:
        return status
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MB if sys.platform == "darwin" else peak * 1024 / MB  # bytes there, KiB elsewhere


def reset_peak() -> None:
    """Let :func:`peak_rss_mb` begin anew: what imports took at their height is not the model's.

    Linux only; elsewhere the peak goes on counting from the start of the process.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def rss_mb() -> float | None:
    """What is resident now, in MB; None where the system does not say."""
    return _status("VmRSS")


def _status(key: str) -> float | None:
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024 / MB
    return None
