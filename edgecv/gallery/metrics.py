"""How alike two vectors are: five measures, one rule of acceptance.

Cosine similarity and a learned likeness say more when higher, the distances when lower. For unit
vectors cosine and the Euclidean distances rank alike: ``|x - y|^2 = 2 - 2 cos(x, y)``, so a cosine
threshold ``t`` is the squared Euclidean one ``2 - 2 t``.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgecv.errors import InputError
from edgecv.gallery.likeness import Likeness, probabilities

METRICS = ("cosine", "euclidean", "squared-euclidean", "chi-square", "likeness")

Vectors = NDArray[np.float32]
Weights: TypeAlias = Vectors | Likeness | None  # chi-square's, if any; of likeness what is learned
_LARGEST = 1e38  # of |x|^2, so that it and products with it are finite in float32


def check_metric(metric: str) -> None:
    """Refuse a name that is none of :data:`METRICS`."""
    if metric not in METRICS:
        raise InputError(f"metric must be one of {', '.join(METRICS)}; got {metric!r}")


def is_similarity(metric: str) -> bool:
    """Whether a higher score is a better one."""
    return metric in ("cosine", "likeness")


def accepts(metric: str, score: float, threshold: float) -> bool:
    """Whether ``score`` is at least as good as ``threshold``; equal is good enough."""
    return score >= threshold if is_similarity(metric) else score <= threshold


def better_by(metric: str, score: float, other: float) -> float:
    """How much better ``score`` is than ``other``, in the metric's unit; negative if worse."""
    return score - other if is_similarity(metric) else other - score


def worst_score(metric: str, found: NDArray[np.float64]) -> float:
    """The score of a pair that cannot be compared, beside those ``found``: no better than any."""
    if is_similarity(metric):
        return -1.0 if metric == "cosine" else 0.0
    return 2 * float(found.max()) or 1.0


def check_vectors(
    vectors: ArrayLike,
    metric: str,
    dimension: int | None = None,
    what: str = "vectors",
    weights: Weights = None,
) -> Vectors:
    """``vectors`` as float32 ``[N, D]``; one vector ``[D]`` becomes ``[1, D]``.

    Raises :class:`~edgecv.errors.InputError` for another shape, another ``dimension``, NaN or
    infinite values, values too large to be squared, a zero vector under cosine (it has no
    direction) and negative values under chi-square (it compares histograms), also under a likeness
    (``weights``) of that form.
    """
    if isinstance(vectors, np.ndarray) and vectors.dtype == np.float32:
        array = vectors
    else:
        try:
            with np.errstate(over="ignore"):  # an infinite value is told below
                array = np.asarray(vectors, np.float32)
        except (TypeError, ValueError) as error:
            raise InputError(f"{what}: expected numbers, got {type(vectors).__name__}") from error
    array = array[None] if array.ndim == 1 else array
    if array.ndim != 2 or array.shape[1] == 0:
        raise InputError(f"{what}: expected shape [N, D] or [D], got {list(np.shape(vectors))}")
    if dimension is not None and array.shape[1] != dimension:
        raise InputError(
            f"{what}: expected {dimension} values per vector, got {array.shape[1]}: they come from "
            f"another model"
        )
    learned = weights.measure if isinstance(weights, Likeness) else None
    histograms = "chi-square" in (metric, learned)
    if len(array) == 1 and not histograms:
        # A query: the checks below cost as much as searching 1,000 vectors
        wide = array[0].astype(np.float64)
        if 0 < wide.dot(wide) < _LARGEST:
            return array
    with np.errstate(over="ignore"):
        squares = np.einsum("nd,nd->n", array, array)
    if not np.isfinite(squares).all():
        bad = int(np.flatnonzero(~np.isfinite(squares))[0])
        kind = "NaN or infinite" if not np.isfinite(array[bad]).all() else "too large"
        raise InputError(f"{what}: vector {bad} has values that are {kind}")
    if metric == "cosine" and not squares.all():
        bad = int(np.flatnonzero(squares == 0)[0])
        raise InputError(f"{what}: vector {bad} is zero, which has no direction to compare")
    if histograms and array.size and array.min() < 0:
        raise InputError(
            f"{what}: chi-square compares histograms, and there are negative values in them"
        )
    return array


def check_weights(weights: ArrayLike | Likeness | None, metric: str, dimension: int) -> Weights:
    """The weights of chi-square as float32 ``[D]``, none negative, or none; a likeness' own, which
    it cannot do without; other metrics take none."""
    if metric == "likeness":
        if not isinstance(weights, Likeness):
            raise InputError(
                "the metric likeness is learned: its weights must be a Likeness, which the file of "
                "a Siamese pair carries: Likeness.of(model.spec)"
            )
        if len(weights.weights) != dimension:
            raise InputError(
                f"the likeness compares vectors of {len(weights.weights)} values, got {dimension}"
            )
        return weights
    if weights is None:
        return None
    if isinstance(weights, Likeness):
        raise InputError(f"a Likeness belongs to likeness; the metric is {metric}")
    if metric != "chi-square":
        raise InputError(f"weights belong to chi-square; the metric is {metric}")
    array = np.asarray(weights, np.float32)
    if array.shape != (dimension,) or not np.isfinite(array).all() or array.min() < 0:
        raise InputError(
            f"weights: expected {dimension} finite values of at least 0, one per component, got "
            f"shape {list(array.shape)}"
        )
    return array


def unit(vectors: Vectors) -> Vectors:
    """Each vector ``[..., D]`` scaled to length 1, in float64 and rounded once."""
    wide = vectors.astype(np.float64)
    scaled: Vectors = (wide / np.linalg.norm(wide, axis=-1, keepdims=True)).astype(np.float32)
    return scaled


def scores(
    a: ArrayLike,
    b: ArrayLike,
    metric: str = "cosine",
    weights: ArrayLike | Likeness | None = None,
) -> NDArray[np.float64]:
    """The score of each pair of rows of ``a`` and ``b`` (``[N, D]`` or ``[D]``): float64 ``[N]``.

    ``cosine`` x.y / (|x| |y|), ``euclidean`` |x - y|, ``squared-euclidean`` |x - y|^2,
    ``chi-square`` sum of ``w (x - y)^2 / (x + y)``, where 0 / 0 counts as 0 (Ahonen, Hadid and
    Pietikainen 2006, for local binary patterns), ``likeness`` what a Siamese pair has learned
    (:mod:`edgecv.gallery.likeness`; ``weights``), from 0 to 1. A single vector is compared with
    every row.
    """
    check_metric(metric)
    learned = weights if isinstance(weights, Likeness) else None
    x = check_vectors(a, metric, what="a", weights=learned)
    y = check_vectors(b, metric, x.shape[1], "b", learned)
    if x.shape[0] != y.shape[0] and 1 not in (x.shape[0], y.shape[0]):
        raise InputError(f"expected as many vectors on both sides, got {len(x)} and {len(y)}")
    return pair_scores(x, y, metric, check_weights(weights, metric, x.shape[1]))


def pair_scores(
    x: NDArray[Any], y: NDArray[Any], metric: str, weights: Weights
) -> NDArray[np.float64]:
    """:func:`scores` of vectors that were checked already."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    if metric == "cosine":
        lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        cosine: NDArray[np.float64] = ((x * y).sum(axis=1) / lengths).clip(-1.0, 1.0)
        return cosine
    if isinstance(weights, Likeness):
        return probabilities(weights.logits(x, y))
    difference, total = x - y, x + y
    if metric == "chi-square":
        terms = np.divide(difference**2, total, out=np.zeros_like(total), where=total > 0)
        factors = np.ones(x.shape[1]) if weights is None else weights.astype(np.float64)
        chi: NDArray[np.float64] = terms @ factors
        return chi
    squared: NDArray[np.float64] = (difference**2).sum(axis=1)
    return np.sqrt(squared) if metric == "euclidean" else squared
