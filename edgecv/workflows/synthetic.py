"""Calibration without pictures: a folder of synthetic ones, while the torch net is at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from edgecv.export.recipe import Calibration
from edgecv.export.synthetic import Settings, synthesize
from edgecv.preprocess import unfit_pixels
from edgecv.progress import Progress
from edgecv.spec import Preparation
from edgecv.workflows.heldout import Warn

POOR = 0.25  # of the noise's loss, which is of squares: half of the way is left


def synthetic_folder(
    model: nn.Module,
    preparation: Preparation,
    wanted: Calibration,
    folder: Path,
    progress: Progress,
    warn: Warn,
) -> dict[str, Any]:
    """Fill ``folder``, which is made, with the pictures ``wanted``; returns how they were made.

    They are PNG files of which ``preparation`` makes what was optimized, to the bit: from there on
    nothing tells them from photographs. Raises as :func:`edgecv.export.synthetic.synthesize` does.
    """
    warn(
        f"there are no calibration pictures (--calibration DIR): the integers get their ranges "
        f"from {wanted.pictures} synthetic ones (calibration.pictures of the recipe), made from "
        f"the statistics in the net's BatchNorms. What that costs differs from net to net, and "
        f"nobody has seen it of this one: the proof is made on synthetic pictures as well, and "
        f"does not say how many answers change on real ones. Better: --calibration DIR with 100 "
        f"pictures like those that the model will see. At least: edgecv verify FILE --against "
        f"NAME --data DIR"
    )
    made = synthesize(
        model, preparation, Settings(count=wanted.pictures, seed=wanted.seed), progress
    )
    if made.loss > POOR * made.noise:
        warn(
            f"the synthetic pictures fit the net's statistics badly: {made.loss:.3g} after "
            f"{made.settings.steps} steps, {made.noise:.3g} before; expect a poor INT8 file"
        )
    folder.mkdir()
    for index, pixels in enumerate(made.pixels):
        unfit_pixels(pixels, preparation).save(folder / f"{index:04}.png")
    return made.to_dict()
