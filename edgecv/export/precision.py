"""FP16: which nodes may compute in it, by what was measured on pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from edgecv.graph.half import rounding_error, to_half
from edgecv.runtimes import open_backend
from edgecv.runtimes.base import RuntimeOptions

LARGEST = float(np.finfo(np.float16).max)  # 65504
# Other pictures than the measured ones, and sums on the way to a value, get this much headroom.
HEADROOM = 4.0
SMALLEST_NORMAL = float(np.finfo(np.float16).smallest_normal)  # 6.1e-5; steps are absolute below
# Twice float16's unit roundoff: weights in its normal range have at most the half of it.
MAX_WEIGHT_ERROR = 2.0**-10


@dataclass(frozen=True)
class Half:
    """What became of the nodes: ``kept`` ones compute in float32, each for the reason given."""

    nodes: int
    kept: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        return {
            "nodes_fp16": self.nodes,
            "kept_fp32": self.kept,
            "overflow_limit": LARGEST / HEADROOM,
            "underflow_limit": SMALLEST_NORMAL,
        }


def make_half(model: ir.Model, feeds: Iterable[NDArray[Any]]) -> Half:
    """Bring ``model`` to FP16 in place; its inputs and outputs keep their types.

    ``feeds`` are prepared batches of the picture input: the net runs on them in float32, and a
    node stays in float32 where an input or output of it exceeds 65504 / 4 or, root mean square,
    lies below float16's normal range, or where rounding its weights costs more than twice what
    float16's precision does (they are too small, or too large for it).
    """
    common.ShapeInferencePass()(model)
    kept = _fragile_nodes(model, _magnitudes(model, feeds))
    nodes = to_half(model, kept)
    common.RemoveUnusedNodesPass()(model)
    return Half(nodes, kept)


@dataclass
class _Magnitude:
    largest: float = 0.0
    squares: float = 0.0
    count: int = 0

    def take(self, values: NDArray[Any]) -> None:
        exact = values.astype(np.float64)
        self.largest = max(self.largest, float(np.abs(exact).max(initial=0.0)))
        self.squares += float(np.square(exact).sum())
        self.count += exact.size

    @property
    def rms(self) -> float:
        return (self.squares / self.count) ** 0.5 if self.count else 0.0


def _magnitudes(model: ir.Model, feeds: Iterable[NDArray[Any]]) -> dict[str, _Magnitude]:
    proto: onnx.ModelProto = ir.to_proto(model)
    outputs = {output.name for output in proto.graph.output}
    for node in model.graph:
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT and value.name and value.name not in outputs:
                proto.graph.output.append(onnx.ValueInfoProto(name=value.name))
    found: dict[str, _Magnitude] = {}
    (source,) = model.graph.inputs
    assert source.name is not None
    with tempfile.TemporaryDirectory(prefix="edgecv-") as folder:
        path = Path(folder) / "watched.onnx"
        path.write_bytes(proto.SerializeToString())
        with open_backend("onnxruntime", path, RuntimeOptions(check_finite=True)) as runtime:
            for feed in feeds:
                for name, values in runtime.run({source.name: feed}).items():
                    found.setdefault(name, _Magnitude()).take(values)
    return found


def _fragile_nodes(model: ir.Model, found: dict[str, _Magnitude]) -> dict[str, str]:
    kept: dict[str, str] = {}
    for node in model.graph:
        reason = _reason(node, found)
        if reason:
            kept[node.name or ""] = reason
    return kept


def _reason(node: ir.Node, found: dict[str, _Magnitude]) -> str | None:
    for value in (*node.inputs, *node.outputs):
        if value is None or value.dtype != ir.DataType.FLOAT:
            continue
        if value.is_initializer():
            assert value.const_value is not None
            error = rounding_error(value.const_value.numpy())
            if error > MAX_WEIGHT_ERROR:
                return f"rounding {value.name!r} to float16 changes it by {error:.1e}"
        elif (magnitude := found.get(value.name or "")) is not None:
            if not magnitude.largest <= LARGEST / HEADROOM:  # NaN as well
                return f"{value.name!r} reaches {magnitude.largest:.3g}"
            if 0 < magnitude.rms < SMALLEST_NORMAL:
                return f"{value.name!r} is around {magnitude.rms:.1e}"
    return None
