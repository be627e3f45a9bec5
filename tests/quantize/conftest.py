"""Small nets with everything that quantization has to tell apart, and batches for them."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper, shape_inference

CHANNELS = 8


def build(nodes, tensors, shape=(1, 3, 16, 16), output="y"):
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return ir.from_proto(shape_inference.infer_shapes(proto))


@pytest.fixture
def net():
    """Conv, Clip, depthwise, Relu, project, residual Add, pooling, Gemm: a small MobileNetV2."""
    rng = np.random.default_rng(1)
    c = CHANNELS

    def weight(*shape):
        return (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)

    tensors = {
        "stem_w": weight(c, 3, 3, 3), "stem_b": weight(c) * 0.1,
        "dw_w": weight(c, 1, 3, 3), "dw_b": weight(c) * 0.1,
        "pw_w": weight(c, c, 1, 1), "pw_b": weight(c) * 0.1,
        "fc_w": weight(5, c), "fc_b": weight(5),
        "zero": np.float32(0), "six": np.float32(6),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "stem_w", "stem_b"], ["stem"], "stem/Conv", pads=[1] * 4),
        node("Clip", ["stem", "zero", "six"], ["a"], "stem/Clip"),
        node("Conv", ["a", "dw_w", "dw_b"], ["dw"], "dw/Conv", pads=[1] * 4, group=c),
        node("Relu", ["dw"], ["b"], "dw/Relu"),
        node("Conv", ["b", "pw_w", "pw_b"], ["pw"], "pw/Conv"),
        node("Add", ["a", "pw"], ["sum"], "sum/Add"),
        node("GlobalAveragePool", ["sum"], ["pool"], "pool"),
        node("Flatten", ["pool"], ["flat"], "flat"),
        node("Gemm", ["flat", "fc_w", "fc_b"], ["y"], "fc/Gemm", transB=1),
    ]
    return build(nodes, tensors)


@pytest.fixture
def batches():
    rng = np.random.default_rng(2)
    data = [rng.uniform(-1, 1, (1, 3, 16, 16)).astype(np.float32) for _ in range(12)]
    return lambda: iter(data)
