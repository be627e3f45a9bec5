"""Properties of boxes and suppression on what hypothesis finds, against slow references."""

import numpy as np
import pytest

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgecv.postprocess import boxes as B
from edgecv.postprocess import segment
from edgecv.postprocess.nms import nms

WHOLE = st.integers(-20, 20)
BOX = st.tuples(WHOLE, WHOLE, WHOLE, WHOLE)
SOME = st.lists(BOX, min_size=1, max_size=5)


def slow_iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inter = width * height if width > 0 and height > 0 else 0
    areas = [
        max(0, box[2] - box[0]) * max(0, box[3] - box[1]) if box[2] > box[0] else 0
        for box in (a, b)
    ]
    union = sum(areas) - inter
    return inter / union if union else 0.0, union


def hull(a, b):
    return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])


@given(SOME, SOME)
def test_overlaps_equal_the_slow_ones(first, second):
    a, b = (np.array(boxes, np.float64) for boxes in (first, second))
    iou, giou, diou = B.iou(a, b), B.giou(a, b), B.diou(a, b)
    for i, one in enumerate(first):
        for j, two in enumerate(second):
            share, union = slow_iou(one, two)
            assert iou[i, j] == pytest.approx(share)
            x1, y1, x2, y2 = hull(one, two)
            around = max(0, x2 - x1) * max(0, y2 - y1) if x2 > x1 else 0
            assert giou[i, j] == pytest.approx(share - ((around - union) / around if around else 0))
            distance = (one[0] + one[2] - two[0] - two[2]) ** 2 / 4
            distance += (one[1] + one[3] - two[1] - two[3]) ** 2 / 4
            diagonal = (x2 - x1) ** 2 + (y2 - y1) ** 2
            assert diou[i, j] == pytest.approx(share - (distance / diagonal if diagonal else 0))


def slow_nms(boxes, scores, threshold, classes=None, measure=B.iou):
    """Greedy suppression as it is defined: best first, ties by index, overlap above threshold."""
    order = sorted(range(len(boxes)), key=lambda i: (-scores[i], i))
    overlap = measure(boxes, boxes)
    kept = []
    for i in order:
        same = [j for j in kept if classes is None or classes[i] == classes[j]]
        if all(overlap[j, i] <= threshold for j in same):
            kept.append(i)
    return kept


GRID = st.integers(0, 8)
CANDIDATE = st.tuples(GRID, GRID, GRID, GRID, st.integers(0, 3), st.integers(0, 2))


@given(st.lists(CANDIDATE, max_size=24), st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 0.9]))
@settings(max_examples=200)
def test_whole_numbers_with_ties_empty_and_inverted_boxes(candidates, threshold):
    """Coordinates on a coarse grid: overlaps just at the threshold, equal scores and boxes."""
    table = np.array(candidates, np.float64).reshape(-1, 6)
    boxes, scores, classes = table[:, :4], table[:, 4], table[:, 5].astype(np.int64)
    for groups in (None, classes):
        got = nms(boxes, scores, threshold, classes=groups)
        assert got.tolist() == slow_nms(boxes, scores, threshold, groups)


@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 6), st.integers(1, 6))))
def test_run_lengths_come_back(mask):
    runs = segment.run_lengths(mask)
    assert sum(runs[1::2]) == mask.sum()
    assert all(run > 0 for run in runs[1:])
    np.testing.assert_array_equal(segment.from_run_lengths(runs, *mask.shape), mask)
