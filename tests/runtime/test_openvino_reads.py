"""OpenVINO, oldest and newest, reads what we export and gives onnxruntime's answers."""

import numpy as np
import pytest

from edgecv.measure.ready import READY_MODEL
from edgecv.measure.selftest import inputs
from edgecv.runtimes import open_backend
from edgecv.spec import read_spec


@pytest.mark.filterwarnings("ignore")  # OpenVINO 2024 warns of its own old imports
def test_openvino_agrees_with_onnxruntime():
    ov = pytest.importorskip("openvino")
    batch = inputs(read_spec(READY_MODEL).preparation, 5, 3)
    with open_backend("onnxruntime", READY_MODEL) as runtime:
        expected = runtime.run({"input": batch})["logits"]
    # FP32 by name: on CPUs with BF16 units OpenVINO computes in BF16 by default
    model = ov.Core().compile_model(str(READY_MODEL), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    got = model([batch])[0]
    # 1e-4 of the largest logit: the project's bound for equal FP32 programs
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()
