"""Exact nearest neighbours among many vectors, in NumPy, as fast as the memory is read.

Vectors lie in blocks of at most :data:`BLOCK` columns, ``[D, n]``: scoring one query is then a sum
of scaled rows, which streams through memory (as ``[n, D]``, one dot product per vector, OpenBLAS
reads 1.4 times slower), and a block's scores are looked at while they are in the cache. Nothing
of the size of the whole set is ever made beside the vectors themselves.

The best ``k`` of a block are taken by ``argmax``, once each, and only while they beat the ``k``-th
best so far: after the first blocks that is one ``argmax`` a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from edgecv.gallery.likeness import Likeness, probabilities
from edgecv.gallery.metrics import (
    Vectors,
    Weights,
    check_metric,
    check_vectors,
    check_weights,
    pair_scores,
    unit,
)

# Vectors: 2 MB at 128 values. The calls per block then cost under 5%; 4096, a power of two, makes
# the columns compete for the same lines of the cache (32 queries took 1.3 times as long)
BLOCK = 4000
QUERIES = 64  # scored at once: 1 MB of scores

Keys = NDArray[np.float32]
Rows = NDArray[np.int64]


class Block:
    """At most :data:`BLOCK` vectors, laid out for one metric. Immutable.

    For cosine the columns are unit vectors; for the Euclidean metrics a last row holds
    ``-|x|^2 / 2``, so that the product with ``[q, 1]`` ranks as the distance does.
    """

    def __init__(self, vectors: Vectors, metric: str) -> None:
        self.count, self.dimension = vectors.shape
        lifted = metric in ("euclidean", "squared-euclidean")
        columns = np.empty((self.dimension + lifted, self.count), np.float32)
        columns[: self.dimension] = (unit(vectors) if metric == "cosine" else vectors).T
        self.longest = 0.0  # |x|, for the bound on rounding
        if (lifted or metric == "likeness") and self.count:
            squares = np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)
            self.longest = math.sqrt(squares.max())
            if lifted:
                columns[-1] = -squares / 2
        self.columns = columns

    def vectors(self, rows: Rows | slice = slice(None)) -> Vectors:
        """The vectors at ``rows`` ``[n, D]``, of length 1 for cosine."""
        return self.columns[: self.dimension, rows].T


class Blocks:
    """Blocks in their order, and what a search asks of them all, counted once. Immutable."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        self.blocks = tuple(blocks)
        counts = np.array([block.count for block in self.blocks], np.int64)
        self.ends = np.cumsum(counts)  # the position behind each block
        self.starts = self.ends - counts
        self.count = int(counts.sum())
        self.largest = int(counts.max(initial=0))
        self.longest = max((block.longest for block in self.blocks), default=0.0)

    def __iter__(self) -> Iterator[Block]:
        return iter(self.blocks)

    @classmethod
    def of(cls, vectors: Vectors, metric: str) -> Blocks:
        """``vectors`` ``[N, D]`` cut into blocks, in their order."""
        return cls(Block(vectors[i : i + BLOCK], metric) for i in range(0, len(vectors), BLOCK))

    def locate(self, rows: Rows) -> tuple[Rows, Rows]:
        """Which block each position lies in, and where in it."""
        which = np.searchsorted(self.ends, rows, side="right")
        return which, rows - self.starts[which]

    def gather(self, rows: Rows) -> Vectors:
        """The vectors at the positions ``rows``: ``[n, D]``."""
        which, places = self.locate(rows)
        pairs = zip(which.tolist(), places.tolist(), strict=True)
        return np.stack([self.blocks[w].vectors(slice(p, p + 1))[0] for w, p in pairs])


def nearest(
    blocks: Blocks,
    queries: Vectors,
    k: int,
    metric: str,
    weights: Weights = None,
) -> tuple[NDArray[np.float32], Rows]:
    """The ``k`` best of all vectors for each query ``[Q, D]``.

    Returns scores float32 ``[Q, k]``, best first, and the vectors' positions ``[Q, k]`` (``k`` is
    cut to the number of vectors). Of equal scores the lower position comes first. Cosines are
    float32 products, as any library's: two that differ by less than rounding (1e-6) may swap.
    Euclidean distances are found by products, and then computed by subtraction in float64; the
    order is that of the exact distances whatever the vectors' lengths. A likeness is found by sums
    in float32 and then computed in float64; the order is that of its logits, which tell vectors
    apart whose likeness is 1 to all digits.

    The arguments are trusted: :class:`Index` checks them.
    """
    k = min(k, blocks.count)
    if len(queries) <= QUERIES:
        return _chunk(blocks, queries, k, metric, weights)
    parts = [
        _chunk(blocks, queries[i : i + QUERIES], k, metric, weights)
        for i in range(0, len(queries), QUERIES)
    ]
    found, rows = (np.concatenate(column) for column in zip(*parts, strict=True))
    return found, rows


def _chunk(
    blocks: Blocks, queries: Vectors, k: int, metric: str, weights: Weights
) -> tuple[NDArray[np.float32], Rows]:
    if metric == "cosine":
        if len(queries) == 1:  # scaling five scores is quicker than scaling the query
            query = queries[0]
            keys, rows = _best(blocks, queries, k, None)
            keys *= 1 / math.sqrt(float(query.dot(query)))
            return keys, rows
        return _best(blocks, unit(queries), k, None)
    if isinstance(weights, Likeness):
        return _likeness(blocks, queries, k, weights)
    if metric == "chi-square":
        flat = np.ones(queries.shape[1], np.float32) if weights is None else weights
        keys, rows = _best(blocks, queries, k, flat)
        return -keys, rows
    return _euclidean(blocks, queries, k, metric)


def _euclidean(
    blocks: Blocks, queries: Vectors, k: int, metric: str
) -> tuple[NDArray[np.float32], Rows]:
    """By keys ``q.x - |x|^2 / 2``, then the candidates by their distances.

    A key in float32 is off by at most ``(D + 1) u (|q| |x| + |x|^2 / 2)``, u = 2^-24 (Higham,
    Accuracy and Stability of Numerical Algorithms, 3.1).
    """
    lifted = np.ones((len(queries), queries.shape[1] + 1), np.float32)
    lifted[:, :-1] = queries
    longest = blocks.longest
    lengths = np.linalg.norm(queries.astype(np.float64), axis=1)
    error = (queries.shape[1] + 1) * 2.0**-24 * (lengths * longest + longest**2 / 2)

    def exact(vectors: Vectors, query: Vectors) -> NDArray[np.float64]:
        return -pair_scores(vectors, query, metric, None)

    found, rows = _refined(blocks, lifted, k, None, error, exact)
    return (-found).astype(np.float32), rows


def _likeness(
    blocks: Blocks, queries: Vectors, k: int, weights: Likeness
) -> tuple[NDArray[np.float32], Rows]:
    """By keys ``sum w t`` of the terms t, then the candidates by their logits.

    A term is off by at most 7 roundings (chi-square's: two sums, the epsilon, the difference and
    its square, the quotient) and is at most ``|x_k| + |q_k|``, so a key in float32 is off by at
    most ``(D + 8) u |w| (|q| + |x|)`` (Higham 3.1, and Cauchy and Schwarz).
    """
    lengths = np.linalg.norm(queries.astype(np.float64), axis=1)
    error = (queries.shape[1] + 8) * 2.0**-24 * weights.norm * (lengths + blocks.longest)

    def exact(vectors: Vectors, query: Vectors) -> NDArray[np.float64]:
        return weights.logits(vectors.astype(np.float64), query.astype(np.float64))

    found, rows = _refined(blocks, queries, k, weights, error, exact)
    return probabilities(found).astype(np.float32), rows


def _refined(
    blocks: Blocks,
    queries: Vectors,
    k: int,
    weights: Weights,
    error: NDArray[np.float64],
    exact: Callable[[Vectors, Vectors], NDArray[np.float64]],
) -> tuple[NDArray[np.float64], Rows]:
    """The ``k`` best by ``exact`` scores (higher is better) among those whose keys are the best.

    ``error`` ``[Q]`` bounds how far a key is off. Candidates are added until the last one's key is
    farther than two such errors below the ``k``-th best's: none left out can belong.
    """
    total = blocks.count
    if k == 0:
        return np.empty((len(queries), 0)), np.empty((len(queries), 0), np.int64)
    wanted = min(k + 8, total)
    while True:
        keys, rows = _best(blocks, queries, wanted, weights)
        if wanted == total or (keys[:, -1] < keys[:, k - 1] - 2 * error).all():
            break
        wanted = min(4 * wanted, total)
    found = np.empty((len(queries), k), np.float64)
    order = np.empty((len(queries), k), np.int64)
    for i, query in enumerate(queries):
        candidates = np.sort(rows[i])  # by position, so that the stable sort keeps it among equals
        vectors = blocks.gather(candidates)
        scores = exact(vectors, query[None, : vectors.shape[1]])  # without what lifts it
        best = np.argsort(-scores, kind="stable")[:k]
        found[i], order[i] = scores[best], candidates[best]
    return found, order


def _best(blocks: Blocks, queries: Vectors, k: int, weights: Weights) -> tuple[Keys, Rows]:
    """The ``k`` highest keys per query and where they are; ``weights`` asks for chi-square or, if
    learned, for their likeness."""
    if k == 0:
        return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    buffer = np.empty(len(queries) * blocks.largest, np.float32)
    if len(queries) == 1:
        return _best_of_one(blocks, queries[0], k, weights, buffer)
    best = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.zeros((len(queries), k), np.int64)
    offset = 0
    for block in blocks:
        keys = buffer[: len(queries) * block.count].reshape(len(queries), block.count)
        _keys(block, queries, weights, keys)
        _merge(keys, offset, best, rows)
        offset += block.count
    return best, rows


def _best_of_one(
    blocks: Blocks, query: Vectors, k: int, weights: Weights, buffer: Keys
) -> tuple[Keys, Rows]:
    """:func:`_best` of one query with plain numbers: among 1,000 vectors NumPy's calls on arrays of
    five would take longer than the search."""
    best: list[float] = []
    rows: list[int] = []
    bound, offset, known = -math.inf, 0, 0
    for block in blocks:
        keys = buffer[: block.count]
        _keys_of_one(block, query, weights, keys)
        for _ in range(min(k, block.count)):
            at = int(keys.argmax())
            key = keys.item(at)
            if key <= bound:
                break
            best.append(key)
            rows.append(offset + at)
            keys[at] = -math.inf
        if offset and len(best) > known:  # stable: of equals the lower position stays first
            order = sorted(range(len(best)), key=best.__getitem__, reverse=True)[:k]
            best, rows = [best[i] for i in order], [rows[i] for i in order]
        known = len(best)
        if known == k:
            bound = best[-1]
        offset += block.count
    return np.array([best], np.float32), np.array([rows], np.int64)


def _merge(keys: Keys, offset: int, best: Keys, rows: Rows) -> None:
    """Put the keys ``[Q, n]`` of one block (used up by this) among the best so far, in place."""
    k = best.shape[1]
    lines = np.arange(len(keys))
    at = keys.argmax(axis=1)
    active = (keys[lines, at] > best[:, -1]).nonzero()[0]
    if not len(active):
        return
    if len(active) < len(keys):
        keys, at, lines = keys[active], at[active], lines[: len(active)]
    rounds = min(k, keys.shape[1])
    new = np.full((len(active), rounds), -np.inf, np.float32)
    where = np.zeros((len(active), rounds), np.int64)
    bound = best[active, -1]
    for i in range(rounds):
        values = keys[lines, at]
        new[:, i], where[:, i] = values, at
        if not (values > bound).any():
            break
        keys[lines, at] = -np.inf
        if i + 1 < rounds:
            at = keys.argmax(axis=1)
    where += offset
    if rounds == k and offset == 0:
        best[active], rows[active] = new, where
        return
    joined = np.concatenate([best[active], new], axis=1)
    joined_rows = np.concatenate([rows[active], where], axis=1)
    order = np.argsort(-joined, axis=1, kind="stable")[:, :k]
    best[active] = np.take_along_axis(joined, order, axis=1)
    rows[active] = np.take_along_axis(joined_rows, order, axis=1)


def _keys(block: Block, queries: Vectors, weights: Weights, out: Keys) -> None:
    """Each query's key of each vector of ``block``: ``out`` ``[Q, n]``, the higher the nearer."""
    if weights is None:
        np.dot(queries, block.columns, out=out)
    else:
        for query, keys in zip(queries, out, strict=True):
            _keys_of_one(block, query, weights, keys)


def _keys_of_one(block: Block, query: Vectors, weights: Weights, out: Keys) -> None:
    if weights is None:
        np.dot(query, block.columns, out=out)
        return
    column = query[:, None]
    if isinstance(weights, Likeness):
        np.dot(weights.vector, weights.terms(block.columns, column), out=out)
        return
    total = block.columns + column
    terms = block.columns - column
    terms *= terms
    np.divide(terms, total, out=terms, where=total > 0)  # elsewhere 0 already: x = y = 0
    np.dot(weights, terms, out=out)
    np.negative(out, out=out)


class Index:
    """Vectors to search, without names or files. ``len`` is their number.

    >>> index = Index(np.eye(3, dtype=np.float32))
    >>> scores, rows = index.search(np.array([1.0, 0.1, 0.0], np.float32), k=2)
    >>> rows.tolist()
    [[0, 1]]
    """

    def __init__(self, vectors: Vectors, metric: str = "cosine", weights: Weights = None) -> None:
        check_metric(metric)
        checked = check_vectors(vectors, metric, weights=weights)
        self.metric, self.dimension = metric, checked.shape[1]
        self.weights = check_weights(weights, metric, self.dimension)
        self.blocks = Blocks.of(checked, metric)

    def __len__(self) -> int:
        return self.blocks.count

    def search(self, queries: Vectors, k: int = 5) -> tuple[NDArray[np.float32], Rows]:
        """See :func:`nearest`; a single query ``[D]`` gives ``[1, k]``."""
        checked = check_vectors(queries, self.metric, self.dimension, "queries", self.weights)
        return nearest(self.blocks, checked, k, self.metric, self.weights)
