"""What an error is to a detector, by the form of its outputs; no scale for boxes and scores."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from edgecv.quantize.detections import MIXED, error_for, mixed_heads
from edgecv.quantize.targets import policy_for
from edgecv.spec import Decoding, ModelSpec, Preparation, TensorSpec
from tests.quantize.conftest import build

SIDE = 64  # of the input
CLASSES = 2
COMMON = {"conf": 0.25, "iou": 0.5, "max_det": 10}


def spec(kind, **options):
    return ModelSpec(
        name="net",
        task="detect",
        inputs=(TensorSpec("x", (1, 3, SIDE, SIDE)),),
        outputs=(TensorSpec("y", (1, 4, 4)),),
        preparation=Preparation(SIDE, SIDE, fit="stretch"),
        decoding=Decoding(kind, {**COMMON, **options}),
        labels=("a", "b"),
    )


def test_detection_error_weighs_boxes_by_their_score() -> None:
    error = error_for(spec("yolox", decoded=False))
    rows = np.zeros((1, 2, 7), np.float32)
    rows[0, 0] = [1, 1, 1, 1, 0.9, 0.8, 0.1]

    def moved(anchor: int, column: int) -> float:
        other = rows.copy()
        other[0, anchor, column] += 0.5
        return error({"y": rows}, {"y": other})

    assert error({"y": rows}, {"y": rows}) == 0
    assert moved(0, 0) == pytest.approx(0.25)  # one coordinate, half a cell
    assert moved(1, 0) == 0  # nothing is there
    assert moved(0, 5) > 0


def logit(p):
    return np.log(p / (1 - p))


def free(**options):
    form = {"layout": "channels-first", "objectness": False, "normalized": False}
    return spec("yolo-anchor-free", **{**form, "scores": "probabilities", **options})


def maps(**options):
    anchors, form = [[[8, 8], [16, 16]]], {"rule": "v5", "activated": False}
    return spec("yolo-anchors", decoded=False, strides=[8], anchors=anchors, **form, **options)


BOX = [32, 32, 20, 20]  # pixels: 1 more of one number is a 400th of the box's weight
# a cell that sees class 0 with 0.9, one that sees nothing; where its box and its score stand
JOINED = np.array([[*BOX, 0.9, 1, 0.01], [*BOX, 0.01, 0.01, 0.01]])
ALONE = np.array([[*BOX, 0.9, 0.01], [*BOX, 0.01, 0.01]])
RAW = np.concatenate([logit(np.full((2, 4), 0.5)), logit(JOINED[:, 4:].clip(0.01, 0.99))], axis=1)
BINS = np.concatenate([np.tile([0.0, 0, 9, 0], (2, 4)), logit(ALONE[:, 4:])], axis=1)
FORMS = {
    "yolox in pixels": (spec("yolox", decoded=True, strides=[8]), JOINED[None], (0, 0, 4)),
    "v5": (spec("yolo-anchors", decoded=True), JOINED[None], (0, 0, 4)),
    "maps": (maps(layout="anchors-first"), RAW.reshape(1, 2, 1, 1, 7), (0, 0, 0, 0, 4)),
    "joined anchors": (maps(layout="channels-first"), RAW.reshape(1, 14, 1, 1), (0, 4, 0, 0)),
    "v8": (free(boxes="cxcywh"), ALONE.T[None], (0, 4, 0)),
    "logits": (
        free(boxes="xyxy", scores="logits", layout="channels-last"),
        np.concatenate([[[22, 22, 42, 42]] * 2, logit(ALONE[:, 4:])], axis=1)[None],
        (0, 0, 4),
    ),
    "v6": (free(boxes="ltrb", objectness=True, strides=[8]), JOINED.T[None], (0, 4, 0)),
    "bins": (free(boxes="dfl", bins=4, scores="logits", strides=[8]), BINS.T[None], (0, 16, 0)),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_lost_score_is_the_larger_error(form):
    """By squared error of the tensor half a pixel of a box would outweigh the whole score."""
    contract, output, place = FORMS[form]
    output = output.astype(np.float32)
    error = error_for(contract)

    def moved(place, to):
        other = output.copy()
        other[place] = to
        return error({"y": output}, {"y": other})

    logits = contract.decoding.options.get("scores") == "logits" or "rule" in (
        contract.decoding.options
    )
    gone = moved(place, -9 if logits else 0.0)
    assert error({"y": output}, {"y": output}) == 0
    assert gone == pytest.approx(1, abs=0.1)  # the only score there is
    box = (0,) * output.ndim
    assert 0 < moved(box, output[box] + 0.5) < gone


def test_boxes_in_pixels_count_by_their_size():
    error = error_for(free(boxes="cxcywh"))
    for side in (10, 40):
        output = np.array([[32, 32, side, side, 0.9, 0]]).T[None]
        other = output + np.array([side / 10, 0, 0, 0, 0, 0])[None, :, None]
        assert error({"y": output}, {"y": other}) == pytest.approx(0.01)


def test_swapped_detections_are_the_same():
    error = error_for(spec("yolo-end2end", normalized=False))
    rows = np.array([[[0, 0, 20, 20, 0.9, 0], [30, 30, 50, 50, 0.8, 1], [9, 9, 9, 9, 0.01, 1]]])
    assert error({"y": rows}, {"y": rows[:, [1, 0, 2]]}) == 0
    assert 0 < error({"y": rows}, {"y": rows + np.eye(6)[0]}) < 0.01
    lost, other = rows.copy(), rows.copy()
    lost[0, 1, 4] = 0
    other[0, 1, 5] = 0  # its class: the one is lost, another found
    share = 0.8**2 / (0.8**2 + 0.9**2)
    assert error({"y": rows}, {"y": lost}) == pytest.approx(share / 2)
    assert error({"y": rows}, {"y": other}) == pytest.approx(share)
    assert error({"y": rows}, {"y": np.zeros_like(rows)}) == pytest.approx(0.5)


def test_detections_after_nms_end_at_their_number():
    error = error_for(spec("detections", normalized=True))
    boxes = np.array([[[0, 0, 0.5, 0.5], [0.1, 0.1, 0.9, 0.9]]], np.float32)

    def outputs(num, scores):
        return {
            "num": np.array([[num]], np.int32),
            "boxes": boxes,
            "scores": np.array([scores], np.float32),
            "classes": np.zeros((1, 2), np.int64),
        }

    wanted = outputs(1, [0.9, 0.8])
    assert error(wanted, outputs(1, [0.9, 0.1])) == 0  # what lies beyond it is left over
    assert error(wanted, outputs(0, [0.9, 0.8])) == pytest.approx(0.5)
    assert error(outputs(0, [0, 0]), outputs(0, [0, 0])) == 0


HEADS = {
    "yolo-anchors": (maps(layout="channels-first"), 14),
    "yolo-grid": (spec("yolo-grid", grid=16, boxes=2), 12),
    "yolo-anchor-free": (free(boxes="cxcywh"), 6),
    "yolox": (spec("yolox", decoded=False, strides=[8]), 7),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_layer_that_makes_boxes_and_scores_gives_floats(kind):
    contract, channels = HEADS[kind]
    rng = np.random.default_rng(0)

    def head(count):
        tensors = {
            "w0": rng.standard_normal((count, 3, 3, 3)).astype(np.float32),
            "w1": rng.standard_normal((count, count, 1, 1)).astype(np.float32),
        }
        nodes = [
            helper.make_node("Conv", ["x", "w0"], ["a"], "trunk", pads=[1] * 4),
            helper.make_node("Conv", ["a", "w1"], ["b"], "head"),
            helper.make_node("Sigmoid", ["b"], ["y"], "sigmoid"),
        ]
        return build(nodes, tensors)

    for target in ("onnxruntime-x86", "openvino"):
        policy = policy_for(target)
        assert mixed_heads(head(channels), policy, contract) == {"head": MIXED}
        assert mixed_heads(head(4), policy, contract) == {}  # boxes alone
    # it quantizes what convolutions read, not what they give
    assert mixed_heads(head(channels), policy_for("tensorrt"), contract) == {}
    assert mixed_heads(head(channels), policy, spec("rfb")) == {}
