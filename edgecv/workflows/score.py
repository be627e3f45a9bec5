"""What every score of ``edgecv eval`` has."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from edgecv.model import Model


@dataclass(frozen=True)
class Score:
    """What every task's score has: ``count`` pictures; ``backend``, ``precision`` as they ran."""

    task: str
    count: int
    backend: str
    precision: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; rates are from 0 to 1."""
        return asdict(self)


def common(model: Model, count: int) -> dict[str, Any]:
    """The fields of :class:`Score` for ``model``, open and as it ran."""
    return {
        "task": model.spec.task,
        "count": count,
        "backend": model.info.backend,
        "precision": model.info.precision,
    }
