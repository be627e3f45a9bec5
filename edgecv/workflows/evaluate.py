"""``edgecv eval``: a model's score on a labelled data set."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.evaluate import coco, segmentation
from edgecv.evaluate.coco import LabelledPicture
from edgecv.evaluate.coco_json import read_coco
from edgecv.evaluate.faces import read_pairs
from edgecv.evaluate.imagenet import read_folder, topk_hits
from edgecv.evaluate.points import normalized_errors, read_points, summary
from edgecv.evaluate.yolo_labels import read_yolo
from edgecv.model import Model, load
from edgecv.postprocess.classify import ranking
from edgecv.postprocess.detect import SUPPRESSED
from edgecv.progress import Progress, silent
from edgecv.results import Classification, Detections, Landmarks, Placement, Result, Segmentation
from edgecv.runtimes.base import RuntimeOptions
from edgecv.spec import ModelSpec
from edgecv.workflows.crops import averaged
from edgecv.workflows.pairs import FAR, VerificationScore, evaluate_pairs
from edgecv.workflows.score import Score, common
from edgecv.workflows.stream import outputs_of, prepared_chunks


@dataclass(frozen=True)
class ClassificationScore(Score):
    """``correct1`` and ``correct5`` of the pictures are right in the first, the first five.

    ``crops`` of each picture were looked at, by ``models`` files, and their probabilities averaged.
    """

    top1: float
    top5: float
    correct1: int
    correct5: int
    crops: int = 1
    models: int = 1


@dataclass(frozen=True)
class DetectionScore(Score):
    """COCO's figures (:class:`edgecv.evaluate.coco.AveragePrecision`), and how they were taken.

    ``conf`` is the least score of the boxes that were counted, ``iou`` the threshold of NMS (None
    where it is in the graph).
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    recall: float | None
    objects: int
    per_class: dict[str, float]
    conf: float
    iou: float | None


@dataclass(frozen=True)
class LandmarkScore(Score):
    """``nme``: the mean distance of the points by the diagonal of the box around them; ``near``:
    the share of those nearer than a tenth of that (:mod:`edgecv.evaluate.points`)."""

    nme: float
    near: float
    points: int


@dataclass(frozen=True)
class SegmentationScore(Score):
    """``miou``: the mean over classes of intersection over union, of all pictures' pixels."""

    miou: float
    accuracy: float  # the share of the pixels that are right
    per_class: dict[str, float]


def evaluate(
    model: str | os.PathLike[str],
    dataset: str | os.PathLike[str],
    *,
    backend: str = "auto",
    split: str | None = None,
    classes: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    detector: str | os.PathLike[str] | None = None,
    metric: str | None = None,
    far: float = FAR,
    crops: int = 1,
    ensemble: Sequence[str | os.PathLike[str]] = (),
    leave_out: Callable[[Path], bool] | None = None,
    progress: Progress = silent,
) -> Score:
    """Score the file ``model`` on ``dataset``, whose form depends on the model's task.

    - ``classify``: a folder per class (:func:`edgecv.evaluate.imagenet.read_folder`)
    - ``detect``: YOLO text labels (:func:`edgecv.evaluate.yolo_labels.read_yolo`, ``split``), or a
      COCO file (:func:`edgecv.evaluate.coco_json.read_coco`)
    - ``embed``: a file of pairs (:func:`edgecv.workflows.pairs.evaluate_pairs`; ``detector`` finds
      the faces, ``metric`` compares, ``far`` is the false-accept rate wanted of the threshold)
    - ``landmarks``: a CSV file of points (:func:`edgecv.evaluate.points.read_points`)
    - ``segment``: masks (:func:`edgecv.evaluate.segmentation.read_masks`)

    Of classifiers, ``crops`` (1, 2, 5 or 10: :mod:`edgecv.workflows.crops`) of each picture are
    looked at, by ``model`` and by those of ``ensemble``, and all their probabilities averaged.
    ``classes`` is a file that maps the data set's class names to the model's indices; ``limit``
    scores that many pictures, always the same ones (drawn by a seed; of folders evenly spread).
    Every picture counts but those of which ``leave_out`` is true (pairs have two pictures each, and
    none is left out); one that cannot be read is an :class:`~edgecv.errors.InputError`.
    """
    request = Request(
        dataset=Path(dataset),
        backend=backend,
        split=split,
        classes=Path(classes) if classes is not None else None,
        limit=limit,
        detector=Path(detector) if detector is not None else None,
        metric=metric,
        far=far,
        crops=crops,
        ensemble=tuple(Path(other) for other in ensemble),
        leave_out=leave_out,
        progress=progress,
    )
    with load(model, backend=backend, options=RuntimeOptions(progress=progress)) as opened:
        return score(opened, request)


def score(model: Model, request: Request) -> Score:
    """What :func:`evaluate` gives, of a model that is open."""
    task = model.spec.task
    if task not in TASKS:
        raise InputError(
            f"{model.runtime.path}: eval scores the tasks {', '.join(TASKS)}; this model's is "
            f"{task!r}"
        )
    if request.split is not None and task != "detect":
        raise InputError(f"--split is for data sets of boxes, with a data.yaml, not for {task}")
    if request.detector is not None and task != "embed":
        raise InputError(f"--detector finds the faces of a pairs file, not for {task}")
    if request.metric is not None and task != "embed":
        raise InputError(f"--metric compares the vectors of a pairs file, not for {task}")
    if request.classes is not None and task in ("embed", "landmarks"):
        raise InputError(f"--classes maps the classes of a data set, and there are none for {task}")
    if task != "classify" and (request.crops > 1 or request.ensemble):
        raise InputError(f"--crops and --ensemble are for classifiers, not for {task}")
    return TASKS[task](model, request)


@dataclass(frozen=True)
class Request:
    """What the caller asked for."""

    dataset: Path
    backend: str
    split: str | None = None
    classes: Path | None = None
    limit: int | None = None
    detector: Path | None = None
    metric: str | None = None
    far: float = FAR
    crops: int = 1
    ensemble: tuple[Path, ...] = ()
    leave_out: Callable[[Path], bool] | None = None
    progress: Progress = silent

    def kept(self, pictures: Sequence[Path]) -> list[int]:
        """The positions of the pictures that count."""
        left = [i for i, p in enumerate(pictures) if not (self.leave_out and self.leave_out(p))]
        if not left:
            raise InputError(f"{self.dataset}: no picture is left to score on")
        return left


def labelled_pictures(spec: ModelSpec, dataset: str | os.PathLike[str]) -> list[Path]:
    """The pictures of ``dataset``, as :func:`evaluate` reads it for the task of ``spec``.

    Raises :class:`~edgecv.errors.InputError` where it is no labelled data set of that task.
    """
    path = Path(dataset)
    if spec.task == "classify":
        return list(read_folder(path, spec).pictures)
    if spec.task == "detect":
        return [one.path for one in _boxes(spec, Request(path, "auto"))]
    if spec.task == "landmarks":
        return [one.path for one in read_points(path)]
    if spec.task == "segment":
        return list(segmentation.read_masks(path, len(spec.labels)).pictures)
    if spec.task == "embed":
        return list(read_pairs(path).pictures)
    raise InputError(f"{dataset}: eval scores the tasks {', '.join(TASKS)}, not {spec.task!r}")


def _classify(model: Model, request: Request) -> ClassificationScore:
    data = read_folder(request.dataset, model.spec, request.classes, request.limit)
    kept = request.kept(data.pictures)
    pictures = [data.pictures[i] for i in kept]
    scores, classes = _class_scores(model, pictures, request), data.classes[kept]
    top1 = int(topk_hits(scores, classes, 1).sum())
    top5 = int(topk_hits(scores, classes, 5).sum())
    count = len(kept)
    return ClassificationScore(
        **common(model, count),
        top1=top1 / count,
        top5=top5 / count,
        correct1=top1,
        correct5=top5,
        crops=request.crops,
        models=1 + len(request.ensemble),
    )


def _class_scores(
    model: Model, pictures: Sequence[Path], request: Request
) -> NDArray[np.floating[Any]]:
    spec = model.spec
    if request.crops == 1 and not request.ensemble:
        if len(spec.outputs[0].shape) == 4:  # fully convolutional: maps of any size
            answers = [one for one, _ in _answers(model, pictures, request.progress, None)]
            return np.stack([a.probabilities for a in answers if isinstance(a, Classification)])
        scores = outputs_of(model, pictures, request.progress)[spec.outputs[0].name]
        return ranking(scores, spec.decoding.kind, spec.labels)
    with contextlib.ExitStack() as opened:
        others = [
            opened.enter_context(load(path, backend=request.backend)) for path in request.ensemble
        ]
        return averaged([model, *others], pictures, request.crops, request.progress)


def _boxes(spec: ModelSpec, request: Request) -> list[LabelledPicture]:
    labels = spec.labels
    if request.dataset.suffix.lower() == ".json":
        if request.split is not None:
            raise InputError(f"--split {request.split}: a COCO file is one split already")
        return read_coco(request.dataset, labels, request.classes, request.limit)
    return read_yolo(request.dataset, labels, request.split, request.classes, request.limit)


def _detect(model: Model, request: Request) -> DetectionScore:
    truth = _boxes(model.spec, request)
    truth = [truth[i] for i in request.kept([one.path for one in truth])]
    options, kind = model.spec.decoding.options, model.spec.decoding.kind
    # NMS in the graph has used its own threshold: lower scores are gone
    conf = max(coco.MIN_SCORE, options.get("conf", 0)) if kind == "detections" else coco.MIN_SCORE
    found: list[Detections] = []
    sizes: list[tuple[int, int]] = []
    for result, placement in _answers(model, [one.path for one in truth], request.progress, conf):
        assert isinstance(result, Detections)
        found.append(result)
        sizes.append((placement.width, placement.height))
    figures = coco.average_precision(truth, found, sizes, model.spec.labels)
    return DetectionScore(
        **common(model, len(truth)),
        **asdict(figures),
        objects=sum(len(one.classes) for one in truth),
        conf=conf,
        iou=None if kind in SUPPRESSED else float(options["iou"]),
    )


def _embed(model: Model, request: Request) -> VerificationScore:
    return evaluate_pairs(
        model,
        request.dataset,
        detector=request.detector,
        backend=request.backend,
        metric=request.metric,
        far=request.far,
        limit=request.limit,
        progress=request.progress,
    )


def _landmarks(model: Model, request: Request) -> LandmarkScore:
    truth = read_points(request.dataset, request.limit)
    truth = [truth[i] for i in request.kept([one.path for one in truth])]
    errors = []
    answers = _answers(model, [one.path for one in truth], request.progress, None)
    for one, (result, _) in zip(truth, answers, strict=True):
        assert isinstance(result, Landmarks)
        if len(result.points) != len(one.points):
            raise InputError(
                f"{request.dataset}: has {len(one.points)} points a picture, the model gives "
                f"{len(result.points)}"
            )
        errors.append(normalized_errors(one.points, result.points))
    nme, near = summary(errors)
    return LandmarkScore(
        **common(model, len(truth)), nme=nme, near=near, points=sum(map(len, errors))
    )


def _segment(model: Model, request: Request) -> SegmentationScore:
    labels = model.spec.labels
    data = segmentation.read_masks(request.dataset, len(labels), request.classes, request.limit)
    table = np.zeros((len(labels), len(labels)), np.int64)
    kept = request.kept(data.pictures)
    masks = iter([data.masks[i] for i in kept])
    pictures = [data.pictures[i] for i in kept]
    for result, placement in _answers(model, pictures, request.progress, None):
        assert isinstance(result, Segmentation)
        size = placement.width, placement.height
        mask = segmentation.read_mask(next(masks), size, data.classes)
        table += segmentation.confusion(mask, result.mask, len(labels))
    miou, per_class = segmentation.mean_iou(table, labels)
    return SegmentationScore(
        **common(model, len(pictures)),
        miou=miou,
        accuracy=float(np.trace(table) / table.sum()),
        per_class=per_class,
    )


TASKS: dict[str, Callable[[Model, Request], Score]] = {
    "classify": _classify,
    "detect": _detect,
    "embed": _embed,
    "landmarks": _landmarks,
    "segment": _segment,
}


def _answers(
    model: Model, pictures: Sequence[Path], progress: Progress, conf: float | None
) -> Iterator[tuple[Result, Placement]]:
    """Each picture's answer and placement; the first picture that cannot be read is raised."""
    done = 0
    dtype = model.spec.inputs[0].dtype
    for chunk in prepared_chunks(pictures, model.spec.preparation, dtype):
        prepared = []
        for one in chunk:
            if isinstance(one, InputError):
                raise one
            prepared.append(one)
        results = model.answer(prepared, conf=conf)
        yield from zip(results, (one.placement for one in prepared), strict=True)
        done += len(chunk)
        progress("pictures", done, len(pictures))
