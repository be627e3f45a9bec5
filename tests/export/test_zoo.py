"""The zoo through export: small inputs, seeded weights, two runtimes; and what the nets promise."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from torch import nn

import edgecv
from edgecv import models
from edgecv.errors import RecipeError
from edgecv.export.recipe import list_recipes, load_recipe
from edgecv.export.to_onnx import export_module, to_bytes
from edgecv.measure.compare import FP32_MAX_REL
from edgecv.models import count
from edgecv.models.efficientnet import VARIANTS, compound_scaling
from edgecv.models.fully_convolutional import to_fully_convolutional
from edgecv.models.layers import AdaptivePool, check_input
from edgecv.models.seeded import fill_by_name
from edgecv.workflows.models import layers_of

ROOT = Path(__file__).parents[2]
BLOCKS = {"Conv", "Gemm", "Flatten", "GlobalAveragePool"}
MOBILE = {"Relu", "Clip", "Add", "Resize"}
YOLOX = {"Slice", "Concat", "Sigmoid", "Mul", "Add", "MaxPool", "Resize", "Reshape", "Transpose"}
BOX = {"Clip", "Add", "Sigmoid", "Div", "Mul", "Sub", "Concat", "Slice", "Reshape", "Unsqueeze"}
BEST = {"Softmax", "TopK", "Cast"}
CASES = [
    # name, options, channels, size, what the graph may hold beside BLOCKS
    ("lenet5", {}, 1, 32, {"Relu", "MaxPool"}),
    ("googlenet", {"num_classes": 3}, 3, 64, {"Relu", "MaxPool", "Concat"}),
    ("mobilenet_v3_small", {}, 3, 64, {"Relu", "HardSwish", "HardSigmoid", "Mul", "Add"}),
    ("tf_efficientnet_lite0", {"num_classes": 3}, 3, 63, {"Clip", "Add"}),
    ("unet", {"base": 4}, 3, 32, {"Relu", "MaxPool", "ConvTranspose", "Concat"}),
    ("landmarks", {"trunk": "resnet18"}, 3, 32, {"Relu", "MaxPool", "Add", "Reshape"}),
]
SLOW = [
    ("alexnet", {"num_classes": 2}, 3, 64, {"Relu", "MaxPool", "MatMul"}),
    ("inception_v3", {}, 3, 107, {"Relu", "MaxPool", "AveragePool", "Concat"}),
    ("efficientnet_b0", {"num_classes": 3}, 3, 64, {"Sigmoid", "Mul", "Add"}),
    ("unet_mobilenet_v2", {"width": 0.35}, 3, 32, {"Relu", "Clip", "Add", "Resize", "Concat"}),
    ("yolox_nano", {"num_classes": 3}, 3, 64, YOLOX),
    ("yolo_mobilenet_v2", {"num_classes": 3, "strides": [16], "width": 0.35}, 3, 64, MOBILE),
    ("yolo_grid_mobilenet_v2", {"width": 0.35}, 3, 64, MOBILE | {"Sigmoid", "Transpose"}),
    ("localizer", {"num_classes": 3}, 3, 64, BOX | BEST),
]


@pytest.mark.parametrize(
    ("name", "options", "channels", "size", "kinds"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_exports_with_the_nodes_it_needs_and_equal_answers(name, options, channels, size, kinds):
    model = fill_by_name(models.create(name, **options)).eval()
    graph = export_module(model, (channels, size, size), batch=None, outputs=["out"])
    assert {node.op_type for node in graph.graph} <= BLOCKS | kinds
    assert graph.ir_version <= 9
    names = [node.name for node in graph.graph]
    assert len(set(names)) == len(names)  # TensorFlow's asymmetric pads are in the convolutions
    data = to_bytes(graph)
    x = np.random.default_rng(5).standard_normal((3, channels, size, size)).astype(np.float32)
    with torch.inference_mode():
        given = model(torch.from_numpy(x))
    expected = (given[0] if isinstance(given, tuple) else given).numpy()  # one map a stride
    bound = FP32_MAX_REL * np.abs(expected).max()
    (got,) = onnxruntime.InferenceSession(data).run(None, {"input": x})
    assert np.abs(got - expected).max() <= bound
    core = openvino.Core()
    read = core.compile_model(core.read_model(data), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert np.abs(read(x)[0] - expected).max() <= bound


def test_a_fixed_batch_and_names_of_the_modules():
    graph = export_module(models.create("lenet5"), (1, 32, 32), batch=2)
    assert list(graph.graph.inputs[0].shape) == [2, 1, 32, 32]
    names = {node.name for node in graph.graph}
    assert {"features.0/Conv", "features.5/MaxPool", "classifier.4/Gemm"} <= names


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("lenet5", 28, "exactly 32 x 32 pixels, got 28 x 28"),
        ("alexnet", 32, "at least 63 pixels"),
        ("unet", 40, "multiples of 16"),
        ("mobilefacenet", 96, "exactly 112"),
    ],
)
def test_sizes_that_a_net_cannot_have(name, size, message):
    with torch.device("meta"):
        model = models.create(name)
    channels = 1 if name == "lenet5" else 3
    with pytest.raises(RecipeError, match=message):
        export_module(model, (channels, size, size))


def test_sizes_are_checked_wherever_a_net_is_run(tmp_path):
    """LeNet-5 would have counted 28 x 28 silently; others fail deep in torch."""
    path = tmp_path / "mine.toml"
    for source, entry, message in (
        ("lenet5", 'size = 28\ncolor = "gray"', "exactly 32 x 32 pixels, got 28 x 28"),
        ("lenet5", "size = 32", r"takes pictures of 1 channels, and the input has 3: see .*color"),
        ("unet", "size = 40", "multiples of 16, got 40 x 40"),
    ):
        path.write_text(f'[model]\nsource = "{source}"\n[input]\n{entry}\n')
        with pytest.raises(RecipeError, match=message):
            layers_of(str(path))


def test_a_net_that_cannot_be_counted_says_why(tmp_path, monkeypatch):
    (tmp_path / "counted.py").write_text(
        "from torch import nn\n"
        "class Mine(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        raise KeyError('no such thing')\n"
        "def build():\n"
        "    return Mine(2, 2)\n"
    )
    path = tmp_path / "mine.toml"
    path.write_text('[model]\nsource = "counted:build"\n[input]\nsize = 8\n')
    with pytest.raises(RecipeError, match=r"Mine cannot be counted .* \[3, 8, 8\].* KeyError"):
        layers_of(str(path))


def test_a_layer_with_several_outputs_counts():
    def build():
        return nn.Sequential(nn.Flatten(2), nn.LSTM(4, 8, batch_first=True))

    found = count.layers(build, (3, 2, 2))
    assert [(layer.kind, layer.shape) for layer in found] == [("LSTM", (3, 8))]


@pytest.mark.parametrize("name", list_recipes())
def test_recipes_say_what_their_nets_cost(name):
    recipe, found = load_recipe(name), layers_of(name)
    assert (recipe.parameters, recipe.macs) == (found.parameters, found.macs)


def test_every_net_has_a_recipe():
    assert {load_recipe(name).source for name in list_recipes()} == set(models.FACTORIES)


def test_the_committed_table_has_every_net_and_no_failure():
    """`benchmarks/zoo.json` is what `benchmarks/zoo.py` says: no row missing, none skipped."""
    rows = json.loads((ROOT / "benchmarks" / "zoo.json").read_text())["rows"]
    assert set(rows) == set(list_recipes())
    table = (ROOT / "benchmarks" / "zoo.md").read_text()
    for name, row in rows.items():
        recipe = load_recipe(name)
        assert (row["parameters"], row["macs"]) == (recipe.parameters, recipe.macs)
        assert "error" not in json.dumps(row)
        assert list(row["tensorrt_rtx"]) == ["sm80", "sm86", "sm89", "sm120"]
        for age in ("oldest", "newest"):
            assert all(row[age][r]["max_rel"] <= FP32_MAX_REL for r in ("onnxruntime", "openvino"))
        assert row["newest"]["onnxruntime"]["latency_ms"]["p50"] > 0
        assert f"| {name} |" in table


def test_parameters_are_those_that_were_published():
    """torchvision's documentation: num_params of each set of weights."""
    published = {
        "alexnet": 61_100_840,
        "vgg16": 138_357_544,
        "resnet18": 11_689_512,
        "resnet34": 21_797_672,
        "resnet50": 25_557_032,
        "mobilenetv3-large": 5_483_032,
        "mobilenetv3-small": 2_542_856,
        "efficientnet-b0": 5_288_548,
        "efficientnet-b4": 19_341_616,
        "efficientnet-b7": 66_347_960,
    }
    assert {name: load_recipe(name).parameters for name in published} == published


def test_compound_scaling_is_near_the_published_variants():
    """The authors rounded by hand: no coefficient is further off than a sixth of it."""
    for name, phi in (("b0", 0), ("b1", 0.5), ("b2", 1), ("b3", 2), ("b5", 5), ("b7", 7)):
        law, variant = compound_scaling(phi), VARIANTS[name]
        for ours, theirs in zip(law[:3], variant[:3], strict=True):
            assert abs(ours - theirs) <= theirs / 6, (name, ours, theirs)


def test_depthwise_separable_convolutions_save_what_the_paper_says():
    pairs = count.savings(count.layers(lambda: models.create("mobilenet_v1"), (3, 224, 224)))
    assert len(pairs) == 13
    for pair in pairs:
        assert pair.separable / pair.full == pytest.approx(pair.formula, rel=1e-12)
    assert pairs[0].formula == pytest.approx(1 / 64 + 1 / 9)


@pytest.mark.parametrize(("height", "width"), [(13, 13), (7, 12), (12, 6), (3, 5)])
def test_adaptive_pooling_is_pytorchs(height, width):
    x = torch.randn((2, 3, height, width), generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.adaptive_avg_pool2d(x, 6)
    torch.testing.assert_close(AdaptivePool(6)(x), expected)


def test_fully_convolutional_equals_every_window_one_by_one():
    """LeNet-5 has no padding, so its windows (stride 4) agree everywhere."""
    net = fill_by_name(models.create("lenet5")).eval()
    x = torch.randn((1, 1, 40, 48), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        windows = [
            net(x[:, :, top : top + 32, left : left + 32])
            for top in range(0, 9, 4)
            for left in range(0, 17, 4)
        ]
        dense = to_fully_convolutional(net, 32)(x)
    assert dense.shape == (1, 10, 3, 5)
    torch.testing.assert_close(dense.flatten(2), torch.stack(windows, 2))


@pytest.mark.parametrize(("name", "size"), [("resnet18", 64), ("mobilenet_v2", 64)])
def test_fully_convolutional_on_its_own_size_is_the_classifier(name, size):
    net = fill_by_name(models.create(name, 4)).eval()
    x = torch.randn((1, 3, size, size), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = net(x)
        dense = to_fully_convolutional(net, size)(x)
    # the sum over the map is taken in another order: float32 rounding of a sum of 4 terms
    torch.testing.assert_close(dense.flatten(1), expected, rtol=1e-4, atol=1e-4)


def test_windows_over_a_larger_picture_are_a_recipes_task(tmp_path):
    """As export/README.md says: a program with its weights, of task `segment`."""
    dense = to_fully_convolutional(fill_by_name(models.create("lenet5")), 32).eval()
    batch = {0: torch.export.Dim("N")}
    example = (torch.zeros(2, 1, 64, 64),)
    torch.export.save(
        torch.export.export(dense, example, dynamic_shapes=(batch,)), tmp_path / "windows.pt2"
    )
    (tmp_path / "windows.toml").write_text(
        'task = "segment"\n[model]\nsource = "windows.pt2"\n[input]\nsize = 64\n'
        'color = "gray"\nfit = "stretch"\n[labels]\nnames = ["0", "1", "2", "3", "4", "5", "6", '
        '"7", "8", "9"]\n'
    )
    result = edgecv.export(str(tmp_path / "windows.toml"), output=tmp_path / "windows.onnx")
    assert result.spec.outputs[0].shape == (1, 10, 9, 9)
    picture = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    with edgecv.load(result.path) as model, torch.inference_mode():
        mask = model(picture).mask
        classes = dense(torch.from_numpy(picture / np.float32(255))[None, None]).argmax(1)[0]
    assert mask.shape == (64, 64)
    assert set(np.unique(mask)) <= set(classes.unique().tolist())


def test_fully_convolutional_refuses_a_size_the_dense_layers_do_not_fit():
    with pytest.raises(RecipeError, match="were made for 6 x 6"):
        to_fully_convolutional(models.create("alexnet", 2), 100)


def test_fully_convolutional_refuses_what_has_no_dense_layers():
    net = models.create("lenet5")
    dense = to_fully_convolutional(net, 32)
    for other, message in (
        (net, "LeNet5 has given its dense layers away already"),
        (models.create("siamese", trunk="lenet5").trunk, "given its dense layers away"),
        (dense, "FullyConvolutional is not a classifier"),
        (models.create("unet", base=4), "UNet is not a classifier"),
    ):
        with pytest.raises(RecipeError, match=message):
            to_fully_convolutional(other, 32)


@pytest.mark.parametrize("measure", ["l1", "chi-square"])
def test_siamese_likeness_follows_its_formula(measure):
    net = models.create("siamese", trunk="mobilenet_v3_small", measure=measure).eval()
    x, y = torch.randn((2, 1, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        a, b, got = net(x)[0], net(y)[0], net(x, y)
        assert torch.equal(got, net(y, x))
    distance = (a - b).abs() if measure == "l1" else (a - b) ** 2 / (a + b + 1e-6)
    w, bias = net.head.weigh.weight[0], net.head.weigh.bias
    torch.testing.assert_close(got[0], (1 / (1 + torch.exp(-(w @ distance + bias)))).detach())


def test_localizer_answers_in_pixels_of_the_input():
    net = fill_by_name(models.create("localizer", 3, trunk="mobilenet_v3_small")).eval()
    x = torch.randn((2, 3, 32, 64), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        out, features = net(x), net.trunk(x)
        box, logits = net.box(features).sigmoid(), net.classes(features)
    assert out.shape == (2, 1, 6)
    centres = (out[:, 0, :2] + out[:, 0, 2:4]) / 2
    torch.testing.assert_close(centres, box[:, :2] * torch.tensor([64.0, 32.0]))
    assert torch.equal(out[:, 0, 5].long(), logits.argmax(1))
    torch.testing.assert_close(out[:, 0, 4], logits.softmax(1).amax(1))


def test_auxiliary_heads_are_for_training_only():
    net = models.create("googlenet", 4).train()
    assert [tuple(out.shape) for out in net.training_logits(torch.zeros(2, 3, 64, 64))] == [
        (2, 4)
    ] * 3
    assert net.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 4)


def test_auxiliary_heads_are_no_part_of_a_trunk():
    """Nothing would train them, and Inception's cannot see pictures this small."""
    with torch.device("meta"):
        net = models.create("embedder", trunk="inception_v3").train()
        assert net(torch.zeros(2, 3, 96, 96)).shape == (2, 128)
    assert not [name for name in net.state_dict() if "AuxLogits" in name]
    with torch.device("meta"):
        net, own = (
            models.create("inception_v3", 4),
            models.create("inception_v3", 4, auxiliary=False),
        )
    with pytest.raises(RecipeError, match=r"at least 299 .* got 96 x 96; .*auxiliary = false"):
        check_input(net, (3, 96, 96), training=True)
    with torch.device("meta"):
        assert own.train()(torch.zeros(2, 3, 96, 96)).shape == (2, 4)
        assert len(net.train().training_logits(torch.zeros(2, 3, 299, 299))) == 2
    for fits in ((net, (3, 299, 299)), (own, (3, 96, 96))):
        check_input(*fits, training=True)


def test_mobilefacenet_through_its_recipe(assets, tmp_path):
    weights = assets / "weights" / "mobilefacenet.pt"
    result = edgecv.export("mobilefacenet", weights=str(weights), output=tmp_path / "f.onnx")
    assert result.spec.task == "embed"
    assert result.spec.outputs[0].shape == (1, 128)
    assert result.nodes == {"Conv": 51, "Clip": 32, "Relu": 2, "Add": 12, "Flatten": 1}


def test_a_narrow_efficientnet():
    wide, narrow = (models.create("efficientnet", num_classes=10, width=w) for w in (1.0, 0.5))
    shapes = [[p.shape[0] for p in net.parameters() if p.dim() == 4] for net in (wide, narrow)]
    assert shapes[1][0] == shapes[0][0] / 2
    assert len(shapes[0]) == len(shapes[1])
    still = models.create("efficientnet", num_classes=10, dropout=0.0, drop_path=0.0).train()
    for norm in still.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(still(x), still(x))  # nothing is left to chance
    for options, message in (({"width": 0}, "width"), ({"dropout": 1.0}, "dropout")):
        with pytest.raises(RecipeError, match=message):
            models.create("efficientnet", **options)
