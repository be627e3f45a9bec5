"""The nets compute what torchvision's do, on weights that every implementation can make alike."""

import zlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgecv import models  # noqa: E402
from edgecv.export.weights import load_into, read_state_dict  # noqa: E402

RELATIVE = 1e-4  # of the largest logit: the project's bound for equal FP32 programs


def named_value(name, tensor):
    """The golden file's rule: each tensor is filled by its own name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    shape = tuple(tensor.shape)
    if name.endswith("num_batches_tracked"):
        value = np.zeros(shape)
    elif name.endswith("running_var"):
        value = 0.5 + rng.random(shape)
    elif name.endswith("running_mean"):
        value = 0.1 * rng.standard_normal(shape)
    elif len(shape) >= 2:
        value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    elif name.endswith("weight"):
        value = 0.5 + rng.random(shape)
    else:
        value = 0.1 * rng.standard_normal(shape)
    return torch.from_numpy(np.asarray(value)).to(tensor.dtype)


@pytest.mark.parametrize("name", ["mobilenet_v2"])
def test_logits_equal_torchvisions(assets, name):
    with np.load(assets / "goldens" / "model_outputs.npz") as goldens:
        expected = goldens[f"torchvision/{name}"]
    model = models.create(name)
    model.load_state_dict({k: named_value(k, v) for k, v in model.state_dict().items()})
    x = np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
    with torch.inference_mode():
        got = model.eval()(torch.from_numpy(x)).numpy()
    assert np.abs(got - expected).max() <= RELATIVE * np.abs(expected).max()


def test_published_key_set_loads_with_nothing_missing_and_nothing_over(assets):
    state = read_state_dict(assets / "weights" / "mobilenet_v2_imagenet.pth")
    model = models.create("mobilenetv2")
    assert set(state) == set(model.state_dict())
    load_into(model, state, "assets")


def test_width_and_class_count():
    model = models.create("MobileNet-V2", 7, width=0.35)
    with torch.inference_mode():
        assert model.eval()(torch.zeros(1, 3, 65, 97)).shape == (1, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mobilenet_v9",), "did you mean mobilenet_v2"),
        (("mobilenet_v2", 0), "at least 1"),
    ],
)
def test_bad_requests_are_explained(arguments, message):
    with pytest.raises(Exception, match=message):
        models.create(*arguments)


def test_unknown_option_is_named():
    with pytest.raises(Exception, match="no option depth; it takes width, dropout"):
        models.create("mobilenet_v2", depth=2)


def test_mobilefacenet_takes_the_published_weights(assets):
    state = read_state_dict(assets / "weights" / "mobilefacenet.pt")
    model = models.create("MobileFaceNet").eval()
    assert set(state) == set(model.state_dict())
    load_into(model, state, "assets")
    with torch.inference_mode():
        assert model(torch.zeros(2, 3, 112, 112)).shape == (2, 128)
