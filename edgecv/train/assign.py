"""Which of a detector's cells answers for which object."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy

from edgecv.train.boxloss import SMALL, pair_iou

NEAR = 2.5  # SimOTA's centre region, in strides to either side
CANDIDATES = 10  # SimOTA: the IoUs that say how many cells an object gets
OUTSIDE = 1e5  # SimOTA's cost of a cell that is in the box or near its centre, but not both


@dataclass(frozen=True, eq=False)
class Cells:
    """The places of an output, those of one picture in the order in which they come out.

    ``place`` ``[cells, 2]``: column and row in the own grid; ``stride`` ``[cells]`` and ``anchor``
    ``[cells, 2]`` (width, height) in pixels; ``shapes``: the rows and columns of each stride.
    """

    place: Tensor
    stride: Tensor
    anchor: Tensor
    shapes: tuple[tuple[int, int], ...]

    @classmethod
    def grids(
        cls, height: int, width: int, strides: tuple[int, ...], anchors: list[Tensor]
    ) -> Cells:
        """Each stride's grid, once for each of its anchors ``[A, 2]``, row by row."""
        places, scales, sizes = [], [], []
        shapes = tuple((height // s, width // s) for s in strides)
        for (rows, columns), stride, table in zip(shapes, strides, anchors, strict=True):
            y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            place = torch.stack([x, y], -1).reshape(-1, 2).float()
            for anchor in table:
                places.append(place)
                scales.append(torch.full((len(place),), float(stride)))
                sizes.append(anchor.expand(len(place), 2))
        return cls(torch.cat(places), torch.cat(scales), torch.cat(sizes), shapes)

    def to(self, device: torch.device) -> Cells:
        place, stride, anchor = (t.to(device) for t in (self.place, self.stride, self.anchor))
        return Cells(place, stride, anchor, self.shapes)


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of n pictures: ``boxes`` ``[m, 4]`` xyxy in pixels of the input, ``classes``
    and ``picture`` int64 ``[m]``."""

    boxes: Tensor
    classes: Tensor
    picture: Tensor


@dataclass(frozen=True, eq=False)
class Matches:
    """Pairs ``[p]`` of a cell and the object that it answers for; no cell is in two."""

    picture: Tensor
    cell: Tensor
    object: Tensor


def by_anchor(
    objects: Objects, cells: Cells, strides: tuple[int, ...], positive: float, neighbours: bool
) -> Matches:
    """The cell of the object's centre, with the anchors whose IoU of sizes is best, or at least
    ``positive`` (arXiv:1804.02767). ``neighbours``: also the nearer cell beside it on each axis,
    for nets whose centre may lie up to half a cell outside (YOLOv5's rule). Of two objects for
    one cell and anchor the one whose size fits better has it.
    """
    boxes = objects.boxes
    center, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    tables: list[tuple[int, int, int, int]] = []  # start of the cells, stride, rows, columns
    anchors, start = [], 0
    for (rows, columns), stride in zip(cells.shapes, strides, strict=True):
        level = int((cells.stride == stride).sum())
        for _ in range(level // (rows * columns)):
            tables.append((start, stride, rows, columns))
            anchors.append(cells.anchor[start])
            start += rows * columns
    sizes = torch.stack(anchors)  # [K, 2]
    inter = torch.minimum(size[:, None], sizes[None]).prod(-1)
    fit = inter / (size.prod(-1)[:, None] + sizes.prod(-1)[None] - inter).clamp_min(SMALL)
    chosen = fit >= positive
    if len(boxes):
        chosen[torch.arange(len(boxes), device=boxes.device), fit.argmax(1)] = True
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for k, (first, stride, rows, columns) in enumerate(tables):
        which = torch.nonzero(chosen[:, k])[:, 0]
        place = center[which] / stride
        own = place.floor()
        steps = [torch.zeros_like(own)]
        if neighbours:
            toward = torch.where(place - own < 0.5, -1.0, 1.0)
            steps += [toward * toward.new_tensor(axis) for axis in ([1.0, 0.0], [0.0, 1.0])]
        limits = own.new_tensor([columns, rows])
        for step in steps:
            cell = own + step
            inside = ((cell >= 0) & (cell < limits)).all(1)
            x, y = cell[inside].long().unbind(1)
            found.append((first + y * columns + x, which[inside], fit[which[inside], k]))
    cell, index, quality = (torch.cat(part) for part in zip(*found, strict=True))
    picture = objects.picture[index]
    keep = best_of_each(picture * len(cells.stride) + cell, quality)
    return Matches(picture[keep], cell[keep], index[keep])


def best_of_each(key: Tensor, quality: Tensor) -> Tensor:
    """Of the entries with the same ``key`` the one of the highest ``quality`` (the first)."""
    order = torch.argsort(quality, descending=True, stable=True)
    order = order[torch.argsort(key[order], stable=True)]
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = key[order][1:] != key[order][:-1]
    return order[first]


@torch.no_grad()
def simota(
    boxes: Tensor, objectness: Tensor, classes: Tensor, objects: Objects, cells: Cells
) -> Matches:
    """YOLOX's dynamic assignment (arXiv:2107.08430, section 2.1).

    ``boxes`` ``[N, cells, 4]`` xyxy as predicted, ``objectness`` ``[N, cells]`` and ``classes``
    ``[N, cells, C]`` as logits. Cells whose centre is in an object's box or near its centre can
    answer for it; it gets as many as the sum of its ten best IoUs, those of the least cost ``class
    loss + 3 * -log IoU``. A cell that two objects want goes to the one with the lower cost.
    """
    centers = (cells.place + 0.5) * cells.stride[:, None]
    parts = []
    for n in range(len(boxes)):
        own = torch.nonzero(objects.picture == n)[:, 0]
        if not len(own):
            continue
        truth = objects.boxes[own]
        inside = ((centers > truth[:, None, :2]) & (centers < truth[:, None, 2:])).all(2)
        middle = (truth[:, :2] + truth[:, 2:]) / 2
        away = (centers - middle[:, None]).abs().amax(2)
        near = away < NEAR * cells.stride
        candidates = torch.nonzero((inside | near).any(0))[:, 0]
        both = (inside & near)[:, candidates]
        iou = pair_iou(truth[:, None], boxes[n, candidates][None])  # [m, c]
        scores = (
            classes[n, candidates].float().sigmoid()
            * objectness[n, candidates].float().sigmoid()[:, None]
        ).sqrt()
        wanted = torch.nn.functional.one_hot(objects.classes[own], classes.shape[2]).float()
        shape = (len(own), len(candidates), classes.shape[2])
        wrong = binary_cross_entropy(
            scores[None].expand(shape), wanted[:, None].expand(shape), reduction="none"
        ).sum(2)
        cost = wrong - 3 * (iou + 1e-8).log() + OUTSIDE * ~both
        count = iou.topk(min(CANDIDATES, len(candidates)), dim=1).values.sum(1).int().clamp_min(1)
        taken = torch.zeros_like(cost, dtype=torch.bool)
        order = cost.argsort(dim=1, stable=True)
        for row, k in enumerate(count.tolist()):
            taken[row, order[row, :k]] = True
        wanted_by = taken.sum(0)
        owner = torch.where(taken, cost, torch.inf).argmin(0)
        chosen = torch.nonzero(wanted_by)[:, 0]
        parts.append((torch.full_like(chosen, n), candidates[chosen], own[owner[chosen]]))
    if not parts:
        empty = torch.zeros(0, dtype=torch.long, device=boxes.device)
        return Matches(empty, empty, empty)
    return Matches(*(torch.cat(part) for part in zip(*parts, strict=True)))
