"""``edgecv train`` with a [train.quantized] table: quantization-aware fine-tuning.

It starts from the INT8 file that ``edgecv quantize`` wrote, its ranges and its integers, and from
the weights of the FP32 file that it was made of; it ends with the same graph and other constants.
BatchNorm is folded in both already.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgecv import __version__
from edgecv.errors import InputError, RecipeError
from edgecv.export.recipe import Recipe
from edgecv.files import sha256_of, write_json
from edgecv.graph.upgrade import read_onnx, upgrade
from edgecv.measure import selftest
from edgecv.measure.compare import compare
from edgecv.model import load
from edgecv.quantize.gradients.net import QuantizedNet
from edgecv.quantize.targets import policy_for
from edgecv.spec import ModelSpec, Preparation, read_spec, write_spec
from edgecv.train.distill import DistilledTask
from edgecv.train.job import find_file
from edgecv.train.loop import Report, train
from edgecv.train.settings import TrainConfig
from edgecv.train.task import Task
from edgecv.workflows.proof import REFERENCE_RUNTIME, seeded_answers
from edgecv.workflows.teacher import gives_logits, teacher_from


@dataclass(frozen=True)
class QuantizedSettings:
    """The [train.quantized] table."""

    file: str = ""  # the INT8 file to start from; relative to --data, or to where the command runs
    parent: str = ""  # the FP32 file that it was made of: weights to start from, and the teacher
    distill: float = 0.5  # share of the loss that is the distance to the parent's answers

    def __post_init__(self) -> None:
        for key in ("file", "parent"):
            if not getattr(self, key):
                raise RecipeError(f"{key}: is missing; expected an ONNX file")
        if not 0 <= self.distill <= 1:
            raise RecipeError(f"distill: expected a share from 0 to 1, got {self.distill}")


class Logits(nn.Module):
    """A net of one output as the loop has it: pictures to logits."""

    def __init__(self, net: QuantizedNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: Tensor) -> Tensor:
        outputs: dict[str, Tensor] = self.net(batch)
        (logits,) = outputs.values()
        return logits


@dataclass(frozen=True)
class Start:
    """The two files, and the contract of the first; ``preparation`` is what its pictures want."""

    file: Path
    parent: Path
    spec: ModelSpec
    distill: float

    @property
    def preparation(self) -> Preparation:
        return self.spec.preparation

    @property
    def identity(self) -> dict[str, str]:
        """What a run that is continued has to have begun with."""
        return {key: sha256_of(getattr(self, key)) for key in ("file", "parent")}


@dataclass(frozen=True)
class QuantizedResult:
    """``scores`` (0 to 1) are those of the file that was written, ``before`` of the one to start
    from."""

    path: Path
    log: Path
    size_bytes: int
    scores: Mapping[str, float]
    before: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        files = {"path": str(self.path), "log": str(self.log)}
        before = {f"{key}_before": value for key, value in self.before.items()}
        return {**files, "size_bytes": self.size_bytes, **self.scores, **before}


def read_start(recipe: Recipe, settings: QuantizedSettings, data: Path) -> Start:
    """The files of ``settings``, which must be ones of ``recipe``'s classes."""
    complaint = "there is no such file; see train.quantized"
    file, parent = (find_file(data, name, complaint) for name in (settings.file, settings.parent))
    spec, float_spec = read_spec(file), read_spec(parent)
    if spec.precision != "int8" or not spec.target:
        raise InputError(f"{file}: is {spec.precision}; expected a file of `edgecv quantize`")
    if float_spec.precision != "fp32":
        raise InputError(f"{parent}: is {float_spec.precision}; expected the FP32 file of {file}")
    if not gives_logits(spec):
        raise InputError(
            f"{file}: takes {spec.inputs[0].dtype}, gives {spec.decoding.kind}; expected a "
            f"classifier with a float input and logits (quantize it without --pixels-in)"
        )
    if spec.labels != recipe.labels:
        raise InputError(f"{file}: its labels are not those of the recipe {recipe.name}")
    return Start(file, parent, spec, settings.distill)


def train_quantized(
    start: Start,
    task: Task,
    config: TrainConfig,
    folder: Path,
    about: Mapping[str, Any],
    report: Report,
    write: bool = True,
) -> QuantizedResult:
    """Fine-tune the file ``start`` on ``task``; ``folder`` gets a file of the same name.

    ``about`` (JSON values) is what the run depends on besides: it goes into the file's provenance,
    and a run of another cannot be continued. ``write``: of several processes the first one does.
    """
    path = folder / start.file.name
    if os.path.realpath(path) == os.path.realpath(start.file):
        raise InputError(f"{path}: is the file to start from; give another output folder")
    policy = policy_for(start.spec.target or "")
    graph: ir.Model = ir.from_proto(read_onnx(start.file))
    parent = upgrade(read_onnx(start.parent), start.parent)
    net = Logits(QuantizedNet(graph, policy, parent))
    before = _scores(net, task)
    if start.distill:
        teacher = teacher_from(start.parent, start.preparation)
        task = DistilledTask(task, teacher, start.distill)
    log = train(net, task, config, folder, report, {**about, **start.identity})
    net.cpu().eval()
    written = net.net.write()
    scores = _scores(Logits(QuantizedNet(written, policy)), task)
    learned = {
        "run": dict(about),
        "edgecv": __version__,
        "torch": torch.__version__,
        "epochs": len(log),
        "start": start.identity,
        "before": before,
        "after": scores,
    }
    spans = {name: [one.lo, one.hi, one.method] for name, one in net.net.ranges().items()}
    data: bytes = ir.to_proto(written).SerializeToString(deterministic=True)
    log_path = path.with_suffix(".log.json")
    if not write:
        return QuantizedResult(path, log_path, 0, scores, before)
    with tempfile.TemporaryDirectory(prefix="edgecv-") as name:
        draft = Path(name) / path.name
        write_spec(data, _contract(start, learned, spans), draft)
        write_spec(draft, _proven(draft, start.parent), path)
    write_json(log_path, {**learned, "epochs": list(log)})
    return QuantizedResult(path, log_path, path.stat().st_size, scores, before)


def _scores(net: nn.Module, task: Task) -> dict[str, float]:
    net.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    with torch.no_grad():
        return task.evaluate(net)


def _contract(start: Start, learned: Mapping[str, Any], spans: Mapping[str, Any]) -> ModelSpec:
    """What was measured of the file before does not hold any more."""
    spec = start.spec
    kept = {key: value for key, value in spec.quantization.items() if key != "proof"}
    ranges = {name: spans.get(name, span) for name, span in spec.quantization["ranges"].items()}
    return replace(
        spec,
        provenance={**spec.provenance, "learned": dict(learned)},
        quantization={**kept, "ranges": ranges},
        self_test={},
        parity={},
    )


def _proven(draft: Path, parent: Path) -> ModelSpec:
    """The contract of ``draft`` with a self-test, and the parity that it was measured with."""
    with (
        load(draft, backend=REFERENCE_RUNTIME) as after,
        load(parent, backend=REFERENCE_RUNTIME) as before,
    ):
        mine, theirs = seeded_answers(after), seeded_answers(before)
    found = compare(mine, theirs)
    return replace(
        read_spec(draft),
        self_test=selftest.record(mine, found.max_rel, selftest.SEED),
        parity={
            **found.to_dict(),
            "reference": f"{parent.stem}, fp32",
            "runtime": REFERENCE_RUNTIME,
        },
    )
