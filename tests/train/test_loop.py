"""The loop: exact resume, processes, averages, early stopping, what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgecv.errors import InputError, WeightsError
from edgecv.spec import Preparation
from edgecv.train.augment import AugmentSettings
from edgecv.train.checkpoint import Position
from edgecv.train.classify import ClassificationTask, ClassifySettings
from edgecv.train.data import load_pictures, split
from edgecv.train.loop import _Run, train
from edgecv.train.schedule import make_optimizer, parameter_groups, rate
from edgecv.train.settings import TrainConfig
from tests.train.conftest import RECIPE

CONFIG = TrainConfig(epochs=3, batch=8, lr=0.01, save_minutes=0.0)


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(32, 2),
    )


@pytest.fixture
def task(pictures: Path) -> ClassificationTask:
    preparation = Preparation(16, 16, mean=(0.5,) * 3, std=(0.5,) * 3)
    data, held_out = split(load_pictures(pictures, preparation), 0.25, 0)
    return ClassificationTask(data, held_out, preparation, ClassifySettings(shift=1))


def same(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return all(torch.equal(one[key], two[key]) for key in one)


class _Killed(Exception):
    pass


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("step", [1, 4, 6])  # within the first epoch of 4 steps, at its end, later
def test_a_killed_run_goes_on_to_the_same_weights(task, tmp_path, step, ema):
    config = replace(CONFIG, ema=ema)
    whole, cut = net(), net()
    expected = train(whole, task, config, tmp_path / "whole")
    seen = 0

    def kill(record):
        nonlocal seen
        seen += "step" in record
        if seen == step + 1:
            raise _Killed

    with pytest.raises(_Killed):
        train(cut, task, config, tmp_path / "cut", kill)
    again = net(seed=7)
    log = train(again, task, config, tmp_path / "cut")
    assert same(again, whole)
    assert [r["loss"] for r in log] == [r["loss"] for r in expected]


def test_a_finished_run_is_not_trained_again(task, tmp_path):
    first, second = net(), net(seed=3)
    train(first, task, CONFIG, tmp_path)
    steps = []
    train(second, task, CONFIG, tmp_path, lambda record: steps.append(record))
    assert same(first, second)
    assert steps == []


def test_another_runs_checkpoint_is_refused_and_kept(task, tmp_path):
    train(net(), task, CONFIG, tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(WeightsError, match=r"another run: lr was 0\.01 and is 0\.5"):
        train(net(), task, replace(CONFIG, lr=0.5), tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_host_that_does_not_see_the_checkpoint_is_named(monkeypatch):
    run = object.__new__(_Run)
    run.processes, run.path, run.position = 2, Path("run/checkpoint.pt"), Position(2)
    others = [(2, 0)]
    monkeypatch.setattr("accelerate.utils.gather_object", lambda own: own + others)
    run._check_processes()
    others[0] = (0, 0)
    with pytest.raises(InputError, match=r"not every process .*\[\(0, 0\), \(2, 0\)\]"):
        run._check_processes()


@pytest.mark.parametrize("size", [0, 100, -100])
def test_a_damaged_checkpoint_is_named(task, tmp_path, size):
    train(net(), task, replace(CONFIG, epochs=1), tmp_path)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(WeightsError, match=r"checkpoint\.pt: not a checkpoint"):
        train(net(), task, replace(CONFIG, epochs=1), tmp_path)


def test_it_learns_and_leaves_its_curves(task, tmp_path):
    log = train(net(), task, replace(CONFIG, epochs=25, lr=0.03), tmp_path)
    assert log[-1]["loss"] < 0.8 * log[0]["loss"]
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == log
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "tensorboard").iterdir())


def test_an_infinite_loss_stops_and_keeps_the_last_checkpoint(task, tmp_path):
    class Broken(ClassificationTask):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            nonlocal steps
            steps += 1
            return super().loss(outputs, targets) * (float("nan") if steps == 6 else 1)

    steps = 0
    broken = Broken(task.pictures, task.held_out, task.preparation, task.settings)
    with pytest.raises(InputError, match=r"the loss is nan at epoch 2, step 2"):
        train(net(), broken, CONFIG, tmp_path)
    assert len(train(net(), task, CONFIG, tmp_path)) == 3


def test_weights_that_are_no_numbers_replace_no_checkpoint(task, tmp_path):
    """A loss can be finite, and the step after it not: the score of NaN is as good as any."""

    class Broken(ClassificationTask):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            nonlocal steps
            steps += 1
            loss = super().loss(outputs, targets)
            if steps == 8:  # the last of the second epoch
                loss.register_hook(lambda gradient: gradient * float("nan"))
            return loss

    steps = 0
    broken = Broken(task.pictures, task.held_out, task.preparation, task.settings)
    message = r"NaN or infinite after epoch 2, step 4; the last checkpoint is kept"
    with pytest.raises(InputError, match=message):
        train(net(), broken, CONFIG, tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in state["model"].values())
    assert len(train(net(), task, CONFIG, tmp_path)) == 3


@pytest.mark.skipif(os.name != "posix", reason="no limits to files' sizes")
def test_a_full_disk_at_a_checkpoint_keeps_the_last_one(task, tmp_path):
    import resource

    def wide() -> nn.Module:  # more than a buffer holds: the write itself fails
        torch.manual_seed(0)
        return nn.Sequential(*net()[:-1], nn.Linear(32, 20_000), nn.Linear(20_000, 2))

    config = replace(CONFIG, epochs=2, save_minutes=60.0)
    train(wide(), task, replace(config, epochs=1), tmp_path / "run", identity={"run": 1})
    path = tmp_path / "run" / "checkpoint.pt"
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(InputError, match=r"checkpoint\.pt: could not be written"):
            train(wide(), task, config, tmp_path / "run", identity={"run": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert len(train(wide(), task, config, tmp_path / "run", identity={"run": 1})) == 2


def test_early_stopping_and_the_best_epoch(task, tmp_path):
    class Scripted(ClassificationTask):
        scores = iter([0.5, 0.8, 0.7, 0.6, 0.9])

        def evaluate(self, model: nn.Module) -> dict[str, float]:
            kept.append({k: v.clone() for k, v in model.state_dict().items()})
            return {"top1": next(self.scores)}

    kept: list[dict[str, Tensor]] = []
    scripted = Scripted(task.pictures, task.held_out, task.preparation, task.settings)
    model = net()
    log = train(model, scripted, replace(CONFIG, epochs=9, patience=2, keep="best"), tmp_path)
    assert len(log) == 4
    assert all(torch.equal(v, kept[1][k]) for k, v in model.state_dict().items())


def test_the_average_follows_the_weights(task, tmp_path):
    averaged, plain = net(), net()
    train(averaged, task, replace(CONFIG, ema=0.5), tmp_path / "a")
    train(plain, task, CONFIG, tmp_path / "b")
    assert not same(averaged, plain)
    state = torch.load(tmp_path / "a" / "checkpoint.pt", weights_only=True)
    assert all(torch.equal(state["model"][k], v) for k, v in plain.state_dict().items())


def test_frozen_norms_keep_their_statistics(task, tmp_path):
    model = net()
    before = model[1].running_mean.clone()
    train(model, task, replace(CONFIG, norms="frozen"), tmp_path / "frozen")
    assert torch.equal(model[1].running_mean, before)
    train(model, task, CONFIG, tmp_path / "train")
    assert not torch.equal(model[1].running_mean, before)


def test_a_batch_of_one_is_refused_where_batchnorm_learns(task, tmp_path):
    with pytest.raises(InputError, match=r"batch = 1: expected at least 2 .* norms = \"frozen\""):
        train(net(), task, replace(CONFIG, batch=1), tmp_path)
    # 30 pictures in batches of 29: the last one joins the others
    assert len(train(net(), task, replace(CONFIG, batch=29, epochs=1), tmp_path)) == 1


def test_gradients_are_clipped(task, tmp_path):
    model, free = net(), net()
    config = TrainConfig(
        epochs=1, batch=30, optimizer="sgd", lr=1.0, weight_decay=0, warmup_epochs=0
    )
    start = [p.clone() for p in model.parameters()]
    train(model, task, replace(config, clip_norm=0.01), tmp_path / "a")
    train(free, task, config, tmp_path / "b")
    moved = torch.sqrt(
        sum(((a - b) ** 2).sum() for a, b in zip(start, model.parameters(), strict=True))
    )
    # Nesterov's first step is (1 + momentum) times the gradient, at the full rate
    assert moved.item() == pytest.approx(1.9 * 0.01, rel=1e-3)
    assert not same(model, free)


def test_rates_over_the_run():
    config = TrainConfig(epochs=4, lr=1.0, warmup_epochs=1.0, finish_epochs=2, finish_lr=0.5)
    rates = [rate(config, step, 10) for step in range(60)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0
    assert rates[39] < 0.01
    assert rates[40] == 0.5
    assert rates[25] == pytest.approx(0.5)  # half a cosine, half way


def test_discriminative_rates_fall_towards_the_input():
    model = net()
    groups = parameter_groups(model, replace(CONFIG, layer_decay=0.5))
    scale = {id(p): g["scale"] for g in groups for p in g["params"]}
    assert [scale[id(m.weight)] for m in (model[6], model[1], model[0])] == [1.0, 0.5, 0.25]
    assert sum(g["weight_decay"] > 0 for g in groups) == 2  # biases and norms have none
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(InputError, match="nothing to train"):
        make_optimizer(model, CONFIG)


def test_class_weights_balance_the_loss(task):
    labels = torch.tensor([0] * 30 + [1] * 10)
    pictures = replace(task.pictures, pixels=task.pictures.pixels[[0] * 40], labels=labels)
    settings = ClassifySettings(class_weights="balanced", label_smoothing=0.0)
    balanced = ClassificationTask(pictures, task.held_out, task.preparation, settings)
    assert balanced.weights.tolist() == pytest.approx([40 / 60, 2.0])
    parts = [
        balanced.draw(torch.arange(40), part, torch.Generator())
        for part in (slice(0, 25), slice(25, 40))
    ]
    assert sum(batch.share for batch in parts) == pytest.approx(1.0)
    logits = torch.randn(40, 2)
    whole = balanced.loss(logits, labels)
    cut = sum(
        balanced.loss(logits[part], labels[part]) * batch.share
        for part, batch in zip((slice(0, 25), slice(25, 40)), parts, strict=True)
    )
    assert cut.item() == pytest.approx(whole.item(), rel=1e-6)  # sums in another order


@pytest.mark.parametrize("settings", [{}, {"hue": 0.1}, {"mixup": 0.4}])
def test_a_part_of_a_batch_is_what_it_is_in_the_whole(task, settings):
    augment = AugmentSettings(**settings)
    learned = ClassificationTask(
        task.pictures, task.held_out, task.preparation, ClassifySettings(), augment
    )
    index = torch.randperm(len(task.pictures.labels))[:8]

    def draw(part):
        return learned.draw(index, part, torch.Generator().manual_seed(1))

    whole = draw(slice(None))
    for part in (slice(0, 3), slice(3, 8)):
        own = draw(part)
        assert torch.equal(own.inputs, whole.inputs[part])
        assert torch.equal(own.targets, whole.targets[part])
        assert own.share == pytest.approx((part.stop - part.start) / 8)


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", *arguments]


def _environment(**more: str) -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", **more}


def test_a_process_that_is_killed_is_resumed_to_the_same_file(recipe, pictures, tmp_path):
    settings = ["--data", str(pictures), "--set", "epochs=30", "--set", "save_minutes=0"]
    command = [*_command("edgecv", "train", str(recipe)), *settings]
    whole = subprocess.Popen([*command, "-o", str(tmp_path / "whole")], env=_environment())
    cut = subprocess.Popen([*command, "-o", str(tmp_path / "cut")], env=_environment())
    deadline = time.monotonic() + 300
    while not (tmp_path / "cut" / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)
    cut.send_signal(signal.SIGKILL)
    assert cut.wait() == -signal.SIGKILL
    assert not (tmp_path / "cut" / "tiny.safetensors").exists()
    subprocess.run([*command, "-o", str(tmp_path / "cut")], env=_environment(), check=True)
    assert whole.wait() == 0
    one, two = ((tmp_path / run / "tiny.safetensors").read_bytes() for run in ("whole", "cut"))
    assert one == two


@pytest.mark.slow
def test_two_processes_have_the_curve_of_one(recipe, pictures, tmp_path):
    recipe.write_text(RECIPE.format(norm="group"))
    # no dropout that differs between processes: it is drawn in each for its own part
    (tmp_path / "tinynet.py").write_text(
        (tmp_path / "tinynet.py").read_text().replace("nn.Dropout(0.1), ", "")
    )
    train_it = ["edgecv", "train", str(recipe), "--data", str(pictures), "--json"]
    launch = _command("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m")
    for name, command in (("one", _command()), ("two", launch)):
        done = subprocess.run(
            [*command, *train_it, "-o", str(tmp_path / name)],
            env=_environment(),
            check=True,
            stdout=subprocess.PIPE,
        )
        # two that did not find each other would each train alone, and say so
        assert json.loads(done.stdout)["size_bytes"] > 0
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    # the log has four digits; float32 sums of 8 losses in another order differ by 1e-6
    assert [r["loss"] for r in one] == pytest.approx([r["loss"] for r in two], abs=1.01e-4)
    assert [r["top1"] for r in one] == [r["top1"] for r in two]
    assert one[-1]["loss"] < one[0]["loss"]
