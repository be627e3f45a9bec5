"""Classes, heat maps, masks, points and embeddings against what was computed by hand."""

import numpy as np
import pytest
from PIL import Image

from edgecv.errors import InputError, RuntimeFailure, SpecError
from edgecv.evaluate.segmentation import read_mask
from edgecv.model import DECODERS
from edgecv.postprocess import classify, embed, landmarks, segment
from edgecv.results import Placement, Segmentation
from edgecv.spec import TASKS, Decoding, ModelSpec, Preparation, TensorSpec

WHOLE = Placement(8, 8, 1.0, 1.0, 0.0, 0.0, 8, 8)


def model(task, kind, array, options=None, labels=("a", "b", "c")):
    return ModelSpec(
        name="net",
        task=task,
        inputs=(TensorSpec("images", ("N", 3, 8, 8)),),
        outputs=(TensorSpec("out", array.shape),),
        preparation=Preparation(8, 8),
        decoding=Decoding(kind, options or {}),
        labels=labels,
    )


def run(module, task, kind, array, options=None, labels=("a", "b", "c"), placements=(WHOLE,)):
    spec = model(task, kind, array, options, labels)
    return module.decode({"out": array}, spec, placements)


def test_every_task_has_a_decoder():
    assert set(DECODERS) == set(TASKS)


# --- classes --------------------------------------------------------------------------------------


def test_multi_label_classes_do_not_exclude_each_other():
    logits = np.log(np.array([[9, 4, 1 / 9]], np.float32))  # odds of 0.9, 0.8, 0.1
    (found,) = run(classify, "classify", "multilabel-logits", logits)
    np.testing.assert_allclose(found.probabilities, [0.9, 0.8, 0.1], rtol=1e-6)
    assert [c.label for c in found.above(0.5)] == ["a", "b"]
    assert found.above(0.95) == []
    (exclusive,) = run(classify, "classify", "logits", logits)
    assert exclusive.probabilities.sum() == pytest.approx(1)
    far = np.array([[-1000, 0, 1000]], np.float32)  # nothing overflows
    assert run(classify, "classify", "multilabel-logits", far)[0].probabilities.tolist() == [
        0,
        0.5,
        1,
    ]


def test_a_fully_convolutional_classifier():
    logits = np.zeros((1, 3, 2, 4), np.float32)
    logits[0, 1, 1, 2] = np.log(8)  # softmax: 0.1, 0.8, 0.1 there, thirds elsewhere
    spec = model("classify", "logits", logits, {"window": 8, "stride": 4})
    half = Placement(40, 24, 0.5, 0.5, 0.0, -2.0, 20, 12)
    (heat,) = classify.heat_maps({"out": logits}, spec, [half])
    assert heat.probabilities.shape == (3, 2, 4)
    np.testing.assert_allclose(heat.probabilities[:, 1, 2], [0.1, 0.8, 0.1], rtol=1e-6)
    np.testing.assert_allclose(heat.probabilities[:, 0, 0], 1 / 3, rtol=1e-6)
    # the window at row 1, column 2: x 8 to 16, y 4 to 12 of the input
    np.testing.assert_array_equal(heat.windows[1, 2], [16, 12, 32, 28])
    (whole,) = classify.decode({"out": logits}, spec, [half])
    np.testing.assert_allclose(whole.probabilities[1], (0.8 + 7 / 3) / 8, rtol=1e-6)
    with pytest.raises(RuntimeFailure, match="not fully convolutional"):
        classify.heat_maps({"out": logits[..., 0, 0]}, spec, [half])
    with pytest.raises(SpecError, match="'window'"):
        classify.heat_maps({"out": logits}, model("classify", "logits", logits), [half])


@pytest.mark.parametrize(
    ("kind", "scores", "message"),
    [
        ("logits", np.zeros((1, 4)), r"\[N, 3\]"),
        ("logits", np.full((1, 3), np.nan), "NaN"),
        ("multilabel-logits", np.full((1, 3), np.inf), "infinite"),
        ("probabilities", np.array([[5.0, -3, 0]]), "should be 'logits'"),
    ],
)
def test_class_scores_that_are_none(kind, scores, message):
    spec = model("classify", kind, np.zeros((1, 3)))
    with pytest.raises(RuntimeFailure, match=message):
        classify.decode({"out": scores}, spec, [WHOLE])


# --- masks ----------------------------------------------------------------------------------------


def slow_mask(scores, at):
    """The class of each pixel: bilinear interpolation written out, then the highest."""
    _, height, width = scores.shape
    mask = np.zeros((at.height, at.width), int)
    for y in range(at.height):
        v = ((y + 0.5) * at.scale_y + at.offset_y) * height / at.input_height - 0.5
        v = min(max(v, 0), height - 1)
        for x in range(at.width):
            u = ((x + 0.5) * at.scale_x + at.offset_x) * width / at.input_width - 0.5
            u = min(max(u, 0), width - 1)
            r, c = int(v), int(u)
            down, right = min(r + 1, height - 1), min(c + 1, width - 1)
            values = [
                (s[r, c] * (1 - u + c) + s[r, right] * (u - c)) * (1 - v + r)
                + (s[down, c] * (1 - u + c) + s[down, right] * (u - c)) * (v - r)
                for s in scores
            ]
            mask[y, x] = int(np.argmax(values))
    return mask


@pytest.mark.parametrize(
    "at",
    [
        WHOLE,
        Placement(16, 24, 0.5, 1 / 3, 0.0, 0.0, 8, 8),  # stretched
        Placement(20, 10, 0.4, 0.4, 0.0, 2.0, 8, 8),  # letterboxed
        Placement(20, 10, 0.8, 0.8, -4.0, 0.0, 8, 8),  # cropped: the sides go on
    ],
)
@pytest.mark.parametrize("size", [(8, 8), (3, 4)])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_masks_equal_the_slow_reference(at, size, layout, monkeypatch):
    monkeypatch.setattr(segment, "BAND_VALUES", 100)  # several bands
    scores = np.random.default_rng(4).standard_normal((2, 3, *size))
    given = scores if layout == "nchw" else scores.transpose(0, 2, 3, 1)
    found = run(segment, "segment", "logits", given, {"layout": layout}, placements=[at, at])
    for one, want in zip(found, scores, strict=True):
        np.testing.assert_array_equal(one.mask, slow_mask(want, at))
        assert one.mask.dtype == np.int64


def test_masks_equal_torchs_interpolation():
    torch = pytest.importorskip("torch")
    scores = np.random.default_rng(5).standard_normal((1, 3, 5, 7))
    resized = torch.nn.functional.interpolate(torch.tensor(scores), (31, 29), mode="bilinear")
    at = Placement(29, 31, 8 / 29, 8 / 31, 0.0, 0.0, 8, 8)
    (found,) = run(segment, "segment", "logits", scores, placements=[at])
    np.testing.assert_array_equal(found.mask, resized.argmax(1)[0].numpy())


@pytest.mark.parametrize("kind", ["binary-logits", "probabilities"])
@pytest.mark.parametrize("threshold", [None, 0.5, 0.9])
def test_binary_masks(kind, threshold):
    scores = np.zeros((1, 1, 8, 8))
    scores[0, 0, 2:5, 1:7] = 0.8
    scores[0, 0, 7, 7] = 0.5
    if kind == "binary-logits":
        with np.errstate(divide="ignore"):
            scores = np.log(scores.clip(1e-6) / (1 - scores))
    options = {} if threshold is None else {"threshold": threshold}
    (found,) = run(segment, "segment", kind, scores, options, labels=("ground", "thing"))
    want = np.zeros((8, 8), int)
    if threshold != 0.9:
        want[2:5, 1:7] = want[7, 7] = 1  # at least the threshold
    np.testing.assert_array_equal(found.mask, want)


@pytest.mark.parametrize(
    ("kind", "scores", "labels", "message"),
    [
        ("logits", np.zeros((1, 4, 8, 8)), ("a", "b", "c"), r"\[N, 3, h, w\]"),
        ("logits", np.zeros((1, 3, 8)), ("a", "b", "c"), r"\[N, 3, h, w\]"),
        ("binary-logits", np.zeros((1, 1, 8, 8)), ("a", "b", "c"), "3 labels"),
        ("binary-logits", np.zeros((1, 2, 8, 8)), ("a", "b"), r"\[N, 1, h, w\]"),
        ("logits", np.full((1, 3, 8, 8), np.nan), ("a", "b", "c"), "NaN"),
    ],
)
def test_class_maps_that_are_none(kind, scores, labels, message):
    with pytest.raises(RuntimeFailure, match=message):
        run(segment, "segment", kind, scores, labels=labels)


def test_palette_is_pascal_vocs_and_stable():
    colors = segment.palette(256)
    expected = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert colors[:5].tolist() == expected
    assert colors[8].tolist() == [64, 0, 0]
    assert len({tuple(c) for c in colors.tolist()}) == 256
    np.testing.assert_array_equal(segment.palette(21), colors[:21])


def test_run_lengths_go_down_the_columns():
    mask = np.array([[1, 0, 0], [1, 1, 0]], bool)
    assert segment.run_lengths(mask) == [0, 2, 1, 1, 2]
    for runs in ([5], [-1, 7], [3, 4]):
        with pytest.raises(InputError, match="sum up to 2 x 3"):
            segment.from_run_lengths(runs, 2, 3)


def test_masks_as_pictures_and_as_coco(tmp_path):
    mask = np.random.default_rng(0).integers(0, 3, (5, 7)) * 2
    found = Segmentation(mask, tuple("abcdefg"))
    segment.mask_picture(found).save(tmp_path / "m.png")
    own = np.arange(256)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", (7, 5), own), mask)
    with Image.open(tmp_path / "m.png") as picture:  # and it can be looked at
        np.testing.assert_array_equal(picture.convert("RGB"), segment.palette(7)[mask])
    many = Segmentation(np.array([[0, 999]]), tuple(map(str, range(1000))))
    assert np.asarray(segment.mask_picture(many)).tolist() == [[0, 999]]
    entries = segment.to_coco(found, 7)
    assert [(e["image_id"], e["category_id"]) for e in entries] == [(7, 0), (7, 2), (7, 4)]
    for entry in entries:
        code = entry["segmentation"]
        assert code["size"] == [5, 7]
        inside = segment.from_run_lengths(code["counts"], 5, 7)
        np.testing.assert_array_equal(inside, mask == entry["category_id"])


# --- points and embeddings ------------------------------------------------------------------------


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("scored", [True, False])
def test_landmarks(flat, normalized, scored):
    raw = np.array([[[2, 4, 0.9], [6, 8, 0.5]]], np.float32)
    if normalized:
        raw[..., :2] /= 8
    raw = raw if scored else raw[..., :2]
    raw = raw.reshape(1, -1) if flat else raw
    at = Placement(20, 20, 0.5, 0.25, 1.0, 2.0, 8, 8)
    options = {"normalized": normalized, "scored": scored}
    (found,) = run(landmarks, "landmarks", "points", raw, options, ("eye", "nose"), [at])
    np.testing.assert_array_equal(found.points, [[2, 8], [10, 24]])
    assert (found.scores is None) == (not scored)
    if scored:
        np.testing.assert_array_equal(found.scores, np.array([0.9, 0.5], np.float32))
        raw.reshape(-1)[2] = np.nan  # JSON has no NaN
        with pytest.raises(RuntimeFailure, match="scores are NaN or infinite"):
            run(landmarks, "landmarks", "points", raw, options, ("eye", "nose"), [at])


@pytest.mark.parametrize("shape", [(1, 5), (1, 2, 3), (1, 8), (1, 2, 2, 1)])
def test_points_that_are_none(shape):
    options = {"normalized": True, "scored": False}
    with pytest.raises(RuntimeFailure, match=r"\[N, 2, 2\]"):
        run(landmarks, "landmarks", "points", np.zeros(shape), options, ("eye", "nose"))


@pytest.mark.parametrize("shape", [(2, 2), (2, 2, 1, 1)])
def test_embeddings(shape):
    raw = np.array([[3, 4], [0, 2]], np.float32).reshape(shape)
    places = [WHOLE, WHOLE]
    plain = run(embed, "embed", "embedding", raw, {"normalize": False}, (), places)
    assert [one.vector.tolist() for one in plain] == [[3, 4], [0, 2]]
    unit = run(embed, "embed", "embedding", raw, {"normalize": True}, (), places)
    np.testing.assert_allclose([one.vector for one in unit], [[0.6, 0.8], [0, 1]], rtol=1e-7)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (np.zeros((1, 4)), "zeros"),
        (np.full((1, 4), np.nan), "NaN"),
        (np.zeros((1, 4, 2)), r"\[N, D\]"),
        (np.zeros(4), r"\[N, D\]"),
    ],
)
def test_vectors_that_are_none(raw, message):
    with pytest.raises(RuntimeFailure, match=message):
        run(embed, "embed", "embedding", raw, {"normalize": True}, ())
