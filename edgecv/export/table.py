"""Typed access to a TOML table: errors name the file, the key, what was expected, what came."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgecv.errors import RecipeError

_REQUIRED: Any = object()


class Table:
    """One table of a recipe. :meth:`done` refuses the keys that nobody asked for."""

    def __init__(self, data: Mapping[str, Any], path: Path, name: str = "") -> None:
        self.data, self.path, self.name = data, path, name
        self._asked: list[str] = []

    def error(self, key: str, message: str) -> RecipeError:
        """An error about ``key``, to be raised by the caller."""
        return RecipeError(f"{self.path}: {self._dotted(key)}: {message}")

    def has(self, key: str) -> bool:
        self._asked.append(key)
        return key in self.data

    def text(self, key: str, default: str = _REQUIRED) -> str:
        value: str = self._get(key, str, "a string", default)
        return value

    def choice(self, key: str, allowed: Sequence[str], default: str) -> str:
        value = self.text(key, default)
        if value not in allowed:
            raise self.error(key, f"expected one of {', '.join(allowed)}; got {value!r}")
        return value

    def integer(self, key: str, default: int | None = _REQUIRED) -> int | None:
        value: int | None = self._get(key, int, "a whole number", default)
        return value

    def number(self, key: str, default: float | None = _REQUIRED) -> Any:
        value = self._get(key, (int, float), "a number", default)
        return value if value is None else float(value)

    def floats(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """A number, or a list of numbers."""
        value = self._get(key, (int, float, list), "a number or a list of numbers", default)
        values = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            raise self.error(key, f"expected numbers, got {value!r}")
        return tuple(float(v) for v in values)

    def sizes(self, key: str) -> tuple[int, int]:
        """``224`` or ``[height, width]``, in pixels."""
        value = self._get(key, (int, list), "pixels, or [height, width]", _REQUIRED)
        values = value if isinstance(value, list) else [value, value]
        if len(values) != 2 or not all(type(v) is int for v in values):
            raise self.error(key, f"expected pixels, or [height, width]; got {value!r}")
        return values[0], values[1]

    def strings(self, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
        values = self._get(key, list, "a list of strings", default)
        if not all(isinstance(value, str) for value in values):
            raise self.error(key, f"expected a list of strings, got {values!r}")
        return tuple(values)

    def file(self, key: str) -> Path:
        """A path relative to the recipe; it must exist."""
        path = self.path.parent / self.text(key)
        if not path.is_file():
            raise self.error(key, f"there is no file {path}; paths are relative to the recipe")
        return path

    def mapping(self, key: str) -> Mapping[str, Any]:
        """A table whose keys somebody else checks."""
        value: Mapping[str, Any] = self._get(key, dict, "a table", {})
        return value

    def table(self, key: str, required: bool = True) -> Table:
        data = self._get(key, dict, "a table", _REQUIRED if required else {})
        return Table(data, self.path, self._dotted(key))

    def tables(self, key: str, required: bool = True) -> Iterator[tuple[str, Table]]:
        """The tables inside the table ``key``."""
        outer = self.table(key, required)
        for name in outer.data:
            yield name, outer.table(name)

    def done(self) -> None:
        """Refuse keys that are in the file and mean nothing."""
        for key in self.data:
            if key not in self._asked:
                near = difflib.get_close_matches(key, self._asked, n=1)
                hint = f"did you mean {near[0]!r}?" if near else ""
                known = ", ".join(dict.fromkeys(self._asked))
                raise self.error(key, f"unknown key; {hint or f'known here are {known}'}")

    def _dotted(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key

    def _get(self, key: str, kind: Any, expected: str, default: Any) -> Any:
        self._asked.append(key)
        if key not in self.data:
            if default is _REQUIRED:
                raise self.error(key, f"is missing; expected {expected}")
            return default
        value = self.data[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.error(key, f"expected {expected}, got {value!r}")
        return value
