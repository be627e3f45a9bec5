"""How long work says where it is: a callback, so that no layer below the CLI knows of a bar."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # what is being done, how many are, out of how many


def silent(what: str, done: int, total: int) -> None:
    """The default: say nothing."""
