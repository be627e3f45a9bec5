"""Running a model imports NumPy, Pillow and one runtime; nothing of the exporter or the CLI."""

import json
import subprocess
import sys

import pytest

from edgecv.measure.ready import READY_MODEL

HEAVY = {
    "torch",
    "onnx",
    "onnxscript",
    "onnx_ir",
    "onnxsim",
    "safetensors",
    "typer",
    "rich",
    "click",
    "pymilvus",
}


def modules_after(code):
    script = f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_import_edgecv_imports_nothing_but_itself():
    loaded = modules_after("import edgecv")
    assert not loaded & (HEAVY | {"numpy", "PIL", "onnxruntime"})


@pytest.mark.parametrize(
    "code",
    [
        "import edgecv, numpy; edgecv.load(PATH)(numpy.zeros((9, 9, 3), 'uint8'))",
        "import edgecv; edgecv.verify(PATH)",
        "import edgecv.measure.child, edgecv.workflows.bench, edgecv.workflows.doctor",
        "import edgecv.workflows.evaluate, edgecv.workflows.predict",
        "import edgecv.workflows.gallery, edgecv; edgecv.FacePipeline, edgecv.Gallery",
    ],
)
def test_running_needs_no_torch_no_onnx_and_no_cli(code):
    assert not modules_after(code.replace("PATH", repr(str(READY_MODEL)))) & HEAVY


def test_the_verbs_stay_functions_whatever_is_imported_first():
    code = (
        "import edgecv.evaluate.imagenet, edgecv; assert callable(edgecv.evaluate);"
        "from edgecv.evaluate import imagenet; assert callable(edgecv.evaluate)"
    )
    modules_after(code)


def test_every_public_name_is_there():
    import edgecv

    assert set(edgecv.__all__) <= set(dir(edgecv))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = edgecv.nothing
