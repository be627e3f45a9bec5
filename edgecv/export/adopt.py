"""A contract for an ONNX file that somebody else made: what a recipe says, checked on the file.

The recipe says how pictures are prepared and what the outputs mean; the graph says how many
classes there are and, where it is fixed, the input's size; the names come from the user's label
file, from Ultralytics' own metadata, or from the recipe, in this order. What contradicts the graph
is an error: nothing is guessed and nothing overruled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edgecv.errors import RecipeError, SpecError
from edgecv.export.recipe import Recipe, load_recipe, read_labels
from edgecv.export.ultralytics import UltralyticsNote
from edgecv.gallery.likeness import Likeness
from edgecv.spec import ModelSpec, Preparation, TensorSpec

Shape = Sequence[int]

# Ultralytics' task -> the recipe for it, by whether the head's output is [N, n, 6]
_DETECT, _END2END, _CLASSIFY = "yolov8", "yolov10", "yolo-cls"


def recipe_of(note: UltralyticsNote, outputs: Sequence[Shape], where: str) -> Recipe:
    """The shipped recipe for a file by Ultralytics' exporter, whose note says what it is.

    ``outputs`` are the shapes of what the graph gives. Raises
    :class:`~edgecv.errors.SpecError` for tasks that have no recipe.
    """
    if note.task == "classify":
        return load_recipe(_CLASSIFY, adopted=True)
    if note.task != "detect" or note.family is None:
        raise SpecError(
            f"{where}: its metadata says task {note.task!r}, and EdgeCV reads detect and classify "
            f"by itself; for another head give --recipe NAME or --recipe FILE.toml"
        )
    (shape,) = outputs if len(outputs) == 1 else ((),)
    return load_recipe(_END2END if len(shape) == 3 and shape[2] == 6 else _DETECT, adopted=True)


def input_size(
    tensor: TensorSpec, recipe: Recipe, note: UltralyticsNote | None, where: str
) -> tuple[int, int]:
    """Height and width of the prepared picture: the graph's, else the recipe's or the note's.

    Raises :class:`~edgecv.errors.SpecError` where two of them disagree, or none says anything.
    """
    p = recipe.preparation
    height, width = tensor.shape[1:3] if p.layout == "nhwc" else tensor.shape[2:4]
    if isinstance(height, int) and isinstance(width, int):
        known = {"the recipe": (p.height, p.width)} if recipe.sized else {}
        if note is not None and note.size is not None:
            known["the file's metadata"] = note.size
        for source, size in known.items():
            if size != (height, width):
                raise SpecError(
                    f"{where}: the graph takes {width}x{height} pixels, {source} says "
                    f"{size[1]}x{size[0]}; "
                    + (
                        f"write a recipe of your own with input.size = [{height}, {width}]"
                        if source == "the recipe"
                        else "the file is damaged: export it again"
                    )
                )
        return height, width
    if recipe.sized:
        return p.height, p.width
    if note is not None and note.size is not None:
        return note.size
    raise SpecError(
        f"{where}: the graph takes any size ({list(tensor.shape)}), and neither the recipe "
        f"{recipe.name} nor the file's metadata says which; write a recipe of your own with "
        f"input.size"
    )


def contract(
    recipe: Recipe,
    size: tuple[int, int],
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    shapes: Mapping[str, Shape],
    *,
    labels: Path | None,
    note: UltralyticsNote | None,
    where: str,
) -> ModelSpec:
    """The contract of a file with these tensors; without a self-test and provenance.

    ``shapes`` are those of the outputs for a picture of ``size`` (height, width). Raises
    :class:`~edgecv.errors.SpecError` for whatever the graph contradicts.
    """
    preparation = replace(recipe.preparation, height=size[0], width=size[1])
    ordered = [shapes[tensor.name] for tensor in outputs]
    count = class_count(recipe, ordered, preparation, where)
    names, ids, source = _labels(recipe, labels, note)
    if count is not None and count != len(names):
        raise SpecError(
            f"{where}: the graph has {count} classes, {source} {len(names)} names; give a list of "
            f"{count} with --labels FILE"
        )
    spec = ModelSpec(
        name=note.family if note is not None and note.family else recipe.name,
        task=recipe.task,
        inputs=inputs,
        outputs=outputs,
        preparation=preparation,
        decoding=recipe.decoding,
        labels=names,
        label_ids=ids,
    )
    Likeness.of(spec)  # refuses one that is not of these embeddings
    return spec


def check_outputs(recipe: Recipe, outputs: Sequence[TensorSpec], where: str) -> None:
    """A :class:`~edgecv.errors.SpecError` where the graph gives other outputs than the recipe
    reads: the first sign of another kind of model, whatever its size."""
    names = [tensor.name for tensor in outputs]
    if len(names) != len(recipe.outputs):
        raise SpecError(
            f"{where}: the recipe {recipe.name} reads {len(recipe.outputs)} outputs "
            f"({', '.join(recipe.outputs)}), the graph gives {len(names)} ({', '.join(names)}); it "
            f"is another kind of model, or was exported with other options"
        )
    if len(names) > 1 and names != list(recipe.outputs):
        raise SpecError(
            f"{where}: the recipe {recipe.name} expects the outputs {', '.join(recipe.outputs)} in "
            f"this order, the graph gives {', '.join(names)}; a recipe of your own can name them "
            f"in output.names"
        )


def _labels(
    recipe: Recipe, labels: Path | None, note: UltralyticsNote | None
) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Names, ids, and where they come from."""
    if labels is not None:
        ids, names = read_labels(labels)
        return names, ids, str(labels)
    if note is not None and note.names:
        return note.names, (), "the file's metadata has"
    return recipe.labels, recipe.label_ids, f"the recipe {recipe.name} has"


# --- what the shapes say --------------------------------------------------------------------------


def class_count(recipe: Recipe, shapes: Sequence[Shape], p: Preparation, where: str) -> int | None:
    """How many classes the graph's outputs of ``shapes`` have; None where they do not say.

    Raises :class:`~edgecv.errors.SpecError` where they are not what the decoding reads.
    """
    rule = _COUNTS[recipe.task].get(recipe.decoding.kind)
    if rule is None:
        return None
    try:
        count = rule(shapes, recipe.decoding.options, p)
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise RecipeError(
            f"{recipe.path or recipe.name}: output.options: {recipe.decoding.kind} misses or "
            f"misreads {error}"
        ) from error
    if count is not None and count < 1:
        raise SpecError(
            f"{where}: outputs of the shapes {', '.join(str(list(s)) for s in shapes)} on "
            f"{p.width}x{p.height} pixels are not what {recipe.decoding.kind} (recipe "
            f"{recipe.name}) reads; it is another kind of model, or was exported with other options"
        )
    return count


Rule = Callable[[Sequence[Shape], Mapping[str, object], Preparation], "int | None"]
MISFIT = 0  # what a rule says of shapes that are not its own


def _cells(options: Mapping[str, object], p: Preparation) -> int:
    strides = options["strides"]
    if not isinstance(strides, Sequence):
        raise TypeError("strides")
    return sum((p.height // int(s)) * (p.width // int(s)) for s in strides)


def _yolox(shapes: Sequence[Shape], options: Mapping[str, object], p: Preparation) -> int:
    shape = shapes[0]
    fits = len(shape) == 3 and shape[1] == _cells(options, p)
    return shape[2] - 5 if fits else MISFIT


def _anchors(shapes: Sequence[Shape], options: Mapping[str, object], p: Preparation) -> int:
    if options["decoded"]:
        return shapes[0][2] - 5 if len(shapes[0]) == 3 and shapes[0][1] > shapes[0][2] else MISFIT
    strides, anchors = options["strides"], options["anchors"]
    if not isinstance(strides, Sequence) or not isinstance(anchors, Sequence):
        raise TypeError("strides and anchors")
    found = set()
    for shape, stride, sizes in zip(shapes, strides, anchors, strict=True):
        cells = (p.height // int(stride)) * (p.width // int(stride)) * len(sizes)
        channels, rest = divmod(math.prod(shape[1:]), cells)
        found.add(MISFIT if rest else channels - 5)
    return found.pop() if len(found) == 1 else MISFIT


def _anchor_free(shapes: Sequence[Shape], options: Mapping[str, object], p: Preparation) -> int:
    first = 4 * (int(str(options["bins"])) if options["boxes"] == "dfl" else 1)
    first += bool(options["objectness"])
    if len(shapes) > 1:
        counts = {shape[1] - first for shape in shapes if len(shape) == 4}
        return counts.pop() if len(counts) == 1 else MISFIT
    shape = shapes[0]
    if len(shape) != 3:
        return MISFIT
    last = options["layout"] == "channels-last"
    channels, cells = (shape[2], shape[1]) if last else (shape[1], shape[2])
    if "strides" in options and cells != _cells(options, p):
        return MISFIT
    return channels - first


def _end2end(shapes: Sequence[Shape], options: Mapping[str, object], p: Preparation) -> int | None:
    return None if len(shapes[0]) == 3 and shapes[0][2] == 6 else MISFIT


def _fastestdet(shapes: Sequence[Shape], options: Mapping[str, object], p: Preparation) -> int:
    return shapes[0][1] - 5 if len(shapes[0]) == 4 else MISFIT


def _grid(shapes: Sequence[Shape], options: Mapping[str, object], p: Preparation) -> int:
    side, boxes = int(str(options["grid"])), int(str(options["boxes"]))
    per_cell, rest = divmod(math.prod(shapes[0][1:]), side * side)
    return MISFIT if rest else per_cell - 5 * boxes


def _yunet(shapes: Sequence[Shape], options: Mapping[str, object], p: Preparation) -> int:
    cells = sum(shape[1] for shape in shapes[:3] if len(shape) == 3)
    channels = [shape[-1] for shape in shapes]
    return 1 if cells == _cells(options, p) and set(channels) == {1, 4, 10} else MISFIT


def _rfb(shapes: Sequence[Shape], options: Mapping[str, object], p: Preparation) -> int:
    scores, boxes = shapes
    fits = len(scores) == len(boxes) == 3 and boxes[2] == 4 and scores[1] == boxes[1]
    return scores[2] - 1 if fits else MISFIT


def _classes(shapes: Sequence[Shape], options: Mapping[str, object], p: Preparation) -> int:
    return shapes[0][1] if len(shapes[0]) in (2, 4) else MISFIT  # 4: a map, fully convolutional


def _channels(shapes: Sequence[Shape], options: Mapping[str, object], p: Preparation) -> int:
    last = options.get("layout") == "nhwc"
    return shapes[0][3 if last else 1] if len(shapes[0]) == 4 else MISFIT


def _probabilities(shapes: Sequence[Shape], options: Mapping[str, object], p: Preparation) -> int:
    channels = _channels(shapes, options, p)
    return 2 if channels == 1 else channels  # of one class and of what is not it


def _binary(shapes: Sequence[Shape], options: Mapping[str, object], p: Preparation) -> int:
    return 2 if _channels(shapes, options, p) == 1 else MISFIT


_COUNTS: Mapping[str, Mapping[str, Rule]] = {
    "classify": {"logits": _classes, "probabilities": _classes, "multilabel-logits": _classes},
    "detect": {
        "yolo-grid": _grid,
        "yolo-anchors": _anchors,
        "yolox": _yolox,
        "yolo-anchor-free": _anchor_free,
        "yolo-end2end": _end2end,
        "fastestdet": _fastestdet,
        "yunet": _yunet,
        "rfb": _rfb,
    },
    "segment": {
        "logits": _channels,
        "binary-logits": _binary,
        "probabilities": _probabilities,
    },
    "embed": {},
    "landmarks": {},
}
