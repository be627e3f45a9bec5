"""The training loop: devices and processes, rates, checkpoints, logs.

Reproducible: each epoch draws its order, its augmentation and its dropout from generators seeded
by (seed, epoch), and a checkpoint within an epoch keeps their states, so a run that was killed
and resumed goes through the same numbers as one that was not.

Several processes (``accelerate launch``) cut each batch among them: ``batch`` is that of all. The
loss of a batch is the mean over all its samples whatever the number of processes, so that the
curve is the same one. BatchNorm would normalize each part by itself: on GPUs it is made
SyncBatchNorm, elsewhere it must be frozen.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._pytree import tree_map_only

from edgecv.errors import InputError
from edgecv.train import checkpoint
from edgecv.train.batchnorm import learning_norms, train_mode, unfold
from edgecv.train.checkpoint import Position, State
from edgecv.train.journal import Journal
from edgecv.train.schedule import make_optimizer, rate
from edgecv.train.settings import TrainConfig
from edgecv.train.task import Task

CHECKPOINT = "checkpoint.pt"
MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}  # accelerate's words

Report = Callable[[dict[str, Any]], None]


def train(
    model: nn.Module,
    task: Task,
    config: TrainConfig,
    folder: Path,
    report: Report = lambda record: None,
    identity: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Train ``model`` in place; the checkpoint, the log and its curves go to ``folder``.

    A checkpoint of the same run that lies there is continued; one of another is an error, and
    ``identity`` (JSON values; the configuration where it is None) is what tells them apart. The
    result is the last epoch's weights, or the best's, or their moving average, as ``config`` says.
    Parameters that ask for no gradient stay as they are, and so do the statistics of a BatchNorm
    whose parameters are frozen. ``report`` gets a record after each step (``epoch``, ``step``,
    ``steps``, ``epochs``, ``loss``) and after each epoch, which is what the log keeps: ``epoch``,
    ``loss``, the task's scores, ``seconds``. Returns the log.
    """
    with _deterministic():
        run = _Run(model, task, config, folder, report, identity or vars(config))
        try:
            return run.finish()
        finally:
            run.close()


def is_first_process() -> bool:
    """Whether this is the only process of the run, or the first of several, which writes.

    It joins them, and must be called before anything else of accelerate's, which takes processes
    without a GPU for runs of their own unless it is told. ``torchrun`` starts such;
    ``accelerate launch --cpu`` starts one process, whatever number it is given.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    state = PartialState(cpu=cpu or not (alone or torch.cuda.is_available()))
    first: bool = state.is_main_process
    return first


class _Run:
    def __init__(
        self,
        model: nn.Module,
        task: Task,
        config: TrainConfig,
        folder: Path,
        report: Report,
        identity: Mapping[str, Any],
    ) -> None:
        from accelerate import Accelerator

        self.task, self.config, self.report = task, config, report
        self.path, self.identity = folder / CHECKPOINT, identity
        self.epochs = config.epochs + config.finish_epochs
        self.accelerator = Accelerator(mixed_precision=MIXED[config.precision])
        self.processes: int = self.accelerator.num_processes
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        state = checkpoint.load(self.path, identity)
        if state is None:
            unfold(model, task, config)
        self.net, self.smallest = self._synchronized(model), self._smallest_part(model)
        optimizer = make_optimizer(self.net, config)
        self.model, self.optimizer = self.accelerator.prepare(self.net, optimizer)
        self.average = (
            AveragedModel(
                self.net,
                multi_avg_fn=get_ema_multi_avg_fn(config.ema),  # type: ignore[no-untyped-call]
                use_buffers=True,
            )
            if config.ema
            else None
        )
        self.best: dict[str, Any] | None = None
        self.position = Position()
        self.log: list[dict[str, Any]] = []
        if state is not None:
            self._restore(state)
        self._check_processes()
        self.journal = Journal(folder, self.log) if self.accelerator.is_main_process else None
        self.trained = model

    def finish(self) -> list[dict[str, Any]]:
        while self.position.epoch < self.epochs and not self._stopped_early():
            self._epoch()
        self.trained.load_state_dict(self.best or self._result().state_dict())
        return self.log

    def close(self) -> None:
        if self.journal is not None:
            self.journal.close()

    def _epoch(self) -> None:
        started = time.monotonic()
        epoch, seed = self.position.epoch, self.config.seed
        generator = torch.Generator().manual_seed(seed * 10_000 + epoch + 1)
        order = self.task.order(generator)
        # dropout draws from the global generator, and differs between processes
        torch.manual_seed(seed * 10_000 + epoch + 1_000_003 * self.accelerator.process_index)
        self._set_random(generator)
        loss = self._steps(_cut(order, self.config.batch, self.smallest), generator, started)
        record = {
            "epoch": epoch + 1,
            "loss": round(loss / len(order), 4),
            **{key: round(value, 4) for key, value in self._scores().items()},
            "seconds": round(time.monotonic() - started, 1),
        }
        self.log.append(record)
        metric = self.task.metric
        if self.config.keep == "best" and self._best_epoch() == len(self.log) - 1:
            self.best = copy.deepcopy(self._result().state_dict())
        self.position = Position(epoch + 1)
        self._save()
        if self.journal is not None:
            self.journal.write(self.log)
        assert metric in record, f"the task's metric {metric!r} is not among its scores"
        self.report(record)

    def _steps(self, batches: list[Tensor], generator: torch.Generator, started: float) -> float:
        """The epoch's remaining steps; the sum of its samples' losses."""
        epoch, steps = self.position.epoch, len(batches)
        train_mode(self.model, self.config.norms)
        saved = started
        for step in range(self.position.step, steps):
            index = batches[step]
            for group in self.optimizer.param_groups:
                group["lr"] = group["scale"] * rate(self.config, epoch * steps + step, steps)
            loss = self._step(index, generator, f"epoch {epoch + 1}, step {step + 1}")
            self.position.step, self.position.total = (
                step + 1,
                self.position.total + loss * len(index),
            )
            self.report(
                {
                    "epoch": epoch + 1,
                    "step": step + 1,
                    "steps": steps,
                    "epochs": self.epochs,
                    "loss": loss,
                }
            )
            # a process' own dropout is not in another's checkpoint: several save between epochs
            due = time.monotonic() - saved > 60 * self.config.save_minutes
            if due and self.processes == 1 and step + 1 < steps:
                self._check(f"epoch {epoch + 1}, step {step + 1}")
                self._keep_random(generator)
                self._save()
                saved = time.monotonic()
        self._check(f"epoch {epoch + 1}, step {steps}")
        return self.position.total

    def _step(self, index: Tensor, generator: torch.Generator, where: str) -> float:
        part = self._part(len(index))
        batch = self.task.draw(index, part, generator)
        device = self.accelerator.device
        outputs = self.model(batch.inputs.to(device))
        targets = tree_map_only(Tensor, lambda t: t.to(device), batch.targets)
        loss = self.task.loss(outputs, targets)
        # gradients are averaged over the processes: that of each counts by its share
        loss = loss * (batch.share * self.processes)
        value: float = self.accelerator.reduce(loss.detach(), "mean").item()
        if not math.isfinite(value):
            raise InputError(
                f"the loss is {value} at {where}; the last checkpoint is kept; try a lower lr than "
                f"{self.config.lr}, or clip_norm"
            )
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        if self.config.clip_norm:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.net)
        return value

    def _scores(self) -> dict[str, float]:
        """Scored once, in the first process, and told to the others."""
        from accelerate.utils import broadcast_object_list

        scores: list[Any] = [None]
        if self.accelerator.is_main_process:
            net = self._result()
            net.eval()
            with torch.no_grad():
                scores = [self.task.evaluate(net)]
        told: dict[str, float] = broadcast_object_list(scores)[0]
        return told

    def _result(self) -> nn.Module:
        return self.net if self.average is None else self.average.module

    def _best_epoch(self) -> int:
        scores = [record[self.task.metric] for record in self.log]
        return scores.index(max(scores))

    def _stopped_early(self) -> bool:
        patience = self.config.patience
        return bool(patience and self.log) and len(self.log) - 1 - self._best_epoch() >= patience

    def _part(self, count: int) -> slice:
        rank = self.accelerator.process_index
        return slice(count * rank // self.processes, count * (rank + 1) // self.processes)

    def _synchronized(self, model: nn.Module) -> nn.Module:
        if self.processes == 1 or not learning_norms(model, self.config.norms):
            return model
        if self.accelerator.device.type != "cuda":
            raise InputError(
                f"BatchNorm in {self.processes} processes without GPUs: each would normalize its "
                f'own part of the batch; freeze it (norms = "frozen"), use a net with GroupNorm, '
                f"or one process"
            )
        convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
        return convert(model)

    def _smallest_part(self, model: nn.Module) -> int:
        """The fewest samples that a batch may have: BatchNorm knows no spread of one."""
        each = 2 if learning_norms(model, self.config.norms) else 1
        if self.config.batch < each * self.processes:
            raise InputError(
                f"batch = {self.config.batch}: expected at least {each * self.processes} "
                f"({each} in each of {self.processes} processes"
                + (': BatchNorm learns from batches; or norms = "frozen")' if each > 1 else ")")
            )
        return each * self.processes

    def _check_processes(self) -> None:
        """All go on from one place: a host that does not see the checkpoint would begin anew."""
        from accelerate.utils import gather_object

        if self.processes == 1:
            return
        places = gather_object([(self.position.epoch, self.position.step)])
        if len(set(places)) > 1:
            raise InputError(
                f"{self.path}: not every process sees the same checkpoint (epochs and steps done: "
                f"{sorted(set(places))}); put the output folder where all hosts see it, or copy it "
                f"to each before the run is continued"
            )

    def _check(self, where: str) -> None:
        """Nothing that is not a number is kept: a step may overflow after a finite loss."""
        state = self.net.state_dict().items()
        bad = [k for k, v in state if v.is_floating_point() and not torch.isfinite(v).all()]
        if bad:
            raise InputError(
                f"{bad[0]} is NaN or infinite after {where}; the last checkpoint is kept; try a "
                f"lower lr than {self.config.lr}, or clip_norm"
            )

    def _save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        state = State(
            model=self.net.state_dict(),
            optimizer=self.optimizer.state_dict(),
            average=None if self.average is None else self.average.state_dict(),
            best=self.best,
            scaler=None if scaler is None else scaler.state_dict(),
            position=self.position,
            log=self.log,
        )
        checkpoint.save(self.path, state, self.identity)

    def _restore(self, state: State) -> None:
        self.net.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        if self.average is not None and state.average is not None:
            self.average.load_state_dict(state.average)
        if self.accelerator.scaler is not None and state.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)
        self.best, self.position, self.log = state.best, state.position, state.log

    def _keep_random(self, generator: torch.Generator) -> None:
        self.position.generator = generator.get_state()
        self.position.global_rng = torch.get_rng_state()
        if self.accelerator.device.type == "cuda":
            self.position.device_rng = torch.cuda.get_rng_state()

    def _set_random(self, generator: torch.Generator) -> None:
        """Go on from a checkpoint within an epoch."""
        if self.position.generator is not None and self.position.global_rng is not None:
            generator.set_state(self.position.generator)
            torch.set_rng_state(self.position.global_rng)
        if self.position.device_rng is not None:
            torch.cuda.set_rng_state(self.position.device_rng)


def _cut(order: Tensor, size: int, smallest: int) -> list[Tensor]:
    """Batches of ``size``; a rest of fewer than ``smallest`` samples joins the batch before it."""
    batches = list(torch.split(order, size))
    if len(batches) > 1 and len(batches[-1]) < smallest:
        batches[-2:] = [torch.cat(batches[-2:])]
    if len(batches[-1]) < smallest:
        raise InputError(
            f"{len(order)} samples in an epoch are fewer than the {smallest} that one batch needs"
        )
    return batches


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """The same numbers on every run; on a GPU, where an operator has no such way, a warning."""
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
