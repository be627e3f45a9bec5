"""What every engine of a gallery can do: keep named vectors, and find the nearest."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.gallery.metrics import Vectors, unit
from edgecv.gallery.settings import Settings

MAX_NAME = 200  # bytes in UTF-8


class Engine(Protocol):
    """Where the vectors are. Methods that change something are done when they return.

    A *template* is what queries are compared with: each vector, or under ``pooling = "mean"`` one
    per person.
    """

    where: str

    @property
    def settings(self) -> Settings: ...

    def change(self, settings: Settings) -> None:
        """Store other ``settings`` of the same space and metric."""

    def add(self, names: Sequence[str], vectors: Vectors, extend: bool) -> None:
        """Add ``vectors`` ``[N, D]``, one per name. A name that is there already is refused with
        an :class:`~edgecv.errors.InputError`, unless ``extend``. All are added, or none."""

    def remove(self, names: Sequence[str]) -> int:
        """Erase all vectors of these people; their number. An unknown name is refused, and then
        nothing is erased."""

    def people(self) -> dict[str, int]:
        """How many vectors each person has, sorted by name."""

    def vectors_of(self, name: str) -> Vectors:
        """One person's vectors ``[n, D]``; none where the name is unknown."""

    def nearest(self, queries: Vectors, k: int) -> tuple[NDArray[np.float32], list[list[str]]]:
        """The ``k`` best templates per query (fewer where there are fewer): scores ``[Q, k]``, best
        first, and whose they are."""

    def close(self) -> None: ...


def check_name(name: str) -> str:
    """``name`` in Unicode's composed form (NFC), so that one typed on another system is equal."""
    if not isinstance(name, str):
        raise InputError(f"expected a name, got {type(name).__name__}")
    name = unicodedata.normalize("NFC", name)
    if not name or name != name.strip() or not name.isprintable():
        raise InputError(
            f"{name!r} is no name: it is empty, has blanks around it or characters that cannot be "
            f"printed"
        )
    if len(name.encode("utf-8", "replace")) > MAX_NAME:
        raise InputError(f"the name {name[:40]!r}... is longer than {MAX_NAME} bytes")
    try:
        name.encode()
    except UnicodeEncodeError as error:  # a lone surrogate, from an undecodable argument
        raise InputError(f"{name!r} is not valid Unicode") from error
    return name


def refuse_known(names: Sequence[str], known: Sequence[str], where: str) -> None:
    """The error of an engine whose ``add`` meets a name that is there."""
    if known:
        raise InputError(
            f"{where}: {known[0]!r} is enrolled already"
            + (f" (and {len(known) - 1} more of {len(set(names))})" if len(known) > 1 else "")
            + "; add pictures to the person (--add, extend=True), remove the person first, or "
            "choose another name"
        )


def unknown_name(name: str, where: str) -> InputError:
    return InputError(f"{where}: nobody is enrolled as {name!r}; `edgecv gallery list` names all")


def mean_template(vectors: Vectors, metric: str) -> Vectors:
    """One person's template ``[1, D]`` under ``pooling = "mean"``: the mean of the vectors, of
    their unit vectors for cosine.

    Raises :class:`~edgecv.errors.InputError` where unit vectors cancel out.
    """
    members = unit(vectors) if metric == "cosine" else vectors
    mean = members.mean(axis=0, dtype=np.float64)
    # Rounding leaves about 1e-8 of vectors that cancel; faces of one person give 0.5 and more
    if metric == "cosine" and np.linalg.norm(mean) < 1e-3:
        raise InputError(
            "the pictures' vectors cancel out, so their mean has no direction: they are not of "
            "one person"
        )
    template: Vectors = mean.astype(np.float32)[None]
    return template
