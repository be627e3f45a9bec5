"""Exact search against slow, obvious references; the metrics and what they refuse."""

import math

import numpy as np
import pytest

from edgecv.errors import InputError
from edgecv.gallery import METRICS, Index, Likeness, scores, verify
from edgecv.gallery.likeness import MEASURES
from edgecv.gallery.metrics import is_similarity
from edgecv.gallery.search import BLOCK, QUERIES

LEARNED = [f"likeness {measure}" for measure in MEASURES]
MEASURED = [metric for metric in METRICS if metric != "likeness"] + LEARNED


def weighed(measured, rng, size):
    """The metric of a name in ``MEASURED``, and weights for it."""
    metric, _, form = measured.partition(" ")
    if form:
        return metric, Likeness(form, tuple(rng.standard_normal(size).tolist()), -0.3)
    return metric, rng.random(size).astype(np.float32) if metric == "chi-square" else None


def slow_score(x, y, metric, weights=None):
    """One pair, term by term, in Python's float64."""
    x, y = [float(v) for v in x], [float(v) for v in y]
    if metric == "likeness":
        chi = weights.measure == "chi-square"
        terms = [
            (a - b) ** 2 / (a + b + 1e-6) if chi else abs(a - b) for a, b in zip(x, y, strict=True)
        ]
        logit = sum(w * t for w, t in zip(weights.weights, terms, strict=True)) + weights.bias
        return 1 / (1 + math.exp(-logit))
    if metric == "cosine":
        dot = sum(a * b for a, b in zip(x, y, strict=True))
        return dot / (sum(a * a for a in x) ** 0.5 * sum(b * b for b in y) ** 0.5)
    if metric == "chi-square":
        weights = weights if weights is not None else [1.0] * len(x)
        return sum(
            float(w) * (a - b) ** 2 / (a + b)
            for w, a, b in zip(weights, x, y, strict=True)
            if a + b > 0
        )
    squared = sum((a - b) ** 2 for a, b in zip(x, y, strict=True))
    return squared**0.5 if metric == "euclidean" else squared


def histograms(rng, *shape):
    values = rng.random(shape).astype(np.float32)
    return values * (rng.random(shape) > 0.3)  # zeros in many places


@pytest.mark.parametrize("measured", MEASURED)
def test_scores_equal_the_definition(measured):
    rng = np.random.default_rng(0)
    a, b = histograms(rng, 20, 9) + np.float32(1e-3), histograms(rng, 20, 9) + np.float32(1e-3)
    a[:, 0] = b[:, 0] = 0  # 0 / 0 counts as 0
    metric, weights = weighed(measured, rng, 9)
    expected = [slow_score(x, y, metric, weights) for x, y in zip(a, b, strict=True)]
    # float64 on both sides, sums of 9 terms in another order
    assert np.allclose(scores(a, b, metric, weights), expected, rtol=1e-13, atol=0)
    assert np.allclose(scores(a, b[0], metric, weights)[0], expected[0], rtol=1e-13, atol=0)


def test_the_squared_distance_of_unit_vectors_is_two_minus_two_cosines():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 200, 128))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    cosine, squared = scores(x, y), scores(x, y, "squared-euclidean")
    # vectors are rounded to float32, so their lengths are off by up to 2^-24 each
    assert np.allclose(squared, 2 - 2 * cosine, atol=4 * 2.0**-24, rtol=0)
    assert np.allclose(scores(x, y, "euclidean") ** 2, squared, rtol=1e-14)
    for threshold in (-0.1, 0.0, 0.1):
        same = cosine >= threshold
        far = np.abs(cosine - threshold) > 1e-6
        assert (same == (squared <= 2 - 2 * threshold))[far].all()


@pytest.mark.parametrize("measured", MEASURED)
@pytest.mark.parametrize("count", [1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 17])
def test_search_finds_what_sorting_everything_finds(measured, count):
    rng = np.random.default_rng(count)
    vectors = histograms(rng, count, 6) + np.float32(1e-3)
    queries = histograms(rng, 5, 6) + np.float32(1e-3)
    metric, weights = weighed(measured, rng, 6)
    index = Index(vectors, metric, weights)
    assert len(index) == count
    for k in (1, 5, 40):
        found, rows = index.search(queries, k)
        assert found.shape == rows.shape == (5, min(k, count))
        for i, query in enumerate(queries):
            exact = scores(vectors, query, metric, weights)
            order = np.argsort(-exact if is_similarity(metric) else exact, kind="stable")[:k]
            # float32 products of 6 terms: the scores at each place are right to rounding ...
            assert np.allclose(found[i], exact[order], rtol=2e-6, atol=2e-6)
            assert np.allclose(exact[rows[i]], exact[order], rtol=2e-6, atol=2e-6)
            assert len(set(rows[i].tolist())) == min(k, count)
            one, one_rows = index.search(query, k)  # ... and one query is answered like many
            assert np.allclose(one[0], found[i], rtol=2e-6, atol=2e-6)
            assert np.allclose(exact[one_rows[0]], exact[order], rtol=2e-6, atol=2e-6)


def test_of_equals_the_first_comes_first():
    vectors = np.zeros((3 * BLOCK, 4), np.float32)
    vectors[:, 0] = 1  # all the same
    vectors[[5, BLOCK + 3, 2 * BLOCK]] = (0, 1, 0, 0)
    falling = {m: Likeness(m, (-1.0,) * 4, 0.0) for m in MEASURES}  # the farther, the less alike
    for measured in MEASURED:
        metric, _, form = measured.partition(" ")
        index = Index(vectors, metric, falling.get(form))
        for queries in (vectors[5:6], vectors[[5, 6]]):
            found, rows = index.search(queries, 5)
            assert rows[0].tolist() == [5, BLOCK + 3, 2 * BLOCK, 0, 1], measured
            assert (np.diff(found[0]) <= 0).all() or not is_similarity(metric)
        assert rows[1].tolist() == [0, 1, 2, 3, 4], measured


def test_vectors_in_the_worst_order_are_found_too():
    """Each better than all before it, so that no block can be passed over."""
    angles = np.linspace(np.pi, 0, 3 * BLOCK)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    for queries in (vectors[-1:], vectors[[-1, 0]]):
        _, rows = Index(vectors).search(queries, 3)
        exact = scores(vectors, vectors[-1])
        # near its end a cosine is flat: neighbours are equal in float32
        assert np.allclose(exact[rows[0]], 1.0, atol=2e-6)
        assert (rows[0] > 3 * BLOCK - 30).all()


def test_euclidean_order_is_exact_far_from_the_origin():
    """Products alone would rank these by rounding: |x|^2 is 1e8, the distances differ by 1e-2."""
    rng = np.random.default_rng(3)
    vectors = (1000 + rng.integers(0, 64, (500, 100)) / 64).astype(np.float32)
    for metric in ("euclidean", "squared-euclidean"):
        found, rows = Index(vectors, metric).search(vectors[:4] + np.float32(1 / 128), 10)
        for i in range(4):
            exact = scores(vectors, vectors[i] + np.float32(1 / 128), metric)
            order = np.argsort(exact, kind="stable")[:10]
            assert rows[i].tolist() == order.tolist()
            assert np.array_equal(found[i], exact[order].astype(np.float32))


@pytest.mark.parametrize("measure", MEASURES)
def test_likeness_order_is_exact_where_float32_cancels_and_the_sigmoid_is_one(measure):
    """Two halves weigh against each other and leave one in 1e7; all probabilities are 1."""
    rng = np.random.default_rng(6)
    vectors = np.tile(100 + 100 * rng.random((600, 50)), 2).astype(np.float32)
    vectors += rng.random((600, 100)).astype(np.float32) / 8192
    weights = np.repeat([1.0, -1.0], 50) * np.tile(1 + rng.random(50), 2)
    learned = Likeness(measure, tuple(weights.tolist()), 300.0)
    queries = np.tile(100 + 100 * rng.random((3, 50)), 2).astype(np.float32)
    found, rows = Index(vectors, "likeness", learned).search(queries, 10)
    assert (found == 1).all()
    for query, line in zip(queries.astype(np.float64), rows.tolist(), strict=True):
        exact = learned.logits(vectors.astype(np.float64), query[None])
        assert line == np.argsort(-exact, kind="stable")[:10].tolist()
        alone = learned.terms(vectors, query[None].astype(np.float32)) @ learned.vector
        assert line != np.argsort(-alone, kind="stable")[:10].tolist()  # float32 is not enough


def test_many_queries_are_answered_in_parts():
    rng = np.random.default_rng(4)
    vectors = rng.standard_normal((300, 8)).astype(np.float32)
    _, rows = Index(vectors).search(vectors[: 2 * QUERIES + 3], 1)
    assert rows[:, 0].tolist() == list(range(2 * QUERIES + 3))
    assert Index(vectors).search(vectors[:0], 3)[0].shape == (0, 3)


@pytest.mark.parametrize("measured", MEASURED)
def test_among_no_vectors_there_is_none(measured):
    metric, weights = weighed(measured, np.random.default_rng(0), 4)
    found, rows = Index(np.empty((0, 4), np.float32), metric, weights).search(np.ones((2, 4)), 3)
    assert found.shape == rows.shape == (2, 0)


def test_the_vectors_are_kept_once():
    """Beside the vectors a search needs a block's scores: under a tenth of 20,000 x 128."""
    import tracemalloc

    vectors = np.random.default_rng(5).standard_normal((20_000, 128)).astype(np.float32)
    tracemalloc.start()
    try:
        index = Index(vectors)
        kept, _ = tracemalloc.get_traced_memory()
        assert kept < 1.01 * vectors.nbytes
        tracemalloc.reset_peak()
        index.search(vectors[:32], 5)
        peak = tracemalloc.get_traced_memory()[1] - kept
        assert peak < 0.1 * vectors.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("measure", MEASURES)
def test_a_likeness_is_searched_in_bounded_memory(measure):
    import tracemalloc

    rng = np.random.default_rng(5)
    _, learned = weighed(f"likeness {measure}", rng, 32)
    index = Index(rng.random((10 * BLOCK, 32), np.float32), "likeness", learned)
    tracemalloc.start()
    try:
        index.search(rng.random((QUERIES, 32), np.float32), 5)
        peak = tracemalloc.get_traced_memory()[1]
        # two arrays of a block's size, the scores of a block, and change
        assert peak < 4 * BLOCK * (2 * 32 + QUERIES) * 1.25
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("vectors", "metric", "message"),
    [
        ([[1.0, np.nan]], "cosine", "vector 0 has values that are NaN"),
        ([[1.0, np.inf], [1.0, 2.0]], "euclidean", "NaN or infinite"),
        ([[1e30, 1e30]], "euclidean", "too large"),
        ([[1.0, 1.0], [0.0, 0.0]], "cosine", "vector 1 is zero"),
        ([[-1.0, 1.0]], "chi-square", "negative"),
        ([[[1.0]]], "cosine", "expected shape"),
        ([[]], "cosine", "expected shape"),
        ("abc", "cosine", "expected numbers"),
        ([[1.0, 2.0]], "manhattan", "metric must be one of cosine"),
    ],
)
def test_bad_vectors_are_refused(vectors, metric, message):
    with pytest.raises(InputError, match=message):
        Index(vectors, metric)


def test_bad_queries_and_weights_are_refused():
    index = Index(np.eye(3, dtype=np.float32))
    with pytest.raises(InputError, match="expected 3 values per vector, got 2"):
        index.search(np.ones(2, np.float32))
    with pytest.raises(InputError, match="zero"):
        index.search(np.zeros(3, np.float32))
    with pytest.raises(InputError, match="weights belong to chi-square"):
        Index(np.eye(3, dtype=np.float32), "cosine", np.ones(3, np.float32))
    with pytest.raises(InputError, match="expected 3 finite values"):
        Index(np.eye(3, dtype=np.float32), "chi-square", np.ones(2, np.float32))
    with pytest.raises(InputError, match="as many vectors"):
        scores(np.eye(3), np.eye(3)[:2])


def test_verify_accepts_from_the_threshold_on():
    a, b = [1.0, 0.0], [0.6, 0.8]
    assert verify(a, b, 0.6 - 1e-6).same
    assert not verify(a, b, 0.6 + 1e-6).same
    assert verify(a, a, 1.0).same
    assert verify(a, a, 0.0, "euclidean").same
    found = verify(a, b, 0.5, "euclidean")
    assert not found.same
    assert found.score == pytest.approx(0.8**0.5, rel=1e-6)
    assert "different (euclidean 0.894, same where <= 0.500)" in str(found)
