"""What a model says about a picture: frozen dataclasses of NumPy arrays, checked when made.

Coordinates are pixels of the source picture: x to the right, y down, (0, 0) the upper left
corner of the upper left pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import RuntimeFailure


@dataclass(frozen=True)
class Placement:
    """Where a picture lies in the input: ``input = picture * scale + offset``, per axis, pixels.

    ``width`` and ``height`` are the source picture's, ``input_width`` and ``input_height`` the
    input tensor's. The way back is what detections need.
    """

    width: int
    height: int
    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float
    input_width: int
    input_height: int


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
        _shape("probabilities", self.probabilities, (len(self.labels),))
        _finite("probabilities", self.probabilities)

    def top(self, k: int = 5) -> list[Class]:
        """The ``k`` most probable classes, best first; of equals the lower index comes first."""
        order = np.argsort(-self.probabilities, kind="stable")[: max(k, 0)]
        return [Class(int(i), self.labels[i], float(self.probabilities[i])) for i in order]

    def above(self, threshold: float) -> list[Class]:
        """The classes of at least ``threshold``, most probable first: a multi-label answer."""
        return self.top(int((self.probabilities >= threshold).sum()))

    @property
    def best(self) -> Class:
        return self.top(1)[0]

    def to_dict(self, k: int = 5) -> dict[str, Any]:
        """The ``k`` best classes as plain JSON values."""
        return {"task": "classify", "top": [c._asdict() for c in self.top(k)]}

    def __str__(self) -> str:
        return ", ".join(f"{c.label} {c.probability:.1%}" for c in self.top(3))


class Detection(NamedTuple):
    """One box of :class:`Detections`: ``box`` is (x1, y1, x2, y2)."""

    box: tuple[float, float, float, float]
    score: float
    class_id: int
    label: str


@dataclass(frozen=True, eq=False)
class Detections:
    """Boxes of one picture, the highest score first; of equal scores the earlier candidate.

    ``boxes``: float32 ``[N, 4]``, x1, y1, x2, y2; ``scores``: float32 ``[N]``, 0 to 1;
    ``classes``: int64 ``[N]``, indices of ``labels`` (all names of the model);
    ``landmarks``: float32 ``[N, K, 2]``, x, y, where the model gives points (faces: both eyes,
    nose, both corners of the mouth; the left ones of the picture first), else None.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    labels: tuple[str, ...]
    landmarks: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        count = len(self.boxes)
        _shape("boxes", self.boxes, (count, 4))
        _shape("scores", self.scores, (count,))
        _shape("classes", self.classes, (count,))
        _finite("boxes", self.boxes)
        _finite("scores", self.scores)
        if count and not (self.classes.min() >= 0 and self.classes.max() < len(self.labels)):
            raise RuntimeFailure(
                f"classes run from {self.classes.min()} to {self.classes.max()}, there are "
                f"{len(self.labels)} labels"
            )
        if self.landmarks is not None:
            if self.landmarks.ndim != 3:
                raise RuntimeFailure(f"landmarks must be [N, K, 2], not {self.landmarks.shape}")
            _shape("landmarks", self.landmarks, (count, self.landmarks.shape[1], 2))
            _finite("landmarks", self.landmarks)

    def __len__(self) -> int:
        return len(self.boxes)

    def __iter__(self) -> Iterator[Detection]:
        for box, score, class_id in zip(
            self.boxes.tolist(), self.scores.tolist(), self.classes.tolist(), strict=True
        ):
            yield Detection(tuple(box), score, class_id, self.labels[class_id])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        data = {
            "task": "detect",
            "boxes": self.boxes.tolist(),
            "scores": self.scores.tolist(),
            "classes": self.classes.tolist(),
            "labels": [self.labels[i] for i in self.classes],
        }
        if self.landmarks is not None:
            data["landmarks"] = self.landmarks.tolist()
        return data

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """COCO's result format: per box ``image_id``, ``category_id`` (the class's index),
        ``bbox`` ``[x, y, width, height]`` and ``score``."""
        corners = self.boxes.astype(np.float64)
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        return [
            {"image_id": image_id, "category_id": class_id, "bbox": box, "score": score}
            for box, class_id, score in zip(
                boxes.tolist(), self.classes.tolist(), self.scores.tolist(), strict=True
            )
        ]

    def to_supervision(self) -> Any:
        """The same as ``supervision.Detections``, the names under ``data["class_name"]``.

        Raises ``ImportError`` where supervision is not installed.
        """
        import supervision

        return supervision.Detections(
            xyxy=self.boxes.copy(),
            confidence=self.scores.copy(),
            class_id=self.classes.copy(),
            data={"class_name": np.array([self.labels[i] for i in self.classes], dtype=str)},
        )

    def __str__(self) -> str:
        if not len(self):
            return "nothing found"
        return ", ".join(f"{d.label} {d.score:.0%}" for d in self)


@dataclass(frozen=True, eq=False)
class Embedding:
    """``vector``: float32 ``[D]``; of length 1 where the contract's decoding says normalize."""

    vector: NDArray[np.float32]

    def __post_init__(self) -> None:
        _shape("vector", self.vector, (self.vector.size,))
        _finite("vector", self.vector)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"task": "embed", "vector": self.vector.tolist()}

    def __str__(self) -> str:
        return f"embedding of {len(self.vector)} values, length {np.linalg.norm(self.vector):.4f}"


@dataclass(frozen=True, eq=False)
class Segmentation:
    """``mask``: int64 ``[H, W]``, each pixel's class, in the source picture's size."""

    mask: NDArray[np.int64]
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.mask.ndim != 2:
            raise RuntimeFailure(f"a mask must be [H, W], not {list(self.mask.shape)}")
        if self.mask.size and not 0 <= self.mask.min() <= self.mask.max() < len(self.labels):
            raise RuntimeFailure(
                f"the mask's classes run from {self.mask.min()} to {self.mask.max()}, there are "
                f"{len(self.labels)} labels"
            )

    def shares(self) -> dict[str, float]:
        """The share of the picture that each class covers, from 0 to 1, largest first; no zeros."""
        counts = np.bincount(self.mask.ravel(), minlength=len(self.labels)) / max(self.mask.size, 1)
        return {self.labels[i]: float(counts[i]) for i in np.argsort(-counts) if counts[i] > 0}

    def to_dict(self) -> dict[str, Any]:
        """Size and shares; the mask itself is an array, not JSON."""
        height, width = self.mask.shape
        return {"task": "segment", "size": [height, width], "shares": self.shares()}

    def __str__(self) -> str:
        return ", ".join(f"{label} {share:.1%}" for label, share in list(self.shares().items())[:5])


@dataclass(frozen=True, eq=False)
class Landmarks:
    """``points``: float32 ``[K, 2]``, x, y; ``scores``: float32 ``[K]`` where the model gives
    them, else None; ``labels``: the points' names, or none at all."""

    points: NDArray[np.float32]
    labels: tuple[str, ...] = ()
    scores: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        _shape("points", self.points, (len(self.points), 2))
        _finite("points", self.points)
        if self.scores is not None:
            _shape("scores", self.scores, (len(self.points),))
            _finite("scores", self.scores)
        if len(self.labels) not in (0, len(self.points)):
            raise RuntimeFailure(f"{len(self.points)} points, but {len(self.labels)} names")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        data: dict[str, Any] = {"task": "landmarks", "points": self.points.tolist()}
        if self.labels:
            data["labels"] = list(self.labels)
        if self.scores is not None:
            data["scores"] = self.scores.tolist()
        return data

    def __str__(self) -> str:
        return ", ".join(f"({x:.1f}, {y:.1f})" for x, y in self.points.tolist())


Result: TypeAlias = Classification | Detections | Embedding | Segmentation | Landmarks


def _shape(name: str, array: NDArray[Any], expected: tuple[int, ...]) -> None:
    if array.shape != expected:
        raise RuntimeFailure(
            f"expected {name} of shape {list(expected)}, got an array of shape {list(array.shape)}"
        )


def _finite(name: str, array: NDArray[Any]) -> None:
    if not np.isfinite(array).all():
        raise RuntimeFailure(f"the model's {name} are NaN or infinite: its file is damaged")
