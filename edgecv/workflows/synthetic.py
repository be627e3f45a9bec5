"""Calibration without pictures: a folder of synthetic ones, while the torch net is at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from edgecv.export.recipe import Calibration
from edgecv.export.synthetic import Settings, informative_norms, synthesize
from edgecv.preprocess import unfit_pixels
from edgecv.progress import Progress
from edgecv.spec import Preparation
from edgecv.workflows.heldout import Warn

POOR = 0.25  # of the noise's loss: two of three deviations were not made up for, in quadrature


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
    nothing tells them from photographs.
    """
    informative_norms(model)  # says what is wrong before the warning does
    warn(
        f"there are no calibration pictures (--calibration DIR): the integers get their ranges "
        f"from {wanted.pictures} synthetic ones, made from the statistics in the net's "
        f"BatchNorms. They cost signal (benchmarks/README.md has the figures), and the proof is "
        f"made on synthetic pictures as well: it does not say how many answers change on real "
        f"ones. Better: --calibration DIR with 100 pictures like those that the model will see. "
        f"At least: edgecv verify FILE --against NAME --data DIR"
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
