"""Non-maximum suppression: greedy (per class or class-agnostic), by IoU or DIoU.

**Result.** Indices into the input, best score first. Of equal scores the lower index comes first,
and therefore suppresses the other. A box suppresses a later one where their overlap is *greater*
than the threshold. This is torchvision's ``nms`` and ``batched_nms``, with ties defined.

**Defined for everything.** No boxes: an empty result. A NaN score, or a box with a NaN or
infinite coordinate, is never kept. An empty or inverted box overlaps with nothing: it is kept and
suppresses nothing. Overlaps are computed in float32 (float64 for float64 boxes).

**How it is fast in NumPy.** IoU > t needs an overlap of more than the share t along x alone, so
the left edge of the one box lies within ``(1 - t) * width`` of the other's. Sorted by left edge
(classes laid side by side on one axis), the possible partners of a box are a range, found for all
boxes by one binary search. The few pairs that remain are tested together, and the greedy choice is
made on the pairs that overlap: in rounds, each of which keeps every box that no undecided better
one overlaps (Cluster-NMS, arXiv:2005.03572, reaches the same fixed point). Where boxes lie densely
the classic loop (keep the best, drop what it suppresses) is faster still: it runs first, of many
boxes in all classes at once, for as long as each of its turns drops a good share. Where the pairs
are many the best few boxes are settled first and what they suppress is dropped before the next,
larger block, so time follows the boxes that are left and memory stays bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.postprocess.boxes import Floats, as_boxes, center_distance

Indices: TypeAlias = NDArray[np.intp]

MEASURES = ("iou", "diou")

DIRECT_PAIRS = 1 << 14  # up to here testing all pairs at once beats any cleverness
CHUNK_PAIRS = 1 << 16  # pairs tested in one go: 4 MB of temporary arrays, which stay in the cache
BLOCK_PAIRS = 1 << 18  # pairs within one block of the best boxes
FIRST_BLOCK = 160
PER_CLASS = 8  # boxes; with fewer a turn of all classes costs more than it saves (measured)
MAX_SPREAD = 1 << 20  # of class numbers
PEEL_SHARE = 16  # the classic loop goes on while a step drops at least one in so many
_FIRST = np.zeros(1, np.intp)
ROUNDS = 6  # of the vectorised choice; what a longer chain leaves is settled one by one


def nms(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    iou: float = 0.5,
    *,
    classes: NDArray[Any] | None = None,
    max_det: int | None = None,
    measure: str = "iou",
) -> NDArray[np.int64]:
    """The boxes that greedy suppression keeps: int64 ``[K]``, best score first.

    ``boxes`` ``[N, 4]`` xyxy, ``scores`` ``[N]``, ``classes`` ``[N]`` integers: boxes of
    different classes never suppress each other; ``None`` is class-agnostic. ``iou`` is the
    threshold, 0 to 1 (at 1 nothing is suppressed). ``measure="diou"`` compares DIoU instead (Zheng
    et al. 2020), which spares close boxes with distant centres. At most ``max_det`` are kept.

    See the module's docstring for ties and for what NaN, infinite and empty boxes do.
    """
    boxes, scores, groups = check_candidates(boxes, scores, classes)
    check_threshold(iou, "iou")
    if measure not in MEASURES:
        raise InputError(f"measure must be one of {', '.join(MEASURES)}; got {measure!r}")
    if max_det is not None and max_det < 0:
        raise InputError(f"max_det must be 0 or more, got {max_det}")
    order = by_score(scores, finite_rows(boxes, scores))
    columns = np.ascontiguousarray(
        boxes.take(order, axis=0).T
    )  # [4, N]: each coordinate in one run
    kept = _greedy(
        columns, None if groups is None else groups[order], iou, max_det, measure == "diou"
    )
    return order[kept[:max_det]].astype(np.int64, copy=False)


def check_candidates(
    boxes: NDArray[Any], scores: NDArray[Any], classes: NDArray[Any] | None
) -> tuple[Floats, NDArray[Any], NDArray[np.int64] | None]:
    """``boxes`` ``[N, 4]``, ``scores`` ``[N]`` and ``classes`` ``[N]`` as arrays that agree."""
    boxes, scores = as_boxes(boxes), np.asarray(scores)
    if scores.shape != boxes.shape[:1]:
        raise InputError(f"scores: expected one per box, [{len(boxes)}], got {scores.shape}")
    if classes is None:
        return boxes, scores, None
    groups = np.asarray(classes)
    if groups.shape != boxes.shape[:1]:
        raise InputError(f"classes: expected one per box, [{len(boxes)}], got {groups.shape}")
    if not np.issubdtype(groups.dtype, np.integer):
        raise InputError(f"classes: expected integers, got {groups.dtype}")
    return boxes, scores, groups.astype(np.int64, copy=False)


def check_threshold(value: float, what: str) -> None:
    """A threshold lies from 0 to 1; NaN does not."""
    if not 0 <= value <= 1:
        raise InputError(f"{what} must be a threshold from 0 to 1, got {value}")


def finite_rows(boxes: Floats, scores: NDArray[Any]) -> NDArray[np.bool_]:
    """Which candidates can be kept at all: finite coordinates, and a score that is not NaN."""
    rows: NDArray[np.bool_] = ~np.isnan(scores)
    finite = np.isfinite(boxes)
    if not finite.all():  # rare, and slower: row by row
        rows &= finite.all(axis=1)
    return rows


def by_score(scores: NDArray[Any], usable: NDArray[np.bool_] | None = None) -> Indices:
    """Indices of the usable scores, highest first; of equal ones the lower index first."""
    values = scores if np.issubdtype(scores.dtype, np.floating) else scores.astype(np.float64)
    order = np.argsort(-values, kind="stable")
    return order if usable is None or usable.all() else order[usable[order]]


# --- the greedy choice ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sweep:
    """Boxes sorted by ``key``: the left (or top) edge, each class on a stretch of its own.

    ``reach[i]``: how far above ``key[i]`` the key of a box can lie that box i overlaps enough.
    ``rank[i]``: its place by score. ``columns`` ``[5, N]``: x1, y1, x2, y2, area.
    """

    key: NDArray[np.float64]
    reach: NDArray[np.float64]
    rank: Indices
    columns: Floats

    def take(self, which: Indices) -> _Sweep:
        columns = self.columns.take(which, axis=1)
        return _Sweep(self.key.take(which), self.reach.take(which), self.rank.take(which), columns)

    def best(self, count: int) -> NDArray[np.bool_]:
        """Which are the first ``count`` by score."""
        last: np.intp = np.partition(self.rank, count - 1)[count - 1]
        first: NDArray[np.bool_] = self.rank <= last
        return first

    def partners(self) -> Indices:
        """For each box, how many of those after it lie in its reach: they follow it."""
        ends = np.searchsorted(self.key, self.key + self.reach, side="right")
        return ends - np.arange(1, len(ends) + 1)


def _greedy(
    columns: Floats,
    groups: NDArray[np.int64] | None,
    threshold: float,
    limit: int | None,
    diou: bool,
) -> Indices:
    """Places of the kept ones among boxes ``[4, N]`` in order of score, rising.

    With a ``limit`` at least that many of the first are right; there may be more.
    """
    count = columns.shape[1]
    if threshold >= 1 or count < 2 or limit == 0:
        return np.arange(count)
    sizes = columns[2:] - columns[:2]
    boxes = np.empty((5, count), columns.dtype)
    boxes[:4] = columns
    with np.errstate(over="ignore"):
        np.multiply(sizes[0], sizes[1], out=boxes[4])
    test = _Test(threshold, columns.dtype, diou)
    rank: Indices = np.arange(count)
    done: list[Indices] = []
    solid = sizes.min(axis=0) > 0
    if not solid.all():
        done.append(np.flatnonzero(~solid))
        rank = np.flatnonzero(solid)
        boxes, groups = boxes[:, rank], None if groups is None else groups[rank]
    if groups is not None and len(rank):
        groups = _numbered(groups)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # see _Test._share
        boxes, groups, rank = _peel(boxes, groups, rank, test, limit, done)
        if len(rank):
            done += _settle(_sweep(boxes, groups, rank, test), test, limit)
    kept = np.concatenate(done)
    kept.sort()
    return kept


def _peel(
    boxes: Floats,
    groups: NDArray[np.int64] | None,
    rank: Indices,
    test: _Test,
    limit: int | None,
    done: list[Indices],
) -> tuple[Floats, NDArray[np.int64] | None, Indices]:
    """The classic loop while it pays: what it keeps goes to ``done``, what is left comes back.
    ``groups`` are numbers from 0; where classes have many boxes a turn is one of all at once.

    The best box that is left is kept in each turn, and it is better than all that stay open: after
    ``limit`` turns the first ``limit`` are known.
    """
    turns = 0
    while len(rank) and (limit is None or turns < limit):
        if groups is None or len(rank) < PER_CLASS * (int(groups.max()) + 1):
            heads, hit = _FIRST, test.with_heads(boxes, _FIRST)
            if groups is not None:
                hit &= groups == groups[0]
        else:
            heads, own = _heads(groups)
            hit = test.with_heads(boxes, own)
        hit[heads] = True
        done.append(rank[heads])
        turns += 1
        left = np.flatnonzero(~hit)
        dropped = len(rank) - len(left) - len(heads)
        enough = dropped * PEEL_SHARE >= len(rank)
        boxes, rank = boxes.take(left, axis=1), rank.take(left)
        groups = None if groups is None else groups.take(left)
        if not enough:
            return boxes, groups, rank
    return boxes[:, :0], None if groups is None else groups[:0], rank[:0]


def _heads(groups: NDArray[np.int64]) -> tuple[Indices, Indices]:
    """The first place of each class, and for each place that of its own class."""
    first: Indices = np.full(int(groups.max()) + 1, len(groups), np.intp)
    first[groups[::-1]] = np.arange(len(groups) - 1, -1, -1)  # the last one written stays
    return first[first < len(groups)], first.take(groups)


def _numbered(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Class numbers from 0; where they are codes, spread wide, numbers in their order."""
    low, high = int(groups.min()), int(groups.max())
    if high - low < MAX_SPREAD:
        return groups - low
    return np.unique(groups, return_inverse=True)[1].reshape(-1)


class _Test:
    """Whether two boxes overlap by more than the threshold, as torchvision computes it."""

    def __init__(self, threshold: float, dtype: np.dtype[Any], diou: bool) -> None:
        # float32 > python float is compared in float32 by NumPy, in double by C: the largest
        # float that does not exceed the threshold gives C's answer
        limit = dtype.type(threshold)
        if float(limit) > threshold:
            limit = np.nextafter(limit, dtype.type(-1))
        self.limit = limit
        self.diou = diou
        # What rounding can add to a quotient of sums and products of float32, with room to spare.
        self.slack = 1 - threshold + 1e-5

    def with_heads(self, c: Floats, own: Indices) -> NDArray[np.bool_]:
        """Which boxes ``[5, N]`` the box at their place in ``own`` (or the one for all) overlaps
        by enough."""
        head = c.take(own, axis=1)
        wide = np.minimum(c[2], head[2])
        wide -= np.maximum(c[0], head[0])
        tall = np.minimum(c[3], head[3])
        tall -= np.maximum(c[1], head[1])
        np.maximum(wide, 0, out=wide)
        np.maximum(tall, 0, out=tall)
        wide *= tall
        share = self._share(wide, c[4] + head[4])
        hit: NDArray[np.bool_] = share > self.limit
        if self.diou:
            hit &= share - center_distance(c[:4].T, head[:4].T) > self.limit
        return hit

    def _share(self, inter: Floats, areas: Floats) -> Floats:
        """IoU, in place of ``inter``. A union is 0 or NaN only where the areas leave the range of
        floats: no overlap, then."""
        areas -= inter
        inter /= areas
        return inter

    def __call__(self, c: Floats, d: Floats, i: Indices, j: Indices) -> tuple[Indices, Indices]:
        """Of the pairs (box i of ``c``, box j of ``d``) those that overlap by enough."""
        tall = np.minimum(c[3].take(i), d[3].take(j))
        tall -= np.maximum(c[1].take(i), d[1].take(j))
        near = np.flatnonzero(tall > 0)
        i, j, tall = i.take(near), j.take(near), tall.take(near)
        wide = np.minimum(c[2].take(i), d[2].take(j))
        wide -= np.maximum(c[0].take(i), d[0].take(j))
        inter = np.maximum(wide, 0)
        inter *= tall
        inter = self._share(inter, c[4].take(i) + d[4].take(j))
        hit = np.flatnonzero(inter > self.limit)
        if self.diou and len(hit):  # DIoU never exceeds IoU: the rest is out already
            distance = center_distance(c[:4, i[hit]].T, d[:4, j[hit]].T)
            hit = hit[inter[hit] - distance > self.limit]
        return i[hit], j[hit]


def _sweep(boxes: Floats, groups: NDArray[np.int64] | None, rank: Indices, test: _Test) -> _Sweep:
    """The boxes ``[5, N]`` as a :class:`_Sweep` along x, each class on its own stretch."""
    axis = boxes[0].astype(np.float64)
    reach = (boxes[2] - axis) * test.slack
    if groups is not None:
        axis -= axis.min()
        span = float(axis.max()) + float(reach.max())
        span += span * 1e-3 + 1e-30  # a gap that rounding cannot bridge
        axis += groups * span
        reach += (int(groups.max()) + 1) * span * 2.0**-50  # the rounding of the sums above
    return _Sweep(axis, reach, rank, boxes).take(np.argsort(axis))


def _settle(sweep: _Sweep, test: _Test, limit: int | None) -> list[Indices]:
    """Ranks of the boxes of ``sweep`` that greedy suppression keeps, in any order."""
    done: list[Indices] = []
    kept, block = 0, FIRST_BLOCK
    while limit is None or kept < limit:
        count, partners = len(sweep.rank), sweep.partners()
        total = int(partners.sum())
        if total <= (BLOCK_PAIRS if block >= count else DIRECT_PAIRS):
            done.append(sweep.rank[_choose(sweep, partners, test)])
            break
        # the best boxes are settled first, as many as make about BLOCK_PAIRS pairs
        size = min(block, max(FIRST_BLOCK, int(count * (BLOCK_PAIRS / total) ** 0.5)))
        first = sweep.best(size)
        while (inner := sweep.take(np.flatnonzero(first)).partners()).sum() > 2 * BLOCK_PAIRS:
            size //= 2  # these lie closer than the rest
            first = sweep.best(size)
        head, rest = sweep.take(np.flatnonzero(first)), sweep.take(np.flatnonzero(~first))
        head = head.take(_choose(head, inner, test))
        done.append(head.rank)
        kept += len(head.rank)
        sweep = rest.take(_survivors(head, rest, test))
        block *= 2
    return done


def _choose(sweep: _Sweep, partners: Indices, test: _Test) -> Indices:
    """The kept places of ``sweep``: the greedy choice among its overlapping pairs."""
    better, worse = [], []
    for i, j in _pairs(np.arange(1, len(partners) + 1), partners):
        i, j = test(sweep.columns, sweep.columns, i, j)
        first = sweep.rank[i] < sweep.rank[j]
        better.append(np.where(first, i, j))
        worse.append(np.where(first, j, i))
    keep = np.ones(len(partners), np.bool_)
    if better:
        _suppress(keep, np.concatenate(better), np.concatenate(worse), sweep.rank)
    return np.flatnonzero(keep)


def _suppress(keep: NDArray[np.bool_], better: Indices, worse: Indices, rank: Indices) -> None:
    """Clear ``keep`` where a kept better box overlaps a worse one."""
    for _ in range(ROUNDS):
        if not len(better):
            return
        open_ = np.zeros(len(keep), np.bool_)
        open_[worse] = True  # a box that some undecided better one overlaps
        keep[worse[~open_[better]]] = False
        still = open_[better] & keep[better] & keep[worse]
        better, worse = better[still], worse[still]
    turn = np.argsort(rank[better], kind="stable")
    flags = keep.tolist()
    for i, j in zip(better[turn].tolist(), worse[turn].tolist(), strict=True):
        if flags[i]:
            flags[j] = False
    keep[:] = flags


def _survivors(head: _Sweep, rest: _Sweep, test: _Test) -> Indices:
    """The places of ``rest`` that no box of ``head`` suppresses."""
    alive = np.ones(len(rest.rank), np.bool_)
    # a partner to the left reaches this far: as wide as the overlap allows, or as the widest is
    left = np.minimum(
        head.reach / max(1 - test.slack, 1e-9), rest.reach.max() if len(rest.reach) else 0.0
    )
    starts = np.searchsorted(rest.key, head.key - left, side="left")
    ends = np.searchsorted(rest.key, head.key + head.reach, side="right")
    for i, j in _pairs(starts, ends - starts):
        alive[test(head.columns, rest.columns, i, j)[1]] = False
    return np.flatnonzero(alive)


def _pairs(starts: Indices, counts: Indices) -> Any:
    """The pairs ``(i, starts[i] + k)`` for k below ``counts[i]``, in chunks of bounded size."""
    ends = np.cumsum(counts)
    row = 0
    while row < len(counts):
        before = int(ends[row - 1]) if row else 0
        stop = max(row + 1, int(np.searchsorted(ends, before + CHUNK_PAIRS, side="right")))
        part = counts[row:stop]
        total = int(ends[stop - 1]) - before
        if total:
            i = np.repeat(np.arange(row, stop), part)
            shift = starts[row:stop] - (ends[row:stop] - part - before)
            j = np.repeat(shift, part)
            j += np.arange(total)
            yield i, j
        row = stop
