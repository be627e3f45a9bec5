"""Learning to classify: one label a picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from edgecv.errors import RecipeError
from edgecv.models.layers import AuxiliaryClassifier
from edgecv.spec import Preparation
from edgecv.train.augment import Augmenter, AugmentSettings
from edgecv.train.balance import balanced_weights
from edgecv.train.data import LabelledPictures, read_labelled, split
from edgecv.train.draws import Among
from edgecv.train.job import Job, Prepared
from edgecv.train.pixels import check_shift, normalize, shift_and_flip
from edgecv.train.settings import at_least, one_of
from edgecv.train.task import Batch, device_of

SCORED = 250  # pictures at a time
AUXILIARY_WEIGHT = 0.3  # of an inner classifier's loss: Szegedy et al., arXiv:1409.4842, section 5


@dataclass(frozen=True)
class ClassifySettings:
    """A classifier's keys of a recipe's [train] table."""

    label_smoothing: float = 0.1  # Szegedy et al., arXiv:1512.00567
    shift: int = 8  # pixels: random translation, the border reflected
    flip: bool = True
    class_weights: str = "none"  # or balanced: a class counts by the inverse of its frequency

    def __post_init__(self) -> None:
        one_of("class_weights", self.class_weights, ("none", "balanced"))
        at_least("shift", self.shift, 0)
        if not 0 <= self.label_smoothing < 1:
            raise RecipeError(f"label_smoothing: expected 0 to below 1, got {self.label_smoothing}")


class ClassificationTask:
    """See :class:`edgecv.train.task.Task`. The net gives logits ``[N, classes]``, or in training
    a tuple of them, the main head's first."""

    metric = "top1"

    def __init__(
        self,
        pictures: LabelledPictures,
        held_out: LabelledPictures,
        preparation: Preparation,
        settings: ClassifySettings,
        augment: AugmentSettings = AugmentSettings(),  # noqa: B008 (frozen)
    ) -> None:
        check_shift(settings.shift, preparation)
        self.pictures, self.held_out = pictures, held_out
        self.augmenter = Augmenter.of(augment, pictures.pixels, len(pictures.classes))
        self.preparation, self.settings = preparation, settings
        self.weights = class_weights(pictures, settings)

    def order(self, generator: torch.Generator) -> Tensor:
        return torch.randperm(len(self.pictures.labels), generator=generator)

    def plain(self, index: Tensor) -> Tensor:
        return normalize(self.pictures.pixels[index], self.preparation)

    def held_out_inputs(self, index: Tensor) -> Tensor:
        """The held-out pictures at ``index``, as at inference."""
        return normalize(self.held_out.pixels[index], self.preparation)

    def draw(self, index: Tensor, part: slice, generator: torch.Generator) -> Batch:
        settings, mixes = self.settings, self.augmenter.settings.mixes
        # the picture that one is mixed with may be in another process' part
        among = Among(len(index), slice(None) if mixes else part)
        own = index[among.part]
        pixels = shift_and_flip(
            self.pictures.pixels[own], settings.shift, settings.flip, generator, among
        )
        inputs, targets = self.augmenter.inputs(
            pixels, self.pictures.labels[own], generator, self.preparation, among
        )
        labels = self.pictures.labels[index]
        if mixes:  # shares of classes are averaged over pictures, whatever their classes weigh
            return Batch(inputs[part], targets[part], share_of(labels, part, None))
        return Batch(inputs, targets, share_of(labels, part, self.weights))

    def loss(self, outputs: Tensor | tuple[Tensor, ...], targets: Tensor) -> Tensor:
        main, *inner = outputs if isinstance(outputs, tuple) else (outputs,)
        weights = None if self.weights is None else self.weights.to(main.device)
        own, *others = (
            cross_entropy(logits, targets, weights, label_smoothing=self.settings.label_smoothing)
            for logits in (main, *inner)
        )
        return own + AUXILIARY_WEIGHT * sum(others)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """``top1``: the part of the held-out pictures that is right, from 0 to 1."""
        device, labels, right = device_of(model), self.held_out.labels, 0
        for index in torch.split(torch.arange(len(labels)), SCORED):
            answers = model(self.held_out_inputs(index).to(device)).argmax(1).cpu()
            right += int((answers == labels[index]).sum())
        return {"top1": right / len(labels)}


class _WithAuxiliary(nn.Module):
    """In training the logits of all heads of ``net``, else its own."""

    def __init__(self, net: AuxiliaryClassifier) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        if self.training:
            return self.net.training_logits(x)
        logits: Tensor = self.net(x)
        return logits


def learner(net: nn.Module) -> nn.Module:
    """``net``, whose auxiliary heads learn with it where it has some."""
    if isinstance(net, AuxiliaryClassifier) and net.auxiliary:
        return _WithAuxiliary(net)
    return net


def class_weights(pictures: LabelledPictures, settings: ClassifySettings) -> Tensor | None:
    """Of each class by its frequency, None where all count alike."""
    if settings.class_weights == "none":
        return None
    counts = torch.bincount(pictures.labels, minlength=len(pictures.classes))
    return balanced_weights(counts)


def share_of(labels: Tensor, part: slice, weights: Tensor | None) -> float:
    """What ``labels[part]`` weighs in the mean over ``labels``."""
    if weights is None:
        return len(labels[part]) / len(labels)
    return (weights[labels[part]].sum() / weights[labels].sum()).item()


def prepare(job: Job) -> Prepared:
    """Read ``job``'s pictures, a folder per class."""
    settings = job.flat(ClassifySettings)
    augment = job.table("augment", AugmentSettings)
    job.done()
    if job.decoding.kind != "logits":
        raise RecipeError(
            f"{job.where}: classifiers learn one class a picture, by a softmax of logits, and this "
            f"recipe's output.decode is {job.decoding.kind}; give a net of logits, output.decode = "
            f'"logits"'
        )
    pictures, held_out = labelled(job)
    task = ClassificationTask(pictures, held_out, job.preparation, settings, augment)
    return Prepared(task, pictures.classes, learner)


def labelled(job: Job) -> tuple[LabelledPictures, LabelledPictures]:
    """The pictures to learn from and those held out, with the recipe's labels or their own."""
    pictures = read_labelled(job, job.files.data, "data", job.labels, others=not job.fixed_labels)
    if not job.files.held_out:
        return split(pictures, job.files.split, job.seed)
    return pictures, read_labelled(job, job.files.held_out, "held_out", pictures.classes)
