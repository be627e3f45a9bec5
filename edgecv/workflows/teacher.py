"""A finished ONNX file as the teacher of a training: ``edgecv train`` with ``[train.distill]``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from edgecv.errors import InputError, RecipeError
from edgecv.graph.upgrade import read_onnx, upgrade
from edgecv.quantize.gradients.net import QuantizedNet
from edgecv.quantize.targets import policy_for
from edgecv.spec import ModelSpec, Preparation, read_spec
from edgecv.train.distill import DistilledTask
from edgecv.train.job import Job, find_file
from edgecv.train.task import Task

FLOAT_POLICY = "onnxruntime-x86"  # a float graph has no grids that a policy could be about


@dataclass(frozen=True)
class DistillSettings:
    """The [train.distill] table."""

    teacher: str = ""  # an FP32 file of EdgeCV's; relative to --data, or to where the command runs
    weight: float = 0.5  # share of the loss that is the distance to the teacher's answers

    def __post_init__(self) -> None:
        if not self.teacher:
            raise RecipeError("teacher: is missing; expected an ONNX file")
        if not 0 < self.weight <= 1:
            raise RecipeError(
                f"weight: expected a share from above 0 to 1, got {self.weight}; leave the table "
                f"out to learn from labels alone"
            )


class Logits(nn.Module):
    """A net of one output as the loop has it: pictures to logits."""

    def __init__(self, net: QuantizedNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: Tensor) -> Tensor:
        outputs: dict[str, Tensor] = self.net(batch)
        (logits,) = outputs.values()
        return logits


class _Prepared(nn.Module):
    """Pictures as ``mine`` prepares them, as ``theirs`` does: one line per channel."""

    def __init__(self, mine: Preparation, theirs: Preparation) -> None:
        super().__init__()
        self.scale: Tensor
        self.offset: Tensor
        (m, s), (tm, ts) = (
            (torch.tensor(p.mean) * p.divisor, torch.tensor(p.std) * p.divisor)
            for p in (mine, theirs)
        )
        self.register_buffer("scale", (s / ts).view(1, -1, 1, 1))
        self.register_buffer("offset", ((m - tm) / ts).view(1, -1, 1, 1))

    def forward(self, batch: Tensor) -> Tensor:
        moved: Tensor = batch * self.scale + self.offset
        return moved


def teacher_from(path: Path, preparation: Preparation) -> nn.Module:
    """The FP32 classifier ``path``: pictures prepared by ``preparation`` to its logits."""
    net = QuantizedNet(upgrade(read_onnx(path), path), policy_for(FLOAT_POLICY))
    return nn.Sequential(_Prepared(preparation, read_spec(path).preparation), Logits(net))


def gives_logits(spec: ModelSpec) -> bool:
    """Whether the file is a classifier that takes float pictures and gives logits."""
    plain = spec.inputs[0].dtype == "float32" and len(spec.outputs) == 1
    return plain and spec.task == "classify" and spec.decoding.kind == "logits"


def distilled(task: Task, settings: DistillSettings, job: Job, labels: tuple[str, ...]) -> Task:
    """``task`` with the teacher that ``settings`` name, a classifier of the same ``labels``."""
    path = teacher_file(settings, job)
    spec = read_spec(path)
    if spec.precision != "fp32" or not gives_logits(spec):
        raise InputError(
            f"{path}: is a file of task {spec.task}, {spec.precision}, {spec.decoding.kind}; "
            f"expected an FP32 classifier with a float input and logits"
        )
    if spec.labels != labels:
        raise InputError(
            f"{path}: its labels are {', '.join(spec.labels[:5])}, ... ({len(spec.labels)}); "
            f"expected those that are learned, in their order: {', '.join(labels[:5])}, ... "
            f"({len(labels)})"
        )
    mine, theirs = (
        (p.channels, p.height, p.width, p.color) for p in (job.preparation, spec.preparation)
    )
    if mine != theirs:
        raise InputError(
            f"{path}: takes {theirs[2]}x{theirs[1]} pixels, {theirs[0]} channels, {theirs[3]}; "
            f"expected what the net learns on, {mine[2]}x{mine[1]}, {mine[0]}, {mine[3]}"
        )
    return DistilledTask(task, teacher_from(path, job.preparation), settings.weight)


def teacher_file(settings: DistillSettings, job: Job) -> Path:
    """Where the teacher is."""
    complaint = "there is no such teacher; see train.distill"
    return find_file(job.folder, settings.teacher, complaint)
