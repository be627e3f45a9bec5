"""The self-test inside a model file: inputs by seed, and the answers that belong to them.

It proves a file on the machine at hand, with no reference, no pictures and no torch.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import SpecError
from edgecv.measure.seeded import seeded_pictures
from edgecv.model import Model
from edgecv.preprocess import to_tensor
from edgecv.spec import ModelSpec, Preparation

SEED = 20_240
COUNT = 3  # one picture of each block size
MAX_VALUES = 4096  # of each picture, over all outputs, evenly spaced: keeps the contract small


def inputs(preparation: Preparation, seed: int, count: int, dtype: str = "float32") -> NDArray[Any]:
    """The prepared batch of ``count`` pictures of a self-test, in the input's layout and dtype.

    The pictures are RGB whatever order the input takes, so that files of one net that take its
    channels in different orders see the same ones.
    """
    p = preparation
    pictures = seeded_pictures(seed, count, p.height, p.width, p.channels)
    return to_tensor(pictures[..., ::-1] if p.color == "bgr" else pictures, p, dtype)


def record(outputs: Mapping[str, NDArray[Any]], max_rel: float, seed: int = SEED) -> dict[str, Any]:
    """The JSON form of a self-test with the expected ``outputs`` ``{name: [COUNT, ...]}``."""
    expected = {}
    for name, values in outputs.items():
        kept = _thin(values, len(outputs)).astype("<f4")
        expected[name] = {
            "shape": list(kept.shape),
            "float32": base64.b64encode(kept.tobytes()).decode(),
        }
    return {"seed": seed, "count": COUNT, "max_rel": max_rel, "outputs": expected}


def with_noise(test: Mapping[str, Any], noise: Mapping[str, float]) -> dict[str, Any]:
    """``test`` of an FP16 file: held to the SQNR that ``noise`` (:mod:`~edgecv.measure.rounding`)
    of each output allows, and not to the largest difference."""
    return {**{key: value for key, value in test.items() if key != "max_rel"}, "noise": dict(noise)}


def expected_outputs(spec: ModelSpec) -> dict[str, NDArray[np.float32]]:
    """The answers that the contract of ``spec`` holds, ``{name: [count, values]}``."""
    outputs = {}
    try:
        for name, entry in spec.self_test["outputs"].items():
            data = base64.b64decode(entry["float32"], validate=True)
            outputs[name] = np.frombuffer(data, "<f4").reshape(entry["shape"])
        if not isinstance(spec.self_test["seed"], int) or not outputs:
            raise ValueError("no seed or no outputs")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SpecError(f"{spec.name}: the self-test in the file is damaged ({error})") from error
    return outputs


def run(model: Model) -> dict[str, NDArray[Any]]:
    """What ``model`` answers to its own self-test, thinned as the recorded answers are."""
    test = model.spec.self_test
    dtype = model.spec.inputs[0].dtype
    batch = inputs(model.spec.preparation, test["seed"], test["count"], dtype)
    outputs = model.infer(batch)
    return {name: _thin(values, len(outputs)) for name, values in outputs.items()}


def _thin(values: NDArray[Any], outputs: int) -> NDArray[Any]:
    flat = values.reshape(len(values), -1)
    step = -(-flat.shape[1] // (MAX_VALUES // outputs))
    return flat[:, ::step]
