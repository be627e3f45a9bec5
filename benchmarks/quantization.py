"""INT8 of a classifier against other quantizers, over seeded splits of one picture set.

    edgecv export mobilenetv2 --weights W.pth --mean 0.5 --std 0.5 --resize 256 -o mobilenetv2.onnx
    python benchmarks/quantization.py mobilenetv2.onnx PICTURES -o quantization.json

PICTURES is a folder per class. Of each split 100 pictures calibrate and the others are scored: the
share of answers equal to FP32's, the top-1 points lost, and the SQNR of the logits, all in
onnxruntime (``--scored-in openvino``: in OpenVINO, FP32 included, which computes in FP32 there).
``--learn 200`` adds EdgeCV's files after 200 steps of learning from the same 100 pictures (needs
torch; two minutes a file on one core).
Then every file of the first split is timed on one thread, in turns, as a ratio to FP32. No peer is
calibrated on what it is scored on; each gets the same pictures in the same order. Peers beside
onnxruntime's own quantizer are there where they are installed (``pip install nncf``; onnxsim is in
the export extra).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from record import save

from edgecv.evaluate.imagenet import read_folder
from edgecv.graph.upgrade import read_onnx, upgrade
from edgecv.measure.machine import installed
from edgecv.measure.statistics import ratio
from edgecv.measure.timing import by_turns
from edgecv.preprocess import prepare as prepare_picture
from edgecv.quantize.pipeline import Quantizer, prepare
from edgecv.quantize.readback import onnxruntime_readback
from edgecv.quantize.run import open_session
from edgecv.quantize.targets import policy_for
from edgecv.spec import ModelSpec, read_spec
from edgecv.workflows.learn import CUT

CALIBRATE = 100
SECONDS = 0.2  # of one turn
PEERS = ("nncf", "onnxsim")
Pictures = NDArray[np.float32]


# From a model and calibration pictures to the bytes of an INT8 file, and what that file's contract
# says of the mean: pictures are prepared for FP32, and shifted by the difference
Maker = Callable[[Path, ModelSpec, Pictures], tuple[bytes, np.float32]]


def ours(target: str, learn: int = 0) -> Maker:
    """EdgeCV's pipeline for ``target``; with ``learn`` steps of learning from the same pictures."""

    def make(model: Path, spec: ModelSpec, pictures: Pictures) -> tuple[bytes, np.float32]:
        policy, p = policy_for(target), spec.preparation
        ready = prepare(upgrade(read_onnx(model), model), policy, p, False)
        shift = np.float32((p.mean[0] - ready.preparation.mean[0]) / p.std[0])
        batches = lambda: (picture[None] + shift for picture in pictures)  # noqa: E731
        integers = Quantizer(ready, policy, batches).quantize().model
        if learn:
            from edgecv.quantize.gradients.tune import Settings, divergence, tune

            settings = Settings(steps=learn, crop=CUT)
            integers = tune(integers, ready.model, policy, batches, settings, divergence).model
        data: bytes = ir.to_proto(integers).SerializeToString(deterministic=True)
        return data, shift

    return make


def stock(**options: Any) -> Maker:
    """``onnxruntime.quantization.quantize_static`` with ``options``."""

    def make(model: Path, spec: ModelSpec, pictures: Pictures) -> tuple[bytes, np.float32]:
        from onnxruntime.quantization import CalibrationDataReader, quantize_static

        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                self.rest: Iterator[Pictures] = iter(pictures)

            def get_next(self) -> dict[str, Pictures] | None:
                picture = next(self.rest, None)
                return None if picture is None else {spec.inputs[0].name: picture[None]}

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "peer.onnx"
            quantize_static(model, path, Reader(), **options)
            return path.read_bytes(), np.float32(0)

    return make


def per_channel() -> Maker:
    """onnxruntime's quantizer with the options that keep most of a depthwise-separable net."""
    from onnxruntime.quantization import QuantType

    return stock(per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)


def onnxsim_static(**options: Any) -> Maker:
    """onnxsim's ``quantize_static`` with ``options``."""

    def make(model: Path, spec: ModelSpec, pictures: Pictures) -> tuple[bytes, np.float32]:
        import onnxsim

        feeds = [{spec.inputs[0].name: picture[None]} for picture in pictures]
        made = onnxsim.quantize_static(onnx.load(model), feeds, **options)
        return made.SerializeToString(), np.float32(0)

    return make


def nncf_mixed(model: Path, spec: ModelSpec, pictures: Pictures) -> tuple[bytes, np.float32]:
    """NNCF's ``quantize`` with the preset that it has for nets with activations beside ReLU."""
    import nncf

    feeds = [{spec.inputs[0].name: picture[None]} for picture in pictures]
    made = nncf.quantize(
        onnx.load(model),
        nncf.Dataset(feeds),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(feeds),
    )
    return made.SerializeToString(), np.float32(0)


def peers(learn: int) -> dict[str, Maker]:
    found = {
        "edgecv onnxruntime-x86": ours("onnxruntime-x86"),
        "edgecv tensorrt, scored in onnxruntime": ours("tensorrt"),
        "onnxruntime per-channel U8S8": per_channel(),
        "onnxruntime default": stock(),
    }
    here = installed(PEERS)
    if "nncf" in here:
        found["nncf mixed"] = nncf_mixed
    if "onnxsim" in here:
        found["onnxsim"] = onnxsim_static()
        found["onnxsim full graph"] = onnxsim_static(full_graph=True)
    if learn:
        for target in ("onnxruntime-x86", "tensorrt"):
            found[f"edgecv {target}, {learn} steps of learning"] = ours(target, learn)
    return found


def runner(data: bytes, where: str, threads: int | None = None) -> Callable[[Pictures], Pictures]:
    """A function from a prepared picture to logits."""
    if where == "openvino":
        import openvino

        core = openvino.Core()
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            settings |= {"INFERENCE_NUM_THREADS": str(threads)}
        request = core.compile_model(core.read_model(data), "CPU", settings).create_infer_request()
        return lambda picture: np.array(request.infer([picture[None]])[0])
    session = open_session(data, threads=threads)
    name = session.get_inputs()[0].name
    return lambda picture: session.run(None, {name: picture[None]})[0]


def logits(data: bytes, where: str, pictures: Pictures) -> NDArray[np.float32]:
    run = runner(data, where)
    return np.concatenate([run(picture) for picture in pictures])


def score(found: Pictures, truth: Pictures, classes: NDArray[np.int64]) -> dict[str, float]:
    noise = float(np.square(found - truth, dtype=np.float64).sum())
    top1 = [float((side.argmax(1) == classes).mean()) for side in (truth, found)]
    return {
        "agreement": float((found.argmax(1) == truth.argmax(1)).mean()),
        "top1": top1[1],
        "drop_points": 100 * (top1[0] - top1[1]),
        "sqnr_db": 10 * np.log10(float(np.square(truth, dtype=np.float64).sum()) / noise),
    }


def latency(
    files: dict[str, bytes], where: str, picture: Pictures, rounds: int
) -> dict[str, dict[str, Any]]:
    """Every file in turns on one thread; the ratio says how many times as fast as FP32 it is."""
    runs = {name: runner(data, where, threads=1) for name, data in files.items()}
    calls = [partial(run, picture) for run in runs.values()]
    medians = dict(zip(runs, by_turns(calls, rounds, SECONDS), strict=True))
    return {
        name: {
            "median_ms": round(float(np.median(values)), 4),
            "speedup": found.to_dict() if (found := ratio(medians["fp32"], values)) else None,
        }
        for name, values in medians.items()
    }


def summary(results: Sequence[dict[str, float]]) -> dict[str, Any]:
    keys = results[0].keys()
    return {
        "mean": {key: round(float(np.mean([r[key] for r in results])), 5) for key in keys},
        "splits": [{key: round(value, 5) for key, value in r.items()} for r in results],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--learn", type=int, default=0, help="steps of EdgeCV's learning, as well")
    parser.add_argument("--rounds", type=int, default=20, help="of the interleaved latency")
    parser.add_argument("--scored-in", choices=("onnxruntime", "openvino"), default="onnxruntime")
    parser.add_argument("-o", type=Path, help="JSON file")
    arguments = parser.parse_args()
    where = arguments.scored_in
    spec = read_spec(arguments.model)
    data = read_folder(arguments.pictures, spec)
    with tempfile.TemporaryFile() as file:  # prepared once, and not held in memory
        shape = (len(data.pictures), *map(int, spec.inputs[0].shape[1:]))
        pictures: Pictures = np.memmap(file, np.float32, "w+", shape=shape)
        for index, path in enumerate(data.pictures):
            pictures[index] = prepare_picture(path, spec.preparation).tensor
        original = arguments.model.read_bytes()
        truth = logits(original, where, pictures)
        scores: dict[str, list[dict[str, float]]] = {}
        first = {"fp32": original}
        for seed in range(arguments.splits):
            order = np.random.default_rng(seed).permutation(len(pictures))
            calibrate, scored = np.sort(order[:CALIBRATE]), np.sort(order[CALIBRATE:])
            for name, make in peers(arguments.learn).items():
                made, shift = make(arguments.model, spec, pictures[calibrate])
                first.setdefault(name, made)
                found = logits(made, where, pictures[scored] + shift)
                one = score(found, truth[scored], data.classes[scored])
                scores.setdefault(name, []).append(one)
                print(f"split {seed} {name}: " + ", ".join(f"{k} {v:.4f}" for k, v in one.items()),
                      flush=True)  # fmt: skip
        times = latency(first, where, pictures[0], arguments.rounds)
    results = {
        name: {
            **summary(scores[name]),
            "latency": times[name],
            "float_nodes": len(onnxruntime_readback(first[name]).floats),
            "float_convolutions": len(onnxruntime_readback(first[name]).float_macs),
        }
        for name in scores
    }
    for name, entry in results.items():
        mean, speedup = entry["mean"], entry["latency"]["speedup"]
        print(f"{name:42} {mean['agreement']:.2%} equal, drop {mean['drop_points']:.2f} points, "
              f"{mean['sqnr_db']:.1f} dB, {speedup['value'] if speedup else 0:.2f} times FP32, "
              f"{entry['float_convolutions']} float convolutions")  # fmt: skip
    save(
        arguments.o,
        "quantization/1",
        peers=PEERS,
        model=spec.name,
        scored_in=where,
        calibrated_on=CALIBRATE,
        fp32=times["fp32"],
        results=results,
    )


if __name__ == "__main__":
    main()
