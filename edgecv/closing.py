"""What everything that holds a file, a session or a process has: ``with``, which closes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TypeVar

T = TypeVar("T", bound="Closing")


class Closing(ABC):
    """A context manager that closes itself at the end of its block, whatever happened there."""

    @abstractmethod
    def close(self) -> None:
        """Give back what is held. Twice does no harm."""

    def __enter__(self: T) -> T:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
