"""Suppression, decoding and letterboxing against OpenCV and, where installed, other peers.

One process, one thread where a library lets itself be told; the candidates of a case take turns in
every round (interleaved); median and quartiles. Every result is compared with the first one's
before it is timed. Peers that are not installed are left out: opencv-python-headless, torchvision,
supervision, ultralytics.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from record import save

from edgecv import resampling
from edgecv.postprocess.detect import decode
from edgecv.postprocess.nms import nms
from edgecv.preprocess import fit_pixels
from edgecv.results import Placement
from edgecv.spec import INTERPOLATIONS, Decoding, ModelSpec, Preparation, TensorSpec

Call = Callable[[], Any]
PEERS = ("opencv-python-headless", "opencv-python", "torchvision", "supervision", "ultralytics")
KINDS = ("uniform", "skewed", "one", "dense")
FRAME = np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), dtype=np.uint8)
LARGE_AGAINST = ("uniform", "dense")  # 30,000 of the others take the references minutes


def candidates(kind: str, count: int, seed: int = 0) -> tuple[Any, Any, Any]:
    """Boxes, scores and classes: ``uniform``, ``skewed`` and ``one`` class; ``dense``: about 40."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 80, count)
    if kind == "skewed":
        classes = np.minimum(rng.geometric(0.3, count) - 1, 79)
    if kind == "one":
        classes = np.zeros(count, np.int64)
    center, size = rng.random((count, 2)) * 600, rng.random((count, 2)) * 100 + 5
    if kind == "dense":
        which = rng.integers(0, 40, count)
        size = (rng.random((40, 2)) * 150 + 20)[which]
        center = (rng.random((40, 2)) * 600)[which] + rng.normal(0, 0.08, (count, 2)) * size
        size = size * np.exp(rng.normal(0, 0.1, (count, 2)))
        classes = rng.integers(0, 80, 40)[which]
    boxes = np.concatenate([center - size / 2, center + size / 2], axis=1).astype(np.float32)
    return boxes, rng.random(count).astype(np.float32), classes.astype(np.int64)


def classic(boxes: Any, scores: Any, classes: Any, threshold: float) -> Any:
    """The loop that everyone writes: keep the best, drop what overlaps, classes moved apart."""
    boxes = boxes + (classes * (boxes.max() + 1)).astype(np.float32)[:, None]
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1) * (y2 - y1)
    order, kept = np.argsort(-scores, kind="stable"), []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        wide = np.minimum(x2[best], x2[rest]) - np.maximum(x1[best], x1[rest])
        tall = np.minimum(y2[best], y2[rest]) - np.maximum(y1[best], y1[rest])
        inter = np.maximum(wide, 0) * np.maximum(tall, 0)
        order = rest[inter / (areas[best] + areas[rest] - inter) <= threshold]
    return np.array(kept)


def rounds(boxes: Any, scores: Any, classes: Any, threshold: float) -> Any:
    """Classes side by side: in each round the best that is left of every class is kept."""
    order = np.lexsort((-scores, classes))
    kept = []
    while len(order):
        group = classes[order]
        first = np.concatenate([[True], group[1:] != group[:-1]])
        heads = order[first]
        kept.append(heads)
        rest, own = order[~first], heads[(np.cumsum(first) - 1)[~first]]
        a, b = boxes[own], boxes[rest]
        sizes = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0)
        inter = sizes[:, 0] * sizes[:, 1]
        areas = [(c[:, 2] - c[:, 0]) * (c[:, 3] - c[:, 1]) for c in (a, b)]
        order = rest[inter / (areas[0] + areas[1] - inter) <= threshold]
    found = np.concatenate(kept)
    return found[np.lexsort((found, -scores[found]))]


def timed(
    cases: dict[str, Call], repeats: int, seconds: float = 10.0
) -> dict[str, dict[str, float]]:
    """Milliseconds of each call, taken in turns: median, quartiles and the number of rounds.

    Fewer rounds where they would take longer than ``seconds``; the first is a warm-up if others
    follow.
    """
    samples: dict[str, list[float]] = {name: [] for name in cases}
    end = time.perf_counter() + seconds
    for _ in range(repeats + 1):
        for name, call in cases.items():
            start = time.perf_counter()
            call()
            samples[name].append((time.perf_counter() - start) * 1e3)
        if time.perf_counter() > end:
            break
    results = {}
    for name, values in samples.items():
        taken = values[1:] or values
        low, middle, high = statistics.quantiles(taken, n=4) if len(taken) > 1 else taken * 3
        results[name] = {
            "median": round(middle, 4),
            "q1": round(low, 4),
            "q3": round(high, 4),
            "rounds": len(taken),
        }
    return results


def optional(name: str) -> Any:
    try:
        module = __import__(name)
    except ImportError:
        return None
    if name == "cv2":
        module.setNumThreads(1)
    if name == "torchvision":
        __import__("torch").set_num_threads(1)
    return module


def nms_cases(kind: str, count: int, threshold: float) -> dict[str, Call]:
    boxes, scores, classes = candidates(kind, count)
    cases: dict[str, Call] = {"edgecv": lambda: nms(boxes, scores, threshold, classes=classes)}
    if count > 5000 and kind not in LARGE_AGAINST:
        return cases
    cases["classic loop"] = lambda: classic(boxes, scores, classes, threshold)
    cases["rounds"] = lambda: rounds(boxes, scores, classes, threshold)
    if count <= 5000:
        if cv2 := optional("cv2"):
            xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
            ids = classes.astype(np.int32)
            cases["OpenCV NMSBoxesBatched"] = lambda: cv2.dnn.NMSBoxesBatched(
                xywh, scores, ids, 0.0, threshold
            )
        if torchvision := optional("torchvision"):
            import torch

            tensors = [torch.from_numpy(array) for array in (boxes, scores, classes)]
            cases["torchvision batched_nms"] = lambda: torchvision.ops.batched_nms(
                *tensors, threshold
            ).numpy()
        if supervision := optional("supervision"):
            rows = np.concatenate([boxes, scores[:, None], classes[:, None]], axis=1)
            nms_of = supervision.box_non_max_suppression
            cases["supervision"] = lambda: np.flatnonzero(nms_of(rows, threshold))
    if count > 5000:
        return cases  # the same functions, compared on fewer
    want = sorted(cases["edgecv"]())
    for name, call in cases.items():
        got = sorted(np.asarray(call()).ravel().tolist())
        # moving classes apart, as some do, rounds coordinates and may decide a box otherwise
        apart = len(set(want) ^ set(got))
        if apart > 0.002 * count:
            sys.exit(f"{name}: {apart} of {count} boxes are decided otherwise ({kind})")
    return cases


def peak_mb(call: Call) -> float:
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return round(peak / 1e6, 1)


def decode_cases() -> dict[str, Call]:
    """``[1, 84, 8400]`` of a picture with 40 objects: about 1,200 candidates at conf 0.25."""
    rng = np.random.default_rng(0)
    boxes, scores, classes = candidates("dense", 1200)
    raw = np.zeros((1, 84, 8400), np.float32)
    raw[0, 4:] = rng.random((80, 8400)) ** 8 * 0.2
    place = rng.permutation(8400)[:1200]
    raw[0, :2, place] = (boxes[:, :2] + boxes[:, 2:]) / 2
    raw[0, 2:4, place] = boxes[:, 2:] - boxes[:, :2]
    raw[0, 4 + classes, place] = 0.25 + scores * 0.7
    spec = ModelSpec(
        name="yolo",
        task="detect",
        inputs=(TensorSpec("images", (1, 3, 640, 640)),),
        outputs=(TensorSpec("output0", raw.shape),),
        preparation=Preparation(640, 640, fit="letterbox"),
        decoding=Decoding(
            "yolo-anchor-free",
            {
                "layout": "channels-first",
                "boxes": "cxcywh",
                "objectness": False,
                "scores": "probabilities",
                "normalized": False,
                "conf": 0.25,
                "iou": 0.7,
                "max_det": 300,
            },
        ),
        labels=tuple(f"class {i}" for i in range(80)),
    )
    at = Placement(640, 640, 1.0, 1.0, 0.0, 0.0, 640, 640)
    cases: dict[str, Call] = {
        "edgecv, decode and NMS": lambda: decode({"output0": raw}, spec, [at]),
        "the class maximum alone": lambda: raw[0, 4:].max(axis=0),
    }
    if optional("ultralytics"):
        import torch
        from ultralytics.utils.nms import non_max_suppression

        torch.set_num_threads(1)
        tensor = torch.from_numpy(raw)
        cases["ultralytics non_max_suppression"] = lambda: non_max_suppression(tensor, 0.25, 0.7)
    return cases


def without_opencv() -> Any:
    """:func:`letterbox_cases` of opencv-linear as it runs where there is no cv2."""
    canvas = np.full((640, 640, 3), 114, np.uint8)
    canvas[140:500] = resampling.linear(FRAME, 640, 360)
    return canvas


def letterbox_cases(rule: str) -> dict[str, Call]:
    """A frame of 1920x1080 into 640x640, as pixels: resize, pad, channels in order."""
    p = Preparation(640, 640, fit="letterbox", pad_value=114, interpolation=rule, color="bgr")
    cases: dict[str, Call] = {"edgecv": lambda: fit_pixels(FRAME, p, color="bgr")[0]}
    if rule != "opencv-linear":
        return cases
    cv2 = optional("cv2")
    if cv2 is None:
        return cases

    def bare() -> Any:
        canvas = np.full((640, 640, 3), 114, np.uint8)
        canvas[140:500] = cv2.resize(FRAME, (640, 360), interpolation=cv2.INTER_LINEAR)
        return canvas

    cases["OpenCV, resize and copy alone"] = bare
    if optional("ultralytics"):
        from ultralytics.data.augment import LetterBox

        letterbox = LetterBox((640, 640), auto=False)
        cases["ultralytics LetterBox"] = lambda: letterbox(image=FRAME)
    want = cases["edgecv"]()
    for name, call in {**cases, "edgecv without OpenCV": without_opencv}.items():
        if not np.array_equal(call(), want):
            sys.exit(f"{name}: other bytes than edgecv's")
    return cases


class Results(dict[str, Any]):
    """What was measured, printed as it comes in."""

    def __setitem__(self, name: str, values: Any) -> None:
        print(name)
        for case, value in values.items():
            if isinstance(value, float):
                print(f"    {case:34} {value:10.1f}")
            else:
                spread = f"({value['q1']:.3f} to {value['q3']:.3f})"
                print(f"    {case:34} {value['median']:10.3f}  {spread}", flush=True)
        super().__setitem__(name, values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=100, help="rounds of the short cases")
    parser.add_argument("-o", type=Path, help="JSON file")
    arguments = parser.parse_args()
    results = Results()
    for kind in KINDS:
        cases = nms_cases(kind, 1200, 0.7)
        results[f"nms, 1,200 candidates, {kind}, IoU 0.7, ms"] = timed(cases, arguments.n // 3)
    for kind in KINDS:
        cases = nms_cases(kind, 30_000, 0.7)
        record: dict[str, Any] = dict(timed(cases, 3, seconds=5.0))
        record["edgecv, peak MB"] = peak_mb(cases["edgecv"])
        results[f"nms, 30,000 candidates, {kind}, IoU 0.7, ms"] = record
    results["decode [1, 84, 8400] and NMS, conf 0.25, ms"] = timed(decode_cases(), arguments.n)
    for rule in INTERPOLATIONS:
        results[f"letterbox 1920x1080 to 640, {rule}, ms"] = timed(
            letterbox_cases(rule), arguments.n // 3
        )
    # by itself: it would leave the others' caches cold
    results["letterbox 1920x1080 to 640, opencv-linear without OpenCV, ms"] = timed(
        {"edgecv": without_opencv}, arguments.n // 3
    )
    save(arguments.o, "postprocess/1", peers=PEERS, results=results)


if __name__ == "__main__":
    main()
