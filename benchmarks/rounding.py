"""How near FP16 files come to the bound that `edgecv verify` holds them to.

    python benchmarks/rounding.py MODEL.onnx=PICTURES ... -o rounding.json

Each FP32 file (with a contract) is brought to FP16 as `edgecv export` does it, and its answers to
pictures of the folder, one by one, are compared with the FP32 file's: the noise, root mean square,
over what edgecv.measure.rounding predicts for the same picture. A right file may reach 2.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from record import save

import edgecv
from edgecv.export.precision import make_half
from edgecv.graph.upgrade import read_onnx, upgrade
from edgecv.measure.compare import compare_each, relative_rms
from edgecv.measure.rounding import SPARE_BITS, fp16_bound, rough_file, roughened, rounding_noise
from edgecv.preprocess import list_pictures, stack
from edgecv.runtimes import open_backend


def shares(model: Path, pictures: list[Path], folder: Path) -> tuple[list[float], list[float]]:
    """Of each picture: noise over prediction, of the worst output, and the noise itself."""
    with edgecv.load(model, backend="onnxruntime") as parent:
        feeds = [stack([parent.prepare(picture)]) for picture in pictures]
        (name,) = (tensor.name for tensor in parent.spec.inputs)
        exact = [parent.infer(feed) for feed in feeds]
    graph = upgrade(read_onnx(model), model)
    make_half(graph, feeds)
    half = folder / "half.onnx"
    half.write_bytes(ir.to_proto(graph).SerializeToString())
    with open_backend("onnxruntime", half) as runtime:
        found = [runtime.run({name: feed}) for feed in feeds]

    def rough(rng: np.random.Generator) -> list[dict[str, Any]]:
        path = folder / "rough.onnx"
        path.write_bytes(rough_file(model, rng))
        with open_backend("onnxruntime", path) as runtime:
            return [runtime.run({name: roughened(feed, rng)}) for feed in feeds]

    # rounding_noise asks for one draw after the other, picture by picture: each is made once
    draws: dict[int, list[dict[str, Any]]] = {}
    ratios, noises = [], []
    for index in range(len(feeds)):
        seen: list[int] = []

        def run(
            rng: np.random.Generator | None, index: int = index, seen: list[int] = seen
        ) -> dict[str, Any]:
            if rng is None:
                return exact[index]
            seen.append(len(seen))
            if seen[-1] not in draws:
                draws[seen[-1]] = rough(rng)
            return draws[seen[-1]][index]

        noise = rounding_noise(run)
        off = {n: relative_rms(c) for n, c in compare_each(found[index], exact[index]).items()}
        ratios.append(max(off[n] / (fp16_bound(noise[n]) / 2**SPARE_BITS) for n in off))
        noises.append(max(off.values()))
    return ratios, noises


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", nargs="+", metavar="MODEL.onnx=PICTURES")
    parser.add_argument("-n", type=int, default=16, help="pictures, evenly spaced in the folder")
    parser.add_argument("-o", type=Path, help="JSON file")
    arguments = parser.parse_args()
    nets = {}
    for pair in arguments.pairs:
        model, _, pictures = pair.partition("=")
        paths = list_pictures(pictures)
        chosen = paths[:: -(-len(paths) // arguments.n)]
        with tempfile.TemporaryDirectory() as folder:
            ratios, noises = shares(Path(model), chosen, Path(folder))
        nets[Path(model).stem] = {
            "pictures": len(chosen),
            "noise_over_predicted": [round(value, 3) for value in sorted(ratios)],
            "noise": [float(f"{value:.2e}") for value in sorted(noises)],
        }
        print(
            f"{Path(model).stem}: {min(ratios):.2f} to {max(ratios):.2f} of the prediction, "
            f"noise {min(noises):.1e} to {max(noises):.1e} of the output"
        )
    save(arguments.o, "rounding/1", nets=nets)


if __name__ == "__main__":
    main()
