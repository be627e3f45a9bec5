"""Equalization must not change what the net computes, and must even the channels out."""

import numpy as np

from edgecv.quantize import calibrate
from edgecv.quantize.equalize import equalize
from edgecv.quantize.run import Probe


def test_the_net_computes_what_it_did_and_channels_are_more_alike(net, batches):
    values = [value.name for node in net.graph for value in node.outputs]
    found = calibrate.extremes(net, values, batches)
    before = Probe(net).over(batches())["y"]
    model = net.clone()
    scales = equalize(model, found).scales
    assert scales
    after = Probe(model).over(batches())["y"]
    # float32, sums in another order: 2^-24 times a few dozen roundings
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    changed = calibrate.extremes(model, list(scales), batches)
    for name, factors in scales.items():
        peaks = np.maximum(-found[name].channel_lo, found[name].channel_hi)
        np.testing.assert_allclose(
            np.maximum(-changed[name].channel_lo, changed[name].channel_hi),
            peaks * factors, rtol=1e-4, atol=1e-5,
        )  # fmt: skip
        assert changed[name].hi <= max(found[name].hi, -found[name].lo) * 1.0001
