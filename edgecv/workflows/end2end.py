"""A detector's file with decoding and NMS in its graph, proven against the NumPy path."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from edgecv.errors import ExportError
from edgecv.graph.end2end import MIN_OPSET, OUTPUTS, append_nms
from edgecv.graph.upgrade import read_onnx, upgrade
from edgecv.measure import selftest
from edgecv.measure.compare import FP32_MAX_REL
from edgecv.model import Model
from edgecv.quantize.targets import policy_for
from edgecv.results import Detections, Placement
from edgecv.runtimes import open_backend
from edgecv.spec import Decoding, ModelSpec, TensorSpec, read_spec, write_spec

PROOF_SEED = 11
PROOF_CONF = (
    0.001  # seeded pictures show nothing: at the usual threshold there is little to compare
)
PLUGIN_TARGET = "tensorrt"
MAX_PIXELS = 0.05  # between boxes of both paths: exp is rounded differently, by 1 in 10 million


def form_for(target: str | None) -> str:
    """The form of NMS for ``target``: TensorRT has its own, every other runtime takes ONNX's."""
    return "tensorrt" if target == PLUGIN_TARGET else "onnx"


def with_nms(data: bytes, spec: ModelSpec, form: str = "onnx") -> tuple[bytes, ModelSpec]:
    """The ONNX model ``data`` of contract ``spec`` with NMS appended, and its new contract.

    On seeded pictures both files have to find the same; :class:`~edgecv.errors.ExportError`
    otherwise, and where NMS cannot be appended (:func:`edgecv.graph.end2end.append_nms`). The form
    ``tensorrt`` runs nowhere but there: its twin in the form ``onnx`` is what is proven.
    """
    proof = _prove(data, spec)
    twin, changed = _append(data, spec, "onnx")
    changed = replace(
        changed,
        parity={**spec.parity, "end2end": {**proof, "form": form}},
        provenance={
            **spec.provenance,
            "end2end": {"kind": spec.decoding.kind, "options": dict(spec.decoding.options)},
        },
    )
    if form != "onnx":
        return _append(data, spec, form)[0], replace(changed, self_test={}, target=PLUGIN_TARGET)
    with tempfile.TemporaryDirectory(prefix="edgecv-") as folder:
        path = Path(folder) / "candidate.onnx"
        write_spec(twin, changed, path)
        with Model(changed, open_backend("onnxruntime", path)) as model:
            batch = _pictures(spec, selftest.SEED)
            expected = selftest.record(model.infer(batch), FP32_MAX_REL)
    return twin, replace(changed, self_test=expected)


def append_to_file(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    target: str | None = None,
) -> tuple[Path, ModelSpec]:
    """Write the detector ``path``, a file with a contract, with NMS in its graph for ``target``.

    A graph of an older opset is brought to 18 on the way (:mod:`edgecv.graph.upgrade`). ``output``
    defaults to ``NAME-end2end.onnx`` in the current folder. Gives the path and the new contract.
    """
    if target is not None:
        policy_for(target)
    source = Path(path)
    spec = read_spec(source)
    proto = read_onnx(source)
    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < MIN_OPSET:
        upgraded: ir.Model = upgrade(proto, source)
        proto, opset = ir.to_proto(upgraded), upgraded.opset_imports[""]
        spec = replace(spec, provenance={**spec.provenance, "opset": opset})
    data, changed = with_nms(proto.SerializeToString(deterministic=True), spec, form_for(target))
    written = Path(output) if output is not None else Path(f"{source.stem}-end2end.onnx")
    write_spec(data, changed, written)
    return written, changed


def _append(data: bytes, spec: ModelSpec, form: str) -> tuple[bytes, ModelSpec]:
    proto = onnx.load_from_string(data)
    if proto.graph.value_info:
        del proto.graph.value_info[:]
    graph: ir.Model = ir.from_proto(proto)
    append_nms(graph, spec, form)
    out: onnx.ModelProto = ir.to_proto(graph)
    try:
        onnx.checker.check_model(out, full_check=form == "onnx")
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{spec.name}: the graph with NMS is not valid ONNX: {error}") from error
    options = spec.decoding.options
    count, batch = int(options["max_det"]), spec.inputs[0].shape[0]
    num, boxes, scores, classes = OUTPUTS
    changed = replace(
        spec,
        outputs=(
            TensorSpec(num, (batch, 1), "int32"),
            TensorSpec(boxes, (batch, count, 4)),
            TensorSpec(scores, (batch, count)),
            TensorSpec(classes, (batch, count), "int32"),
        ),
        decoding=Decoding(
            "detections",
            {
                "conf": options["conf"],
                "max_det": count,
                "normalized": False,
                "clip": options.get("clip", True),
            },
        ),
    )
    serialized: bytes = out.SerializeToString(deterministic=True)
    return serialized, changed


def _prove(data: bytes, spec: ModelSpec) -> dict[str, Any]:
    """Compare both paths on seeded pictures, at a low threshold."""
    options = {**spec.decoding.options, "conf": PROOF_CONF}
    low = replace(spec, decoding=Decoding(spec.decoding.kind, options), self_test={})
    appended, changed = _append(data, low, "onnx")
    batch = _pictures(spec, PROOF_SEED)
    p = spec.preparation
    placement = Placement(p.width, p.height, 1.0, 1.0, 0.0, 0.0, p.width, p.height)
    results: list[Sequence[Detections]] = []
    with tempfile.TemporaryDirectory(prefix="edgecv-") as folder:
        for name, bytes_, contract in (("a", data, low), ("b", appended, changed)):
            path = Path(folder) / f"{name}.onnx"
            write_spec(bytes_, contract, path)
            with Model(contract, open_backend("onnxruntime", path)) as model:
                outputs = model.infer(batch)
                results.append(model.decode(outputs, [placement] * len(batch)))  # type: ignore[arg-type]
    largest = 0.0
    for numpy_path, graph_path in zip(*results, strict=True):
        if not np.array_equal(numpy_path.classes, graph_path.classes):
            raise ExportError(
                f"{spec.name}: NMS in the graph finds {len(graph_path)} objects in a seeded "
                f"picture, the NumPy path {len(numpy_path)}, or of other classes; nothing was "
                f"written"
            )
        if len(numpy_path):
            largest = max(largest, float(np.abs(numpy_path.boxes - graph_path.boxes).max()))
    if largest > MAX_PIXELS:
        raise ExportError(
            f"{spec.name}: boxes of NMS in the graph are up to {largest:.3f} pixels from those of "
            f"the NumPy path (allowed {MAX_PIXELS}); nothing was written"
        )
    found = sum(len(one) for one in results[0])
    return {"detections": found, "conf": PROOF_CONF, "max_pixels": largest}


def _pictures(spec: ModelSpec, seed: int) -> Any:
    return selftest.inputs(spec.preparation, seed, selftest.COUNT, spec.inputs[0].dtype)
