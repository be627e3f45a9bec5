"""Batches for tasks whose answers are places: views of the pictures, in varied colours."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from edgecv.errors import RecipeError
from edgecv.spec import ModelSpec
from edgecv.train.augment import Augmenter, AugmentSettings
from edgecv.train.draws import Among
from edgecv.train.fitted import FittedPictures
from edgecv.train.job import Job
from edgecv.train.pixels import normalize
from edgecv.train.views import Views, ViewSettings

COLORS: tuple[str, ...] = ("probability", "brightness", "contrast", "saturation", "hue", "pca")
COLORS += ("solarize", "solarize_from")
SEEN = 200  # pictures from which the colours' statistics are taken


class Variation:
    """What is drawn for a batch: a view of each picture, then its colours."""

    def __init__(
        self, pictures: FittedPictures, settings: ViewSettings, augment: AugmentSettings
    ) -> None:
        self.pictures, self.settings = pictures, settings
        every = torch.arange(len(pictures))
        sample = pictures.pixels(every[:: -(-len(every) // SEEN)])
        self.augmenter = Augmenter.of(augment, sample)

    def __call__(
        self, index: Tensor, part: slice, generator: torch.Generator
    ) -> tuple[Tensor, Views]:
        """The net's inputs ``[n, C, H, W]`` for the pictures ``index[part]`` of a batch, and their
        views; drawn as for the whole batch, read and computed for the part."""
        p, own = self.pictures.preparation, index[part]
        views = Views.draw(len(index), p.height, p.width, self.settings, generator).part(part)
        pixels = views.pixels(self.pictures.pixels(own), p.pad_value)
        among = Among(len(index), part)
        return self.augmenter.inputs(pixels, own, generator, p, among)[0], views


class Places(Protocol):
    """A data set of places: its pictures, whatever is labelled in them."""

    @property
    def pictures(self) -> FittedPictures: ...


D = TypeVar("D", bound=Places)
S = TypeVar("S")


class PlaceTask(Generic[D, S]):
    """What tasks whose answers are places share; ``terms`` says what their loss is made of."""

    def __init__(
        self, data: D, held_out: D, spec: ModelSpec, variation: Variation, terms: S
    ) -> None:
        self.data, self.held_out, self.spec = data, held_out, spec
        self.variation, self.terms = variation, terms

    def order(self, generator: torch.Generator) -> Tensor:
        return torch.randperm(len(self.data.pictures), generator=generator)

    def plain(self, index: Tensor) -> Tensor:
        return normalize(self.data.pictures.pixels(index), self.spec.preparation)


def color_settings(job: Job) -> AugmentSettings:
    """The job's [train.augment]: only what leaves everything in its place."""
    settings = job.table("augment", AugmentSettings)
    plain = AugmentSettings()
    for key, value in vars(settings).items():
        if key not in COLORS and value != getattr(plain, key):
            raise RecipeError(
                f"{job.where}.augment.{key}: moves or mixes pictures, and the places in them would "
                f"be wrong; boxes, masks and points follow flip, zoom and shift of [train]; here "
                f"are {', '.join(COLORS)}"
            )
    return settings
