"""Anchors, assignment and box losses, against hand computation and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgecv.errors import InputError
from edgecv.postprocess import boxes as reference
from edgecv.train.anchors import kmeans, mean_best_iou, size_iou
from edgecv.train.assign import Cells, Objects, by_anchor, simota
from edgecv.train.boxloss import box_loss, pair_iou

SIZE = torch.tensor([64.0, 64.0])


def random_boxes(count: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 40, (count, 2))
    return torch.tensor(np.concatenate([corner, corner + rng.uniform(2, 24, (count, 2))], 1))


@pytest.mark.parametrize(("kind", "measure"), [("giou", reference.giou), ("diou", reference.diou)])
def test_losses_are_one_less_the_measures_that_nms_uses(kind, measure):
    a, b = random_boxes(50, 0), random_boxes(50, 1)
    expected = 1 - np.diag(measure(a.numpy(), b.numpy()))
    np.testing.assert_allclose(box_loss(a, b, kind, SIZE).numpy(), expected, rtol=1e-9, atol=1e-9)
    ious = np.diag(reference.iou(a.numpy(), b.numpy()))
    np.testing.assert_allclose(pair_iou(a, b).numpy(), ious, rtol=1e-9)
    np.testing.assert_allclose(box_loss(a, b, "iou", SIZE).numpy(), 1 - ious**2, rtol=1e-9)


def test_ciou_adds_the_aspect_ratios_and_squared_is_equation_3():
    # on one centre: no distance; IoU 8 x 4 over 8 x 8 + 16 x 4 - 8 x 4
    a, b = torch.tensor([[4.0, 4, 12, 12]]), torch.tensor([[0.0, 6, 16, 10]])
    iou = 32 / 96
    v = 4 / np.pi**2 * (np.arctan(16 / 4) - np.arctan(1)) ** 2
    alpha = v / (1 - iou + v)
    assert box_loss(a, b, "ciou", SIZE).item() == pytest.approx(1 - iou + alpha * v, rel=1e-6)
    # centres equal; roots of 8/64 and 8/64 against 16/64 and 4/64
    roots = (np.sqrt(0.125) - 0.5) ** 2 + (np.sqrt(0.125) - 0.25) ** 2
    assert box_loss(a, b, "squared", SIZE).item() == pytest.approx(roots, rel=1e-6)


@pytest.mark.parametrize("kind", ["squared", "giou", "diou", "ciou"])
def test_losses_pull_boxes_that_do_not_meet_together(kind):
    found = torch.tensor([[2.0, 2, 10, 12]], requires_grad=True)
    truth = torch.tensor([[40.0, 30, 60, 60]])
    optimizer = torch.optim.Adam([found], lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        box_loss(found, truth, kind, SIZE).sum().backward()
        optimizer.step()
    assert pair_iou(found, truth).item() > 0.9


def test_kmeans_finds_the_sizes_that_there_are():
    rng = np.random.default_rng(0)
    groups = np.array([[8.0, 10], [30, 12], [50, 60]])
    sizes = np.concatenate([g * rng.uniform(0.95, 1.05, (40, 2)) for g in groups])
    found = kmeans(sizes, 3, seed=1)
    np.testing.assert_allclose(found, groups, rtol=0.05)  # the groups' own spread
    assert mean_best_iou(sizes, found) > 0.9
    assert size_iou(np.array([[2.0, 4]]), np.array([[4.0, 2]]))[0, 0] == pytest.approx(4 / 12)
    np.testing.assert_array_equal(kmeans(sizes, 3, seed=1), found)


def test_kmeans_needs_different_sizes():
    with pytest.raises(InputError, match="3 anchors need objects of at least 3 different sizes"):
        kmeans(np.array([[2.0, 3], [2, 3], [4, 4], [0, 9]]), 3)


def test_objects_go_to_the_cell_of_their_centre_and_the_anchor_of_their_size():
    anchors = [torch.tensor([[8.0, 8]]), torch.tensor([[30.0, 30]])]
    cells = Cells.grids(32, 64, (8, 16), anchors)
    assert len(cells.stride) == 4 * 8 + 2 * 4
    boxes = torch.tensor([[9.0, 17, 17, 25], [32, 0, 62, 30]])  # centres (13, 21) and (47, 15)
    objects = Objects(boxes, torch.tensor([1, 0]), torch.tensor([1, 0]))
    found = by_anchor(objects, cells, (8, 16), 0.5, neighbours=False)
    got = sorted(
        zip(found.picture.tolist(), found.cell.tolist(), found.object.tolist(), strict=True)
    )
    # stride 16: row 0, column 2, behind the 32 cells of stride 8; stride 8: row 2, column 1
    assert got == [(0, 32 + 2, 1), (1, 2 * 8 + 1, 0)]
    # (13, 21) / 8 = (1.625, 2.625): also the cells to the right and below
    more = by_anchor(objects, cells, (8, 16), 0.5, neighbours=True)
    own = {c for p, c in zip(more.picture.tolist(), more.cell.tolist(), strict=True) if p == 1}
    assert own == {2 * 8 + 1, 2 * 8 + 2, 3 * 8 + 1}


def test_of_two_objects_for_one_cell_the_better_fit_has_it():
    cells = Cells.grids(16, 16, (16,), [torch.tensor([[8.0, 8]])])
    boxes = torch.tensor([[1.0, 1, 15, 15], [4, 4, 12, 13]])
    objects = Objects(boxes, torch.tensor([0, 0]), torch.tensor([0, 0]))
    assert by_anchor(objects, cells, (16,), 0.9, neighbours=False).object.tolist() == [1]


def test_simota_takes_the_cells_that_already_answer_best():
    cells = Cells.grids(64, 64, (8,), [torch.ones(1, 2)])
    boxes = torch.zeros(1, 64, 4)
    truth = torch.tensor([[16.0, 16, 40, 40]])
    good = [2 * 8 + 2, 3 * 8 + 3]  # cells of (20, 20) and (28, 28)
    boxes[0, good] = truth
    objects = Objects(truth, torch.tensor([1]), torch.tensor([0]))
    found = simota(boxes, torch.zeros(1, 64), torch.zeros(1, 64, 3), objects, cells)
    assert found.cell.tolist() == good  # two IoUs of 1: the object gets two cells
    assert found.object.tolist() == [0, 0]
    nothing = Objects(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0).long())
    empty = simota(boxes, torch.zeros(1, 64), torch.zeros(1, 64, 3), nothing, cells)
    assert len(empty.cell) == 0
