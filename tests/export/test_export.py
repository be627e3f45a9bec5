"""Export: the graph, the bytes, the proof; every kind of model source."""

import subprocess
import sys
from collections import Counter

import numpy as np
import onnx
import pytest
import torch

import edgecv
from edgecv import models
from edgecv.errors import ExportError, RecipeError, WeightsError
from edgecv.export.overrides import InputOverrides
from edgecv.export.to_onnx import export_module, to_bytes
from edgecv.spec import read_spec

NODES = {"Conv": 52, "Clip": 35, "Add": 10, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    return edgecv.export("mobilenetv2", weights="bundled", batch=None, output=folder / "cifar.onnx")


def test_exactly_the_nodes_that_the_net_needs(exported):
    proto = onnx.load(exported.path)
    assert Counter(node.op_type for node in proto.graph.node) == NODES
    assert proto.ir_version <= 9
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 18)]
    names = {node.name for node in proto.graph.node}
    assert {"features.3.conv.0.0/Conv", "features.18.2/Clip", "classifier.1/Gemm"} <= names
    assert len(names) == len(proto.graph.node)


def test_nothing_of_the_exporting_machine_is_in_the_file(exported):
    proto = onnx.load(exported.path)
    for tensor in proto.graph.initializer:
        tensor.ClearField("raw_data")  # weights may hold any four bytes
    data = proto.SerializeToString()
    for trace in (b"site-packages", b".py", str(exported.path.parent).encode()):
        assert trace not in data


def test_the_contract_tells_the_proof(exported):
    spec = read_spec(exported.path)
    assert spec == exported.spec
    assert spec.parity["max_rel"] <= spec.parity["tolerance_max_rel"] == 1e-4
    assert spec.parity["batches"] == [1, 3]
    assert spec.provenance["weights"]["origin"] == "bundled"
    assert len(spec.provenance["weights"]["sha256"]) == 64


def test_exporting_twice_gives_the_same_bytes(exported, tmp_path):
    """In another process, with another hash seed."""
    path = tmp_path / "again.onnx"
    code = (
        "import edgecv; edgecv.export('mobilenetv2', weights='bundled', batch=None, "
        f"output={str(path)!r})"
    )
    environment = {**__import__("os").environ, "PYTHONHASHSEED": "123"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert path.read_bytes() == exported.path.read_bytes()


@pytest.mark.parametrize(("batch", "opset"), [(1, 18), (3, 20)])
def test_static_batches_and_opsets(batch, opset):
    graph = export_module(models.create("mobilenet_v2", 5), (3, 32, 64), batch=batch, opset=opset)
    assert graph.opset_imports[""] == opset
    assert graph.ir_version <= 9
    assert Counter(node.op_type for node in graph.graph) == NODES
    assert to_bytes(graph) == to_bytes(graph)


def test_opsets_out_of_reach_are_refused():
    with pytest.raises(ExportError, match="expected 18 to 20"):
        export_module(models.create("mobilenet_v2", 5), (3, 32, 32), opset=21)


LABELS = ("no", "yes")
FLAGS = InputOverrides(16, None, "stretch", (0.5,), (0.5,), LABELS)
NET = """
import torch
def build(num_classes, width=4, kind="ok"):
    if kind == "fails": raise ValueError("boom")
    if kind == "number": return 3
    return torch.nn.Sequential(torch.nn.Conv2d(3, width, 3, bias=False),
        torch.nn.BatchNorm2d(width), torch.nn.Hardswish(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(width, num_classes))
"""


def test_a_users_factory_through_a_recipe(tmp_path):
    (tmp_path / "their_net.py").write_text(NET)
    recipe = tmp_path / "theirs.toml"
    recipe.write_text(
        '[model]\nsource = "their_net:build"\noptions = { width = 6 }\n'
        '[input]\nsize = 16\n[labels]\nnames = ["no", "yes"]\n'
    )
    result = edgecv.export(str(recipe), weights="random", output=tmp_path / "theirs.onnx")
    assert result.nodes["Conv"] == 1
    with edgecv.load(result.path) as model:
        assert model(np.zeros((9, 9, 3), np.uint8)).best.label in LABELS


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("no_such_module:build", "", "there is no module 'no_such_module'"),
        ("broken_net:nothing", "", "has no function 'nothing'"),
        ("broken_net:build", 'kind = "fails"', "failed with ValueError: boom"),
        ("broken_net:build", 'kind = "number"', "return a torch.nn.Module, got int"),
        ("broken_net:build", "depth = 3", "unexpected keyword argument"),
        ("torchvision:resnet18", "", "needs the package torchvision"),
    ],
)
def test_factories_that_fail(tmp_path, source, options, message):
    (tmp_path / "broken_net.py").write_text(NET)
    recipe = tmp_path / "broken.toml"
    recipe.write_text(
        f'[model]\nsource = "{source}"\noptions = {{ {options} }}\n[input]\nsize = 16\n'
        '[labels]\nnames = ["no", "yes"]\n'
    )
    with pytest.raises(RecipeError, match=message):
        edgecv.export(str(recipe), weights="random", output=tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


def test_a_saved_program_brings_its_own_weights(tmp_path):
    namespace = {}
    exec(NET, namespace)
    net = namespace["build"](2).eval()
    dynamic = ({0: torch.export.Dim("N")},)
    program = torch.export.export(net, (torch.zeros(2, 3, 16, 16),), dynamic_shapes=dynamic)
    path = tmp_path / "net.pt2"
    torch.export.save(program, path)
    result = edgecv.export(str(path), overrides=FLAGS, batch=None, output=tmp_path / "p.onnx")
    assert result.weights.origin == "program"
    assert edgecv.verify(result.path, against=path).passed
    with pytest.raises(WeightsError, match="brings its own"):
        edgecv.export(str(path), overrides=FLAGS, weights="random", output=tmp_path / "q.onnx")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(RecipeError, match=r"net\.pt2"):
        edgecv.export(str(path), overrides=FLAGS, output=tmp_path / "q.onnx")


def test_a_model_that_cannot_be_traced_is_an_export_error(tmp_path, monkeypatch):
    (tmp_path / "odd_net.py").write_text(
        "import torch\n"
        "class Odd(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x.sum().item() * x if x.sum() > 0 else x\n"
        "def build(num_classes): return Odd()\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match="torch could not export Odd"):
        edgecv.export("odd_net:build", overrides=FLAGS, weights="random", output="x.onnx")
