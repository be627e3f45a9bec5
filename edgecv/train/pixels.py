"""Pixels of a training set: the plain augmentation, on uint8, and the net's numbers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from edgecv.errors import RecipeError
from edgecv.spec import Preparation
from edgecv.train.draws import Among


def shift_and_flip(
    pixels: Tensor,
    shift: int,
    flip: bool,
    generator: torch.Generator,
    among: Among | None = None,
) -> Tensor:
    """uint8 ``[n, H, W, C]``, each picture moved by up to ``shift`` pixels and mirrored by chance.

    The border is reflected. ``pixels`` are the pictures ``among`` a batch, else all of it.
    """
    n, height, width, _ = pixels.shape
    among, s = among or Among(n, slice(None)), shift
    flips = torch.rand(among.count, generator=generator)[among.part] < (0.5 if flip else 0.0)
    corners = torch.randint(0, 2 * s + 1, (2, among.count), generator=generator)[:, among.part]
    padded = pad(pixels.permute(0, 3, 1, 2).float(), (s, s, s, s), mode="reflect")
    padded = padded.to(torch.uint8).permute(0, 2, 3, 1)
    rows = corners[0][:, None] + torch.arange(height)
    columns = corners[1][:, None] + torch.arange(width)
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    return padded[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


def check_shift(shift: int, preparation: Preparation) -> None:
    """Refuse a ``shift`` by more than a reflected border can give."""
    most = min(preparation.height, preparation.width) - 1
    if shift > most:
        raise RecipeError(
            f"train.shift: {shift} pixels, and an input of {preparation.width}x"
            f"{preparation.height} can be shifted by up to {most}: set it lower"
        )


def normalize(pixels: Tensor, preparation: Preparation) -> Tensor:
    """uint8 ``[n, H, W, C]`` to float ``[n, C, H, W]`` as the contract has it."""
    return standardize(pixels.permute(0, 3, 1, 2).float(), preparation)  # channels_last already


def standardize(x: Tensor, preparation: Preparation) -> Tensor:
    """float ``[n, C, H, W]`` of 0 to 255 to the net's numbers."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (preparation.mean, preparation.std))
    return (x / preparation.divisor - mean) / std
