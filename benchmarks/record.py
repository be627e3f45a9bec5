"""What every committed result says beside its figures: the format, the machine, how busy it was.

``suite.schema.json`` describes the files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgecv.files import write_json
from edgecv.measure.machine import environment, installed
from edgecv.measure.record import machine_id


def stamp(peers: Sequence[str] = ()) -> dict[str, Any]:
    """The machine, the versions (of ``peers`` too, where installed) and the load at this moment."""
    here = environment()
    if peers:
        here["peers"] = installed(peers)
    return {"environment": here, "load_average": [round(value, 2) for value in os.getloadavg()]}


def save(path: Path | None, suite: str, *, peers: Sequence[str] = (), **content: Any) -> None:
    """Write a result of ``suite`` (``NAME/VERSION``), where the user asked for a file."""
    if path is not None:
        write_json(path, {"schema": f"edgecv.{suite}", **stamp(peers), **content})


def kept(path: Path | None, key: str) -> Any:
    """What an earlier run has left in the file, for suites that go on; empty without one."""
    if path is None or not path.exists():
        return {}
    return json.loads(path.read_text()).get(key, {})


def from_here(path: Path | None, **content: Any) -> bool:
    """Whether an earlier run has left the file on this machine, with this ``content`` in it."""
    here = machine_id(environment())
    same = machine_id(kept(path, "environment")) == here
    return same and all(kept(path, key) == value for key, value in content.items())
