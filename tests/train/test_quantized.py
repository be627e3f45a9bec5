"""Fine-tuning of a quantized file: from the file to the file."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgecv.errors import BackendUnavailable, InputError, RecipeError, WeightsError
from edgecv.files import sha256_of
from edgecv.model import load
from edgecv.spec import Decoding, read_spec, write_spec
from edgecv.train.distill import DistilledTask
from edgecv.workflows import proof
from edgecv.workflows.export import export
from edgecv.workflows.preview import preview_recipe
from edgecv.workflows.quantize import quantize
from edgecv.workflows.teacher import teacher_from
from edgecv.workflows.train import train_recipe
from edgecv.workflows.trainquantized import QuantizedResult
from edgecv.workflows.verify import verify

MADE: dict[str, bytes] = {}  # by the first test that asks: the same for all


@pytest.fixture
def files(recipe, pictures, tmp_path, monkeypatch):
    """The FP32 file of a net that has learned for an epoch, and its INT8 file for TensorRT."""
    parent, file = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    if not MADE:
        monkeypatch.setattr(proof, "ROUNDS", 1)
        monkeypatch.setattr(proof, "ROUND_SECONDS", 0.01)
        done = train_recipe(str(recipe), pictures, ["epochs=1"], tmp_path / "float")
        export(str(done.recipe), output=parent)
        quantize(parent, calibration=pictures, target="tensorrt", output=file)
        MADE.update({path.name: path.read_bytes() for path in (parent, file)})
    for path in (parent, file):
        path.write_bytes(MADE[path.name])
    return parent, file


def fine_tune(recipe, pictures, files, folder, *more):
    parent, file = files
    settings = [f"quantized.file={file}", f"quantized.parent={parent}", "epochs=2", "lr=0.003"]
    return train_recipe(str(recipe), pictures, [*settings, *more], folder)


def test_from_a_file_to_the_same_graph_with_other_constants(recipe, pictures, files, tmp_path):
    _, file = files
    start = file.read_bytes()
    result = fine_tune(recipe, pictures, files, tmp_path / "run")
    assert isinstance(result, QuantizedResult)
    assert file.read_bytes() == start
    before, after = onnx.load(file).graph, onnx.load(result.path).graph
    assert before.node == after.node
    assert [t.name for t in before.initializer] == [t.name for t in after.initializer]
    changed = {
        a.name
        for a, b in zip(before.initializer, after.initializer, strict=True)
        if a.raw_data != b.raw_data
    }
    assert any(name.endswith("weight.int") for name in changed)
    assert not any("zero_point" in name for name in changed)  # TensorRT's are 0
    spec, old = read_spec(result.path), read_spec(file)
    assert (spec.precision, spec.target, spec.labels) == ("int8", "tensorrt", old.labels)
    assert spec.preparation == old.preparation
    learned = spec.provenance["learned"]
    assert learned["run"]["quantized"]["file"] == str(file)
    assert learned["after"] == dict(result.scores)
    assert "proof" not in spec.quantization  # it was the other file's
    assert spec.parity["reference"] == "float, fp32"
    assert verify(result.path).passed
    log = json.loads(result.log.read_text())
    assert [record["epoch"] for record in log["epochs"]] == [1, 2]


def test_the_same_run_gives_the_same_bytes(recipe, pictures, files, tmp_path):
    one, two = (fine_tune(recipe, pictures, files, tmp_path / name) for name in ("a", "b"))
    assert one.path.read_bytes() == two.path.read_bytes()


def test_learning_repairs_what_quantization_broke(recipe, pictures, files, tmp_path):
    """Weights of one size: only their signs are right."""
    parent, file = files
    model = onnx.load(file)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("weight.int"):
            q = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.sign(q) * 40, tensor.name))
    onnx.save(model, file)
    more = ["epochs=10", "lr=0.01", "quantized.distill=1.0", "warmup_epochs=0.5"]
    result = fine_tune(recipe, pictures, files, tmp_path / "run", *more)
    before, after = (
        verify(path, parent, data=pictures).to_dict()["max_abs"] for path in (file, result.path)
    )
    assert after < before / 2


def test_an_interrupted_run_leaves_no_file_and_goes_on(
    recipe, pictures, files, tmp_path, monkeypatch
):
    from edgecv.workflows import trainquantized

    whole = fine_tune(recipe, pictures, files, tmp_path / "whole")

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainquantized, "_proven", stop)
        with pytest.raises(KeyboardInterrupt):
            fine_tune(recipe, pictures, files, tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.onnx"))
    again = fine_tune(recipe, pictures, files, tmp_path / "run")
    assert again.path.read_bytes() == whole.path.read_bytes()
    with pytest.raises(WeightsError, match="belongs to"):
        fine_tune(recipe, pictures, files, tmp_path / "run", "lr=0.001")


def test_files_that_do_not_fit(recipe, pictures, files, tmp_path):
    parent, file = files

    def refused(error, match, *settings):
        with pytest.raises(error, match=match):
            fine_tune(recipe, pictures, files, tmp_path / "run", *settings)

    refused(InputError, "expected a file of `edgecv quantize`", f"quantized.file={parent}")
    refused(InputError, "expected the FP32 file", f"quantized.parent={file}")
    refused(InputError, "there is no such file", "quantized.file=missing.onnx")
    refused(RecipeError, "distill: expected a share", "quantized.distill=2.0")
    refused(RecipeError, "file: is missing", 'quantized.file=""')
    refused(RecipeError, "find_lr is not for a training of an INT8 file", "find_lr=true")
    with pytest.raises(InputError, match="another output folder"):
        fine_tune(recipe, pictures, files, tmp_path)


def test_a_net_learns_from_another_ones_answers(recipe, pictures, files, tmp_path):
    parent, _ = files
    settings = ["epochs=1", f"distill.teacher={parent}", "distill.weight=1.0"]
    result = train_recipe(str(recipe), pictures, settings, tmp_path / "run")
    log = json.loads(result.log.read_text())
    assert log["config"]["distill"] == {
        "teacher": parent.name,
        "weight": 1.0,
        "backend": "onnxruntime",
    }
    assert log["teacher"] == sha256_of(parent)
    sheet = preview_recipe(str(recipe), pictures, settings, tmp_path / "sheet.png")
    assert sheet.path.is_file()
    other = tmp_path / "other.onnx"
    write_spec(parent, replace(read_spec(parent), name="other"), other)
    settings[1] = f"distill.teacher={other}"
    with pytest.raises(WeightsError, match="belongs to"):  # other answers are another run
        train_recipe(str(recipe), pictures, settings, tmp_path / "run")

    def refused(error, match, *more):
        with pytest.raises(error, match=match):
            train_recipe(str(recipe), pictures, ["epochs=1", *more], tmp_path / "no")

    boxes = tmp_path / "boxes.onnx"
    write_spec(parent, replace(read_spec(parent), decoding=Decoding("probabilities")), boxes)
    refused(InputError, "a float input and logits", f"distill.teacher={boxes}")
    elsewhere = "distill.backend=onnxruntime-cuda"
    refused(BackendUnavailable, "onnxruntime-cuda", f"distill.teacher={parent}", elsewhere)
    refused(InputError, "there is no such teacher", "distill.teacher=missing.onnx")
    refused(RecipeError, "teacher: is missing", "distill.weight=0.5")
    refused(
        RecipeError, "weight: expected a share", f"distill.teacher={parent}", "distill.weight=0"
    )
    spec = read_spec(parent)
    for change, match in (
        ({"labels": spec.labels[::-1]}, "its labels are"),
        ({"preparation": replace(spec.preparation, color="bgr")}, "expected what the net learns"),
    ):
        write_spec(parent, replace(spec, **change), tmp_path / "wrong.onnx")
        refused(InputError, match, f"distill.teacher={tmp_path / 'wrong.onnx'}")


def test_a_teacher_prepares_its_pictures_itself(files):
    parent, _ = files
    spec = read_spec(parent)
    mine = replace(spec.preparation, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    pixels = torch.rand(2, 3, mine.height, mine.width)

    def prepared(p):
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (p.mean, p.std))
        return (pixels * 255 / p.divisor - mean) / std

    theirs = prepared(spec.preparation)
    found = teacher_from(parent, mine)(prepared(mine)).numpy()
    with load(parent, backend="onnxruntime") as model:
        (expected,) = model.infer(theirs.numpy()).values()
    # float32 sums in another order
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_distillation_is_nothing_where_the_answers_are_the_teachers():
    class Labels:
        metric = "top1"

        def loss(self, outputs, targets):
            return nn.functional.cross_entropy(outputs, targets)

    logits, labels = torch.tensor([[2.0, 0.0], [0.5, 1.0]]), torch.tensor([0, 0])
    task = DistilledTask(Labels(), nn.Identity(), 0.25)
    own = nn.functional.cross_entropy(logits, labels)
    same = task.loss(logits, (labels, logits))
    torch.testing.assert_close(same, 0.75 * own)
    other = task.loss(logits, (labels, logits.flip(1)))
    # T^2 times the divergence of softmax(logits / T), T = 2, the mean of the pictures
    p, q = (torch.softmax(x / 2, 1) for x in (logits.flip(1), logits))
    divergence = (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(other, 0.75 * own + 0.25 * 4 * divergence)
