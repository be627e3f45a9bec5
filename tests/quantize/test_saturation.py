"""Which layers' sums of 16 bits saturate without VNNI is told from the weights.

What each case gives was seen in onnxruntime 1.32 under ``qemu-x86_64 -cpu Haswell`` (AVX2, no VNNI)
with every activation at 255: the rows named saturated, and no other.
"""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgecv.errors import SpecError
from edgecv.measure.ready import READY_MODEL
from edgecv.measure.saturation import saturation


def weights(shape, *places, value=100):
    """int8 zeros, but for ``value`` at the places."""
    array = np.zeros(shape, np.int8)
    for place in places:
        array[place] = value
    return array


def model(weight, kind="Conv", *, raw=True, **attributes):
    """Bytes of a file with one Q/DQ layer of this weight."""
    if raw:
        stored = numpy_helper.from_array(weight, "w")
    else:
        stored = helper.make_tensor("w", TensorProto.INT8, weight.shape, weight.ravel().tolist())
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["wf"]),
        helper.make_node(kind, ["x", "wf"], ["y"], name="layer", **attributes),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [stored, numpy_helper.from_array(np.float32(1), "s")],
    )
    return helper.make_model(graph).SerializeToString()


# weight, group, how many of its pairs saturate, of how many
CONVOLUTIONS = {
    "neighbours": (weights((2, 8, 1, 1), (0, 0), (0, 1)), 1, 1, 8),
    "not of one pair": (weights((2, 8, 1, 1), (1, 1), (1, 2)), 1, 0, 8),
    "negative": (weights((1, 8, 1, 1), (0, 4), (0, 5), value=-100), 1, 1, 4),
    "64 and 64": (weights((1, 8, 1, 1), (0, 0), (0, 1), value=64), 1, 0, 4),
    "65 and 64": (weights((1, 8, 1, 1), (0, 0), value=65) + weights((1, 8, 1, 1), (0, 1), value=64),
                  1, 1, 4),
    "channels of a position": (weights((1, 4, 3, 3), (0, 2, 1, 1), (0, 3, 1, 1)), 1, 1, 18),
    "positions of a channel": (weights((1, 4, 3, 3), (0, 0, 0, 0), (0, 0, 0, 1)), 1, 0, 18),
    "an odd count": (weights((1, 3, 3, 3), (0, 2, 0, 0), (0, 0, 0, 1)), 1, 1, 14),
    "depthwise": (weights((8, 1, 3, 3), *np.ndindex(8, 1, 1, 2)), 8, 0, 1),
    "one channel": (weights((1, 1, 3, 3), (0, 0, 0, 0), (0, 0, 0, 1)), 1, 1, 5),
    "groups": (weights((4, 2, 1, 1), (0, 0), (0, 1)), 2, 1, 4),
}  # fmt: skip


@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("raw", [True, False])
def test_convolutions(case, raw):
    weight, group, count, pairs = CONVOLUTIONS[case]
    found = saturation(model(weight, group=group, raw=raw))
    assert [one.node for one in found] == ["layer"] * bool(count)
    if count:
        assert found[0].pairs == pytest.approx(count / pairs)
        assert found[0].sum > 1


@pytest.mark.parametrize("shift", [0, 1])
def test_matrix_products_add_along_k(shift):
    weight = weights((8, 3), (2 + shift, 1), (3 + shift, 1))
    expected = [] if shift else [1 / 12]
    for data in (model(weight, "MatMul"), model(weight, "Gemm"), model(weight.T, "Gemm", transB=1)):
        assert [one.pairs for one in saturation(data)] == expected


def test_what_is_said_is_what_products_of_255_do():
    """Slowly, pair by pair, for random weights of every size."""
    rng = np.random.default_rng(0)
    for most in (63, 64, 65, 90, 127):
        weight = rng.integers(-most, most + 1, (6, 10, 1, 1)).astype(np.int8)
        over = 0
        for row in weight[:, :, 0, 0].astype(int):
            for k in range(0, 10, 2):
                sums = [255 * sum(v for v in row[k : k + 2] if sign * v > 0) for sign in (1, -1)]
                over += sums[0] > 32767 or sums[1] < -32768
        found = saturation(model(weight))
        assert sum(one.pairs for one in found) == pytest.approx(over / 30)
        assert bool(found) == (over > 0)
    assert saturation(model(np.full((4, 4, 1, 1), 64, np.int8))) == ()
    assert saturation(READY_MODEL) == ()  # a float file has no such sums


def test_a_damaged_file_is_refused():
    data = model(np.zeros((2, 2, 1, 1), np.int8))
    with pytest.raises(SpecError, match="not an ONNX model"):
        saturation(data[:-20])
    assert onnx.load_from_string(data)
