"""``edgecv eval``: a model's score on a labelled data set."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgecv.evaluate.imagenet import read_folder, topk_hits
from edgecv.model import load
from edgecv.progress import Progress, silent
from edgecv.workflows.pairs import FAR, VerificationScore, evaluate_pairs
from edgecv.workflows.stream import outputs_of


@dataclass(frozen=True)
class ClassificationScore:
    """Rates from 0 to 1 over ``count`` pictures; ``backend`` and ``precision`` as they ran."""

    task: str
    count: int
    top1: float
    top5: float
    correct1: int
    correct5: int
    backend: str
    precision: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    model: str | os.PathLike[str],
    dataset: str | os.PathLike[str],
    *,
    backend: str = "auto",
    classes: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    detector: str | os.PathLike[str] | None = None,
    far: float = FAR,
    progress: Progress = silent,
) -> ClassificationScore | VerificationScore:
    """Score the file ``model`` on ``dataset``: a folder per class (see
    :func:`edgecv.evaluate.imagenet.read_folder` for how names are matched), or for an embedding net
    a file of pairs (see :func:`edgecv.workflows.pairs.evaluate_pairs`, also for ``detector`` and
    ``far``).

    Every picture counts; one that cannot be read is an :class:`~edgecv.errors.InputError`.
    """
    with load(model, backend=backend) as opened:
        if opened.spec.task == "embed":
            return evaluate_pairs(
                opened,
                dataset,
                detector=detector,
                backend=backend,
                far=far,
                limit=limit,
                progress=progress,
            )
        data = read_folder(
            Path(dataset), opened.spec, Path(classes) if classes is not None else None, limit
        )
        outputs = outputs_of(opened, data.pictures, progress)
        scores = outputs[opened.spec.outputs[0].name]
        top1 = int(topk_hits(scores, data.classes, 1).sum())
        top5 = int(topk_hits(scores, data.classes, 5).sum())
        count = len(data.pictures)
        return ClassificationScore(
            task=opened.spec.task,
            count=count,
            top1=top1 / count,
            top5=top5 / count,
            correct1=top1,
            correct5=top5,
            backend=opened.info.backend,
            precision=opened.info.precision,
        )
