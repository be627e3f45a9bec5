"""Augmentation that moves places: mirrored, zoomed and shifted views of a picture.

Pictures, masks, boxes and points go through one map per picture, ``view = input * scale +
offset`` on each axis, a mirrored one having a negative scale. Coordinates are continuous: the
centre of the first pixel is 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from edgecv.errors import RecipeError
from edgecv.train.settings import at_least


@dataclass(frozen=True)
class ViewSettings:
    """Keys of [train] for the tasks whose answers are places: how pictures are varied."""

    classes: str = ""  # a file that maps the data's classes to the labels, as `edgecv eval` has it
    flip: bool = True  # mirror every second picture
    zoom: float = 0.25  # sizes from 1 / (1 + this) to 1 + this
    shift: float = 0.1  # of the input's width and height, up to, either way

    def __post_init__(self) -> None:
        at_least("zoom", self.zoom, 0)
        if not 0 <= self.shift < 1:
            raise RecipeError(f"shift: expected a share from 0 to below 1, got {self.shift}")


@dataclass(frozen=True, eq=False)
class Views:
    """One view for each of n pictures; ``scale`` and ``offset`` are float ``[n, 2]``, x and y.

    ``identity``: no picture of the batch that they were drawn for is moved, and none is resampled.
    """

    scale: Tensor
    offset: Tensor
    height: int
    width: int
    identity: bool

    @classmethod
    def draw(
        cls, n: int, height: int, width: int, settings: ViewSettings, generator: torch.Generator
    ) -> Views:
        """The same for the same ``n`` and ``generator``; identity where all settings are off."""
        draws = torch.rand((n, 4), generator=generator)
        size = torch.tensor([width, height], dtype=torch.float32)
        zoom = (1 + settings.zoom) ** (2 * draws[:, :1] - 1)  # bigger as often as smaller
        moved = (2 * draws[:, 1:3] - 1) * settings.shift * size
        scale = zoom.expand(n, 2).clone()
        offset = (size / 2) * (1 - scale) + moved  # zoomed about the middle
        mirrored = draws[:, 3] < (0.5 if settings.flip else 0.0)
        scale[mirrored, 0] *= -1
        offset[mirrored, 0] = width - offset[mirrored, 0]
        identity = bool((scale == 1).all() and (offset == 0).all())
        return cls(scale, offset, height, width, identity)

    def part(self, which: slice) -> Views:
        return Views(self.scale[which], self.offset[which], self.height, self.width, self.identity)

    @property
    def mirrored(self) -> Tensor:
        """bool ``[n]``."""
        return self.scale[:, 0] < 0

    def pixels(self, pixels: Tensor, pad: int) -> Tensor:
        """uint8 ``[n, H, W, C]`` to float ``[n, H, W, C]`` of 0 to 255, ``pad`` outside."""
        if self.identity:
            return pixels.float()
        x = pixels.permute(0, 3, 1, 2).float() - pad
        seen = grid_sample(x, self._grid(), align_corners=False) + pad
        return seen.permute(0, 2, 3, 1)

    def masks(self, masks: Tensor, outside: int) -> Tensor:
        """Class numbers ``[n, H, W]`` by the nearest pixel, ``outside`` where there is none."""
        if self.identity:
            return masks
        # no class is 0 in here: that is what grid_sample puts outside
        x = (masks - outside).float()[:, None]
        return grid_sample(x, self._grid(), "nearest", align_corners=False)[:, 0].long() + outside

    def boxes(self, boxes: Tensor, picture: Tensor) -> Tensor:
        """Boxes xyxy ``[m, 4]``, those of the pictures ``[m]``; not clipped."""
        scale, offset = self.scale[picture], self.offset[picture]
        a, b = boxes[:, :2] * scale + offset, boxes[:, 2:] * scale + offset
        return torch.cat([torch.minimum(a, b), torch.maximum(a, b)], 1)

    def points(self, points: Tensor) -> Tensor:
        """Points ``[n, K, 2]`` of the n pictures; their order stays."""
        return points * self.scale[:, None] + self.offset[:, None]

    def _grid(self) -> Tensor:
        """grid_sample's ``[n, H, W, 2]``: where in the input, from -1 to 1, a view's pixel lies."""
        sizes = (self.width, self.height)
        axes = []
        for axis, size in enumerate(sizes):
            place = torch.arange(size) + 0.5
            place = (place - self.offset[:, axis, None]) / self.scale[:, axis, None]
            axes.append(2 * place / size - 1)
        n = len(self.scale)
        columns = axes[0][:, None, :].expand(n, self.height, self.width)
        rows = axes[1][:, :, None].expand(n, self.height, self.width)
        return torch.stack([columns, rows], -1)
