"""Suppression and decoding give what torchvision and Ultralytics gave: goldens/processing.npz."""

import re

import numpy as np
import pytest

from edgecv.postprocess.detect import decode
from edgecv.postprocess.nms import nms
from edgecv.results import Placement
from edgecv.spec import Decoding, ModelSpec, Preparation, TensorSpec


def test_nms_equals_torchvisions(assets):
    count = 0
    with np.load(assets / "goldens" / "processing.npz") as goldens:
        for key in goldens.files:
            found = re.fullmatch(r"(nms/n\d+)_iou([\d.]+)/(keep|keep_by_class)", key)
            if not found:
                continue
            case, threshold, kind = found.groups()
            boxes, scores, classes = (
                goldens[f"{case}/{n}"] for n in ("boxes", "scores", "classes")
            )
            groups = classes if kind == "keep_by_class" else None
            got = nms(boxes, scores, float(threshold), classes=groups)
            # all scores differ, so the order is defined on both sides
            assert len(np.unique(scores)) == len(scores)
            np.testing.assert_array_equal(got, goldens[key], err_msg=key)
            count += 1
    assert count == 24


@pytest.mark.parametrize(("case", "size"), [("coco", 640), ("few", 320)])
@pytest.mark.parametrize("layout", ["channels-first", "channels-last"])
def test_detections_equal_ultralytics(assets, case, size, layout):
    count = 0
    with np.load(assets / "goldens" / "processing.npz") as goldens:
        raw = goldens[f"ultralytics/{case}/raw"]
        labels = tuple(f"class {i}" for i in range(raw.shape[1] - 4))
        if layout == "channels-last":
            raw = raw.transpose(0, 2, 1)
        for key in goldens.files:
            found = re.fullmatch(
                rf"ultralytics/{case}/conf([\d.]+)_iou([\d.]+)_(by_class|agnostic)", key
            )
            if not found:
                continue
            options = {
                "boxes": "cxcywh",
                "normalized": False,
                "layout": layout,
                "objectness": False,
                "scores": "probabilities",
                "conf": float(found[1]),
                "iou": float(found[2]),
                "max_det": 300,
                "agnostic": found[3] == "agnostic",
                "clip": False,
            }
            spec = ModelSpec(
                name=case,
                task="detect",
                inputs=(TensorSpec("images", (1, 3, size, size)),),
                outputs=(TensorSpec("output0", raw.shape, "float16"),),
                preparation=Preparation(size, size, fit="letterbox"),
                decoding=Decoding("yolo-anchor-free", options),
                labels=labels,
            )
            at = Placement(size, size, 1.0, 1.0, 0.0, 0.0, size, size)
            (got,) = decode({"output0": raw}, spec, [at])
            want = goldens[key]
            rows = np.concatenate([got.boxes, got.scores[:, None], got.classes[:, None]], axis=1)
            assert (np.diff(got.scores) <= 0).all()
            # equal scores may come in any order on their side: sort both in one way
            both = [table[np.lexsort(table.T)] for table in (rows, want)]
            np.testing.assert_array_equal(*both, err_msg=key)
            np.testing.assert_array_equal(got.scores, want[:, 4], err_msg=key)
            count += 1
    assert count == 3
