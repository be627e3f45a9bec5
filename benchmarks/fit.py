"""Can a net learn? It has to fit the pictures it is trained on, and to score the same in ONNX.

    python benchmarks/fit.py yolo-coco128 --data COCO128 -o benchmarks/fit.json
    python benchmarks/fit.py unet-coco128 --data COCO128 -o benchmarks/fit.json

The recipes are in ``benchmarks/fit``. COCO128 is a folder with ``images``, ``labels`` and ``masks``
of COCO's first 128 pictures; ``--set trunk=FILE`` names MobileNetV2's ImageNet weights where they
are not at ``../weights``. The run is kept in ``--work`` and goes on where it was stopped; the file
keeps the other recipe's results.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from record import kept, save

from edgecv.workflows.evaluate import evaluate
from edgecv.workflows.export import export
from edgecv.workflows.train import train_recipe

RECIPES = Path(__file__).resolve().parent / "fit"
CLASSES = {"unet-coco128": RECIPES.parents[1] / "export/labels/coco-panoptic-5.json"}
SCORES = ("ap50", "ap", "miou", "accuracy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", choices=sorted(path.stem for path in RECIPES.glob("*.toml")))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--work", type=Path, default=Path("run/fit"))
    parser.add_argument("-o", type=Path, help="JSON file; the other recipe's results are kept")
    a = parser.parse_args()
    folder = a.work / a.recipe

    def say(text: str) -> None:
        print(text, flush=True)

    done = train_recipe(str(RECIPES / f"{a.recipe}.toml"), a.data, a.set, folder, say=say)
    file = export(str(done.recipe), output=folder / f"{a.recipe}.onnx").path
    found = evaluate(file, a.data, backend="onnxruntime", classes=CLASSES.get(a.recipe))
    through_onnx = {key: value for key, value in found.to_dict().items() if key in SCORES}
    log = json.loads(done.log.read_text())["epochs"]
    print(f"as stored {dict(done.scores)}, through ONNX {through_onnx}")
    results = {
        **kept(a.o, "results"),
        a.recipe: {"as_stored": dict(done.scores), "through_onnx": through_onnx, "epochs": log},
    }
    save(a.o, "fit/1", results=results)


if __name__ == "__main__":
    main()
