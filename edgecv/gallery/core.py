"""The gallery: who is it (1:N), is it them (1:1), over any engine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from edgecv.closing import Closing
from edgecv.errors import InputError
from edgecv.gallery.engine import Engine, check_name, mean_template, unknown_name
from edgecv.gallery.folder import FolderEngine
from edgecv.gallery.likeness import Likeness
from edgecv.gallery.metrics import (
    accepts,
    better_by,
    check_vectors,
    is_similarity,
    pair_scores,
    scores,
)
from edgecv.gallery.milvus import MilvusEngine, is_milvus
from edgecv.gallery.segments import MANIFEST
from edgecv.gallery.settings import Settings, Space

TOP = 5  # people that an answer lists
FETCH = 16  # templates asked for at first: enough where people have a few pictures each


class Candidate(NamedTuple):
    """One person and the score of their best template."""

    name: str
    score: float


@dataclass(frozen=True)
class Identity:
    """Who a vector belongs to: ``name``, or ``None`` for "not recognized", and why.

    ``reason`` is ``recognized``, ``below threshold`` (nobody is near enough), ``ambiguous`` (the
    second best is within the margin) or ``empty gallery``. ``candidates``: the best people, best
    first, accepted or not.
    """

    name: str | None
    reason: str
    candidates: tuple[Candidate, ...]

    @property
    def score(self) -> float | None:
        """The best person's score; ``None`` in an empty gallery."""
        return self.candidates[0].score if self.candidates else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "reason": self.reason,
            "score": self.score,
            "candidates": [candidate._asdict() for candidate in self.candidates],
        }

    def __str__(self) -> str:
        if not self.candidates:
            return "not recognized (empty gallery)"
        if self.name is not None:
            return f"{self.name} {self.score:.3f}"
        best = ", ".join(f"{c.name} {c.score:.3f}" for c in self.candidates[:2])
        return f"not recognized ({self.reason}: {best})"


@dataclass(frozen=True)
class Verification:
    """Whether two things are of one person: the score, and the threshold that decided."""

    same: bool
    score: float
    threshold: float
    metric: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "same": self.same,
            "score": self.score,
            "threshold": self.threshold,
            "metric": self.metric,
        }

    def __str__(self) -> str:
        sign = ">=" if is_similarity(self.metric) else "<="
        word = "same" if self.same else "different"
        return f"{word} ({self.metric} {self.score:.3f}, same where {sign} {self.threshold:.3f})"


class Gallery(Closing):
    """People and their embeddings. Open one with :meth:`open`, make one with :meth:`create`.

    One vector enrols a person; more make it surer. There is no detection of liveness: a photograph
    of an enrolled person is recognized. Thread-safe; several processes may use one gallery, and an
    open one sees what others change within a second.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @classmethod
    def open(cls, where: str | os.PathLike[str], space: Space | None = None) -> Gallery:
        """The gallery in the folder ``where``, or at the Milvus URI (``http://host:19530#name``, or
        ``file.db`` for the embedded engine).

        ``space`` is that of the vectors to come; a gallery of another is refused. Raises
        :class:`~edgecv.errors.InputError` for that, and for one that is absent or damaged.
        """
        gallery = cls(MilvusEngine(str(where)) if is_milvus(where) else FolderEngine(where))
        if space is not None:
            gallery.check_space(space)
        return gallery

    @classmethod
    def create(cls, where: str | os.PathLike[str], settings: Settings) -> Gallery:
        """A new, empty gallery; one that is there already is refused."""
        if is_milvus(where):
            return cls(MilvusEngine.create(str(where), settings))
        return cls(FolderEngine.create(where, settings))

    @property
    def settings(self) -> Settings:
        return self.engine.settings

    def check_space(self, space: Space) -> None:
        """Refuse vectors of another net, preparation or alignment."""
        self.settings.space.check(space, self.engine.where)

    def configure(self, **changes: Any) -> Settings:
        """Change ``threshold``, ``margin``, ``pooling`` or ``origin``; the new settings."""
        allowed = {"threshold", "margin", "pooling", "origin"}
        if unknown := set(changes) - allowed:
            raise InputError(
                f"a gallery's {', '.join(sorted(unknown))} cannot be changed; only "
                f"{', '.join(sorted(allowed))}"
            )
        settings = replace(self.settings, **changes)
        self.engine.change(settings)
        return settings

    def enrol(self, name: str, vectors: ArrayLike, *, extend: bool = False) -> None:
        """Add a person by one vector ``[D]`` or several ``[N, D]``.

        A name that is there is an :class:`~edgecv.errors.InputError`, unless ``extend`` adds to
        it. When this returns the vectors are on the disk.
        """
        rows = self._checked(vectors)
        self.engine.add([check_name(name)] * len(rows), rows, extend)

    def enrol_many(self, names: Sequence[str], vectors: ArrayLike) -> None:
        """Add new people, ``vectors`` ``[N, D]`` row by row; a name may come several times."""
        rows = self._checked(vectors)
        if len(names) != len(rows):
            raise InputError(f"expected one name per vector, got {len(names)} for {len(rows)}")
        self.engine.add([check_name(name) for name in names], rows, False)

    def remove(self, *names: str) -> int:
        """Erase people, vectors and all, from the disk; how many vectors they had.

        An unknown name is an :class:`~edgecv.errors.InputError`, and then nobody is removed.
        """
        if not names:
            raise InputError("expected at least one name to remove")
        return self.engine.remove(list(dict.fromkeys(check_name(name) for name in names)))

    def people(self) -> dict[str, int]:
        """Everyone's name, sorted, and how many vectors each has."""
        return self.engine.people()

    def identify(self, vectors: ArrayLike, *, top: int = TOP) -> list[Identity]:
        """Who each vector of ``[N, D]`` (or ``[D]``) belongs to, with the ``top`` best people."""
        if top < 1:
            raise InputError(f"top must be at least 1, got {top}")
        queries = self._checked(vectors)
        threshold = self._threshold()
        settings = self.settings
        return [
            _decide(candidates, threshold, settings, top)
            for candidates in self._candidates(queries, max(top, 2))
        ]

    def verify(self, name: str, vector: ArrayLike) -> Verification:
        """Whether one vector ``[D]`` is of the person enrolled as ``name``."""
        query = self._checked(vector)
        if len(query) != 1:
            raise InputError(f"expected one vector to verify, got {len(query)}")
        name = check_name(name)
        own = self.engine.vectors_of(name)
        if not len(own):
            raise unknown_name(name, self.engine.where)
        settings = self.settings
        if settings.pooling == "mean":
            own = mean_template(own, settings.metric)
        found = pair_scores(own, query, settings.metric, settings.factors)
        score = float(found.max() if is_similarity(settings.metric) else found.min())
        threshold = self._threshold()
        return Verification(
            accepts(settings.metric, score, threshold), score, threshold, settings.metric
        )

    def _candidates(self, queries: np.ndarray[Any, Any], people: int) -> list[list[Candidate]]:
        """The best ``people`` per query. Someone with many pictures may hold all first places, so
        more are fetched until there are that many people, or no more vectors."""
        fetch = max(FETCH, 2 * people)
        while True:
            scores, names = self.engine.nearest(queries, fetch)
            found = []
            for line, owners in zip(scores.tolist(), names, strict=True):
                best: dict[str, float] = {}
                for score, name in zip(line, owners, strict=True):
                    best.setdefault(name, score)
                found.append([Candidate(name, score) for name, score in best.items()][:people])
            if scores.shape[1] < fetch or all(len(line) == people for line in found):
                return found
            fetch *= 4

    def _threshold(self) -> float:
        if self.settings.threshold is None:
            raise InputError(
                f"{self.engine.where}: this gallery has no threshold, so nobody can be recognized; "
                f"set one that labelled pairs give (`edgecv eval MODEL PAIRS` finds it)"
            )
        return self.settings.threshold

    def _checked(self, vectors: ArrayLike) -> np.ndarray[Any, np.dtype[np.float32]]:
        settings = self.settings
        rows = check_vectors(
            vectors, settings.metric, settings.space.dimension, weights=settings.factors
        )
        if not len(rows):
            raise InputError("expected at least one vector, got none")
        return rows

    def close(self) -> None:
        """Let go of the engine. Twice does no harm."""
        self.engine.close()


def exists(where: str | os.PathLike[str]) -> bool:
    """Whether there is a gallery at ``where``, whole or damaged."""
    return (
        MilvusEngine.exists(str(where)) if is_milvus(where) else (Path(where) / MANIFEST).exists()
    )


def _decide(
    candidates: list[Candidate], threshold: float, settings: Settings, top: int
) -> Identity:
    shown = tuple(candidates[:top])
    if not candidates:
        return Identity(None, "empty gallery", ())
    best = candidates[0]
    if not accepts(settings.metric, best.score, threshold):
        return Identity(None, "below threshold", shown)
    if len(candidates) > 1:
        lead = better_by(settings.metric, best.score, candidates[1].score)
        if lead < settings.margin:
            return Identity(None, "ambiguous", shown)
    return Identity(best.name, "recognized", shown)


def verify(
    a: ArrayLike,
    b: ArrayLike,
    threshold: float,
    metric: str = "cosine",
    weights: ArrayLike | Likeness | None = None,
) -> Verification:
    """Whether two vectors ``[D]`` are of one person, without a gallery.

    ``weights`` are chi-square's, or the :class:`Likeness` of the metric of that name.
    """
    found = scores(a, b, metric, weights)
    if len(found) != 1:
        raise InputError(f"expected two vectors, got {len(found)} pairs")
    score = float(found[0])
    return Verification(accepts(metric, score, threshold), score, threshold, metric)
