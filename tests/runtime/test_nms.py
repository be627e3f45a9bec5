"""Suppression against slow references that loop over boxes, and on everything that is odd."""

import tracemalloc

import numpy as np
import pytest

from edgecv.errors import InputError
from edgecv.postprocess.boxes import diou, iou
from edgecv.postprocess.fusion import fuse_boxes, soft_nms
from edgecv.postprocess.nms import nms


def slow_nms(boxes, scores, threshold, classes=None, measure=iou):
    """Greedy suppression as it is defined: best first, ties by index, overlap above threshold."""
    order = sorted(range(len(boxes)), key=lambda i: (-scores[i], i))
    overlap = measure(boxes, boxes)
    kept = []
    for i in order:
        same = [j for j in kept if classes is None or classes[i] == classes[j]]
        if all(overlap[j, i] <= threshold for j in same):
            kept.append(i)
    return kept


def random_boxes(rng, count, kind):
    """Candidates: boxes everywhere, or jittered about few objects; few scores, so with ties."""
    if kind == "dense":
        centers = rng.random((6, 4)) * [500, 500, 100, 100] + [0, 0, 10, 10]
        middle = centers[rng.integers(0, 6, count)] * (1 + rng.normal(0, 0.05, (count, 4)))
    else:
        middle = rng.random((count, 4)) * [500, 500, 90, 90] + [0, 0, 1, 1]
    half = middle[:, 2:] / 2
    boxes = np.concatenate([middle[:, :2] - half, middle[:, :2] + half], 1)
    classes = rng.integers(0, {"one": 1, "skewed": 80}.get(kind, 7), count)
    if kind == "skewed":
        classes = np.minimum(classes, rng.geometric(0.4, count))
    return boxes.astype(np.float32), (rng.integers(0, 200, count) / 200).astype(np.float32), classes


@pytest.mark.parametrize("kind", ["uniform", "skewed", "one", "dense"])
@pytest.mark.parametrize("count", [1, 2, 30, 400])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("measure", [iou, diou])
def test_greedy_equals_the_slow_reference(kind, count, threshold, measure):
    boxes, scores, classes = random_boxes(np.random.default_rng(count), count, kind)
    for groups in (None, classes):
        got = nms(boxes, scores, threshold, classes=groups, measure=measure.__name__)
        assert got.tolist() == slow_nms(boxes, scores, threshold, groups, measure)


@pytest.mark.parametrize("kind", ["uniform", "dense"])
def test_many_candidates_take_the_block_path(kind):
    boxes, scores, _ = random_boxes(np.random.default_rng(3), 2500, kind)
    assert nms(boxes, scores, 0.6).tolist() == slow_nms(boxes, scores, 0.6)


def test_a_long_chain_is_settled_one_by_one():
    """Each box overlaps the next only, with falling scores: every other one stays."""
    left = np.arange(0, 2000, 5, dtype=np.float32)
    boxes = np.stack([left, 0 * left, left + 10, 0 * left + 10], 1)
    got = nms(boxes, np.linspace(1, 0.1, len(left), dtype=np.float32), 0.3)
    assert got.tolist() == list(range(0, len(left), 2))


def test_the_threshold_is_compared_as_in_double():
    """Overlap 0.5 exactly: not greater than 0.5, but greater than the float below."""
    boxes = np.array([[0, 0, 4, 2], [0, 0, 2, 2]], np.float32)
    scores = np.array([0.9, 0.8])
    assert nms(boxes, scores, 0.5).tolist() == [0, 1]
    assert nms(boxes, scores, np.nextafter(0.5, 0)).tolist() == [0]
    tenth = np.array([[0, 0, 10, 1], [0, 0, 1, 1]], np.float32)  # float32(0.1) > 0.1
    assert nms(tenth, scores, 0.1).tolist() == [0]


def test_max_det_keeps_the_best_in_order():
    boxes, scores, classes = random_boxes(np.random.default_rng(8), 3000, "one")
    whole = nms(boxes, scores, 0.6, classes=classes)
    for limit in (0, 1, 2, 17, 300, 10**6):
        assert (
            nms(boxes, scores, 0.6, classes=classes, max_det=limit).tolist()
            == whole[:limit].tolist()
        )


def test_broken_and_empty_candidates():
    nan, inf = np.nan, np.inf
    boxes = np.array(
        [
            [0, 0, 10, 10],
            [0, 0, nan, 10],
            [0, 0, inf, 10],
            [-inf, -inf, inf, inf],
            [0, 0, 10, 10],  # NaN score
            [5, 5, 5, 5],  # empty
            [5, 5, 5, 5],
            [9, 9, 1, 1],  # inverted
            [0, 0, 10, 10],  # the first again
        ],
        np.float32,
    )
    scores = np.array([0.5, 0.9, 0.9, 0.9, nan, 0.4, 0.6, 0.9, 0.5], np.float32)
    assert nms(boxes, scores, 0.5).tolist() == [7, 6, 0, 5]
    assert nms(boxes, scores, 0.0).tolist() == [7, 6, 0, 5]
    assert soft_nms(boxes, scores, min_score=0.45)[0].tolist() == [7, 6, 0]
    fused, _, _ = fuse_boxes(boxes, scores)
    assert np.isfinite(fused).all()
    for none in (nms(boxes[:0], scores[:0]), soft_nms(boxes[:0], scores[:0])[0]):
        assert none.shape == (0,)
        assert none.dtype == np.int64
    assert fuse_boxes(boxes[:0], scores[:0])[0].shape == (0, 4)
    infinite = np.array([-inf, inf, 0.5], np.float32)
    assert nms(boxes[[0, 5, 6]], infinite, 0.5).tolist() == [1, 2, 0]


@pytest.mark.parametrize("size", [1e-30, 1e15, 1e30])
def test_sizes_at_the_ends_of_the_range(size):
    """Areas of float32 overflow, or vanish: then boxes do not overlap; nothing warns."""
    boxes = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 9, 9]]) * size
    scores = np.array([0.9, 0.8, 0.7])
    assert nms(boxes, scores, 0.5).tolist() == [0, 2]  # float64
    expected = [0, 2] if size == 1e15 else [0, 1, 2]
    assert nms(boxes.astype(np.float32), scores, 0.5).tolist() == expected
    both = np.concatenate([boxes, [[0, 0, 1, 1], [0, 0, 1, 1.1]]])
    scores, classes = np.arange(5, 0, -1) / 5, np.array([0, 0, 0, 1, 1])
    assert nms(both, scores, 0.5, classes=classes).tolist() == [0, 2, 3]


@pytest.mark.parametrize("ids", [[-5, 7, -5], [0, 2**40, 0], [10**6, 10**7, 10**6]])
def test_any_integers_are_classes(ids):
    boxes = np.array([[0, 0, 4, 4]] * 3, np.float32)
    scores = np.array([0.1, 0.2, 0.3])
    assert nms(boxes, scores, 0.5, classes=np.array(ids)).tolist() == [2, 1]


@pytest.mark.parametrize("kind", ["equal", "late", "stacked", "uniform", "empty"])
def test_thirty_thousand_candidates_in_bounded_memory(kind):
    """The worst that there is: 450 million pairs share their place on the axis of the sweep."""
    count, rng = 30_000, np.random.default_rng(1)
    if kind == "uniform":
        boxes, scores, _ = random_boxes(rng, count, "one")
    else:
        top = np.arange(count) * {"stacked": 20}.get(kind, 0)
        high = 0 if kind == "empty" else 10
        boxes = np.stack([0 * top, top, 0 * top + 10, top + high], 1).astype(np.float32)
        scores = rng.random(count).astype(np.float32)
    if kind == "late":  # equal boxes from rank 10,000 on, behind ones that overlap with nothing
        boxes[:10_000] += np.arange(10_000, dtype=np.float32)[:, None] * 20 + 100
        scores[:10_000] += 1
    tracemalloc.start()
    kept = nms(boxes, scores, 0.7, max_det=2000 if kind == "stacked" else None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6  # the issue allows 200 MB
    assert len(kept) == {"equal": 1, "late": 10_001, "stacked": 2000, "empty": count}.get(
        kind, len(kept)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": np.zeros((3, 5))}, r"\[N, 4\]"),
        ({"scores": np.zeros(2)}, "one per box"),
        ({"classes": np.zeros(2, int)}, "one per box"),
        ({"classes": np.zeros(3)}, "integers"),
        ({"iou": 1.5}, "0 to 1"),
        ({"iou": float("nan")}, "0 to 1"),
        ({"measure": "giou"}, "iou, diou"),
        ({"max_det": -1}, "0 or more"),
    ],
)
def test_what_cannot_be_suppressed(change, message):
    given = {"boxes": np.zeros((3, 4)), "scores": np.zeros(3), **change}
    with pytest.raises(InputError, match=message):
        nms(given.pop("boxes"), given.pop("scores"), **given)


# --- the softer ways ------------------------------------------------------------------------------


def slow_soft(boxes, scores, method, sigma, threshold, min_score, classes):
    left = {i: float(s) for i, s in enumerate(scores)}
    out = []
    while left and max(left.values()) >= min_score:
        best = max(left, key=lambda i: (left[i], -i))
        out.append((best, left.pop(best)))
        for i in left:
            share = float(iou(boxes[best : best + 1], boxes[i : i + 1])[0, 0])
            if classes is not None and classes[i] != classes[best]:
                continue
            if method == "gaussian":
                left[i] *= np.exp(-(share**2) / sigma)
            elif share > threshold:
                left[i] *= 1 - share
    return out


@pytest.mark.parametrize("method", ["gaussian", "linear"])
@pytest.mark.parametrize("kind", ["dense", "uniform"])
def test_soft_nms_equals_the_slow_reference(method, kind):
    boxes, scores, classes = random_boxes(np.random.default_rng(2), 60, kind)
    scores = scores + np.arange(60, dtype=np.float32) * 1e-4  # no ties that rounding decides
    for groups in (None, classes):
        index, lowered = soft_nms(boxes, scores, method=method, min_score=0.05, classes=groups)
        slow = slow_soft(boxes, scores, method, 0.5, 0.3, 0.05, groups)
        assert index.tolist() == [i for i, _ in slow]
        np.testing.assert_allclose(lowered, [s for _, s in slow], rtol=1e-6)  # float32 overlaps
        assert (np.diff(lowered) <= 0).all()
    assert len(soft_nms(boxes, scores, max_det=3)[0]) == 3


def test_weighted_box_fusion_by_hand():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 12, 10], [50, 50, 60, 60], [0, 0, 10, 10]], float)
    scores, classes = np.array([0.8, 0.4, 0.6, 0.3]), np.array([0, 0, 0, 1])
    fused, score, kind = fuse_boxes(boxes, scores, classes=classes, models=2)
    # members 0 and 1: (0.8 * 10 + 0.4 * 12) / 1.2; the others were seen by one net of two
    np.testing.assert_allclose(fused[0], [0, 0, 12.8 / 1.2, 10])
    np.testing.assert_allclose(score, [0.6, 0.3, 0.15])
    assert kind.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(fused[1:], boxes[2:])
    alone = fuse_boxes(boxes, scores, classes=classes)
    np.testing.assert_allclose(alone[1], [0.6, 0.6, 0.3])
    assert len(fuse_boxes(boxes, scores, max_det=1)[0]) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b, s: soft_nms(b, s, method="hard"), "gaussian, linear"),
        (lambda b, s: soft_nms(b, s, sigma=0), "greater than 0"),
        (lambda b, s: soft_nms(b, s, threshold=2), "0 to 1"),
        (lambda b, s: fuse_boxes(b, s, models=0), "at least 1"),
        (lambda b, s: fuse_boxes(b, s - 1), "negative"),
    ],
)
def test_what_cannot_be_fused(call, message):
    with pytest.raises(InputError, match=message):
        call(np.array([[0.0, 0, 1, 1]]), np.array([0.5]))
