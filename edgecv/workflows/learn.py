"""Steps of gradient descent on a quantized copy, where ``quantize`` is asked for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from edgecv.errors import InputError
from edgecv.progress import Progress
from edgecv.quantize.pipeline import Prepared, Quantized
from edgecv.quantize.run import Batches
from edgecv.quantize.targets import Policy
from edgecv.spec import ModelSpec
from edgecv.workflows.heldout import Warn

CUT = 4 / 7  # of each side is what a step of learning sees: a third of the time


def learner(
    parent: ModelSpec,
    ready: Prepared,
    policy: Policy,
    batches: Batches,
    steps: int,
    seed: int,
    progress: Progress,
    warn: Warn,
) -> Callable[[Quantized], Quantized]:
    """What makes a quantized copy learn for ``steps``."""
    if steps < 1:
        raise InputError(f"learn: expected a number of steps, got {steps}")
    try:
        from edgecv.quantize.gradients.tune import Settings, divergence, relative_noise, tune
    except ImportError as error:
        raise InputError(
            f"learn: needs torch, which does not import ({error}); pip install 'edgecv[train]', or "
            f"quantize without it"
        ) from error
    settings = Settings(steps=steps, crop=CUT if _takes_any_size(ready) else 1.0, seed=seed)
    judge = divergence if parent.decoding.kind == "logits" else relative_noise

    def learned(done: Quantized) -> Quantized:
        tuned = tune(done.model, ready.model, policy, batches, settings, judge, progress)
        about = {"steps": steps, **tuned.to_dict()}
        if not tuned.gained:
            warn(
                f"{steps} steps of learning gained nothing on the {tuned.pictures} calibration "
                f"pictures that they left out: the file is what it was before them"
            )
            return replace(done, learned=about)
        spans = {name: tuned.ranges.get(name, span) for name, span in done.ranges.items()}
        return replace(done, model=tuned.model, ranges=spans, learned=about)

    return learned


def _takes_any_size(ready: Prepared) -> bool:
    """Whether the graph computes on a part of a picture what it was made to on a whole one."""
    operators = {node.op_type for node in ready.model.graph}
    return "GlobalAveragePool" in operators and not operators & {"Reshape", "AveragePool", "Resize"}
