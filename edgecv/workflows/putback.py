"""``--max-drop`` that acts: layers go back to float until pictures say that the file holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecv.errors import InputError
from edgecv.quantize.pipeline import Quantized, Quantizer
from edgecv.spec import ModelSpec
from edgecv.workflows.evaluate import labelled_pictures
from edgecv.workflows.heldout import HeldOut, Seen, Warn
from edgecv.workflows.proof import Drop

JUDGES = 200  # pictures at most; each step runs them through both files
STEPS = 8  # each halves the error that may be left: 1/256 of it is noise beside the weights' own


@dataclass(frozen=True)
class Try:
    """With ``nodes`` in float, which leave an error of at most ``limit``, the file ``drops`` so
    much on the half of the judges that sees more of it."""

    limit: float
    nodes: int
    drop: Drop

    def to_dict(self) -> dict[str, Any]:
        return {"limit": self.limit, "nodes": self.nodes, **self.drop.to_dict()}


def judges_of(
    spec: ModelSpec,
    calibration: Path,
    rest: list[Path],
    drawn: list[Path],
    scored: bool,
    warn: Warn,
) -> list[HeldOut]:
    """Pictures of the folder ``calibration`` that decide what is put back: every second one of
    ``rest``, so that a proof on the others has not been decided by them. They are two halves, and
    the one that sees the larger drop decides: the search stops at the first file that fits, so one
    judge would let a file pass by luck as often as it turns one away.

    ``scored``: the proof is a score by labels; then the judges are too, where the folder has
    labels. Otherwise both count disagreement, of which a score sees a part only.
    """
    pictures = rest[::2][:JUDGES]
    if not pictures:
        warn("no picture is left to decide what is put back to float: those that calibrated do it")
        return [HeldOut(drawn)]
    halves = [half for half in (pictures[::2], pictures[1::2]) if half]
    try:
        labelled = scored and spec.task != "embed" and bool(labelled_pictures(spec, calibration))
    except InputError:
        labelled = False
    if not labelled:
        return [HeldOut(half) for half in halves]
    return [HeldOut(half, calibration, _all_but(Seen(half))) for half in halves]


def _all_but(mine: Seen) -> Callable[[Path], bool]:
    return lambda path: not mine(path)


def put_back_until(
    quantizer: Quantizer, start: Quantized, most: float, drop: Callable[[Quantized], Drop]
) -> tuple[Quantized, list[Try]]:
    """The copy that puts back the least and drops at most ``most`` points, which ``start`` was
    seen not to do; where none is, the one that drops least. The limit is halved at each step."""
    best, least = start, drop(start)
    kept = start.kept
    before = quantizer.error if start.put_back is None else start.put_back.after
    tries = [Try(before, len(kept), least)]
    for step in range(1, STEPS + 1):
        limit = before / 2**step
        found = quantizer.quantize(limit)
        if not found.plan.units:  # all of it is float: that is the parent, not a quantized file
            break
        if found.kept == kept:
            continue
        kept, got = found.kept, drop(found)
        tries.append(Try(limit, len(kept), got))
        if got.points <= most:
            return found, tries
        if got.points < least.points:
            best, least = found, got
    return best, tries
