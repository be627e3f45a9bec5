"""Files for TensorRT: TensorRT-RTX builds them, for GPUs that are not here, with INT8 kernels."""

import re

import onnx_ir as ir
import pytest

from edgecv.quantize import calibrate
from edgecv.quantize.place import place
from edgecv.quantize.structure import plan
from edgecv.quantize.targets import policy_for

GPUS = ("SM80", "SM86", "SM89", "SM120")


def build_log(data: bytes, gpu: str) -> list[str]:
    """What the builder says, its layers in detail; a refused file fails the test."""
    trt = pytest.importorskip("tensorrt_rtx")
    lines: list[str] = []

    class Logger(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)

        def log(self, severity, message):
            lines.extend(message.splitlines())

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(data), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, gpu), 0)
    assert builder.build_serialized_network(network, config) is not None
    return lines


def int8_convolutions(lines: list[str]) -> int:
    """Kernels named after a Conv whose first input is Int8, in the builder's list of layers."""
    pattern = re.compile(r"^Name: \S*/Conv_myl\S*, LayerType: correlation, Inputs: \[ \{[^}]*?"
                         r"Datatype: Int8")  # fmt: skip
    return sum(bool(pattern.match(line)) for line in lines)


@pytest.mark.parametrize("gpu", GPUS)
def test_every_convolution_becomes_an_int8_kernel(net, batches, gpu):
    policy = policy_for("tensorrt")
    found = calibrate.extremes(net, plan(net, policy).values, batches)
    ranges = calibrate.choose(calibrate.histograms(net, found, batches), policy)
    data = ir.to_proto(place(net, policy, ranges)).SerializeToString()
    assert int8_convolutions(build_log(data, gpu)) == 3
    assert int8_convolutions(build_log(ir.to_proto(net).SerializeToString(), gpu)) == 0
