"""Graphs in onnxruntime, with a view of the values inside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgecv.errors import QuantizeError
from edgecv.runtimes.hardware import physical_cores

Array: TypeAlias = NDArray[Any]
# Yields the calibration pictures, prepared, in batches of the model's size; from the start again
# at each call
Batches: TypeAlias = Callable[[], Iterator[Array]]


class Probe:
    """A session that returns the values named ``watch``, or the graph's outputs."""

    def __init__(self, model: ir.Model, watch: Sequence[str] = ()) -> None:
        proto: onnx.ModelProto = ir.to_proto(model)
        outputs = [output.name for output in proto.graph.output]
        for name in watch:
            if name not in outputs:
                proto.graph.output.append(onnx.ValueInfoProto(name=name))
        self.names = list(watch) or outputs
        self.input = str(model.graph.inputs[0].name)
        self._session = open_session(proto.SerializeToString())

    def __call__(self, batch: Array) -> dict[str, Array]:
        return dict(
            zip(self.names, run(self._session, self.names, {self.input: batch}), strict=True)
        )

    def over(self, batches: Iterable[Array]) -> dict[str, Array]:
        """The values for all ``batches``, joined ``{name: [N, ...]}``."""
        parts = [self(batch) for batch in batches]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.names}


def run(session: Any, names: Sequence[str] | None, feeds: Mapping[str, Array]) -> list[Array]:
    """The outputs ``names`` of ``session``; what fails on the way is a :class:`QuantizeError`."""
    try:
        outputs: list[Array] = session.run(names, feeds)
    except Exception as error:  # pybind raises classes that share no base but Exception
        text = " ".join(str(error).split())[:500]
        raise QuantizeError(f"the graph does not run on a calibration picture: {text}") from error
    return outputs


def open_session(
    data: bytes, *, threads: int | None = None, optimized: Path | None = None, optimize: bool = True
) -> Any:
    """An onnxruntime session on the CPU; what it refuses is a :class:`QuantizeError`.

    ``optimized``: where to write the graph that onnxruntime made of it. ``optimize=False``
    fuses nothing: such a session opens several times as fast.
    """
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = threads or physical_cores()
    settings.inter_op_num_threads = 1
    if not optimize:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if optimized is not None:
        settings.optimized_model_filepath = str(optimized)
    try:
        return ort.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # pybind raises classes that share no base but Exception
        text = " ".join(str(error).split())[:500]
        raise QuantizeError(f"onnxruntime {ort.__version__} refuses the graph: {text}") from error
