"""Box arithmetic against the obvious, one pair of boxes at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecv.errors import InputError
from edgecv.postprocess import boxes as B
from edgecv.results import Placement

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


def test_known_overlaps():
    a, b = np.array([[0, 0, 2, 2]]), np.array([[1, 1, 3, 3], [4, 0, 6, 2], [0, 0, 2, 2]])
    np.testing.assert_allclose(B.iou(a, b), [[1 / 7, 0, 1]])
    np.testing.assert_allclose(B.giou(a, b), [[1 / 7 - 2 / 9, -4 / 12, 1]])
    np.testing.assert_allclose(B.diou(a, b), [[1 / 7 - 2 / 18, -16 / 40, 1]])


def test_conversions_and_their_ways_back():
    boxes = np.array([[1, 2, 5, 10], [0, 0, 1, 1]], np.float32)
    np.testing.assert_array_equal(B.to_cxcywh(boxes), [[3, 6, 4, 8], [0.5, 0.5, 1, 1]])
    np.testing.assert_array_equal(B.to_xywh(boxes), [[1, 2, 4, 8], [0, 0, 1, 1]])
    np.testing.assert_array_equal(B.from_cxcywh(B.to_cxcywh(boxes)), boxes)
    np.testing.assert_array_equal(B.from_xywh(B.to_xywh(boxes)), boxes)
    assert B.from_cxcywh(boxes.astype(np.float16)).dtype == np.float32
    assert B.from_cxcywh(boxes.astype(np.int32)).dtype == np.float64
    np.testing.assert_array_equal(boxes, [[1, 2, 5, 10], [0, 0, 1, 1]])  # left as they were


def test_areas_of_empty_and_inverted_boxes_are_zero():
    boxes = np.array([[0, 0, 2, 3], [5, 5, 5, 9], [4, 0, 2, 3], [4, 4, 2, 2]])
    np.testing.assert_array_equal(B.area(boxes), [6, 0, 0, 0])


def test_clip_and_the_way_back_to_the_picture():
    boxes = np.array([[-5, -5, 700, 20], [1, 2, 3, 4]], np.float32)
    np.testing.assert_array_equal(B.clip(boxes, 640, 480), [[0, 0, 640, 20], [1, 2, 3, 4]])
    at = Placement(1280, 960, 0.5, 0.25, 10, 20, 660, 280)
    there = np.array([[10, 20, 650, 260]], np.float32)
    np.testing.assert_array_equal(B.to_picture(there, at), [[0, 0, 1280, 960]])
    np.testing.assert_array_equal(B.to_picture(there.reshape(2, 2), at), [[0, 0], [1280, 960]])


@pytest.mark.parametrize("shape", [(4,), (2, 5), (1, 2, 4)])
def test_arrays_that_hold_no_boxes(shape):
    with pytest.raises(InputError, match=r"\[N, 4\]"):
        B.iou(np.zeros(shape), np.zeros((1, 4)))
