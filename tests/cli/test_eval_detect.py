"""eval of detectors: COCO's AP against a slow reference, both forms of labels, bad data sets."""

import json

import numpy as np
import pytest
from PIL import Image

from edgecv.errors import InputError
from edgecv.evaluate.coco import LabelledPicture, average_precision, sample
from edgecv.evaluate.coco_json import read_coco
from edgecv.evaluate.yolo_labels import read_yolo
from edgecv.postprocess.boxes import iou
from edgecv.results import Detections
from edgecv.workflows.adopt import adopt
from edgecv.workflows.evaluate import evaluate

LABELS = ("cat", "dog", "traffic light")


def truth(boxes, classes, crowd=None):
    count = len(classes)
    return LabelledPicture(
        path=None,
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        classes=np.array(classes, np.int64),
        areas=np.full(count, np.nan),
        crowd=np.zeros(count, bool) if crowd is None else np.array(crowd),
    )


def found(boxes, scores, classes):
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(classes, np.int64),
        LABELS,
    )


def slow_ap(truths, answers, threshold, kind):
    """AP of one class at one IoU, straight from its definition at 101 recall points."""
    total = sum(int((t.classes == kind).sum()) for t in truths)
    ranked = sorted(
        (
            (-score, picture, box)
            for picture, a in enumerate(answers)
            for box, score, c in zip(a.boxes, a.scores.tolist(), a.classes, strict=True)
            if c == kind
        ),
        key=lambda entry: entry[0],
    )
    used, hits = set(), []
    for _, picture, box in ranked:
        own = np.flatnonzero(truths[picture].classes == kind)
        overlaps = [
            (iou(box[None].astype(np.float64), truths[picture].boxes[i][None])[0, 0], i)
            for i in own
            if (picture, i) not in used
        ]
        best = max(overlaps, default=(0, None))
        hits.append(best[0] >= threshold)
        if hits[-1]:
            used.add((picture, best[1]))
    right = np.cumsum(hits)
    precision, recall = right / np.arange(1, len(hits) + 1), right / total
    points = np.linspace(0, 1, 101)
    return np.mean([max(precision[recall >= r - 1e-12], default=0.0) for r in points])


def test_average_precision_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    truths, answers = [], []
    for _ in range(12):
        count = int(rng.integers(0, 5))
        corners = rng.uniform(0, 60, (count, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(10, 40, (count, 2))], axis=1)
        classes = rng.integers(0, 2, count)
        truths.append(truth(boxes, classes))
        noisy = np.concatenate([boxes + rng.normal(0, 3, boxes.shape), boxes[:1] + 50])
        kinds = np.concatenate([classes, classes[:1]])
        answers.append(found(noisy, rng.permutation(len(noisy)) / 10 + 0.05, kinds))
    figures = average_precision(truths, answers, [(100, 100)] * 12, LABELS)
    steps = np.linspace(0.5, 0.95, 10)
    table = [[slow_ap(truths, answers, t, kind) for t in steps] for kind in (0, 1)]
    assert figures.ap == pytest.approx(np.mean(table), abs=1e-9)
    assert figures.ap50 == pytest.approx(np.mean([row[0] for row in table]), abs=1e-9)
    assert list(figures.per_class) == ["cat", "dog"]  # no traffic light is labelled


def test_every_picture_counts():
    boxes = [[10, 10, 50, 50]]
    seen = truth(boxes, [0]), found(boxes, [0.5], [0])
    empty = truth([], []), found([], [], [])
    false = truth([], []), found(boxes, [0.9], [0])
    missed = truth(boxes, [0]), found([], [], [])

    def ap(*pictures):
        truths, answers = zip(*pictures, strict=True)
        return average_precision(truths, answers, [(64, 64)] * len(pictures), LABELS).ap

    assert ap(seen) == ap(seen, empty) == 1
    assert ap(seen, false) == pytest.approx(0.5)  # nothing is labelled there, and it counts
    assert ap(seen, missed) == pytest.approx(51 / 101)
    assert ap(missed) == 0
    with pytest.raises(InputError, match="nothing to score"):
        ap(empty)


def test_crowds_are_neither_hit_nor_missed():
    boxes = [[0, 0, 40, 40], [50, 50, 60, 60]]
    one = truth(boxes, [0, 0], [True, False])
    answer = found([[2, 2, 20, 20], [50, 50, 60, 60]], [0.9, 0.8], [0, 0])
    assert average_precision([one], [answer], [(64, 64)], LABELS).ap == 1


@pytest.fixture
def data(tmp_path):
    """Two pictures of 40x20, the second with nothing in it, as YOLO's tools lay them out."""
    for name in ("a", "b"):
        path = tmp_path / "images" / "val" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20)).save(path)
    labels = tmp_path / "labels" / "val" / "a.txt"
    labels.parent.mkdir(parents=True)
    labels.write_text("1 0.5 0.5 0.5 0.5\n0 0.1 0.1 0.3 0.1 0.3 0.5\n")
    (tmp_path / "data.yaml").write_text(
        "path: .\nval: images/val\ntest: images/nowhere\nnc: 2\nnames: {0: Dog, 1: traffic_light}\n"
    )
    return tmp_path


def test_yolo_labels_with_a_data_yaml(data):
    for place in (data, data / "data.yaml"):
        one, two = read_yolo(place, LABELS)
        assert one.path.name == "a.png"
        assert one.classes.tolist() == [2, 1]  # by name, whatever its case and blanks
        np.testing.assert_allclose(one.boxes, [[0.25, 0.25, 0.75, 0.75], [0.1, 0.1, 0.3, 0.5]])
        assert len(two.classes) == 0
    assert len(read_yolo(data, LABELS, limit=1)) == 1


def test_without_a_data_yaml_the_numbers_are_the_models(data):
    (data / "data.yaml").unlink()
    one, _ = read_yolo(data, LABELS)
    assert one.classes.tolist() == [1, 0]
    with pytest.raises(InputError, match=r"--split val needs a data\.yaml"):
        read_yolo(data, LABELS, "val")
    with pytest.raises(InputError, match=r"--classes maps names, and without a data\.yaml"):
        read_yolo(data, LABELS, None, data / "classes.json")


def test_a_list_of_pictures_that_is_no_text(data):
    (data / "data.yaml").write_text("val: list.txt\nnames: [cat]\n")
    (data / "list.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"list\.txt: not a readable text file"):
        read_yolo(data, LABELS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("9 0.5 0.5 0.1 0.1", "class 9 is not one of the 2 classes"),
        ("0 0.5 0.5 0.1", "expected `class cx cy width height`"),
        ("0 x 0.5 0.1 0.1", "expected numbers"),
        ("0.5 0.5 0.5 0.1 0.1", "expected `class"),
        ("0 20 10 5 5", "pixels are to be divided"),
        ("0 nan 0.5 0.1 0.1", "0 to 1"),
        ("nan 0.5 0.5 0.1 0.1", "expected `class"),
        ("inf 0.5 0.5 0.1 0.1", "expected `class"),
    ],
)
def test_broken_label_lines_are_named(data, line, message):
    (data / "labels" / "val" / "b.txt").write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(InputError, match=rf"b.txt, line 2: .*{message}"):
        read_yolo(data, LABELS)


@pytest.mark.parametrize(
    ("text", "split", "message"),
    [
        ("val: images/val\nnames: [a, b]\n", None, "2 of its 2 classes are no class of the model"),
        ("val: images/val\nnames: [cat]\n", "train", "no split 'train'; it has val"),
        ("val: images/none\nnames: [cat]\n", None, "images/none is not there"),
        ("val: images/val\nnc: 3\nnames: [cat]\n", None, "nc is 3, names has 1"),
        ("val: images/val\n", None, "expected a list of class names"),
        ("val: [images/val\n", None, "not readable as YAML"),
        ("text", None, "expected keys and values"),
        ("val: labels\nnames: [cat]\n", None, "there are no pictures"),
    ],
)
def test_broken_data_yaml_files(data, text, split, message):
    (data / "data.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_yolo(data, LABELS, split)


def test_pictures_without_any_label_file_are_no_data_set(data):
    (data / "labels" / "val" / "a.txt").unlink()
    with pytest.raises(InputError, match="none of its 2 pictures has a label file"):
        read_yolo(data, LABELS)


def coco_file(folder, **changes):
    content = {
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 3, "file_name": "b.png"}],
        "categories": [{"id": 90, "name": "dog"}, {"id": 5, "name": "zebra"}],
        "annotations": [
            {"image_id": 7, "category_id": 90, "bbox": [1, 2, 10, 5], "area": 30, "iscrowd": 1}
        ],
    } | changes
    path = folder / "annotations" / "instances_val.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_coco_files(data):
    two, one = read_coco(coco_file(data), LABELS)  # by id
    assert (one.path.name, two.path.name) == ("a.png", "b.png")
    assert one.classes.tolist() == [1]
    assert one.boxes.tolist() == [[1, 2, 11, 7]]
    assert (one.areas.tolist(), one.crowd.tolist()) == ([30], [True])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, "not a COCO file|lists no pictures"),
        ({"images": [{"id": i, "file_name": "a.png"} for i in (7, 8)]}, "have one file_name"),
        ({"categories": [{"id": 90, "name": "zebra"}]}, "no class of the model, such as zebra"),
        ({"categories": []}, "category_id 90 is not among"),
        ({"images": [{"id": 7, "file_name": "z.png"}]}, "its pictures, such as z.png, are in none"),
        ({"annotations": [{"image_id": 9, "category_id": 90, "bbox": [1]}]}, "known image_id"),
        ({"annotations": [{"image_id": 7, "category_id": 90, "bbox": [1]}]}, "whose bbox is not"),
    ],
)
def test_broken_coco_files(data, changes, message):
    with pytest.raises(InputError, match=message):
        read_coco(coco_file(data, **changes), LABELS)


def test_a_sample_is_the_same_each_time_and_in_order():
    paths = list(range(50))
    drawn = sample(paths, 10)
    assert drawn == sample(paths, 10) == sorted(set(drawn))
    assert drawn != paths[:10]
    assert sample(paths, 50) == sample(paths, None) == paths


@pytest.fixture(scope="session")
def yolox(assets, tmp_path_factory):
    path = tmp_path_factory.mktemp("adopted") / "yolox-nano.onnx"
    return adopt(assets / "weights" / "yolox_nano_coco.onnx", recipe="yolox-nano", output=path).path


def test_yolox_nano_scores_what_the_reference_code_does(assets, yolox):
    """The target's own tolerance: 0.05 points."""
    score = evaluate(yolox, assets / "coco")
    assert (score.count, score.objects) == (128, 929)
    assert score.ap == pytest.approx(0.3396, abs=0.0005)
    assert score.ap50 == pytest.approx(0.5230, abs=0.0005)


def test_both_labels_forms_give_one_score(assets, yolox, tmp_path):
    """The same 12 pictures as YOLO labels with names in another order, and as COCO JSON."""
    from edgecv.spec import read_spec

    labels = read_spec(yolox).labels
    plain = evaluate(yolox, assets / "coco", limit=12)
    chosen = read_yolo(assets / "coco", labels, limit=12)
    images, annotations = [], []
    for number, one in enumerate(chosen):
        with Image.open(one.path) as picture:
            size = np.array([*picture.size] * 2)
        images.append({"id": number, "file_name": str(one.path)})
        for box, kind in zip(one.boxes * size, one.classes, strict=True):
            bbox = [*box[:2], *(box[2:] - box[:2])]
            annotations.append({"image_id": number, "category_id": 1000 - int(kind), "bbox": bbox})
    categories = [{"id": 1000 - i, "name": name} for i, name in enumerate(labels)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "a.json").write_text(json.dumps(content))
    other = evaluate(yolox, tmp_path / "a.json")
    assert other.ap == pytest.approx(plain.ap, abs=1e-9)
    assert other.count == plain.count == 12
