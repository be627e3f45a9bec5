"""The proof that an exported file computes what PyTorch does."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgecv.errors import ExportError
from edgecv.export.rough import rough_net
from edgecv.export.to_onnx import INPUT
from edgecv.measure import selftest
from edgecv.measure.compare import FP32_MAX_REL, Comparison, compare_each, worst
from edgecv.measure.rounding import fp16_margin, roughened, rounding_noise
from edgecv.runtimes import open_backend
from edgecv.spec import ModelSpec, Preparation, write_spec
from edgecv.workflows.likeness import prove_likeness

PARITY_SEED = 7  # not the seed of the self-test, nor anything that the tracer saw


def torch_outputs(
    model: nn.Module, batch: NDArray[np.float32], names: Sequence[str]
) -> dict[str, NDArray[np.float32]]:
    """The net's answer to a prepared batch ``[N, C, H, W]``, under the ONNX outputs' names."""
    with torch.inference_mode():
        out = model(torch.from_numpy(batch))
    tensors = list(out) if isinstance(out, tuple | list) else [out]
    if len(tensors) != len(names) or not all(isinstance(t, torch.Tensor) for t in tensors):
        kinds = ", ".join(type(t).__name__ for t in tensors)
        raise ExportError(f"expected the model to return {len(names)} tensors, got {kinds}")
    return {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}


def fp16_noise(
    model: nn.Module, batch: NDArray[np.float32], names: Sequence[str]
) -> dict[str, float]:
    """What rounding to FP16 does to each output of ``model`` on a prepared batch."""

    def run(rng: np.random.Generator | None) -> dict[str, NDArray[np.float32]]:
        if rng is None:
            return torch_outputs(model, batch, names)
        return torch_outputs(rough_net(model, rng), roughened(batch, rng), names)

    return rounding_noise(run)


def prove(
    data: bytes, spec: ModelSpec, preparation: Preparation, model: nn.Module
) -> dict[str, Any]:
    """Compare the finished bytes with PyTorch in onnxruntime, at batch 1 and 3.

    Both see the same pictures: the file in its own form, the net under ``preparation``.
    """
    dtype, names = spec.inputs[0].dtype, [tensor.name for tensor in spec.outputs]
    sizes = (1, 3) if isinstance(spec.inputs[0].shape[0], str) else (spec.inputs[0].shape[0],)
    results: list[Comparison] = []
    margins: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory(prefix="edgecv-") as folder:
        path = Path(folder) / "candidate.onnx"
        write_spec(data, spec, path)
        with open_backend("onnxruntime", path) as candidate:
            for index, size in enumerate(sizes):
                seed, count = PARITY_SEED + index, int(size)
                given = selftest.inputs(preparation, seed, count)
                batch = selftest.inputs(spec.preparation, seed, count, dtype)
                found = compare_each(
                    candidate.run({INPUT: batch}), torch_outputs(model, given, names)
                )
                results += found.values()
                if spec.precision == "fp16":
                    margins.append(fp16_margin(found, fp16_noise(model, given, names)))
            version = candidate.info.version
            likeness = prove_likeness(candidate, spec, preparation, model)
    total = worst(results)
    report: dict[str, Any] = {
        **total.to_dict(),
        "reference": f"torch {torch.__version__}",
        "runtime": f"onnxruntime {version}",
        "batches": [int(size) for size in sizes],
        **likeness,
    }
    if margins:
        sqnr, least = min(margins, key=lambda pair: pair[0] - pair[1])
        _hold(sqnr >= least, f"their SQNR is {sqnr:.1f} dB (at least {least:.1f} expected)")
        return {**report, "tolerance_min_sqnr_db": least}
    _hold(
        total.max_rel <= FP32_MAX_REL,
        f"they differ by {total.max_rel:.2e} of the largest value (allowed {FP32_MAX_REL:g})",
    )
    return {**report, "tolerance_max_rel": FP32_MAX_REL}


def _hold(passed: bool, what: str) -> None:
    if not passed:
        raise ExportError(
            f"the ONNX graph's outputs are not what PyTorch computes: {what}; nothing was written"
        )
