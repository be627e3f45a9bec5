"""Classification data sets: a folder per class, as ImageNet is laid out; top-1 and top-5."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.evaluate.classes import class_key, own_classes, read_classes, refuse_shared
from edgecv.preprocess import list_pictures
from edgecv.spec import ModelSpec


@dataclass(frozen=True)
class LabelledFolder:
    """Pictures and the index of each one's class, in the order of their paths."""

    pictures: tuple[Path, ...]
    classes: NDArray[np.int64]  # [N]


def read_folder(
    folder: Path, spec: ModelSpec, classes: Path | None = None, limit: int | None = None
) -> LabelledFolder:
    """The pictures of ``folder/CLASS/...``, the folders matched to the model's classes.

    A folder is matched by the class's name or id (case, blanks, hyphens and underscores ignored),
    or by ``classes``: a JSON object ``{"folder": index}``, or a text file in which line i names
    class i (``n01440764 tench``: the id, the name, or all of it). A folder that matches nothing
    is an error: leaving it out would change the score. ``limit`` keeps that many pictures, evenly
    spread.
    """
    pictures = list_pictures(folder)
    loose = [path for path in pictures if path.parent == folder]
    if loose or not pictures:
        raise InputError(
            f"{folder}: expected one folder per class with pictures in it; found "
            + (f"{len(loose)} pictures outside, such as {loose[0].name}" if loose else "none")
        )
    if classes is not None:
        index = read_classes(classes, len(spec.labels))
    else:
        index = own_classes(spec.labels, spec.label_ids)
    names = sorted({path.relative_to(folder).parts[0] for path in pictures})
    unknown = [name for name in names if class_key(name) not in index]
    if unknown:
        shown = ", ".join(spec.labels[:5])
        raise InputError(
            f"{folder}: {len(unknown)} of {len(names)} folders are no class of the model, such as "
            f"{', '.join(unknown[:3])}; its classes are {shown}"
            f"{', ...' if len(spec.labels) > 5 else ''}; name them alike, or map them with "
            f"--classes FILE"
        )
    refuse_shared(names, index, folder)
    if limit is not None and limit < len(pictures):
        keep = np.linspace(0, len(pictures) - 1, limit).round().astype(int)
        pictures = [pictures[i] for i in keep]
    truth = [index[class_key(path.relative_to(folder).parts[0])] for path in pictures]
    return LabelledFolder(tuple(pictures), np.asarray(truth, np.int64))


def topk_hits(scores: NDArray[Any], classes: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """Whether each row's class is among its ``k`` highest scores ``[N, C]``; of equals the lower
    index ranks first."""
    rows = np.arange(len(classes))
    own = scores[rows, classes][:, None]
    columns = np.arange(scores.shape[1])[None, :]
    ahead = (scores > own) | ((scores == own) & (columns < classes[:, None]))
    hits: NDArray[np.bool_] = ahead.sum(axis=1) < k
    return hits


def agreement(a: NDArray[Any], b: NDArray[Any]) -> float:
    """The share of rows of two score tables ``[N, C]`` with the same best class."""
    return float(np.mean(a.argmax(axis=1) == b.argmax(axis=1)))
