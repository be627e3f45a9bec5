"""YOLOX-Nano with the authors' weights gives what the authors' ONNX file gives."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch")

from edgecv import models  # noqa: E402


def transplant(path, model):
    """Load the weights of an ONNX file whose convolutions stand in the order in which ours run.

    BatchNorm is folded there, so ours becomes the identity and keeps the bias.
    """
    graph = onnx.load(path).graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    names = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: names.append(name))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    with torch.inference_mode():
        model.eval()(torch.zeros(1, 3, 64, 64))
    for handle in handles:
        handle.remove()
    state = model.state_dict()
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    for name, node in zip(names, convolutions, strict=True):
        weight, bias = (torch.from_numpy(values[key].copy()) for key in node.input[1:])
        assert state[f"{name}.weight"].shape == weight.shape
        state[f"{name}.weight"] = weight
        if f"{name}.bias" in state:
            state[f"{name}.bias"] = bias
            continue
        norm = name.removesuffix("conv") + "bn"
        state[f"{norm}.weight"] = torch.full_like(bias, (1 + 1e-3) ** 0.5)  # cancels epsilon
        state[f"{norm}.bias"] = bias
    model.load_state_dict(state)


def test_outputs_equal_those_of_the_authors_file(assets):
    path = assets / "weights" / "yolox_nano_coco.onnx"
    model = models.create("yolox-nano")
    transplant(path, model)
    x = np.random.default_rng(0).integers(0, 256, (1, 3, 416, 416)).astype(np.float32)
    (expected,) = onnxruntime.InferenceSession(path).run(None, {"images": x})
    with torch.inference_mode():
        got = model(torch.from_numpy(x)).numpy()
    assert got.shape == expected.shape == (1, 3549, 85)
    # 1e-4 of the largest: the project's bound for equal FP32 programs
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()
