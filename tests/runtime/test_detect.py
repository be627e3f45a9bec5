"""Each family of detectors decodes to boxes that were computed by hand.

Every test places one or two objects into tensors that are otherwise silent, so a wrong axis, cell,
anchor, stride or class shows as another box.
"""

import numpy as np
import pytest

from edgecv.errors import RuntimeFailure, SpecError
from edgecv.postprocess.candidates import grid
from edgecv.postprocess.detect import decode
from edgecv.results import Placement
from edgecv.spec import Decoding, ModelSpec, Preparation, TensorSpec

LABELS = ("cat", "dog", "bird")
SIZE = (64, 96)  # height, width of the input: not square, so that mixed up axes show
WHOLE = Placement(96, 64, 1.0, 1.0, 0.0, 0.0, 96, 64)
COMMON = {"conf": 0.25, "iou": 0.5, "max_det": 100}


def logit(p):
    return float(np.log(p / (1 - p)))


def model(kind, outputs, options, labels=LABELS):
    return ModelSpec(
        name="net",
        task="detect",
        inputs=(TensorSpec("images", (1, 3, *SIZE)),),
        outputs=tuple(TensorSpec(name, array.shape) for name, array in outputs.items()),
        preparation=Preparation(*SIZE, fit="letterbox"),
        decoding=Decoding(kind, {**COMMON, **options}),
        labels=labels,
    )


def run(kind, outputs, options, *, labels=LABELS, placements=(WHOLE,), conf=None, iou=None):
    """Decode ``outputs`` (one array: the only output)."""
    if isinstance(outputs, np.ndarray):
        outputs = {"output": outputs}
    return decode(outputs, model(kind, outputs, options, labels), placements, conf, iou)


def check(found, boxes, scores, classes):
    np.testing.assert_allclose(found.boxes, boxes, atol=1e-4)  # float32, coordinates below 100
    np.testing.assert_allclose(found.scores, scores, rtol=1e-5)  # float32
    assert found.classes.tolist() == classes


# --- the families ---------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["boxes-first", "classes-first", "darknet"])
@pytest.mark.parametrize("rooted", [True, False])
def test_yolo_grid(order, rooted):
    side, boxes, classes = 7, 2, 3
    box = np.zeros((1, side, side, boxes, 4), np.float32)  # x, y, w, h
    confidence = np.zeros((1, side, side, boxes), np.float32)
    scores = np.zeros((1, side, side, classes), np.float32)
    sizes = np.array([0.25, 0.5])
    box[0, 2, 4, 1] = [0.5, 0.25, *(np.sqrt(sizes) if rooted else sizes)]
    confidence[0, 2, 4, 1], scores[0, 2, 4] = 0.8, [0.1, 0.9, 0]
    if order == "darknet":
        raw = np.concatenate([scores.ravel(), confidence.ravel(), box.ravel()])[None]
    elif order == "boxes-first":
        cells = np.concatenate([box, confidence[..., None]], axis=-1).reshape(1, side, side, -1)
        raw = np.concatenate([cells, scores], axis=-1)
    else:
        cells = np.concatenate([confidence[..., None], box], axis=-1).reshape(1, side, side, -1)
        raw = np.concatenate([scores, cells], axis=-1)
    options = {"grid": side, "boxes": boxes, "square_root": rooted, "order": order}
    (found,) = run("yolo-grid", raw, options)
    x, y = (4 + 0.5) / 7 * 96, (2 + 0.25) / 7 * 64
    check(found, [[x - 12, y - 16, x + 12, y + 16]], [0.72], [1])
    assert found.labels == LABELS


@pytest.mark.parametrize("rank", [4, 5])
def test_yolo_anchors_v2_of_19_by_19_by_5_by_85(rank):
    labels = tuple(str(i) for i in range(80))
    anchors = np.array([[18, 22], [60, 66], [106, 175], [252, 113], [313, 293]], float)
    raw = np.full((1, 19, 19, 5, 85), -9.0, np.float32)
    raw[0, 3, 11, 2, :5] = [logit(0.25), logit(0.75), np.log(0.5), np.log(2), logit(0.9)]
    raw[0, 3, 11, 2, 5:] = 0
    raw[0, 3, 11, 2, 5 + 17] = np.log(79 * 4)  # softmax: 4 / 5
    at = Placement(608, 608, 1.0, 1.0, 0.0, 0.0, 608, 608)
    options = {
        "decoded": False,
        "activated": False,
        "rule": "v2",
        "layout": "channels-last",
        "strides": [32],
        "anchors": [anchors.tolist()],
    }
    shaped = raw if rank == 5 else raw.reshape(1, 19, 19, 425)
    (found,) = run("yolo-anchors", shaped, options, labels=labels, placements=[at])
    x, y, w, h = 11.25 * 32, 3.75 * 32, 53, 350
    check(found, [[x - w / 2, 0, x + w / 2, y + h / 2]], [0.72], [17])  # cut at the top


ANCHORS = [[[10, 12], [20, 8]], [[30, 60], [60, 30]], [[90, 40], [40, 50]]]
STRIDES = [8, 16, 32]


def anchor_maps(layout, objects, fill, channels=8):
    """Three strides' maps; ``objects``: (scale, anchor, row, column, the 5 + C values)."""
    maps = {}
    for scale, stride in enumerate(STRIDES):
        raw = np.full((1, 2, SIZE[0] // stride, SIZE[1] // stride, channels), fill, np.float32)
        for which, anchor, row, column, values in objects:
            if which == scale:
                raw[0, anchor, row, column] = values
        if layout == "channels-first":
            raw = raw.transpose(0, 1, 4, 2, 3).reshape(1, -1, *raw.shape[2:4])
        elif layout == "channels-last":
            raw = raw.transpose(0, 2, 3, 1, 4).reshape(1, *raw.shape[2:4], -1)
        maps[f"map{stride}"] = np.ascontiguousarray(raw)
    return maps


@pytest.mark.parametrize("layout", ["channels-first", "channels-last", "anchors-first"])
@pytest.mark.parametrize("rule", ["v3", "v5"])
@pytest.mark.parametrize("activated", [False, True])
def test_yolo_anchors_of_three_strides(layout, rule, activated):
    size = [0.3, 0.6] if rule == "v5" else [np.log(1.5), np.log(0.5)]
    objects = [
        (0, 1, 5, 2, [0.5, 0.25, *size, 0.8, 0.1, 0.2, 0.9]),
        (2, 0, 1, 1, [0.75, 0.5, *size, 0.9, 0.9, 0.2, 0.1]),
    ]
    if not activated:
        keep = (2, 3) if rule == "v3" else ()
        objects = [
            (*place, [v if i in keep else logit(v) for i, v in enumerate(values)])
            for *place, values in objects
        ]
    maps = anchor_maps(layout, objects, 0.0 if activated else -9.0)
    options = {
        "decoded": False,
        "activated": activated,
        "rule": rule,
        "layout": layout,
        "strides": STRIDES,
        "anchors": ANCHORS,
    }
    (found,) = run("yolo-anchors", maps, options)
    if rule == "v3":
        first, wide = (2.5 * 8, 5.25 * 8), (1.5, 0.5)
        second = (1.75 * 32, 1.5 * 32)
    else:
        first, wide = ((2 * 0.5 - 0.5 + 2) * 8, (2 * 0.25 - 0.5 + 5) * 8), (0.36, 1.44)
        second = ((2 * 0.75 - 0.5 + 1) * 32, (2 * 0.5 - 0.5 + 1) * 32)
    expected = []
    for (x, y), (w, h) in ((second, (90, 40)), (first, (20, 8))):
        w, h = w * wide[0], h * wide[1]
        expected.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    expected = np.clip(expected, 0, [96, 64, 96, 64])
    check(found, expected, [0.81, 0.72], [0, 2])


def test_yolo_anchors_decoded_in_the_graph():
    raw = np.zeros((1, 10, 8), np.float32)
    raw[0, 7] = [30, 20, 10, 8, 0.9, 0.1, 0.8, 0.3]
    (found,) = run("yolo-anchors", raw, {"decoded": True})
    check(found, [[25, 16, 35, 24]], [0.72], [1])


CELLS = 12 * 8 + 6 * 4 + 3 * 2  # of strides 8, 16, 32 on 96 x 64
SECOND = 12 * 8  # the first cell of stride 16


@pytest.mark.parametrize("decoded", [False, True])
def test_yolox(decoded):
    raw = np.zeros((1, CELLS, 8), np.float32)
    cell = SECOND + 2 * 6 + 3  # row 2, column 3 of stride 16
    box = [56, 36, 24, 16] if decoded else [0.5, 0.25, np.log(1.5), 0]
    raw[0, cell] = [*box, 0.9, 0.5, 0.2, 0.8]
    (found,) = run("yolox", raw, {"decoded": decoded, "strides": STRIDES})
    check(found, [[44, 28, 68, 44]], [0.72], [2])


@pytest.mark.parametrize("layout", ["channels-first", "channels-last"])
@pytest.mark.parametrize("form", ["cxcywh", "xyxy", "ltrb", "dfl"])
@pytest.mark.parametrize("objectness", [False, True])
@pytest.mark.parametrize("scores", ["probabilities", "logits"])
def test_yolo_anchor_free(layout, form, objectness, scores):
    cell = SECOND + 2 * 6 + 3  # its centre: (56, 40)
    bins = 4
    head = {
        "cxcywh": [60, 32, 16, 16],
        "xyxy": [52, 24, 68, 40],
        "ltrb": [0.25, 1, 0.75, 0],
        # means of the bins 0 to 3: the same four distances
        "dfl": np.log(
            np.add([[0.75, 0.25, 0, 0], [0, 1, 0, 0], [0.25, 0.75, 0, 0], [1, 0, 0, 0]], 1e-9)
        ).ravel(),
    }[form]
    values = [*([0.9] if objectness else []), 0.1, 0.8, 0.2]
    if scores == "logits":
        values = [logit(v) for v in values]
    raw = np.zeros((1, CELLS, len(head) + len(values)), np.float32)
    raw[..., len(head) :] = -9 if scores == "logits" else 0
    raw[0, cell] = [*head, *values]
    options = {
        "layout": layout,
        "boxes": form,
        "objectness": objectness,
        "scores": scores,
        "normalized": False,
        "bins": bins,
        "strides": STRIDES,
    }
    shaped = raw if layout == "channels-last" else np.ascontiguousarray(raw.transpose(0, 2, 1))
    (found,) = run("yolo-anchor-free", shaped, options)
    check(found, [[52, 24, 68, 40]], [0.72 if objectness else 0.8], [1])
    if form == "dfl":  # the same as one map a stride
        ends = np.cumsum([0, 96, 24, 6])
        maps = {
            f"map{s}": raw[0, a:b].T.reshape(1, -1, 64 // s, 96 // s)
            for s, a, b in zip(STRIDES, ends[:-1], ends[1:], strict=True)
        }
        (again,) = run("yolo-anchor-free", maps, options)
        check(again, found.boxes, found.scores, found.classes.tolist())


def test_yolo_anchor_free_relative_to_the_input():
    raw = np.zeros((1, 7, 5), np.float32)
    raw[0, :, 3] = [0.5, 0.5, 0.25, 0.25, 0, 0.7, 0]
    options = {
        "layout": "channels-first",
        "boxes": "cxcywh",
        "objectness": False,
        "scores": "probabilities",
        "normalized": True,
    }
    (found,) = run("yolo-anchor-free", raw, options)
    check(found, [[36, 24, 60, 40]], [0.7], [1])


@pytest.mark.parametrize("normalized", [False, True])
def test_yolo_end2end_is_not_suppressed(normalized):
    size = np.array([96, 64, 96, 64]) if normalized else 1
    raw = np.zeros((1, 5, 6), np.float32)
    raw[0, 1] = [*(np.array([8, 8, 40, 40]) / size), 0.6, 2]
    raw[0, 3] = [*(np.array([8, 8, 40, 40]) / size), 0.9, 2]
    (found,) = run("yolo-end2end", raw, {"normalized": normalized})
    check(found, [[8, 8, 40, 40]] * 2, [0.9, 0.6], [2, 2])


def test_detections_of_a_graph_with_nms():
    outputs = {
        "num_dets": np.array([[2]], np.int32),
        "det_boxes": np.array([[[0, 0, 5, 5], [1, 2, 3, 4], [9, 9, 9, 9]]], np.float32),
        "det_scores": np.array([[0.9, 0.8, 0.7]], np.float32),
        "det_classes": np.array([[1, 2, 0]], np.int32),
    }
    names = {role: f"det_{role}" for role in ("boxes", "scores", "classes")}
    options = {"normalized": False, "outputs": {"num": "num_dets", **names}}
    (found,) = run("detections", outputs, options)
    check(found, [[0, 0, 5, 5], [1, 2, 3, 4]], [0.9, 0.8], [1, 2])
    with pytest.raises(SpecError, match=r"needs the output 'num'.*num_dets"):
        run("detections", outputs, {"normalized": False})


def test_fastestdet():
    raw = np.full((1, 8, 2, 3), -9.0, np.float32)
    raw[0, 0], raw[0, 5:] = 0, 0
    raw[0, :, 1, 2] = [0.9, np.arctanh(0.5), np.arctanh(-0.25), logit(0.25), logit(0.5), 0, 0.8, 0]
    (found,) = run("fastestdet", raw, {})
    x, y = 2.5 / 3 * 96, 0.75 / 2 * 64
    box = [x - 12, y - 16, min(96, x + 12), y + 16]
    check(found, [box], [0.9**0.6 * 0.8**0.4], [1])


def test_yunet():
    outputs = {}
    for stride in STRIDES:
        cells = (64 // stride) * (96 // stride)
        for what, channels in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
            outputs[f"{what}_{stride}"] = np.zeros((1, cells, channels), np.float32)
    cell = 2 * 6 + 3  # row 2, column 3 of stride 16
    outputs["cls_16"][0, cell], outputs["obj_16"][0, cell] = 0.9, 1.2  # cut to 1
    outputs["bbox_16"][0, cell] = [0.5, 0.25, np.log(1.5), 0]
    outputs["kps_16"][0, cell] = [-0.5, 0, 0.5, 0, 0, 0.25, -0.25, 0.5, 0.25, 0.5]
    (found,) = run("yunet", outputs, {"strides": STRIDES}, labels=("face",))
    check(found, [[44, 28, 68, 44]], [np.sqrt(0.9)], [0])
    expected = [[40, 32], [56, 32], [48, 36], [44, 40], [52, 40]]
    np.testing.assert_allclose(found.landmarks, [expected], atol=1e-4)
    outputs["bbox_16"][0, cell, 3] = 100  # e^100 is no float32, and no warning either
    with pytest.raises(RuntimeFailure, match="NaN or infinite coordinates"):
        run("yunet", outputs, {"strides": STRIDES}, labels=("face",))


def test_rfb():
    scores = np.tile(np.array([1, 0], np.float32), (1, 6, 1))
    boxes = np.zeros((1, 6, 4), np.float32)
    scores[0, 4], boxes[0, 4] = [0.2, 0.8], [0.25, 0.25, 0.5, 0.75]
    (found,) = run("rfb", {"scores": scores, "boxes": boxes}, {}, labels=("face",))
    check(found, [[24, 16, 48, 48]], [0.8], [0])
    assert found.landmarks is None
    swapped = {"outputs": {"scores": "boxes", "boxes": "scores"}}
    with pytest.raises(RuntimeFailure, match="swapped"):
        run("rfb", {"scores": scores, "boxes": boxes}, swapped, labels=("face",))


# --- what is the same for all ---------------------------------------------------------------------

END2END = {"decoded": True}


def rows(*objects):
    """``[1, n, 8]`` for yolo-anchors decoded in the graph: cx, cy, w, h, objectness, 3 classes."""
    return np.array([objects], np.float32)


def test_thresholds_of_the_call_replace_the_contracts():
    raw = rows([20, 20, 10, 10, 1, 0.9, 0, 0], [21, 20, 10, 10, 1, 0.6, 0, 0])
    counts = [
        len(run("yolo-anchors", raw, END2END, conf=conf, iou=iou)[0])
        for conf, iou in ((None, None), (None, 0.9), (0.7, 0.9), (0.95, None))
    ]
    assert counts == [1, 2, 1, 0]
    nothing = run("yolo-anchors", raw, END2END, conf=0.95)[0]
    assert nothing.boxes.shape == (0, 4)
    assert str(nothing) == "nothing found"
    # greater than the threshold, not equal to it
    assert len(run("yolo-anchors", raw, END2END, conf=float(np.float32(0.9)))[0]) == 0


def test_classes_suppress_each_other_only_when_agnostic():
    raw = rows([20, 20, 10, 10, 1, 0.9, 0, 0], [20, 20, 10, 10, 1, 0, 0.8, 0])
    assert len(run("yolo-anchors", raw, END2END)[0]) == 2
    assert len(run("yolo-anchors", raw, {**END2END, "agnostic": True})[0]) == 1
    assert len(run("yolo-anchors", raw, {**END2END, "max_det": 1})[0]) == 1


def test_one_box_may_have_several_classes():
    raw = rows([20, 20, 10, 10, 1, 0.4, 0.9, 0.1])
    assert run("yolo-anchors", raw, END2END)[0].classes.tolist() == [1]
    both = run("yolo-anchors", raw, {**END2END, "multi_label": True})[0]
    assert both.classes.tolist() == [1, 0]
    columns = np.ascontiguousarray(raw[:, :, [0, 1, 2, 3, 5, 6, 7]].transpose(0, 2, 1))
    options = {
        "layout": "channels-first",
        "boxes": "cxcywh",
        "objectness": False,
        "scores": "probabilities",
        "normalized": False,
    }
    both = run("yolo-anchor-free", columns, {**options, "multi_label": True})[0]
    assert both.classes.tolist() == [1, 0]
    np.testing.assert_array_equal(both.boxes, [[15, 15, 25, 25]] * 2)


def test_boxes_go_back_to_each_pictures_own_pixels():
    one = [48, 32, 20, 20, 1, 0.9, 0, 0]
    raw = np.array([[one], [one]], np.float32)
    half = Placement(192, 100, 0.5, 0.5, 0.0, 7.0, 96, 64)
    outputs = {"output": raw}
    spec = model("yolo-anchors", outputs, END2END)
    first, second = decode(outputs, spec, [WHOLE, half])
    np.testing.assert_array_equal(first.boxes, [[38, 22, 58, 42]])
    np.testing.assert_array_equal(second.boxes, [[76, 30, 116, 70]])


def test_boxes_are_cut_at_the_border_unless_told_otherwise():
    raw = rows([0, 60, 20, 20, 1, 0.9, 0, 0])
    np.testing.assert_array_equal(run("yolo-anchors", raw, END2END)[0].boxes, [[0, 50, 10, 64]])
    whole = run("yolo-anchors", raw, {**END2END, "clip": False})[0]
    np.testing.assert_array_equal(whole.boxes, [[-10, 50, 10, 70]])


def test_half_precision_outputs_are_decoded_in_single():
    raw = rows([20, 20, 10, 10, 1, 0.5, 0, 0])
    (found,) = run("yolo-anchors", raw.astype(np.float16), END2END)
    check(found, [[15, 15, 25, 25]], [0.5], [0])
    assert found.boxes.dtype == np.float32


def test_grids_are_made_once_per_size():
    assert grid(64, 96, (8, 16)) is grid(64, 96, (8, 16))
    x, y, stride = grid(64, 96, (8, 32))
    assert (len(x), x[13], y[13], stride[13]) == (12 * 8 + 6, 1, 1, 8)
    assert (x[-1], y[-1], stride[-1]) == (2, 1, 32)
    with pytest.raises(ValueError, match="read-only"):
        x[0] = 1


# --- what does not fit ----------------------------------------------------------------------------

FREE = {
    "layout": "channels-first",
    "boxes": "cxcywh",
    "objectness": False,
    "scores": "probabilities",
    "normalized": False,
}
DEEP = {
    "decoded": False,
    "activated": True,
    "rule": "v3",
    "layout": "anchors-first",
    "strides": STRIDES,
    "anchors": ANCHORS,
}
MAPS = anchor_maps("anchors-first", [], 0.0)
ZEROS = np.zeros
OUTRIGHT = {"decoded": True, "strides": STRIDES}
NAN = np.full((1, CELLS, 8), np.nan, np.float32)


@pytest.mark.parametrize(
    ("kind", "outputs", "options", "error", "message"),
    [
        # the class count
        ("yolox", ZEROS((1, CELLS, 9)), OUTRIGHT, RuntimeFailure, "8]"),
        ("yolo-anchors", ZEROS((1, 5, 85)), END2END, RuntimeFailure, "3 labels"),
        ("yolo-anchor-free", ZEROS((1, 84, 100)), FREE, RuntimeFailure, "3 labels"),
        ("fastestdet", ZEROS((1, 85, 2, 3)), {}, RuntimeFailure, "3 labels"),
        ("yolo-grid", ZEROS((1, 7, 7, 30)),
         {"grid": 7, "boxes": 2, "square_root": True, "order": "darknet"}, RuntimeFailure, "637"),
        # the layout, the input's size, swapped maps
        ("yolo-anchor-free", ZEROS((1, 100, 7)), FREE, RuntimeFailure, "looks like.*channels-last"),
        ("yolo-anchor-free", ZEROS((1, 7, 100)), {**FREE, "layout": "channels-last"},
         RuntimeFailure, "looks like.*channels-first"),
        ("yolox", ZEROS((1, 99, 8)), OUTRIGHT, RuntimeFailure, "96x64"),
        ("yolo-anchors", dict(reversed(MAPS.items())), DEEP, RuntimeFailure, "in the order"),
        ("yolo-anchors", MAPS, {**DEEP, "layout": "channels-first"}, RuntimeFailure, "layout"),
        ("yolo-anchor-free", {"a": ZEROS((1, 7, 4, 6)), "b": ZEROS((1, 7, 8, 12))},
         {**FREE, "boxes": "ltrb", "strides": [8, 16]}, RuntimeFailure, "order of the strides"),
        ("yolo-anchor-free", {"a": ZEROS((1, 7, 4, 6)), "b": ZEROS((1, 7, 8, 12))}, FREE,
         SpecError, "one map a stride"),
        # anchor tables
        ("yolo-anchors", MAPS, {**DEEP, "anchors": ANCHORS[:2]}, SpecError, "'anchors'"),
        ("yolo-anchors", MAPS, {**DEEP, "anchors": [[[1, 2, 3]]] * 3}, SpecError, "'anchors'"),
        ("yolo-anchors", MAPS, {**DEEP, "anchors": [[[1, -2]]] * 3}, SpecError, "positive"),
        ("yolo-anchors", MAPS, {**DEEP, "anchors": [[[1, 2]], [[1, 2], [3, 4]], [[1, 2]]]},
         SpecError, "must hold numbers"),
        ("yolo-anchors", MAPS, {**DEEP, "anchors": [[[1, 2]]] * 3}, RuntimeFailure, "1 anchors"),
        ("yolo-anchors", {"a": MAPS["map8"]}, DEEP, SpecError, "one map a stride"),
        # NaN
        ("yolox", NAN, OUTRIGHT, RuntimeFailure, "NaN"),
        ("yolo-anchors", NAN, END2END, RuntimeFailure, "NaN"),
        ("yolo-anchors", {k: v * np.nan for k, v in MAPS.items()}, DEEP, RuntimeFailure, "NaN"),
        ("yolo-anchor-free", np.full((1, 7, 9), np.nan), FREE, RuntimeFailure, "NaN"),
        ("yolo-anchor-free", np.full((1, 8, 9), np.nan), {**FREE, "objectness": True},
         RuntimeFailure, "NaN"),
        ("fastestdet", np.full((1, 8, 2, 3), np.nan), {}, RuntimeFailure, "NaN"),
        ("yolo-grid", np.full((1, 7, 7, 13), np.nan),
         {"grid": 7, "boxes": 2, "square_root": True, "order": "darknet"}, RuntimeFailure, "NaN"),
        ("yolo-end2end", np.full((1, 3, 6), np.nan), {"normalized": False}, RuntimeFailure, "NaN"),
        ("yolo-anchors", rows([np.nan, 2, 3, 4, 1, 1, 0, 0]), END2END, RuntimeFailure, "infinite"),
        ("yolox", np.full((1, CELLS, 8), 99.0, np.float32),
         {"decoded": False, "strides": STRIDES}, RuntimeFailure, "infinite"),
        # class numbers
        ("yolo-end2end", np.full((1, 3, 6), 3.0), {"normalized": False}, RuntimeFailure, "0 to 2"),
        ("yolo-end2end", np.full((1, 3, 6), 0.5), {"normalized": False}, RuntimeFailure, "order"),
        ("yolo-end2end", ZEROS((1, 3, 7)), {"normalized": False}, RuntimeFailure, r"n, 6\]"),
        # options
        ("yolox", ZEROS((1, CELLS, 8)), {"strides": STRIDES}, SpecError, "needs .* 'decoded'"),
        ("yolox", ZEROS((1, CELLS, 8)), {"decoded": 1, "strides": STRIDES}, SpecError, "true or"),
        ("yolox", ZEROS((1, CELLS, 8)), {"decoded": True, "strides": [8.5]}, SpecError, "whole"),
        ("yolox", ZEROS((1, CELLS, 8)), {"decoded": True, "strides": 8}, SpecError, "a list"),
        ("yolox", ZEROS((1, CELLS, 8)), {"decoded": True, "strides": STRIDES, "conf": 2}, SpecError,
         "0 to 1"),
        ("yolo-anchor-free", ZEROS((1, 7, 9)), {**FREE, "boxes": "cx"}, SpecError, "one of"),
        ("yolo-anchors", MAPS, END2END, SpecError, "reads one output"),
        ("yunet", {"cls_8": ZEROS((1, 96, 1))}, {"strides": [8]}, SpecError, "'obj_8'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_error_that_says_so(kind, outputs, options, error, message):
    with pytest.raises(error, match=message):
        run(kind, outputs, options)


def test_yunet_of_another_size_is_an_error():
    outputs = {
        f"{what}_32": ZEROS((1, 9, n))
        for what, n in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10))
    }
    with pytest.raises(RuntimeFailure, match=r"'cls_32'.*6, 1"):
        run("yunet", outputs, {"strides": [32]}, labels=("face",))
