"""Augmentation: pictures that could have been taken as well, drawn anew each time they are seen.

The geometry and the colours are kornia's, imported only where one of its augmentations is on. Every
draw comes from the generator that the caller gives, so a run that was resumed sees the pictures
that it would have seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from edgecv.errors import InputError, RecipeError
from edgecv.spec import Preparation
from edgecv.train.draws import Among, seeded
from edgecv.train.lighting import ColorStatistics, shift_colors
from edgecv.train.mix import mix
from edgecv.train.pixels import normalize, standardize

_UNIT = ("probability", "hflip", "vflip", "crop", "perspective", "solarize", "solarize_from")
_OF_THE_BATCH = ("forward_input_shape", "order")  # of what kornia draws: not one a picture
_LIMITS = {"rotation": 180.0, "shear": 80.0, "hue": 0.5}  # degrees, degrees, turns


@dataclass(frozen=True)
class AugmentSettings:
    """A recipe's ``[train.augment]`` table. Each strength is 0 where it is off, as all are here.

    A shift by whole pixels (a random crop of the picture with its border reflected) and the plain
    horizontal flip are the [train] table's own ``shift`` and ``flip``.
    """

    probability: float = 1.0  # of each of rotation+shear, perspective, elastic, colours; a picture
    hflip: float = 0.0  # probability of a horizontal flip
    vflip: float = 0.0  # probability of a vertical flip
    crop: float = 0.0  # share of the area that a random resized crop may cut off; Inception: 0.92
    crop_aspect: float = 4 / 3  # that crop's aspect, from 1 / this to this times the picture's
    rotation: float = 0.0  # degrees, up to, either way
    shear: float = 0.0  # degrees, up to, along x and y, either way
    perspective: float = 0.0  # how far a corner moves in, up to: share of half the picture's side
    elastic: float = 0.0  # local warping: root mean square of a pixel's displacement, in pixels
    elastic_smooth: float = 4.0  # pixels: the sigma by which the displacements are smoothed
    brightness: float = 0.0  # factor from 1 - this to 1 + this
    contrast: float = 0.0  # likewise
    saturation: float = 0.0  # likewise
    hue: float = 0.0  # turns of the colour circle, up to 0.5, either way
    pca: float = 0.0  # sigma of the shifts along the colours' principal axes; AlexNet: 0.1
    solarize: float = 0.0  # probability of inverting what is brighter than solarize_from
    solarize_from: float = 0.5  # brightness, 0 to 1
    mixup: float = 0.0  # alpha of Beta(alpha, alpha), which the share of a second picture is from
    cutmix: float = 0.0  # alpha likewise, for the area of the patch that a second picture gives

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            low = 1.0 if field.name == "crop_aspect" else 0.0
            high = 1.0 if field.name in _UNIT else _LIMITS.get(field.name, math.inf)
            if not (low <= value <= high and math.isfinite(value)):
                wanted = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
                raise RecipeError(f"{field.name}: expected a number {wanted}, got {value}")
        if self.crop == 1:
            raise RecipeError("crop: 1 leaves nothing of a picture; try 0.92 or less")
        if self.elastic and self.elastic_smooth < 0.5:
            raise RecipeError(
                f"elastic_smooth: expected at least 0.5 pixels, got "
                f"{self.elastic_smooth:g}; less moves neighbours independently"
            )

    @property
    def mixes(self) -> bool:
        """Whether labels become shares of classes."""
        return self.mixup > 0 or self.cutmix > 0


class Augmenter:
    """Augments batches as ``settings`` say.

    ``statistics`` of the training pictures' colours are needed for ``pca``, the number of
    ``classes`` for ``mixup`` and ``cutmix``.
    """

    def __init__(
        self,
        settings: AugmentSettings,
        *,
        statistics: ColorStatistics | None = None,
        classes: int = 0,
    ) -> None:
        if settings.pca and statistics is None:
            raise InputError("train.augment.pca needs the statistics of the pictures' colours")
        if settings.mixes and classes < 2:
            raise RecipeError(
                "train.augment: mixup and cutmix mix labels, and need at least 2 classes; this "
                "task has no labels to mix: set both to 0"
            )
        self.settings = settings
        self.statistics = statistics
        self.classes = classes
        self._stages: dict[tuple[int, int], list[Any]] = {}

    @classmethod
    def of(cls, settings: AugmentSettings, pixels: Tensor, classes: int = 0) -> Augmenter:
        """With what ``settings`` need to know of the training pictures, uint8 ``[N, H, W, C]``."""
        if pixels.shape[-1] == 1:
            for key in ("saturation", "hue", "pca"):
                if getattr(settings, key):
                    raise RecipeError(
                        f"train.augment.{key}: the net takes gray pictures, which have no colours "
                        f"to change; set it to 0 (brightness and contrast serve)"
                    )
        statistics = ColorStatistics.of(pixels) if settings.pca else None
        return cls(settings, statistics=statistics, classes=classes)

    def __call__(
        self,
        pixels: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        among: Among | None = None,
    ) -> tuple[Tensor, Tensor]:
        """uint8 ``[n, H, W, 3]`` to float ``[n, 3, H, W]`` of 0 to 1, each picture its own draw.

        ``labels`` int64 ``[n]`` come back as they are, or as float shares ``[n, classes]`` where
        pictures are mixed. Draws depend on ``generator`` and n, not on earlier calls.
        ``pixels`` are the pictures ``among`` a batch, else all of it, as mixing needs it.
        """
        s, among = self.settings, among or Among(len(pixels), slice(None))
        assert among.whole or not s.mixes
        x = pixels.permute(0, 3, 1, 2).float() / 255
        height, width = x.shape[-2:]
        if (height, width) not in self._stages:
            self._stages[height, width] = _stages(s, height, width)
        if stages := self._stages[height, width]:
            with seeded(generator):
                for stage in stages:
                    drawn = stage.forward_parameters(torch.Size((among.count, *x.shape[1:])))
                    x = stage(x, params=_own(drawn, among))
        if s.pca:
            assert self.statistics is not None
            x = shift_colors(x, self.statistics, s.pca, generator, among)
        x = x.clamp(0, 1)
        if s.mixes:
            return mix(x, labels, self.classes, s.mixup, s.cutmix, generator)
        return x, labels

    def inputs(
        self,
        pixels: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        preparation: Preparation,
        among: Among | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As a call, with the net's numbers for pictures; where nothing is on, just those."""
        if self.settings == AugmentSettings():
            return normalize(pixels, preparation), labels
        x, targets = self(pixels, labels, generator, among)
        x = x.contiguous(memory_format=torch.channels_last)
        return standardize(x * 255, preparation), targets


def _own(drawn: dict[str, Tensor], among: Among) -> dict[str, Tensor]:
    """What a stage of kornia's has drawn for a batch, for the pictures ``among`` it.

    kornia 0.8 draws for those pictures only that it will change, 0.9 for all.
    """
    if among.whole:
        return drawn
    every = torch.arange(among.count)
    own = torch.isin(every, every[among.part])
    changed = drawn["batch_prob"] > 0.5
    return {
        key: values
        if key in _OF_THE_BATCH
        else values[own if len(values) == len(own) else own[changed]]
        for key, values in drawn.items()
    }


def _stages(s: AugmentSettings, height: int, width: int) -> list[Any]:
    """kornia's modules, in the order in which they are applied to pictures of this size."""
    colors = s.brightness or s.contrast or s.saturation or s.hue
    if not (
        s.hflip or s.vflip or s.crop or s.rotation or s.shear or s.perspective or s.elastic
    ) and not (colors or s.solarize):
        return []
    try:
        from kornia import augmentation as k

        from edgecv.train.warps import ReflectedPerspective, elastic
    except ImportError as error:
        raise InputError(
            "augmentation needs kornia; install it with: pip install 'edgecv[train]'"
        ) from error
    p = s.probability
    stages: list[Any] = []
    if s.crop:
        own = width / height
        aspect = (own / s.crop_aspect, own * s.crop_aspect)
        scale = (1 - s.crop, 1.0)
        stages.append(k.RandomResizedCrop((height, width), scale, aspect, cropping_mode="resample"))
    if s.hflip:
        stages.append(k.RandomHorizontalFlip(p=s.hflip))
    if s.vflip:
        stages.append(k.RandomVerticalFlip(p=s.vflip))
    if s.rotation or s.shear:
        shear = (-s.shear, s.shear, -s.shear, s.shear)
        stages.append(k.RandomAffine(s.rotation, shear=shear, padding_mode="reflection", p=p))
    if s.perspective:
        stages.append(ReflectedPerspective(s.perspective, p=p))
    if s.elastic:
        stages.append(elastic(s.elastic, s.elastic_smooth, height, width, p))
    if colors:
        stages.append(k.ColorJitter(s.brightness, s.contrast, s.saturation, s.hue, p=p))
    if s.solarize:
        threshold = (s.solarize_from, s.solarize_from)
        stages.append(k.RandomSolarize(threshold, additions=0.0, p=s.solarize))
    return stages
