"""The nets compute what torchvision's and timm's do, on weights that all can make alike."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgecv import models  # noqa: E402
from edgecv.errors import RecipeError, WeightsError  # noqa: E402
from edgecv.export.weights import load_into, read_state_dict  # noqa: E402
from edgecv.models.seeded import fill_by_name  # noqa: E402

RELATIVE = 1e-4  # of the largest logit: the project's bound for equal FP32 programs
SIZES = {
    "inception_v3": 299,
    "efficientnet_b1": 240,
    "efficientnet_b2": 260,
    "efficientnet_b3": 300,
}
NETS = [
    "torchvision/alexnet",
    pytest.param("torchvision/vgg16", marks=pytest.mark.slow),
    "torchvision/resnet18",
    "torchvision/resnet50",
    "torchvision/googlenet",
    "torchvision/inception_v3",
    "torchvision/mobilenet_v2",
    "torchvision/mobilenet_v3_small",
    "torchvision/mobilenet_v3_large",
    "torchvision/efficientnet_b0",
    "torchvision/efficientnet_b1",
    "torchvision/efficientnet_b2",
    "torchvision/efficientnet_b3",
    "timm/mobilenetv1_100",
    "timm/tf_efficientnet_lite0",
    "timm/efficientnet_lite0",
]


@pytest.mark.parametrize("key", NETS)
def test_logits_equal_the_originals(assets, key):
    """Nothing missing and nothing surplus: the original's state dict was filled by these names."""
    name = key.rpartition("/")[2]
    with np.load(assets / "goldens" / "model_outputs.npz") as goldens:
        expected = goldens[key]
    with torch.device("meta"):
        model = models.create(name)
    size = SIZES.get(name, 224)
    x = np.random.default_rng(0).standard_normal((2, 3, size, size)).astype(np.float32)
    with torch.inference_mode():
        got = fill_by_name(model).eval()(torch.from_numpy(x)).numpy()
    assert np.abs(got - expected).max() <= RELATIVE * np.abs(expected).max()


def test_every_reference_net_is_in_the_list(assets):
    keys = {getattr(net, "values", (net,))[0] for net in NETS}
    with np.load(assets / "goldens" / "model_outputs.npz") as goldens:
        assert keys == set(goldens.files)


@pytest.mark.parametrize(
    ("name", "file"),
    [("mobilenetv2", "mobilenet_v2_imagenet.pth"), ("MobileFaceNet", "mobilefacenet.pt")],
)
def test_published_key_sets_load_with_nothing_missing_and_nothing_over(assets, name, file):
    state = read_state_dict(assets / "weights" / file)
    model = models.create(name)
    assert set(state) == set(model.state_dict())
    load_into(model, state, "assets")


def test_mobilefacenet_embeds(assets):
    model = models.create("mobilefacenet").eval()
    with torch.inference_mode():
        assert model(torch.zeros(2, 3, 112, 112)).shape == (2, 128)


@pytest.mark.parametrize("name", ["mobilenet_v1", "MobileNet-V2", "mobilenet_v3_small"])
def test_width_and_class_count(name):
    model = models.create(name, 7, width=0.35)
    with torch.inference_mode():
        assert model.eval()(torch.zeros(1, 3, 65, 97)).shape == (1, 7)


def test_weights_of_another_width_are_refused():
    state = models.create("mobilenet_v2", width=0.5).state_dict()
    with pytest.raises(WeightsError, match=r"another shape.*another width"):
        load_into(models.create("mobilenet_v2"), state, "half.pth")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("mobilenet_v9", {}, "did you mean mobilenet_v2"),
        ("resnet", {}, "did you mean resnet"),
        ("mobilenet_v2", {"num_classes": 0}, "at least 1"),
        ("mobilenet_v2", {"num_classes": 2.5}, "at least 1, not 2.5"),
        ("mobilefacenet", {"num_classes": 10}, "has no classes; it takes embedding, image_size"),
        ("mobilenet_v2", {"depth": 2}, "no option depth; it takes width, dropout"),
        ("mobilenet_v2", {"dropout": 2.0}, "cannot be built with dropout = 2.0"),
        ("efficientnet", {"variant": "b9"}, "b0 to b7, got 'b9'"),
        ("efficientnet", {"phi": -1}, "phi must be 0 to 10"),
        ("mobilefacenet", {"image_size": 8}, "at least 16"),
        ("efficientnet_lite0", {"width": 2}, "has no option width; it takes none"),
        ("mobilenet_v2", {"width": 0}, "width must be greater than 0"),
        ("unet_mobilenet_v2", {"width": -1.0}, "width must be greater than 0"),
        ("unet", {"base": 0}, "base must be at least 1"),
        ("lenet5", {"in_channels": 0}, "in_channels must be at least 1"),
        ("landmarks", {"trunk": 5}, "cannot be built with trunk = 5"),
        ("unet", {"upsampling": "magic"}, "transposed, bilinear, nearest, got 'magic'"),
        ("siamese", {"trunk": "unet"}, "gives no embedding"),
        ("siamese", {"measure": "l3"}, "l1, chi-square, got 'l3'"),
        ("landmarks", {"points": 0}, "at least 1"),
        ("landmarks", {"trunk": "yolox_nano"}, "is not a classifier"),
    ],
)
def test_bad_requests_are_explained(name, arguments, message):
    with pytest.raises(RecipeError, match=message):
        models.create(name, **arguments)
