"""What FP16 may cost a net: measured on the net, by roundings of the same size drawn at random.

Monte Carlo arithmetic (Parker, "Monte Carlo Arithmetic: exploiting randomness in floating-point
arithmetic", UCLA CSD-970002, 1997): perturb what is rounded by as much as rounding could, and look
how far the answers go. Formulas over the depth cannot know what a net amplifies inside.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgecv import onnxproto as proto
from edgecv.errors import InputError
from edgecv.measure.compare import LAYERS, UNIT_ROUNDOFF, Comparison, compare_each, relative_rms
from edgecv.onnxgraph import Initializer, read_graph
from edgecv.wire import Buffer, fields

DRAWS = 8  # whose mean square varies by 1 dB (standard deviation), one draw's by 3
# Weights are one half of what FP16 rounds, the values that the layers give the other half.
SOURCES = 2
# How much worse than the measured noise a right file may be: one bit, so twice. Measured, of 16
# pictures each of eight nets (benchmarks/rounding.json): 0.21 to 1.02 times the noise.
SPARE_BITS = 1.0

Outputs: TypeAlias = "Mapping[str, NDArray[Any]]"


def roughened(values: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """``values`` off by up to float16's unit roundoff each; integers as they are."""
    if values.dtype.kind != "f":
        return values
    step = UNIT_ROUNDOFF["fp16"] * rng.uniform(-1, 1, values.shape)
    rough: NDArray[Any] = (values * (1 + step)).astype(values.dtype)
    return rough


def rounding_noise(run: Callable[[np.random.Generator | None], Outputs]) -> dict[str, float]:
    """Root mean square of what rounding to FP16 does to each output, relative to the output's.

    ``run(None)`` gives the float net's outputs on some pictures, ``run(rng)`` the same with its
    weights and its input :func:`roughened` by ``rng``.
    """
    still = run(None)
    powers = dict.fromkeys(still, 0.0)
    for seed in range(DRAWS):
        for name, found in compare_each(run(np.random.default_rng(seed)), still).items():
            powers[name] += relative_rms(found) ** 2
    return {name: math.sqrt(SOURCES * power / DRAWS) for name, power in powers.items()}


def fp16_min_sqnr(noise: float) -> float:
    """Least SQNR, in dB, of an FP16 file's output whose :func:`rounding_noise` is ``noise``."""
    return -20 * math.log10(fp16_bound(noise))


def fp16_bound(noise: float) -> float:
    """How far a tensor of such ``noise`` may be off: root mean square over its own."""
    # what nothing moves is still rounded itself
    return 2**SPARE_BITS * max(noise, UNIT_ROUNDOFF["fp16"])


def fp16_margin(found: Mapping[str, Comparison], noise: Mapping[str, float]) -> tuple[float, float]:
    """SQNR and its :func:`fp16_min_sqnr`, dB, of the output that is nearest to falling short."""
    least = {name: fp16_min_sqnr(noise[name]) for name in found}
    each = {name: math.inf if c.sqnr_db is None else c.sqnr_db for name, c in found.items()}
    worst = min(found, key=lambda name: each[name] - least[name])
    return each[worst], least[worst]


def rough_file(path: str | os.PathLike[str], rng: np.random.Generator) -> bytes:
    """The ONNX file ``path`` with its layers' weights and biases :func:`roughened`."""
    graph = read_graph(path)
    if graph.external:
        raise InputError(
            f"{path}: its weights lie in other files, which are not read here; compare with a "
            f"recipe, or a file that holds its weights"
        )
    names = {name for node in graph.nodes if node.op in LAYERS for name in node.inputs}
    with graph.opened() as data:
        rough = bytearray(data[:])
        for name in sorted(names & graph.initializers.keys()):
            one = graph.initializers[name]
            for start, end in _floats(data, one, path):
                values = np.frombuffer(data[start:end], "<f4")
                rough[start:end] = roughened(values, rng).tobytes()
    return bytes(rough)


def _floats(data: Buffer, one: Initializer, path: str | os.PathLike[str]) -> list[tuple[int, int]]:
    """Where the numbers of a float32 tensor lie."""
    if one.element != proto.ELEMENT_TYPES["float32"]:
        return []
    kinds = (proto.TENSOR_RAW, proto.TENSOR_FLOAT)
    parts = fields(data, os.fspath(path), *one.span)
    return [(part.start, part.end) for part in parts if part.number in kinds]
