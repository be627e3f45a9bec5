"""Typed access to JSON that others wrote; errors name what is missing or wrong by its path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from edgecv.errors import SpecError

MAX_STRINGS = 100_000  # in one list; ImageNet-21k has 21,841 labels

T = TypeVar("T")


class JsonObject:
    """Typed access to a JSON object; each error names the key by its full path."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data, self.where = data, where

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        value = self.data.get(key, default)
        if value is None:
            raise SpecError(f"{self.where}: {key!r} is missing")
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise SpecError(
                f"{self.where}: {key!r} must be {kind.__name__}, got {type(value).__name__}"
            )
        return value

    def child(self, key: str) -> JsonObject:
        return JsonObject(self.get(key, dict), f"{self.where}: {key}")

    def strings(self, key: str, default: list[str] | None = None) -> tuple[str, ...]:
        values = self.get(key, list, default)
        if len(values) > MAX_STRINGS:
            raise SpecError(
                f"{self.where}: {key!r} has {len(values)} entries; at most {MAX_STRINGS}"
            )
        if not all(isinstance(value, str) for value in values):
            raise SpecError(f"{self.where}: {key!r} must be a list of strings")
        return tuple(values)

    def floats(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        values = self.get(key, list, list(default))
        if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            raise SpecError(f"{self.where}: {key!r} must be a list of numbers")
        return tuple(float(value) for value in values)
