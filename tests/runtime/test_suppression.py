"""What the contract's `nms` names, and heat maps, from the file to the answer of a Model."""

import numpy as np
import pytest
from PIL import Image

from edgecv.errors import InputError, SpecError
from edgecv.model import Model
from edgecv.postprocess.boxes import iou as overlap_of
from edgecv.runtimes.fake import FakeBackend
from edgecv.spec import Decoding, ModelSpec, Preparation, TensorSpec, read_spec, write_spec

SIZE = 64
EMPTY_GRAPH = b"\x3a\x00"  # a model with a graph of no nodes
# cx, cy, w, h, then two class probabilities: two boxes of one thing, one of another class, one far
ROWS = np.array(
    [
        [20, 20, 16, 16, 0.9, 0.0],
        [22, 20, 16, 16, 0.6, 0.0],
        [21, 20, 16, 16, 0.0, 0.8],
        [50, 50, 10, 10, 0.5, 0.0],
    ],
    np.float32,
)
FREE = {
    "layout": "channels-last",
    "boxes": "cxcywh",
    "normalized": False,
    "objectness": False,
    "scores": "probabilities",
    "conf": 0.2,
    "iou": 0.5,
    "max_det": 10,
}


class Fixed(FakeBackend):
    """Gives one array, whatever it is fed."""

    array = np.zeros(0, np.float32)

    def _run(self, feeds):
        return {self.outputs[0].name: self.array}


def answer(folder, task, kind, options, array, labels, **arguments):
    """The answer of a Model whose file has this contract and gives ``array``."""
    path = folder / "m.onnx"
    spec = ModelSpec(
        name="m",
        task=task,
        inputs=(TensorSpec("x", (1, 3, SIZE, SIZE)),),
        outputs=(TensorSpec("y", array.shape),),
        preparation=Preparation(SIZE, SIZE, fit="stretch"),
        decoding=Decoding(kind, options),
        labels=labels,
    )
    write_spec(EMPTY_GRAPH, spec, path)
    runtime = Fixed(path)
    runtime.array = np.asarray(array, np.float32)
    with Model(read_spec(path), runtime) as model:
        return model(Image.new("RGB", (2 * SIZE, SIZE)), **arguments)


def detections(folder, options, rows=ROWS, **arguments):
    return answer(
        folder, "detect", "yolo-anchor-free", FREE | options, rows[None], ("a", "b"), **arguments
    )


def shared(first, second):
    """IoU of two boxes of one size, ``second`` pixels apart along x."""
    return (first - second) / (first + second)


def test_hard_is_the_default(tmp_path):
    found = detections(tmp_path, {})
    np.testing.assert_array_equal(found.scores, np.float32([0.9, 0.8, 0.5]))
    named = detections(tmp_path, {"nms": "hard"})
    np.testing.assert_array_equal(found.boxes, named.boxes)
    np.testing.assert_array_equal(found.boxes[0], [24, 12, 56, 28])  # as it came


def test_soft_lowers_scores_of_the_class(tmp_path):
    near = shared(16, 2)
    found = detections(tmp_path, {"nms": "soft", "sigma": 0.7})
    lowered = 0.6 * np.exp(-(near**2) / 0.7)
    np.testing.assert_allclose(found.scores, [0.9, 0.8, 0.5, lowered], rtol=1e-6)
    np.testing.assert_array_equal(found.classes, [0, 1, 0, 0])
    np.testing.assert_array_equal(found.boxes[3], [28, 12, 60, 28])  # the picture is twice as wide
    linear = detections(tmp_path, {"nms": "soft", "soft_method": "linear", "min_score": 0.05})
    np.testing.assert_allclose(linear.scores, [0.9, 0.8, 0.5, 0.6 * (1 - near)], rtol=1e-6)
    # lowered below conf, and min_score is conf where nobody says otherwise
    assert len(detections(tmp_path, {"nms": "soft", "soft_method": "linear"})) == 3
    # the callers' thresholds reach it: no box overlaps by more than 0.9
    free = detections(tmp_path, {"nms": "soft", "soft_method": "linear"}, iou=0.9)
    np.testing.assert_array_equal(free.scores, np.float32([0.9, 0.8, 0.6, 0.5]))
    assert len(detections(tmp_path, {"nms": "soft", "max_det": 2})) == 2


def test_soft_across_classes(tmp_path):
    found = detections(tmp_path, {"nms": "soft", "agnostic": True, "min_score": 0})
    assert sorted(found.scores)[0] < 0.2
    assert len(found) == 4


def test_fusion_averages_boxes_of_the_class(tmp_path):
    found = detections(tmp_path, {"nms": "fusion"})
    center = (0.9 * 20 + 0.6 * 22) / 1.5
    np.testing.assert_allclose(found.scores, [0.8, 0.75, 0.5], rtol=1e-6)
    np.testing.assert_array_equal(found.classes, [1, 0, 0])
    left, right = 2 * (center - 8), 2 * (center + 8)
    np.testing.assert_allclose(found.boxes[1], [left, 12, right, 28], rtol=1e-6)
    assert overlap_of(found.boxes[1:2], found.boxes[2:])[0, 0] == 0
    assert len(detections(tmp_path, {"nms": "fusion"}, conf=0.95)) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nms": "greedy"}, "'nms' must be one of hard, soft, fusion; got 'greedy'"),
        ({"nms": True}, "'nms' must be a string"),
        ({"nms": "soft", "measure": "diou"}, "compares iou"),
        ({"nms": "soft", "sigma": 0}, "'sigma' must be greater than 0"),
        ({"nms": "soft", "soft_method": "cubic"}, "must be one of gaussian, linear"),
        ({"nms": "soft", "min_score": 2}, "min_score must lie from 0 to 1"),
        ({"nms": "fusion", "agnostic": True}, "cannot be agnostic"),
    ],
)
def test_what_means_nothing_is_refused(tmp_path, options, message):
    with pytest.raises(SpecError, match=message):
        detections(tmp_path, options)


# --- heat maps ------------------------------------------------------------------------------------

MAPS = np.zeros((2, 16, 8), np.float32)  # a cell is 8 x 4 pixels of the input
MAPS[0, 5, 2], MAPS[0, 5, 3], MAPS[0, 4, 2] = 0.9, 0.5, 0.2
MAPS[1, 0, 7], MAPS[1, 0, 6] = 0.7, 0.6  # in a corner: no neighbour outside


def landmarks(folder, options, maps=MAPS, labels=("eye", "nose")):
    return answer(folder, "landmarks", "heatmaps", options, maps[None], labels)


@pytest.mark.parametrize(
    ("refine", "cells"),
    [
        ("none", [[2, 5], [7, 0]]),
        ("quarter", [[2.25, 4.75], [7, 0]]),
        (
            "mean",
            [
                [(0.9 * 2 + 0.5 * 3 + 0.2 * 2) / 1.6, (0.9 * 5 + 0.5 * 5 + 0.2 * 4) / 1.6],
                [(0.7 * 7 + 0.6 * 6) / 1.3, 0],
            ],
        ),
    ],
)
@pytest.mark.parametrize("offset", [0.5, 0])
def test_heat_maps(tmp_path, refine, cells, offset):
    found = landmarks(tmp_path, {"values": "probabilities", "refine": refine, "offset": offset})
    expected = (np.array(cells) + offset) * [8, 4] * [2, 1]  # the picture is twice as wide
    np.testing.assert_allclose(found.points, expected, rtol=1e-6)
    np.testing.assert_array_equal(found.scores, np.float32([0.9, 0.7]))
    assert found.labels == ("eye", "nose")


def test_logits_and_ties(tmp_path):
    logits = np.full((1, 4, 4), -20, np.float32)
    logits[0, 1, 1] = logits[0, 2, 2] = 2  # equal: the first, row by row
    options = {"values": "logits", "refine": "none"}
    found = landmarks(tmp_path, options, logits, ())
    np.testing.assert_array_equal(found.points, [[(1.5 * 16) * 2, 1.5 * 16]])
    assert found.scores[0] == pytest.approx(1 / (1 + np.exp(-2)))
    middle = landmarks(tmp_path, options | {"refine": "mean"}, logits, ())
    np.testing.assert_allclose(middle.points, [[2 * 2 * 16, 2 * 16]], rtol=1e-6)
    flat = np.zeros((1, 4, 4), np.float32)  # no point at all: the middle, with a score of 0
    found = landmarks(tmp_path, {"values": "probabilities", "refine": "mean"}, flat, ())
    np.testing.assert_array_equal(found.points, [[2 * SIZE / 2, SIZE / 2]])
    assert found.scores[0] == 0


@pytest.mark.parametrize(
    ("options", "maps", "message"),
    [
        ({"refine": "none"}, MAPS, "needs the option 'values'"),
        ({"values": "logits", "refine": "dark"}, MAPS, "must be one of none, quarter, mean"),
        ({"values": "logits", "refine": "none"}, MAPS[:1], r"expected a tensor \[N, 2, h, w\]"),
        ({"values": "logits", "refine": "none"}, MAPS + np.nan, "NaN"),
    ],
)
def test_heat_maps_that_are_none(tmp_path, options, maps, message):
    from edgecv.errors import EdgeCVError

    with pytest.raises(EdgeCVError, match=message):
        landmarks(tmp_path, options, maps)


def test_thresholds_that_the_graph_has_applied_are_not_taken_for_others(tmp_path):
    row = np.array([[[0, 0, 8, 8, 0.9, 0], [0, 0, 8, 8, 0.3, 0]]], np.float32)
    options = {"normalized": False, "conf": 0.25, "max_det": 9}

    def end2end(**arguments):
        return answer(tmp_path, "detect", "yolo-end2end", options, row, ("a",), **arguments)

    assert len(end2end(conf=0.1)) == 2  # the graph gives all
    with pytest.raises(InputError, match=r"iou does not apply: .* suppresses by itself"):
        end2end(iou=0.5)
    for arguments, message in (
        ({"iou": 0.5}, "'detections'"),
        ({"conf": 0.1}, "at least 0.25, got 0.1"),
    ):
        with pytest.raises(InputError, match=message):
            answer(tmp_path, "detect", "detections", options, row, ("a",), **arguments)
