"""What a model says about a picture: frozen dataclasses of NumPy arrays, checked when made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import RuntimeFailure


class Class(NamedTuple):
    """One class of a classification: ``id`` is its index among the labels."""

    id: int
    label: str
    probability: float


@dataclass(frozen=True, eq=False)
class Classification:
    """``probabilities``: float32 ``[C]``, one per label, each from 0 to 1."""

    probabilities: NDArray[np.float32]
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.probabilities.shape != (len(self.labels),):
            raise RuntimeFailure(
                f"expected {len(self.labels)} probabilities, one per label, got an array of shape "
                f"{list(self.probabilities.shape)}"
            )
        if not np.isfinite(self.probabilities).all():
            raise RuntimeFailure("the model's probabilities are NaN or infinite")

    def top(self, k: int = 5) -> list[Class]:
        """The ``k`` most probable classes, best first; of equals the lower index comes first."""
        order = np.argsort(-self.probabilities, kind="stable")[: max(k, 0)]
        return [Class(int(i), self.labels[i], float(self.probabilities[i])) for i in order]

    @property
    def best(self) -> Class:
        return self.top(1)[0]

    def to_dict(self, k: int = 5) -> dict[str, Any]:
        """The ``k`` best classes as plain JSON values."""
        return {"task": "classify", "top": [c._asdict() for c in self.top(k)]}

    def __str__(self) -> str:
        return ", ".join(f"{c.label} {c.probability:.1%}" for c in self.top(3))
