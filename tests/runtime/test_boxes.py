"""Box arithmetic against the obvious, one pair of boxes at a time."""

import numpy as np
import pytest

from edgecv.errors import InputError
from edgecv.postprocess import boxes as B
from edgecv.results import Placement


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
