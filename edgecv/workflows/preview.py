"""``edgecv train --preview``: what the net will be shown, as one picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from edgecv.errors import InputError
from edgecv.export.recipe import load_recipe
from edgecv.files import atomic_write
from edgecv.progress import Progress, silent
from edgecv.results import Result
from edgecv.spec import Preparation
from edgecv.train.task import Drawable, Task
from edgecv.workflows.drawing import draw, fitting, font_of
from edgecv.workflows.train import TABLES, make_job, prepare, read_table

ROWS, COLUMNS = 8, 7  # pictures, and augmented versions of each
SIDE = 128  # pixels of a cell, about; small pictures are shown with larger pixels
TEXT, GAP = 13, 6
SEARCHED = 4096  # samples, among which pictures of different classes are looked for


@dataclass(frozen=True)
class Preview:
    """``rows`` pictures as they are, each ``augmented`` times beside it."""

    path: Path
    rows: int
    augmented: int

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path)}


def preview_recipe(
    name: str,
    data: Path,
    settings: Sequence[str],
    path: Path,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda text: None,
) -> Preview:
    """Draw pictures of recipe ``name``'s data to the PNG file ``path``, as its training sees them.

    The first column has them as they are at inference. Beside it stand what the task draws for the
    loop in the first epochs, labels included: one class, or the shares of several; boxes, masks and
    points lie on the pictures.
    """
    if path.suffix.lower() != ".png":
        raise InputError(f"--preview {path}: expected a name that ends in .png")
    recipe = load_recipe(name)
    config, job = make_job(recipe, read_table(recipe, settings), data, progress, say)
    for key in filter(job.has, TABLES):
        job.table(key, TABLES[key])  # they say nothing about pictures, but are allowed
    prepared = prepare(recipe.task, job)
    classes = prepared.classes or prepared.labels
    generator = torch.Generator().manual_seed(config.seed)
    index = _of_different_classes(prepared.task, generator)
    labels = _labels(prepared.task)
    task = prepared.task
    nothing: list[Result | None] = [None] * len(index)
    columns: list[tuple[Tensor, Any, Sequence[Result | None]]] = [
        (task.plain(index), None if labels is None else labels[index], nothing)
    ]
    for _ in range(COLUMNS):
        batch = task.draw(index, slice(None), generator)
        places = task.results(batch) if isinstance(task, Drawable) else nothing
        columns.append((batch.inputs, batch.targets, places))
    cells = [
        [
            (
                _picture(inputs[row], recipe.preparation, places[row]),
                _caption(targets, row, classes),
            )
            for inputs, targets, places in columns
        ]
        for row in range(len(index))
    ]
    with atomic_write(path) as file:
        _sheet(cells).save(file, "PNG")
    return Preview(path, len(index), COLUMNS)


def _of_different_classes(task: Task, generator: torch.Generator) -> Tensor:
    """:data:`ROWS` samples: one of each class first, where the task's targets are classes."""
    order = task.order(generator)[:SEARCHED]
    rows = min(ROWS, len(order))
    labels = _labels(task)
    if labels is None:
        return order[:rows]
    seen: dict[int, int] = {}
    for position, label in enumerate(labels[order].tolist()):
        seen.setdefault(label, position)
    first = list(seen.values())[:rows]
    others = [i for i in range(len(order)) if i not in first]
    return order[sorted(first) + others[: rows - len(first)]]


def _labels(task: Task) -> Tensor | None:
    """int64 ``[N]``, of a task that learns from one label a picture."""
    labels = getattr(getattr(task, "pictures", None), "labels", None)
    return labels if isinstance(labels, Tensor) else None


def _picture(x: Tensor, preparation: Preparation, places: Result | None) -> Image.Image:
    """The net's numbers ``[C, H, W]`` as a picture again, with ``places`` drawn on it."""
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (preparation.mean, preparation.std))
    grey = ((x * std + mean) * preparation.divisor).round().clamp(0, 255)
    pixels = grey.permute(1, 2, 0).expand(-1, -1, 3).to(torch.uint8).numpy()
    if preparation.color == "bgr":
        pixels = pixels[..., ::-1]
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if places is not None:
        picture = draw(picture, places)
    times = max(1, SIDE // max(picture.size))
    size = (picture.width * times, picture.height * times)
    return picture.resize(size, Image.Resampling.NEAREST)


def _caption(targets: Any, row: int, classes: Sequence[str]) -> list[str]:
    """The class of an int64 label, the two largest shares of a float row; else nothing."""
    if not isinstance(targets, Tensor) or not classes:
        return []
    target = targets[row]
    if target.ndim == 0 and not target.is_floating_point():
        return [classes[int(target)]]
    if target.shape == (len(classes),) and target.is_floating_point():
        shares, best = target.topk(2)
        pairs = zip(shares.tolist(), best.tolist(), strict=True)
        return [f"{classes[i]} {share:.0%}" for share, i in pairs if share >= 0.005]
    return []


def _sheet(cells: Sequence[Sequence[tuple[Image.Image, list[str]]]]) -> Image.Image:
    """Rows of pictures, each with its lines of text below; the first column stands apart."""
    width = max(picture.width for row in cells for picture, _ in row)
    height = max(picture.height for row in cells for picture, _ in row)
    lines = max(len(text) for row in cells for _, text in row)
    step_x, step_y = width + GAP, height + GAP + round(1.3 * TEXT) * lines
    apart = 2 * GAP
    sheet = Image.new(
        "RGB", (GAP + apart + step_x * len(cells[0]), GAP + step_y * len(cells)), "white"
    )
    pen, font = ImageDraw.Draw(sheet), font_of(TEXT)
    for row, pictures in enumerate(cells):
        for column, (picture, text) in enumerate(pictures):
            x = GAP + column * step_x + (apart if column else 0)
            y = GAP + row * step_y
            sheet.paste(picture, (x, y))
            for i, line in enumerate(text):
                place = (x, y + height + round(1.3 * TEXT * i))
                pen.text(place, fitting(line, width, font), fill="black", font=font)
    return sheet
