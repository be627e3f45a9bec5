"""Times per layer, by the runtimes' own profilers, under the names of the file's nodes.

Runtimes fuse: one kernel does a Conv, its Clip and the Add behind it. A layer is one kernel, and
``nodes`` are the ONNX nodes in it, as far as the runtime says. What no node can be found for (a
change of memory layout) has none.

The roof of a layer is ``min(peak, intensity * bandwidth)`` (Williams, Waterman, Patterson, 2009):
``peak`` is what the same runtime reaches in one large MatMul with the same threads, ``bandwidth``
what copying an array far larger than the caches reaches. A layer whose data come from a cache may
exceed its roof; one far below it is worth work.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgecv.errors import InputError
from edgecv.measure import selftest
from edgecv.measure.macs import macs, matmul_model
from edgecv.model import Model
from edgecv.onnxgraph import Node, OnnxGraph, read_graph

PEAK_SIZE = 768
COPY_MB = 96
PEAK_SECONDS = 0.4
# What onnxruntime's passes hang on the names of nodes and tensors, and OpenVINO's
DECORATIONS = re.compile(
    r"^InsertedPrecisionFreeCast_|^fused |"
    r"(_nchwc|_quant|_token_\d+|_reorder|/WithoutBiases|/fused_fc)$"
)
WALK = 6  # nodes: the longest chain that a runtime fuses behind a Conv


@dataclass(frozen=True)
class Layer:
    """One kernel: ``ms`` the median of its runs, ``share`` of the sum of all medians.

    ``macs`` are multiply-accumulates of one run, ``gmacs`` 10^9 of them a second, ``roofline`` the
    share of the roof that this is; None where the layer multiplies with no weights.
    """

    name: str
    op: str
    nodes: tuple[str, ...]
    ms: float
    share: float = 0.0
    shape: tuple[int, ...] = ()
    macs: int | None = None
    gmacs: float | None = None
    roofline: float | None = None

    def to_dict(self) -> dict[str, Any]:
        found = {
            "name": self.name,
            "op": self.op,
            "nodes": list(self.nodes),
            "ms": round(self.ms, 5),
            "share": round(self.share, 5),
            "shape": list(self.shape),
            "macs": self.macs,
            "gmacs": None if self.gmacs is None else round(self.gmacs, 2),
            "roofline": None if self.roofline is None else round(self.roofline, 4),
        }
        return {key: value for key, value in found.items() if value is not None}


@dataclass(frozen=True)
class Profile:
    """``peak_gmacs`` and ``bandwidth_gbs`` of this machine, by this runtime and its threads."""

    layers: tuple[Layer, ...]
    peak_gmacs: float
    bandwidth_gbs: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "layers": [layer.to_dict() for layer in self.layers],
            "peak_gmacs": round(self.peak_gmacs, 2),
            "bandwidth_gbs": round(self.bandwidth_gbs, 2),
        }


@dataclass
class _Kernel:
    """What a profiler said of one kernel over the runs."""

    name: str
    op: str
    originals: tuple[str, ...]
    microseconds: list[float]
    input_shape: tuple[int, ...]
    shape: tuple[int, ...]
    bytes: int


def profile(model: Model, runs: int, batch: int) -> Profile:
    """Profile ``model``'s file on its backend with ``runs`` runs (after one that is not counted)
    of ``batch`` pictures each.

    A backend without a profiler is an :class:`~edgecv.errors.InputError`.
    """
    runtime, (tensor,) = model.runtime, model.spec.inputs
    name = model.info.backend
    if name not in PROFILERS:
        raise InputError(
            f"--profile: the backend {name} has no profiler that EdgeCV reads; those with one are "
            f"{', '.join(PROFILERS)}"
        )
    feed = selftest.inputs(model.spec.preparation, 0, batch, tensor.dtype)
    threads = model.info.threads
    kernels = PROFILERS[name](str(runtime.path), threads, {tensor.name: feed}, runs)
    graph = read_graph(runtime.path)
    peak, bandwidth = PEAKS[name](threads), copy_bandwidth()
    layers = [_layer(kernel, graph) for kernel in kernels]
    total = math.fsum(layer.ms for layer in layers) or 1.0
    return Profile(
        tuple(
            replace(
                layer,
                share=layer.ms / total,
                roofline=_roofline(layer, kernel, peak, bandwidth),
            )
            for layer, kernel in zip(layers, kernels, strict=True)
        ),
        peak,
        bandwidth,
    )


def _layer(kernel: _Kernel, graph: OnnxGraph) -> Layer:
    nodes = nodes_of(kernel.name, kernel.op, kernel.originals, graph)
    ms = float(np.median(kernel.microseconds)) / 1e3
    counted = [macs(graph, node, kernel.input_shape, kernel.shape) for node in nodes]
    total = sum(count for count in counted if count is not None) or None
    return Layer(
        name=nodes[0].label if nodes else kernel.name,
        op=kernel.op,
        nodes=tuple(node.label for node in nodes),
        ms=ms,
        shape=kernel.shape,
        macs=total,
        gmacs=total / ms / 1e6 if total and ms else None,
    )


def _roofline(layer: Layer, kernel: _Kernel, peak: float, bandwidth: float) -> float | None:
    if layer.gmacs is None or layer.macs is None or not kernel.bytes:
        return None
    return layer.gmacs / min(peak, layer.macs / kernel.bytes * bandwidth)


def nodes_of(name: str, op: str, originals: Sequence[str], graph: OnnxGraph) -> list[Node]:
    """The ONNX nodes of a kernel, in the graph's order.

    By the names that the runtime kept (``originals``) where it does, else by the kernel's own: it
    is a node's, or that of the tensor that the kernel writes, with a suffix of the runtime's; then
    the nodes from there back to the one of the kernel's kind belong to it.
    """
    by_name = {node.name: node for node in graph.nodes if node.name}
    found = [by_name[n] for n in map(_bare, originals) if n in by_name]
    if not found:
        bare = _bare(name)
        node = by_name.get(bare) or graph.producers.get(bare)
        if node is None:
            return []
        found = [node]
        kind = op.removeprefix("Fused").removeprefix("QLinear").removesuffix("Integer")
        chain: list[Node] = []
        step: Node | None = node
        while step is not None and step.op != kind and len(chain) < WALK:
            chain.append(step)
            step = graph.producers.get(step.inputs[0]) if step.inputs else None
        if step is not None and step.op == kind:
            found = [step, *reversed(chain)]
    kept = {id(node) for node in found}
    return [node for node in graph.nodes if id(node) in kept]


def _bare(name: str) -> str:
    previous = ""
    while previous != name:
        previous, name = name, DECORATIONS.sub("", name)
    return name


def _ort(path: str, threads: int, feeds: Mapping[str, Any], runs: int) -> list[_Kernel]:
    import onnxruntime as ort

    with tempfile.TemporaryDirectory(prefix="edgecv-") as folder:
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.log_severity_level = 3
        settings.enable_profiling = True
        settings.profile_file_prefix = str(Path(folder) / "trace")
        session = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        for _ in range(runs + 1):
            session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text())
    kernels: dict[str, _Kernel] = {}
    for event in events:
        name = event["name"].removesuffix("_kernel_time")
        if event["cat"] != "Node" or name == event["name"]:
            continue
        details = event["args"]
        shapes = [_shape(one) for one in details.get("output_type_shape", [])]
        inputs = [_shape(one) for one in details.get("input_type_shape", [])]
        moved = sum(int(details.get(f"{k}_size", 0)) for k in ("activation", "parameter", "output"))
        key = f"{name}#{details.get('node_index')}"
        kernel = kernels.setdefault(
            key,
            _Kernel(
                name,
                details["op_name"],
                (),
                [],
                inputs[0] if inputs else (),
                shapes[0] if shapes else (),
                moved,
            ),
        )
        kernel.microseconds.append(float(event["dur"]))
    for kernel in kernels.values():
        kernel.microseconds = kernel.microseconds[1:] or kernel.microseconds
    return list(kernels.values())


def _shape(entry: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    """``{"float": [1, 3, 8, 8]}``."""
    return tuple(next(iter(entry.values()), ()))


def _openvino(path: str, threads: int, feeds: Mapping[str, Any], runs: int) -> list[_Kernel]:
    import openvino

    compiled = openvino.Core().compile_model(
        path,
        "CPU",
        {
            "PERF_COUNT": True,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        },
    )
    request = compiled.create_infer_request()
    times: dict[str, list[float]] = {}
    kinds: dict[str, str] = {}
    for index in range(runs + 1):
        request.infer(list(feeds.values()))
        for one in request.profiling_info:
            if index and one.status == one.Status.EXECUTED:
                times.setdefault(one.node_name, []).append(one.real_time.total_seconds() * 1e6)
                kinds[one.node_name] = one.node_type
    kernels = []
    for op in compiled.get_runtime_model().get_ordered_ops():
        name = op.get_friendly_name()
        if name not in times:
            continue
        info = op.get_rt_info()
        originals = str(info["originalLayersNames"].value) if "originalLayersNames" in info else ""
        inputs = [tuple(port.get_shape()) for port in op.inputs()]
        outputs = [tuple(port.get_shape()) for port in op.outputs()]
        moved = sum(
            math.prod(port.get_shape()) * port.get_element_type().size
            for port in [*op.inputs(), *op.outputs()]
        )
        kernels.append(
            _Kernel(
                name,
                kinds[name],
                tuple(filter(None, originals.split(","))),
                times[name],
                inputs[0] if inputs else (),
                outputs[0] if outputs else (),
                moved,
            )
        )
    return kernels


def _ort_peak(threads: int) -> float:
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    session = ort.InferenceSession(
        matmul_model(PEAK_SIZE), settings, providers=["CPUExecutionProvider"]
    )
    values = np.full((PEAK_SIZE, PEAK_SIZE), 0.25, np.float32)
    return _peak(lambda: session.run(None, {"x": values}))


def _openvino_peak(threads: int) -> float:
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(matmul_model(PEAK_SIZE), b""),
        "CPU",
        {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"},
    )
    request = compiled.create_infer_request()
    values = np.full((PEAK_SIZE, PEAK_SIZE), 0.25, np.float32)
    return _peak(lambda: request.infer([values]))


def _peak(run: Callable[[], object]) -> float:
    """GMAC/s of the fastest of the runs: a peak is what nothing disturbed."""
    run()
    best, end = math.inf, time.perf_counter() + PEAK_SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return float(PEAK_SIZE**3 / best / 1e9)


def copy_bandwidth() -> float:
    """GB/s read and written by one thread when an array larger than the caches is copied."""
    source = np.ones(COPY_MB * 1_000_000 // 4, np.float32)
    target = np.empty_like(source)
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best / 1e9


PROFILERS: dict[str, Callable[[str, int, Mapping[str, Any], int], list[_Kernel]]] = {
    "onnxruntime": _ort,
    "openvino": _openvino,
}
PEAKS: dict[str, Callable[[int], float]] = {"onnxruntime": _ort_peak, "openvino": _openvino_peak}
