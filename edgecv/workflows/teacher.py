"""A finished ONNX file as the teacher of a training: ``edgecv train`` with ``[train.distill]``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from edgecv.errors import InputError, RecipeError
from edgecv.model import load
from edgecv.runtimes.info import RuntimeOptions
from edgecv.spec import ModelSpec, Preparation, read_spec
from edgecv.train.distill import DistilledTask, Teacher
from edgecv.train.job import Job, find_file
from edgecv.train.task import Task
from edgecv.workflows.proof import REFERENCE_RUNTIME


@dataclass(frozen=True)
class DistillSettings:
    """The [train.distill] table."""

    teacher: str = ""  # a file of EdgeCV's; relative to --data, or to where the command runs
    weight: float = 0.5  # share of the loss that is the distance to the teacher's answers
    backend: str = REFERENCE_RUNTIME  # what runs the teacher; a name of `edgecv backends`

    def __post_init__(self) -> None:
        if not self.teacher:
            raise RecipeError("teacher: is missing; expected an ONNX file")
        if not 0 < self.weight <= 1:
            raise RecipeError(
                f"weight: expected a share from above 0 to 1, got {self.weight}; leave the table "
                f"out to learn from labels alone"
            )


def teacher_from(path: Path, preparation: Preparation, backend: str = REFERENCE_RUNTIME) -> Teacher:
    """The classifier ``path``: pictures prepared by ``preparation`` to its logits.

    A runtime computes them and not torch: one pass of a finished net takes it a third of the time.
    """
    # no spinning: between two batches the cores are the student's
    options = RuntimeOptions(threads=torch.get_num_threads(), spin=False)
    model = load(path, backend=backend, options=options)
    move = _between(preparation, model.spec.preparation)

    def answer(batch: Tensor) -> Tensor:
        (logits,) = model.infer(move(batch.cpu()).contiguous().numpy()).values()
        return torch.from_numpy(logits)

    return answer


def _between(mine: Preparation, theirs: Preparation) -> Teacher:
    """Pictures as ``mine`` prepares them, as ``theirs`` does: one line per channel."""
    (m, s), (tm, ts) = (
        (torch.tensor(p.mean) * p.divisor, torch.tensor(p.std) * p.divisor) for p in (mine, theirs)
    )
    scale, offset = (v.view(1, -1, 1, 1) for v in (s / ts, (m - tm) / ts))
    return lambda batch: batch * scale + offset


def gives_logits(spec: ModelSpec) -> bool:
    """Whether the file is a classifier that takes float pictures and gives logits."""
    plain = spec.inputs[0].dtype == "float32" and len(spec.outputs) == 1
    return plain and spec.task == "classify" and spec.decoding.kind == "logits"


def distilled(task: Task, settings: DistillSettings, job: Job, labels: tuple[str, ...]) -> Task:
    """``task`` with the teacher that ``settings`` name, a classifier of the same ``labels``."""
    path = teacher_file(settings, job)
    spec = read_spec(path)
    if not gives_logits(spec):
        raise InputError(
            f"{path}: is a file of task {spec.task}, takes {spec.inputs[0].dtype}, gives "
            f"{spec.decoding.kind}; expected a classifier with a float input and logits"
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
    teacher = teacher_from(path, job.preparation, settings.backend)
    return DistilledTask(task, teacher, settings.weight)


def teacher_file(settings: DistillSettings, job: Job) -> Path:
    """Where the teacher is."""
    complaint = "there is no such teacher; see train.distill"
    return find_file(job.folder, settings.teacher, complaint)
