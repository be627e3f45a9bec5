"""Typed reading of a decoding's options and of output tensors: what is missing is an error.

A decoder is told everything by the contract. An option that is not there, or not of its type, is
a :class:`~edgecv.errors.SpecError` that names it; a tensor that the contract does not describe is a
:class:`~edgecv.errors.RuntimeFailure` that says what was expected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import RuntimeFailure, SpecError
from edgecv.spec import ModelSpec

Array: TypeAlias = NDArray[Any]
_MISSING: Any = object()


class Options:
    """The options of ``spec.decoding``, read by type."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.where = f"{spec.name}: decoding {spec.decoding.kind!r}"
        self._values = spec.decoding.options

    def _get(self, key: str, default: Any, kinds: Any, expected: str) -> Any:
        value = self._values.get(key, default)
        if value is _MISSING:
            raise SpecError(
                f"{self.where} needs the option {key!r} ({expected}), and the contract has only "
                f"{sorted(self._values)}; adopt or export the file again with it"
            )
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            raise SpecError(f"{self.where}: option {key!r} must be {expected}, got {value!r}")
        return value

    def number(self, key: str, default: float = _MISSING) -> float:
        return float(self._get(key, default, (int, float), "a number"))

    def integer(self, key: str, default: int = _MISSING) -> int:
        return int(self._get(key, default, int, "a whole number"))

    def flag(self, key: str, default: bool = _MISSING) -> bool:
        return bool(self._get(key, default, bool, "true or false"))

    def text(self, key: str, default: str = _MISSING) -> str:
        return str(self._get(key, default, str, "a string"))

    def choice(self, key: str, allowed: Sequence[str], default: str = _MISSING) -> str:
        value = self.text(key, default)
        if value not in allowed:
            raise SpecError(
                f"{self.where}: option {key!r} must be one of {', '.join(allowed)}; got {value!r}"
            )
        return value

    def numbers(self, key: str) -> NDArray[np.float64]:
        """A list of numbers, nested to any depth but not ragged, as an array."""
        value = self._get(key, _MISSING, (list, tuple), "a list of numbers")
        try:
            array = np.array(value, np.float64)
        except (TypeError, ValueError) as error:
            raise SpecError(f"{self.where}: option {key!r} must hold numbers: {value!r}") from error
        if not np.isfinite(array).all():
            raise SpecError(f"{self.where}: option {key!r} must hold finite numbers: {value!r}")
        return array

    def strides(self) -> tuple[int, ...]:
        """The option ``strides``: input pixels per cell of each grid, whole and positive."""
        values = self.numbers("strides")
        if values.ndim != 1 or not len(values) or (values % 1 != 0).any() or (values < 1).any():
            raise SpecError(
                f"{self.where}: option 'strides' must be a list of whole numbers, got "
                f"{self._values['strides']!r}"
            )
        return tuple(int(v) for v in values)

    def output(self, outputs: Mapping[str, Array], role: str) -> Array:
        """The output that plays ``role``: the one of that name, or of the name that the option
        ``outputs`` (a mapping of roles to names) gives. float16 comes as float32."""
        names = self._get("outputs", {}, Mapping, "a mapping of roles to output names")
        name = names.get(role, role)
        if name not in outputs:
            raise SpecError(
                f"{self.where} needs the output {name!r}, and the model gives {sorted(outputs)}; "
                f"the option 'outputs' can name it: {{{role!r}: ...}}"
            )
        return _widen(outputs[name])

    def all_outputs(self, outputs: Mapping[str, Array]) -> list[Array]:
        """Every output, in the contract's order. float16 comes as float32."""
        return [_widen(outputs[tensor.name]) for tensor in self.spec.outputs]

    def only_output(self, outputs: Mapping[str, Array]) -> Array:
        """The output of a model that has one. float16 comes as float32."""
        if len(self.spec.outputs) != 1:
            raise SpecError(
                f"{self.where} reads one output, and the contract names "
                f"{[tensor.name for tensor in self.spec.outputs]}"
            )
        return self.all_outputs(outputs)[0]

    def threshold(self, key: str, given: float | None) -> float:
        """``given`` by the caller, else the contract's option ``key``: from 0 to 1."""
        value = self.number(key) if given is None else float(given)
        if not 0 <= value <= 1:
            raise SpecError(f"{self.where}: {key} must lie from 0 to 1, got {value}")
        return value


def expect_shape(array: Array, expected: Sequence[int | str], what: str, hint: str = "") -> None:
    """A :class:`RuntimeFailure` where ``array`` has not the shape (a string is any size)."""
    fits = array.ndim == len(expected) and all(
        isinstance(want, str) or size == want
        for size, want in zip(array.shape, expected, strict=True)
    )
    if not fits:
        shown = ", ".join(map(str, expected))
        raise RuntimeFailure(
            f"{what}: expected a tensor [{shown}], got {list(array.shape)}" + (hint and f"; {hint}")
        )


def no_nan(scores: Array, what: str) -> None:
    """A :class:`RuntimeFailure` where a score is NaN: nothing can be said about the picture."""
    if np.isnan(scores).any():
        raise RuntimeFailure(
            f"{what}: {int(np.isnan(scores).sum())} of {scores.size} scores are NaN: the model's "
            f"file is damaged, or its precision does not hold its values (try fp32)"
        )


def _widen(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype == np.float16 else array
