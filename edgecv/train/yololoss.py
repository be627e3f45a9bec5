"""The losses of the YOLO families, by the contract's decoding.

Each reads what the net gives in training mode and the objects of the batch. All terms are sums
over a batch's cells, divided by ``count``, the number of objects in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from edgecv.errors import RecipeError
from edgecv.postprocess.options import Options
from edgecv.train.assign import Cells, Matches, Objects, best_of_each, by_anchor, simota
from edgecv.train.boxloss import KINDS, box_loss, pair_iou
from edgecv.train.settings import at_least, one_of

LARGEST = 8.0  # of the logarithm of a size by its anchor or cell: e^8 is 2981


@dataclass(frozen=True)
class DetectSettings:
    """A recipe's [train.detect] table. The first four weigh the terms of the loss."""

    box: float = 5.0
    object: float = 1.0  # objectness of cells that answer for an object
    no_object: float = 1.0  # objectness of the others; the first YOLO's is 0.5
    classes: float = 1.0
    # auto: squared for yolo-grid, iou for yolox, ciou for yolo-anchors
    box_loss: str = "auto"
    positive: float = 0.3  # IoU of sizes from which an anchor answers for an object (yolo-anchors)
    ignore: float = 0.7  # IoU with an object from which another cell is not told that it is wrong
    anchors: str = "recipe"  # or kmeans: those of the data, which then go into the contract

    def __post_init__(self) -> None:
        one_of("box_loss", self.box_loss, ("auto", *KINDS))
        one_of("anchors", self.anchors, ("recipe", "kmeans"))
        for key in ("box", "object", "no_object", "classes"):
            at_least(key, getattr(self, key), 0)
        for key in ("positive", "ignore"):
            if not 0 < getattr(self, key) <= 1:
                raise RecipeError(
                    f"{key}: expected an IoU above 0, up to 1, got {getattr(self, key)}"
                )


class YoloLoss(Protocol):
    """The loss, a scalar, of a net's outputs in training mode."""

    def __call__(self, outputs: Any, objects: Objects, count: Tensor) -> Tensor: ...


class AnchorLoss:
    """``yolo-anchors``: objects go to anchors by the IoU of sizes (:func:`by_anchor`).

    Objectness is taught the IoU of the predicted box (arXiv:1612.08242), classes by cross-entropy,
    over all of them with rule ``v2``, for each by itself with ``v3`` and ``v5``.
    """

    def __init__(self, options: Options, settings: DetectSettings, size: tuple[int, int]) -> None:
        if options.flag("decoded") or options.flag("activated"):
            raise RecipeError(
                f"{options.where}: a net to be trained gives raw maps: decoded and activated must "
                f"be false"
            )
        self.rule = options.choice("rule", ("v2", "v3", "v5"))
        self.layout = options.choice("layout", ("channels-first",))
        self.strides, table = options.strides(), options.numbers("anchors")
        if table.ndim != 3 or len(table) != len(self.strides) or table.shape[2] != 2:
            raise RecipeError(
                f"{options.where}: anchors must hold, for each of the {len(self.strides)} strides, "
                f"as many [width, height]"
            )
        self.anchors = table.shape[1]
        height, width = size
        anchors = [torch.tensor(part, dtype=torch.float32) for part in table]
        self.cells = Cells.grids(height, width, self.strides, anchors)
        self.size = torch.tensor([width, height], dtype=torch.float32)
        self.settings = settings
        self.kind = "ciou" if settings.box_loss == "auto" else settings.box_loss

    def __call__(self, outputs: Any, objects: Objects, count: Tensor) -> Tensor:
        maps = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        raw = torch.cat([self._rows(one) for one in maps], 1)  # [N, cells, 5 + C]
        cells = self.cells.to(raw.device)
        _expect(raw.shape[1], len(cells.stride), f"strides {list(self.strides)} with anchors")
        boxes = self._boxes(raw, cells)
        found = by_anchor(
            objects, cells, self.strides, self.settings.positive, neighbours=self.rule == "v5"
        )
        picture, cell = found.picture, found.cell
        truth, own = objects.boxes[found.object], boxes[picture, cell]
        loss = self.settings.box * box_loss(own, truth, self.kind, self.size.to(raw.device)).sum()
        with torch.no_grad():
            wanted = torch.zeros_like(raw[..., 4])
            wanted[picture, cell] = pair_iou(own, truth)
            weight = self.settings.no_object * ~_overlapping(boxes, objects, self.settings.ignore)
            weight[picture, cell] = self.settings.object
        loss = loss + _objectness(raw[..., 4], wanted, weight)
        logits, kinds = raw[picture, cell, 5:], objects.classes[found.object]
        if self.rule == "v2":
            wrong = cross_entropy(logits, kinds, reduction="sum")
        else:
            wrong = _each_class(logits, one_hot(kinds, logits.shape[1]).to(logits.dtype))
        return (loss + self.settings.classes * wrong) / count

    def _rows(self, output: Tensor) -> Tensor:
        """A map ``[N, A * (5 + C), H, W]`` as ``[N, A * H * W, 5 + C]``."""
        n, _, rows, columns = output.shape
        view = output.reshape(n, self.anchors, -1, rows, columns)
        return view.permute(0, 1, 3, 4, 2).flatten(1, 3)

    def _boxes(self, raw: Tensor, cells: Cells) -> Tensor:
        xy, wh = raw[..., :2].sigmoid(), raw[..., 2:4]
        if self.rule == "v5":
            xy, size = 2 * xy - 0.5, (2 * wh.sigmoid()).square() * cells.anchor
        else:
            size = wh.clamp_max(LARGEST).exp() * cells.anchor
        return _corners((xy + cells.place) * cells.stride[:, None], size)


class YoloxLoss:
    """``yolox`` (arXiv:2107.08430): one box a cell, assigned by :func:`simota`.

    Classes are taught the IoU of the predicted box, objectness 1.
    """

    def __init__(self, options: Options, settings: DetectSettings, size: tuple[int, int]) -> None:
        self.decoded, strides = options.flag("decoded"), options.strides()
        height, width = size
        self.cells = Cells.grids(height, width, strides, [torch.ones(1, 2)] * len(strides))
        self.size = torch.tensor([width, height], dtype=torch.float32)
        self.settings = settings
        self.kind = "iou" if settings.box_loss == "auto" else settings.box_loss

    def __call__(self, outputs: Tensor, objects: Objects, count: Tensor) -> Tensor:
        raw, cells = outputs, self.cells.to(outputs.device)
        _expect(raw.shape[1], len(cells.stride), "strides")
        center, size = raw[..., :2], raw[..., 2:4]
        if not self.decoded:
            stride = cells.stride[:, None]
            center, size = (center + cells.place) * stride, size.clamp_max(LARGEST).exp() * stride
        boxes = _corners(center, size)
        found = simota(boxes.detach(), raw[..., 4].detach(), raw[..., 5:].detach(), objects, cells)
        picture, cell = found.picture, found.cell
        truth, own = objects.boxes[found.object], boxes[picture, cell]
        loss = self.settings.box * box_loss(own, truth, self.kind, self.size.to(raw.device)).sum()
        logits, kinds = raw[picture, cell, 5:], objects.classes[found.object]
        with torch.no_grad():
            wanted = torch.zeros_like(raw[..., 4])
            wanted[picture, cell] = 1
            weight = torch.full_like(wanted, self.settings.no_object)
            weight[picture, cell] = self.settings.object
            classes = one_hot(kinds, logits.shape[1]) * pair_iou(own, truth)[:, None]
        loss = loss + _objectness(raw[..., 4], wanted, weight)
        return (loss + self.settings.classes * _each_class(logits, classes)) / count


class GridLoss:
    """``yolo-grid``: the first YOLO's (arXiv:1506.02640, equation 3), all terms squared errors.

    The cell of an object's centre answers for it, with that of its boxes whose IoU is best; of
    several objects in one cell the largest counts, which is what one class a cell can say.
    """

    def __init__(self, options: Options, settings: DetectSettings, size: tuple[int, int]) -> None:
        options.choice("order", ("boxes-first",))
        self.side, self.boxes = options.integer("grid"), options.integer("boxes")
        self.rooted, self.classes = options.flag("square_root"), len(options.spec.labels)
        height, width = size
        self.size = torch.tensor([width, height], dtype=torch.float32)
        self.settings = settings
        self.kind = "squared" if settings.box_loss == "auto" else settings.box_loss

    def __call__(self, outputs: Tensor, objects: Objects, count: Tensor) -> Tensor:
        side, size = self.side, self.size.to(outputs.device)
        values = side * side * (5 * self.boxes + self.classes)
        _expect(outputs[0].numel(), values, f"grid {side} with {self.boxes} boxes a cell")
        rows = outputs.reshape(len(outputs), side * side, -1)
        part = rows[..., : 5 * self.boxes].reshape(
            *rows.shape[:2], self.boxes, 5
        )  # [N, S * S, B, 5]
        cell = torch.arange(side * side, device=rows.device)
        corner = torch.stack([cell % side, cell // side], 1)[:, None]
        shape = part[..., 2:4].square() if self.rooted else part[..., 2:4]
        boxes = _corners((part[..., :2] + corner) / side * size, shape * size)
        found = self._largest(objects, size)
        truth = objects.boxes[found.object]
        own = boxes[found.picture, found.cell]  # [p, B, 4]
        with torch.no_grad():
            iou = pair_iou(own, truth[:, None])
            best = iou.argmax(1)
            wanted = torch.zeros_like(part[..., 4])
            wanted[found.picture, found.cell, best] = iou.gather(1, best[:, None])[:, 0]
            weight = torch.full_like(wanted, self.settings.no_object)
            weight[found.picture, found.cell, best] = self.settings.object
        chosen = own[torch.arange(len(best), device=best.device), best]
        loss = self.settings.box * box_loss(chosen, truth, self.kind, size).sum()
        loss = loss + (weight * (part[..., 4] - wanted).square()).sum()
        scores = rows[found.picture, found.cell, 5 * self.boxes :]
        kinds = one_hot(objects.classes[found.object], scores.shape[1])
        loss = loss + self.settings.classes * (scores - kinds).square().sum()
        return loss / count

    def _largest(self, objects: Objects, size: Tensor) -> Matches:
        center = (objects.boxes[:, :2] + objects.boxes[:, 2:]) / 2 / size
        place = (center * self.side).long().clamp(0, self.side - 1)
        cell = place[:, 1] * self.side + place[:, 0]
        area = (objects.boxes[:, 2:] - objects.boxes[:, :2]).prod(1)
        keep = best_of_each(objects.picture * self.side**2 + cell, area)
        return Matches(objects.picture[keep], cell[keep], keep)


LOSSES: dict[str, Any] = {
    "yolo-grid": GridLoss,
    "yolo-anchors": AnchorLoss,
    "yolox": YoloxLoss,
}


def make_loss(options: Options, settings: DetectSettings, size: tuple[int, int]) -> YoloLoss:
    """The loss of the contract's decoding; ``size`` is the input's height and width."""
    kind = options.spec.decoding.kind
    if kind not in LOSSES:
        raise RecipeError(
            f"{options.where}: can be decoded but not trained; training has {', '.join(LOSSES)}, "
            f"and yolo-end2end for one object a picture"
        )
    made: YoloLoss = LOSSES[kind](options, settings, size)
    return made


def _expect(found: int, wanted: int, what: str) -> None:
    if found != wanted:
        raise RecipeError(
            f"the contract's {what} make {wanted} values a picture at this input size, the net "
            f"gives {found}: [model] and [output.options] do not fit each other"
        )


def _corners(center: Tensor, size: Tensor) -> Tensor:
    return torch.cat([center - size / 2, center + size / 2], -1)


@torch.no_grad()
def _overlapping(boxes: Tensor, objects: Objects, limit: float) -> Tensor:
    """bool ``[N, cells]``: predicted boxes that meet an object with more than ``limit``."""
    meets = torch.zeros(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    for n in range(len(boxes)):
        truth = objects.boxes[objects.picture == n]
        if len(truth):
            meets[n] = (pair_iou(boxes[n, :, None], truth[None]) > limit).any(1)
    return meets


def _objectness(logits: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(logits, wanted, weight, reduction="sum")


def _each_class(logits: Tensor, wanted: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
