"""What of the machine decides how runtimes are opened: cores, and whether there is a GPU."""

from __future__ import annotations

import os
from pathlib import Path


def nvidia_devices() -> list[str]:
    """Device nodes of an NVIDIA driver (desktop, Jetson, WSL); empty where there is no driver,
    whatever hardware there is, and on systems that have no such nodes."""
    patterns = ("nvidia[0-9]*", "nvhost-gpu", "nvgpu/igpu*", "dxg")
    return sorted(str(path) for pattern in patterns for path in Path("/dev").glob(pattern))


def physical_cores() -> int:
    """Physical cores that this process may run on: two hyper-threads share one FMA unit."""
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1
    cores = set()
    for cpu in allowed:
        try:
            siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
            cores.add(siblings.read_text().strip())
        except OSError:  # containers may hide it: count each CPU as a core
            cores.add(str(cpu))
    return len(cores) or 1
