"""Values that meet in a Concat, or that a Resize copies, share one range.

Then the runtime copies bytes. With ranges of their own every byte is requantized on the way, which
costs a quantized YOLOX-Nano 4% of its time and gains nothing: the widest of the ranges is what
comes out in any case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from edgecv.quantize.ranges import Range
from edgecv.quantize.structure import is_activation, origin

_SHARING = ("Concat", "Resize")


def unify(model: ir.Model, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """``ranges`` with one range for each group that shares; values not in it are left alone."""
    group: dict[str, str] = {}

    def leader(name: str) -> str:
        while name in group:
            name = group[name]
        return name

    for node in model.graph:
        if node.op_type not in _SHARING:
            continue
        sources = node.inputs if node.op_type == "Concat" else node.inputs[:1]
        values = [origin(v) for v in sources if v is not None and is_activation(v)]
        names = [v.name or "" for v in (*values, node.outputs[0])]
        names = [name for name in names if name in ranges]
        for name in names[1:]:
            first, other = leader(names[0]), leader(name)
            if first != other:
                group[other] = first
    result = dict(ranges)
    members: dict[str, list[str]] = {}
    for name in ranges:
        members.setdefault(leader(name), []).append(name)
    for names in members.values():
        lo, hi = min(ranges[n].lo for n in names), max(ranges[n].hi for n in names)
        for name in names:
            result[name] = replace(ranges[name], lo=lo, hi=hi)
    return result
