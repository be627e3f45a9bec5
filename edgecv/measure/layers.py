"""Which layer is it? Intermediate tensors of two graphs compared, and INT8 layers ranked.

The file is cut and given more outputs as bytes (:mod:`edgecv.measure.cut`), so that this
works on a device, without the onnx package. Tensors are matched by name: exporting the same net
twice gives the same names, and quantizing keeps those of the float tensors.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgecv.errors import CheckFailed, InputError, RuntimeFailure
from edgecv.measure.compare import FP32_MAX_REL, compare, relative_rms
from edgecv.measure.cut import cut
from edgecv.measure.rounding import fp16_bound, rough_file, roughened, rounding_noise
from edgecv.onnxgraph import OnnxGraph, read_graph
from edgecv.runtimes import open_backend
from edgecv.runtimes.base import Array

INTERMEDIATES = ("onnxruntime", "openvino")  # give any tensor as an output; others are bisected
DEQUANTIZED = "DequantizeLinear"
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Divergence:
    """The first tensor, in the graph's order, that is further off than ``bound``.

    ``node`` is its node (or ``input``: the preparation differs), ``op`` the kind; ``error`` is the
    largest difference over the largest value, of an FP16 file the root mean square of the one over
    that of the other; ``graph``: ``exported``, or ``optimized`` where the
    file is right and the runtime's optimizer is not.
    """

    node: str
    op: str
    tensor: str
    error: float
    bound: float
    graph: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class LayerError:
    """What quantizing one layer costs.

    ``contribution``: noise over signal at the model's output when this layer alone is quantized
    and everything else is the float parent; ``sqnr_db`` of its own output, from exact inputs.
    """

    node: str
    op: str
    contribution: float
    sqnr_db: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Ruler:
    """How far off tensors are, and may be; ``noise``: what FP16 does to each, None: FP32."""

    noise: Mapping[str, float] | None = None

    def bound(self, name: str) -> float:
        return FP32_MAX_REL if self.noise is None else fp16_bound(self.noise.get(name, 0.0))

    def error(self, a: Array, b: Array) -> float:
        """Integers and shapes have to be equal."""
        if a.shape != b.shape:
            return math.inf
        if a.dtype.kind != "f" or b.dtype.kind != "f":
            return 0.0 if np.array_equal(a, b) else math.inf
        if a.size == 0:
            return 0.0
        try:
            found = compare({"t": a.reshape(1, -1)}, {"t": b.reshape(1, -1)})
        except CheckFailed:  # NaN or infinite on one side; on both at the same places: agreement
            return 0.0 if np.array_equal(a, b, equal_nan=True) else math.inf
        return found.max_rel if self.noise is None else relative_rms(found)


def first_divergence(
    candidate: Path,
    reference: Path,
    feeds: Mapping[str, Array],
    reference_feeds: Mapping[str, Array],
    backend: str,
    *,
    half: bool = False,
    seen: tuple[Array, Array] | None = None,
) -> Divergence | None:
    """Compare the tensors that both files make, on one batch; None where all agree.

    Each side gets its own input (prepared by its own contract). The reference runs in
    onnxruntime, unoptimized; the candidate on ``backend``, unoptimized where the runtime lets one
    choose, and then as optimized. ``half``: the candidate is FP16, and each tensor may be off by
    what rounding does to it (:mod:`edgecv.measure.rounding`). ``seen``: what the candidate's and
    the reference's preparations are compared by, where their inputs are of two kinds.
    """
    graph, parent = read_graph(candidate), read_graph(reference)
    common = _common(graph, parent)
    expected = _run_ort(cut(parent, common), reference_feeds, common, optimize=False)
    ruler = _Ruler(_noise(reference, reference_feeds, common) if half else None)
    first = next(iter(feeds))
    mine, theirs = seen or (feeds[first], next(iter(reference_feeds.values())))
    if (error := ruler.error(mine, theirs)) > ruler.bound(first):
        where = ("input", "preparation", first)
        return Divergence(*where, error, ruler.bound(first), "exported")
    if backend not in INTERMEDIATES:
        return _bisect(graph, common, expected, feeds, backend, ruler)
    if backend == "openvino":
        found = _run_openvino(cut(graph, common), feeds, common)
        return _first(graph, common, found, expected, ruler, "exported")
    found = _run_ort(cut(graph, common), feeds, common, optimize=False)
    return _first(graph, common, found, expected, ruler, "exported") or _optimized(
        candidate, feeds, expected, ruler
    )


def _optimized(
    candidate: Path, feeds: Mapping[str, Array], expected: Mapping[str, Array], ruler: _Ruler
) -> Divergence | None:
    """The tensors that are left in onnxruntime's optimized graph (its fusions, in the usual
    layout) against the reference's."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory(prefix="edgecv-") as folder:
        path = Path(folder) / "optimized.onnx"
        settings = ort.SessionOptions()
        settings.log_severity_level = 3
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        settings.optimized_model_filepath = str(path)
        ort.InferenceSession(str(candidate), settings, providers=["CPUExecutionProvider"])
        optimized = read_graph(path)
        names = [name for name in optimized.tensors() if name in expected]
        piece = cut(optimized, names)
    found = _run_ort(piece, feeds, names, optimize=False)
    return _first(optimized, names, found, expected, ruler, "optimized")


def _first(
    graph: OnnxGraph,
    names: Sequence[str],
    found: Mapping[str, Array],
    expected: Mapping[str, Array],
    ruler: _Ruler,
    which: str,
) -> Divergence | None:
    for name in names:
        error = ruler.error(found[name], expected[name])
        if error > ruler.bound(name):
            node = graph.producers[name]
            return Divergence(node.label, node.op, name, error, ruler.bound(name), which)
    return None


def _noise(path: Path, feeds: Mapping[str, Array], names: Sequence[str]) -> dict[str, float]:
    """What rounding to FP16 does to the tensors ``names`` of the float file ``path``."""
    numbers: list[str] = []

    def run(rng: np.random.Generator | None) -> dict[str, Array]:
        if rng is None:
            found = _run_ort(cut(read_graph(path), names), feeds, names, optimize=False)
            numbers.extend(n for n, v in found.items() if v.size and np.isfinite(v).all())
        else:
            rough = {name: roughened(values, rng) for name, values in feeds.items()}
            piece = cut(read_graph(rough_file(path, rng)), numbers)
            found = _run_ort(piece, rough, numbers, optimize=False)
        return {name: found[name].reshape(1, -1) for name in numbers}

    return rounding_noise(run)


def _bisect(
    graph: OnnxGraph,
    names: Sequence[str],
    expected: Mapping[str, Array],
    feeds: Mapping[str, Array],
    backend: str,
    ruler: _Ruler,
) -> Divergence | None:
    """For a runtime that shows only outputs: cut the graph at a tensor, run, halve.

    Takes an error to stay from where it arises, which holds for errors that matter: the model's
    output is looked at first.
    """
    errors: dict[int, float] = {}

    def off(index: int) -> bool:
        name = names[index]
        with tempfile.TemporaryDirectory(prefix="edgecv-") as folder:
            path = Path(folder) / "cut.onnx"
            path.write_bytes(cut(graph, [name], keep_outputs=False))
            with open_backend(backend, path) as runtime:
                errors[index] = ruler.error(runtime.run(feeds)[name], expected[name])
        return errors[index] > ruler.bound(name)

    low, high = 0, len(names) - 1
    if not names or not off(high):
        return None
    while low < high:
        middle = (low + high) // 2
        if off(middle):
            high = middle
        else:
            low = middle + 1
    if low not in errors:
        off(low)
    name = names[low]
    node, bound = graph.producers[name], ruler.bound(name)
    return Divergence(node.label, node.op, name, errors[low], bound, "exported")


def rank_layers(
    candidate: Path,
    parent: Path,
    feed: Array,
    *,
    own_feed: Array | None = None,
) -> list[LayerError]:
    """The layers of an INT8 file by what quantizing each costs, the costliest first.

    ``feed`` is the parent's input and ``own_feed`` the candidate's, where that is of another kind.

    Every stretch between two tensors that both files have is run with the parent's exact values
    as its input, which gives its own error; then the parent is run with that stretch's output put
    in, which gives what of it arrives at the output.
    """
    graph, whole = read_graph(candidate), read_graph(parent)
    common = _common(graph, whole)
    (name,) = whole.inputs.keys() - whole.initializers.keys()
    (own_name,) = graph.inputs.keys() - graph.initializers.keys()
    own_feed = feed if own_feed is None else own_feed
    outputs = list(whole.outputs)
    exact = _run_ort(cut(whole, common), {name: feed}, [*common, *outputs], optimize=False)
    values = {name: feed, **exact}
    ranked = []
    for tensor in common:
        layer = whole.needed([tensor], [one for one in common if one != tensor])
        node = next((one for one in layer if one.op in WEIGHTED), layer[-1])
        end = _dequantized(graph, tensor)
        given = {one: str(values[one].dtype) for one in common if one != tensor}
        stretch = graph.needed([end], given)
        if not any(step.op in (DEQUANTIZED, "QLinearConv", "QLinearMatMul") for step in stretch):
            continue
        reads = {one for step in stretch for one in step.reads}
        feeds = {one: values[one] for one in given if one in reads}
        feeds |= {own_name: own_feed} if own_name in reads else {}
        data = cut(graph, [end], given, keep_outputs=False)
        got = _run_ort(data, feeds, [end], optimize=True)[end]
        own = compare({tensor: got}, {tensor: exact[tensor]})
        if tensor in outputs:
            reached = {tensor: got}
        else:
            tail = cut(whole, outputs, {tensor: str(got.dtype)}, keep_outputs=False)
            needs = {one for step in whole.needed(outputs, [tensor]) for one in step.reads}
            inputs = {tensor: got} | ({name: feed} if name in needs else {})
            reached = _run_ort(tail, inputs, outputs, optimize=True)
        noise = sum(_energy(reached[o] - exact[o]) for o in reached)
        signal = sum(_energy(exact[o]) for o in reached)
        ranked.append(LayerError(node.label, node.op, noise / (signal or 1.0), own.sqnr_db))
    if not ranked:
        raise InputError(
            f"{candidate}: shares no quantized layer with {parent} by name; give the float file "
            f"that it was quantized from"
        )
    return sorted(ranked, key=lambda layer: -layer.contribution)


def _energy(values: Array) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _dequantized(graph: OnnxGraph, tensor: str) -> str:
    """What the consumers of ``tensor`` see: it, or its value after Q and DQ."""
    for node in graph.nodes:
        if node.op == "QuantizeLinear" and node.inputs[0] == tensor:
            for other in graph.nodes:
                if other.op == DEQUANTIZED and other.inputs[0] == node.outputs[0]:
                    return other.outputs[0]
    return tensor


def _common(graph: OnnxGraph, other: OnnxGraph) -> list[str]:
    """Tensors that both graphs make, in the first one's order."""
    found = [name for name in graph.tensors() if name in other.producers]
    if not found:
        raise CheckFailed(
            "the two graphs share no tensor by name, so no layer can be compared; export both "
            "with the same version of EdgeCV"
        )
    return found


def _run_ort(
    data: bytes, feeds: Mapping[str, Array], names: Sequence[str], *, optimize: bool
) -> dict[str, Array]:
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    if not optimize:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
        taken = {one.name for one in session.get_inputs()}
        fed = {name: values for name, values in feeds.items() if name in taken}
        return dict(zip(names, session.run(list(names), fed), strict=True))
    except Exception as error:  # pybind raises classes that share no base but Exception
        text = " ".join(str(error).split())[:500]
        raise RuntimeFailure(f"onnxruntime refuses a piece of the graph: {text}") from error


def _run_openvino(
    data: bytes, feeds: Mapping[str, Array], names: Sequence[str]
) -> dict[str, Array]:
    import openvino

    try:
        core = openvino.Core()
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = core.compile_model(core.read_model(data, b""), "CPU", options)
        values = compiled(list(feeds.values()))
    except Exception as error:  # RuntimeError and classes of pybind
        text = " ".join(str(error).split())[:500]
        raise RuntimeFailure(f"openvino refuses the graph with more outputs: {text}") from error
    found = {alias: values[port] for port in compiled.outputs for alias in port.get_names()}
    return {name: found[name] for name in names}
