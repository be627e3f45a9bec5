"""A learned measure of likeness: what a Siamese pair's head says of two embeddings.

``sigmoid(sum_k w_k |x_k - y_k| + b)`` is that of Koch et al., "Siamese Neural Networks for One-shot
Image Recognition", ICML Deep Learning Workshop 2015; ``(x_k - y_k)^2 / (x_k + y_k)`` in place of
the difference that of Taigman et al., "DeepFace", CVPR 2014. A contract carries it as the option
``likeness`` of the decoding ``embedding``::

    {"measure": "l1", "weights": [D numbers], "bias": b}

The head was learned on embeddings as the net gives them, so ``normalize`` is false beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError, SpecError
from edgecv.jsonobject import JsonObject
from edgecv.spec import ModelSpec

OPTION = "likeness"
MEASURES = ("l1", "chi-square")
EPSILON = 1e-6  # of the chi-square form's denominator: two features of 0 are alike
_LONGEST = 1e19  # of |w|: as vectors', so that the sums of their products are finite in float32


@dataclass(frozen=True)
class Likeness:
    """``measure`` is one of :data:`MEASURES`; ``weights`` ``[D]``, of any sign, and ``bias`` are
    rounded to float32. The chi-square form compares vectors that have no negative values.

    Raises :class:`~edgecv.errors.InputError` for what means nothing.
    """

    measure: str
    weights: tuple[float, ...]
    bias: float

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise InputError(
                f"a likeness' measure must be one of {', '.join(MEASURES)}, got {self.measure!r}"
            )
        if not self.weights:
            raise InputError("a likeness has a weight for each value of an embedding, got none")
        if not math.hypot(*self.weights, self.bias) < _LONGEST:  # NaN is not
            raise InputError("a likeness' weights and bias must be finite and of usual size")
        object.__setattr__(self, "weights", tuple(np.array(self.weights, np.float32).tolist()))
        object.__setattr__(self, "bias", float(np.float32(self.bias)))

    def __str__(self) -> str:
        return f"learned, {self.measure} of {len(self.weights)} values"

    @classmethod
    def of(cls, spec: ModelSpec) -> Likeness | None:
        """The likeness that the net with this contract has learned; ``None`` where it has none.

        Raises :class:`~edgecv.errors.SpecError` for one that is damaged, of another length than
        the embeddings, or beside ``normalize``.
        """
        options = spec.decoding.options
        if spec.task != "embed" or OPTION not in options:
            return None
        where = f"{spec.name}: decoding {spec.decoding.kind!r}"
        likeness = cls.read(JsonObject(options, where).child(OPTION))
        size = spec.outputs[0].shape[1]
        if isinstance(size, int) and size != len(likeness.weights):
            raise SpecError(
                f"{where}: {OPTION}: expected {size} weights, one for each value of the output "
                f"{spec.outputs[0].name!r}, got {len(likeness.weights)}"
            )
        if options.get("normalize", False):
            raise SpecError(
                f"{where}: {OPTION} compares embeddings as the net gives them: 'normalize' must be "
                f"false beside it (in a recipe: output.options = {{ normalize = false }})"
            )
        return likeness

    @classmethod
    def read(cls, given: JsonObject) -> Likeness:
        """Read :meth:`to_dict`'s; anything else is a :class:`~edgecv.errors.SpecError`."""
        try:
            return cls(
                given.get("measure", str), given.floats("weights", ()), given.get("bias", float)
            )
        except (InputError, OverflowError) as error:
            raise SpecError(f"{given.where}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, the shortest numbers from which the same float32 ones are read."""
        return {
            "measure": self.measure,
            "weights": [_shortest(weight) for weight in self.weights],
            "bias": _shortest(self.bias),
        }

    @cached_property
    def vector(self) -> NDArray[np.float32]:
        """The weights ``[D]``."""
        return np.array(self.weights, np.float32)

    @cached_property
    def norm(self) -> float:
        """The weights' length."""
        return math.hypot(*self.weights)

    def terms(self, x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
        """What the weights weigh, of any two arrays that broadcast; in their dtype."""
        found: NDArray[Any] = x - y
        if self.measure == "l1":
            np.abs(found, out=found)
        else:
            total = x + y
            total += EPSILON
            found *= found
            found /= total
        return found

    def logits(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        """The likeness of rows ``[N, D]`` and ``[N, D]`` or ``[1, D]`` before the sigmoid ``[N]``:
        it orders pairs also where the sigmoid is 1 to all digits."""
        found: NDArray[np.float64] = self.terms(x, y) @ self.vector.astype(np.float64) + self.bias
        return found


def _shortest(value: float) -> float:
    short = float(str(np.float32(value)))
    # it is read in double precision and then rounded: rarely that is the next float32
    return short if np.float32(short) == value else value


def probabilities(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sigmoid: from 0 to 1, overflowing nowhere."""
    found: NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -logits))
    return found
