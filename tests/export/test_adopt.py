"""adopt: real third-party files, Ultralytics' notes, and everything that a graph can contradict."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgecv
from edgecv.errors import InputError, RecipeError, SpecError
from edgecv.export.recipe import list_adoptable, load_recipe
from edgecv.export.ultralytics import read_note
from edgecv.measure.ready import READY_MODEL
from edgecv.onnxgraph import read_graph
from edgecv.runtimes.ort import OrtBackend
from edgecv.spec import read_spec
from edgecv.workflows.adopt import adopt

NOTE = {
    "description": "Ultralytics YOLO11n model trained on coco.yaml",
    "author": "Ultralytics",
    "license": "AGPL-3.0 License (https://ultralytics.com/license)",
    "version": "8.3.0",
    "stride": "32",
    "task": "detect",
    "imgsz": "[64, 96]",
    "names": "{0: 'cat', 1: 'dog', 2: 'cow'}",
}


def net(path, shape, *, size=(64, 96), note=None, outputs=1, dtype=TensorProto.FLOAT, nhwc=False):
    """A graph that gives a constant of ``shape``, whatever picture it is shown."""
    value = np.linspace(0.1, 0.9, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    if shape[-1] == 6:
        value[..., 5] = 1  # a class number
    nodes = [
        helper.make_node("ReduceMin", ["images"], ["least"], keepdims=0),
        helper.make_node("Mul", ["least", "zero"], ["nothing"]),
    ]
    names = [f"output{i}" for i in range(outputs)]
    nodes += [helper.make_node("Add", ["value", "nothing"], [name]) for name in names]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("images", dtype, [1, *size, 3] if nhwc else [1, 3, *size])],
        [helper.make_tensor_value_info(name, dtype, shape) for name in names],
        [
            helper.make_tensor("zero", dtype, [], [0.0]),
            numpy_helper.from_array(value, "value"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, note or {})
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("file", "recipe", "classes"),
    [
        ("yolox_nano_coco", "yolox-nano", 80),
        ("yunet_n", "yunet", 1),
        ("rfb320_face", "rfb-320", 1),
        ("fastestdet_coco", "fastestdet", 80),
    ],
)
def test_the_files_of_others(assets, tmp_path, file, recipe, classes):
    source = assets / "weights" / f"{file}.onnx"
    path = tmp_path / "out.onnx"
    result = adopt(source, recipe=recipe, output=path)
    assert result.to_dict().keys() >= {"path", "precision", "target", "opset", "size_bytes"}
    spec = read_spec(path)
    assert len(spec.labels) == classes
    assert spec.provenance["weights"]["licence"] == load_recipe(recipe, adopted=True).licence
    original, adopted = onnx.load(source), onnx.load(path)
    assert original.graph == adopted.graph  # the graph stays as it is
    assert edgecv.verify(path).passed
    with pytest.raises(InputError, match="carries a contract already"):
        adopt(path, recipe=recipe)


def test_every_shipped_recipe_can_be_read():
    for name in list_adoptable():
        recipe = load_recipe(name, adopted=True)
        assert recipe.source == ""
        assert recipe.licence
        assert recipe.summary


def test_a_recipe_for_adoption_cannot_be_exported():
    from edgecv.export.overrides import recipe_for
    from edgecv.export.recipe import recipes_folder

    with pytest.raises(RecipeError, match="no \\[model\\] to export"):
        recipe_for(str(recipes_folder() / "adopt" / "yolox.toml"))


def test_ultralytics_own_note_is_enough(tmp_path):
    source = net(tmp_path / "a.onnx", [1, 7, 126], note=NOTE)
    result = adopt(source, output=tmp_path / "b.onnx")
    assert result.licence == NOTE["license"]
    assert result.spec.name == "yolo11n"
    assert result.spec.labels == ("cat", "dog", "cow")
    assert (result.spec.preparation.height, result.spec.preparation.width) == (64, 96)
    assert result.spec.decoding.kind == "yolo-anchor-free"
    ended = net(tmp_path / "c.onnx", [1, 30, 6], note=NOTE)
    assert adopt(ended, output=tmp_path / "d.onnx").spec.decoding.kind == "yolo-end2end"
    classes = net(tmp_path / "e.onnx", [1, 3], note=NOTE | {"task": "classify"})
    assert adopt(classes, output=tmp_path / "f.onnx").spec.task == "classify"


@pytest.mark.parametrize(
    ("recipe", "shape"),
    [
        ("yolov5", [1, 150, 8]),
        ("yolov6", [1, 126, 8]),
        ("yolov7", [1, 150, 8]),
        ("yolov8", [1, 7, 126]),
        ("yolov9", [1, 7, 126]),
        ("yolo11", [1, 7, 126]),
        ("yolov10", [1, 30, 6]),
        ("yolox", [1, 126, 8]),
    ],
)
def test_the_usual_exports_have_a_recipe_that_finds_their_boxes(tmp_path, recipe, shape, picture):
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    source = net(tmp_path / "a.onnx", shape)
    adopt(source, recipe=recipe, labels=tmp_path / "names.txt", output=tmp_path / "b.onnx")
    with edgecv.load(tmp_path / "b.onnx") as model:
        assert len(model(picture, conf=0.1)) > 0
        assert set(model(picture, conf=0.1).labels) == {"a", "b", "c"}


def test_labels_of_the_user_come_before_the_note(tmp_path):
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    source = net(tmp_path / "a.onnx", [1, 7, 126], note=NOTE)
    spec = adopt(source, labels=tmp_path / "names.txt", output=tmp_path / "b.onnx").spec
    assert spec.labels == ("a", "b", "c")


@pytest.mark.parametrize(
    ("shape", "options", "recipe", "error", "message"),
    [
        ([1, 8, 126], {"note": NOTE}, None, SpecError, "the graph has 4 classes, .* has 3 names"),
        ([1, 7, 126], {"size": (64, 64), "note": NOTE}, None, SpecError, "takes 64x64 pixels"),
        ([1, 7, 126], {"note": NOTE | {"task": "pose"}}, None, SpecError, "task 'pose'"),
        ([1, 7, 126], {"note": NOTE | {"names": "x()"}}, None, SpecError, "not a plain value"),
        ([1, 7, 126], {"note": NOTE | {"names": "{1: 'a'}"}}, None, SpecError, "0 to n - 1"),
        ([1, 7, 126], {"note": NOTE | {"imgsz": "'x'"}}, None, SpecError, "expected .height"),
        ([1, 7, 126], {}, None, RecipeError, "give --recipe NAME"),
        ([1, 7, 126], {}, "yolo8", RecipeError, "did you mean yolov8"),
        ([1, 7, 126], {"outputs": 2}, "yolov8", SpecError, "reads 1 outputs .* gives 2"),
        ([1, 7, 126], {"outputs": 2}, "rfb-320", SpecError, "in this order"),  # and not: the size
        ([1, 126, 8], {}, "yolox", SpecError, "has 3 classes, .* has 80 names"),
        ([1, 125, 85], {}, "yolox", SpecError, "are not what yolox .* reads"),
        ([1, 85, 126], {}, "yolov10", SpecError, "are not what yolo-end2end"),
        ([1, 126, 85], {}, "yolox-nano", SpecError, "96x64 pixels, the recipe says 416x416"),
        ([1, 126, 1, 85], {}, "yolov5", SpecError, "are not what yolo-anchors"),
        ([1, 85, 126], {"outputs": 2, "size": (240, 320)}, "rfb-320", SpecError, "in this order"),
    ],
)
def test_what_the_graph_contradicts_is_an_error(tmp_path, shape, options, recipe, error, message):
    source = net(tmp_path / "a.onnx", shape, **options)
    with pytest.raises(error, match=message):
        adopt(source, recipe=recipe, output=tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()


def test_a_recipe_that_misses_an_option_is_named(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'task = "detect"\n[input]\nsize = [64, 96]\nfit = "stretch"\n[output]\ndecode = "yolox"\n'
        '[labels]\nnames = ["a", "b", "c"]\n'
    )
    with pytest.raises(RecipeError, match=r"mine.toml: output.options: yolox .*strides"):
        adopt(net(tmp_path / "a.onnx", [1, 126, 8]), recipe=str(recipe))


@pytest.mark.parametrize(
    ("task", "decode", "options", "shape", "labels"),
    [
        ("classify", "logits", "", [1, 3], 3),
        ("classify", "logits", "", [1, 3, 2, 4], 3),  # fully convolutional
        ("segment", "logits", "", [1, 3, 32, 48], 3),
        ("segment", "logits", 'layout = "nhwc"', [1, 32, 48, 3], 3),
        ("segment", "probabilities", "", [1, 3, 32, 48], 3),
        ("segment", "probabilities", "", [1, 1, 32, 48], 2),
        ("segment", "probabilities", 'layout = "nhwc"', [1, 32, 48, 1], 2),
        ("segment", "binary-logits", "", [1, 1, 32, 48], 2),
    ],
)
def test_the_graph_says_how_many_classes_there_are(
    tmp_path, task, decode, options, shape, labels, picture
):
    recipe = tmp_path / "mine.toml"
    for count in (labels, labels + 1):
        recipe.write_text(
            f'task = "{task}"\n[input]\nsize = [64, 96]\nfit = "stretch"\n[output]\n'
            f'decode = "{decode}"\n[output.options]\n{options}\n'
            f"[labels]\nnames = {json.dumps(list('abcd'[:count]))}\n"
        )
        source = net(tmp_path / "a.onnx", shape)
        if count > labels:
            with pytest.raises(SpecError, match=f"has {labels} classes, .* has {count} names"):
                adopt(source, recipe=str(recipe), output=tmp_path / "c.onnx")
            continue
        result = adopt(source, recipe=str(recipe), output=tmp_path / "b.onnx")
        assert len(result.spec.labels) == labels
        with edgecv.load(result.path) as model:
            assert model(picture).labels == result.spec.labels


def test_an_int8_file_is_held_to_what_int8_may_cost_and_no_other_to_more(tmp_path, monkeypatch):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'task = "classify"\n[input]\nsize = [64, 96]\nfit = "stretch"\n'
        '[labels]\nnames = ["a", "b", "c"]\n'
    )
    model = onnx.load(net(tmp_path / "a.onnx", [1, 3]))
    first = model.graph.node[0]
    model.graph.node.insert(
        0, helper.make_node("QuantizeLinear", ["images", "scale", "point"], ["whole"])
    )
    model.graph.node.insert(
        1, helper.make_node("DequantizeLinear", ["whole", "scale", "point"], ["near"])
    )
    first.input[0] = "near"
    model.graph.initializer.append(helper.make_tensor("scale", TensorProto.FLOAT, [], [1 / 255]))
    model.graph.initializer.append(helper.make_tensor("point", TensorProto.UINT8, [], [0]))
    onnx.save(model, tmp_path / "q.onnx")
    run = OrtBackend._run
    monkeypatch.setattr(  # another CPU, a little off
        OrtBackend,
        "_run",
        lambda self, feeds: {
            k: v * np.array([1, 1.01, 1], v.dtype) for k, v in run(self, feeds).items()
        },
    )
    for name, precision, check in (("a", "fp32", "max_rel"), ("q", "int8", "sqnr_db")):
        with monkeypatch.context() as here:
            here.setattr(OrtBackend, "_run", run)
            spec = adopt(
                tmp_path / f"{name}.onnx", recipe=str(recipe), output=tmp_path / "b.onnx"
            ).spec
        assert spec.precision == precision
        outcome = edgecv.verify(tmp_path / "b.onnx", backend="onnxruntime")
        assert [one.name for one in outcome.checks] == [check]
        assert outcome.passed == (precision == "int8")


def test_a_file_that_takes_the_channels_last(tmp_path, picture):
    recipe = tmp_path / "mine.toml"
    text = (
        'task = "classify"\n[input]\nfit = "stretch"\nLAYOUT\n[labels]\nnames = ["a", "b", "c"]\n'
    )
    source = net(tmp_path / "a.onnx", [1, 3], nhwc=True)
    recipe.write_text(text.replace("LAYOUT", ""))
    with pytest.raises(SpecError, match=r"takes \[1, 64, 96, 3\], the recipe mine makes \[N, 3"):
        adopt(source, recipe=str(recipe))
    recipe.write_text(text.replace("LAYOUT", 'layout = "nhwc"'))
    spec = adopt(source, recipe=str(recipe), output=tmp_path / "b.onnx").spec
    p = spec.preparation
    assert (p.layout, p.height, p.width) == ("nhwc", 64, 96)
    assert edgecv.verify(tmp_path / "b.onnx").passed
    with edgecv.load(tmp_path / "b.onnx") as model:
        assert model.prepare(picture).tensor.shape == (64, 96, 3)
        assert model(picture).labels == ("a", "b", "c")


def test_weights_in_other_files_are_refused(tmp_path):
    model = onnx.load(net(tmp_path / "a.onnx", [1, 7, 126], note=NOTE))
    path = tmp_path / "b.onnx"
    onnx.save_model(model, path, save_as_external_data=True, size_threshold=0)
    assert read_graph(path).external
    with pytest.raises(InputError, match="save_as_external_data=False"):
        adopt(path)


def test_the_source_is_never_overwritten_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = net(tmp_path / "yolo11n.onnx", [1, 7, 126], note=NOTE)
    before = source.read_bytes()
    assert adopt(source).path.name == "yolo11n-adopted.onnx"
    assert source.read_bytes() == before


def test_the_graph_is_what_onnx_reads(assets):
    for path in [READY_MODEL, *(assets / "weights").glob("*.onnx")]:
        graph, model = read_graph(path), onnx.load(path)
        assert graph.opset == model.opset_import[0].version
        assert graph.producer == model.producer_name
        assert sum(graph.operators.values()) == len(model.graph.node)
        assert graph.precision == "fp32"
        assert not graph.external


def test_yolov5s_note_has_names_and_stride_only():
    note = read_note({"names": "['a', 'b']", "stride": "32"}, "x")
    assert note.names == ("a", "b")
    assert note.family is None
    assert read_note({"names": "['a']"}, "x") is None


def test_adopting_imports_no_torch_and_no_onnx(tmp_path):
    source = net(tmp_path / "a.onnx", [1, 7, 126], note=NOTE)
    code = (
        "import sys, json; from edgecv.workflows.adopt import adopt\n"
        f"adopt({str(source)!r}, output={str(tmp_path / 'b.onnx')!r})\n"
        "print(json.dumps([m for m in ('torch', 'onnx', 'onnx_ir', 'onnxscript') "
        "if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [], done.stderr


def test_the_command_shows_the_licence_and_prints_json(tmp_path):
    source = net(tmp_path / "a.onnx", [1, 7, 126], note=NOTE)
    command = [str(Path(sys.executable).parent / "edgecv"), "adopt", str(source)]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "b.onnx"), "--json"], capture_output=True, text=True
    )
    data = json.loads(done.stdout)
    assert data["path"] == str(tmp_path / "b.onnx")
    assert data["classes"] == 3
    assert NOTE["license"] in done.stderr
    assert "publish the source" in done.stderr
    again = subprocess.run([*command, "--recipe", "none"], capture_output=True, text=True)
    assert again.returncode == 2
    assert "there is no recipe named 'none'" in again.stderr


def test_a_note_cannot_choose_where_the_file_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hostile = NOTE | {"description": "Ultralytics ../../outside model"}
    source = net(tmp_path / "a.onnx", [1, 7, 126], note=hostile)
    with pytest.raises(SpecError, match="give --recipe"):
        adopt(source)
