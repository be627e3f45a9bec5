"""Runtimes that a user of a Pi or a CPU box may pick, on one classifier: speed and answers.

    python benchmarks/peers.py mobilenetv2 PICTURES --weights W.pth --mean 0.5 --std 0.5 \
        --resize 256 -o benchmarks/peers.json

Everything is made from the same PyTorch net: EdgeCV's FP32 and INT8 files in onnxruntime and
OpenVINO, ncnn (by pnnx, from the same FP32 file) and LiteRT (by litert-torch, with its static INT8
by ai-edge-quantizer), where they are installed (``pip install ncnn pnnx litert-torch``). ncnn's own
INT8 needs tools that its wheel does not have. 100 pictures, drawn by a seed, calibrate both INT8
forms; the others say how many answers are those of PyTorch. One thread, one prepared picture in
memory to logits in memory, all by turns; the ratio says how many times as fast as the FP32 file in
onnxruntime. A peer that fails is a row with its error.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from record import save

import edgecv
from edgecv.export.overrides import InputOverrides, recipe_for
from edgecv.export.weights import load_model, resolve
from edgecv.measure.machine import installed
from edgecv.measure.statistics import ratio
from edgecv.measure.timing import by_turns
from edgecv.preprocess import list_pictures, prepare
from edgecv.runtimes.info import RuntimeOptions
from edgecv.spec import read_spec

CALIBRATE = 100
SECONDS = 0.2  # of one turn
PEERS = ("ncnn", "pnnx", "ai-edge-litert", "litert-torch", "ai-edge-quantizer")
BASELINE = "edgecv fp32, onnxruntime"
Pictures = NDArray[np.float32]
Run = Callable[[Pictures], Pictures]  # a prepared picture [1, C, H, W] to logits [1, classes]
Arrange = Callable[[Pictures], Pictures]  # from [1, C, H, W] to what the runtime takes


def same(picture: Pictures) -> Pictures:
    return picture


def channels_last(picture: Pictures) -> Pictures:
    return np.ascontiguousarray(picture.transpose(0, 2, 3, 1))


def edgecv_runs(path: Path, backend: str, stack: ExitStack) -> Run:
    options = RuntimeOptions(threads=1)
    model = stack.enter_context(edgecv.load(path, backend=backend, options=options))
    (tensor,), (output,) = model.spec.inputs, model.spec.outputs
    # an INT8 file may have its mean moved to a whole level: its contract says so
    mine, theirs = model.spec.preparation, read_spec(path.with_name("fp32.onnx")).preparation
    shift = np.float32((theirs.mean[0] - mine.mean[0]) / mine.std[0])
    if shift:
        return lambda picture: model.runtime.run({tensor.name: picture + shift})[output.name]
    return lambda picture: model.runtime.run({tensor.name: picture})[output.name]


def ncnn_runs(file: Path, shape: tuple[int, ...]) -> Run:
    import ncnn

    program = shutil.which("pnnx") or str(Path(sysconfig.get_paths()["scripts"]) / "pnnx")
    sizes = f"inputshape=[{','.join(map(str, shape))}]"
    subprocess.run(
        [program, file.name, sizes, "fp16=0"], cwd=file.parent, check=True, capture_output=True
    )
    net = ncnn.Net()
    net.opt.num_threads = 1
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.load_param(str(file.with_suffix(".ncnn.param")))
    net.load_model(str(file.with_suffix(".ncnn.bin")))

    def run(picture: Pictures) -> Pictures:
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(picture[0]))
        _, out = extractor.extract("out0")
        return np.array(out)[None]

    return run


def litert_file(net: torch.nn.Module, shape: tuple[int, ...], path: Path) -> None:
    import litert_torch

    last = litert_torch.to_channel_last_io(net, args=[0])
    n, c, h, w = shape
    litert_torch.convert(last, (torch.zeros(n, h, w, c),)).export(str(path))


def litert_int8(float_file: Path, pictures: Pictures, path: Path) -> None:
    from ai_edge_quantizer import qtyping, quantizer, recipe
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    made = quantizer.Quantizer(str(float_file), recipe.static_wi8_ai8())
    for end in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):  # floats, as ours
        made.update_quantization_recipe(".*", end, algorithm_key=AlgorithmName.NO_QUANTIZE)
    (signature,) = interpreter(float_file).get_signature_list().items()
    name, tensors = signature
    feeds = [{tensors["inputs"][0]: channels_last(picture[None])} for picture in pictures]
    done = made.quantize(made.calibrate({name: feeds}))
    done.export_model(str(path), overwrite=True)


def interpreter(path: Path) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(model_path=str(path), num_threads=1)


def litert_runs(path: Path) -> Run:
    runtime = interpreter(path)
    runtime.allocate_tensors()
    given, answer = (
        runtime.get_input_details()[0]["index"],
        runtime.get_output_details()[0]["index"],
    )

    def run(picture: Pictures) -> Pictures:
        runtime.set_tensor(given, picture)
        runtime.invoke()
        return runtime.get_tensor(answer)

    return run


def contenders(
    net: torch.nn.Module, folder: Path, calibrate: Pictures, stack: ExitStack
) -> Iterator[tuple[str, Callable[[], Run], Arrange]]:
    """Name, how to make it, and the layout that it takes."""
    whole, integers = folder / "fp32.onnx", folder / "int8.onnx"
    light, light8 = folder / "fp32.tflite", folder / "int8.tflite"
    shape = (1, *calibrate.shape[1:])
    for backend in ("onnxruntime", "openvino"):
        for path in (whole, integers):
            name = f"edgecv {path.stem}, {backend}"
            yield name, lambda p=path, b=backend: edgecv_runs(p, b, stack), same
    here = installed(PEERS)
    if "ncnn" in here:
        yield "ncnn fp32", lambda: ncnn_runs(whole, shape), same
    if "litert-torch" in here:

        def make() -> Run:
            litert_file(net, shape, light)
            return litert_runs(light)

        def make8() -> Run:
            litert_int8(light, calibrate, light8)
            return litert_runs(light8)

        yield "LiteRT fp32", make, channels_last
        yield "LiteRT int8", make8, channels_last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--mean", type=float)
    parser.add_argument("--std", type=float)
    parser.add_argument("--resize", type=int)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("-o", type=Path, help="JSON file")
    a = parser.parse_args()
    mean, std = ((value,) if value is not None else None for value in (a.mean, a.std))
    overrides = InputOverrides(resize=a.resize, mean=mean, std=std)
    net = load_model(resolve(recipe_for(a.recipe, overrides), a.weights)).eval()
    paths = list_pictures(a.pictures)
    order = np.random.default_rng(0).permutation(len(paths))
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        whole = folder / "fp32.onnx"
        edgecv.export(a.recipe, weights=a.weights, overrides=overrides, output=whole)
        drawn = folder / "calibration"
        drawn.mkdir()
        for index in order[:CALIBRATE]:
            shutil.copy(paths[index], drawn / f"{index:05}{paths[index].suffix}")
        edgecv.quantize(whole, calibration=drawn, force=True, output=folder / "int8.onnx")
        p = read_spec(whole).preparation
        load = lambda indices: np.stack([prepare(paths[i], p).tensor for i in indices])  # noqa: E731
        calibrate, scored = load(np.sort(order[:CALIBRATE])), load(np.sort(order[CALIBRATE:]))
        with torch.inference_mode():
            truth = np.concatenate(
                [net(torch.from_numpy(part)).numpy() for part in np.split(scored, len(scored))]
            ).argmax(1)
        runs: dict[str, tuple[Run, Pictures]] = {}
        for title, make, arrange in contenders(net, folder, calibrate, stack):
            try:
                run = make()
                found = [run(arrange(one[None])).argmax() for one in scored]
            except Exception as error:  # a peer's failure is a result
                rows[title] = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
                print(title, rows[title])
                continue
            rows[title] = {"equal_to_torch": float(np.mean(np.array(found) == truth))}
            runs[title] = (run, arrange(scored[:1]))
        calls = [partial(run, picture) for run, picture in runs.values()]
        medians = dict(zip(runs, by_turns(calls, a.rounds, SECONDS), strict=True))
    for title, values in medians.items():
        found = ratio(medians[BASELINE], values)
        rows[title]["median_ms"] = round(float(np.median(values)), 3)
        rows[title]["speedup"] = found.to_dict() if found else None
        times_fp32 = found.value if found else float("nan")
        print(f"{title:28} {rows[title]['median_ms']:8.3f} ms, {times_fp32:.2f} times, "
              f"{rows[title]['equal_to_torch']:.2%} equal to PyTorch")  # fmt: skip
    save(
        a.o,
        "peers/1",
        peers=PEERS,
        model=a.recipe,
        calibrated_on=CALIBRATE,
        scored_on=len(paths) - CALIBRATE,
        results=rows,
    )


if __name__ == "__main__":
    main()
