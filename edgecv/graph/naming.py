"""Node names that an engineer recognises: the torch module's path and the operator.

``features.3.conv.0.0/Conv`` is the convolution of ``model.features[3].conv[0][0]``. A node that
carries weights is named after the module that owns them: the exporter files a convolution that
swallowed a BatchNorm under the BatchNorm.
"""

from __future__ import annotations

import ast
from collections import Counter

import onnx_ir as ir

_SCOPES = "pkg.torch.onnx.name_scopes"  # what torch.onnx.export(dynamo=True) leaves in a node


def name_nodes(model: ir.Model) -> int:
    """Rename all nodes, and the values between them to ``NODE:OUTPUT``; inputs and outputs stay."""
    seen: Counter[str] = Counter()
    fixed = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    for node in model.graph:
        path = _module_path(node)
        name = f"{path}/{node.op_type}" if path else node.op_type
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name] - 1}"
        for index, value in enumerate(node.outputs):
            if value.name not in fixed:
                value.name = f"{node.name}:{index}"
    return sum(seen.values())


def name_unnamed(model: ir.Model) -> int:
    """Name the nodes of a third party's graph that have no name, or another one's; keep the rest.

    A node gets the name of the layer whose weight it uses, or its operator's, numbered where
    that is taken.
    """
    taken: set[str] = set()
    nameless = []
    for node in model.graph:
        if node.name and node.name not in taken:
            taken.add(node.name)
        else:
            nameless.append(node)
    counts: Counter[str] = Counter()
    for node in nameless:
        path = _module_path(node)
        name = stem = f"{path}/{node.op_type}" if path else node.op_type
        while name in taken:
            counts[stem] += 1
            name = f"{stem}_{counts[stem]}"
        node.name = name
        taken.add(name)
    return len(nameless)


def _module_path(node: ir.Node) -> str:
    for value in node.inputs:
        if value is not None and value.is_initializer():
            owner, _, parameter = (value.name or "").rpartition(".")
            if parameter == "weight":
                return owner
    try:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    except (ValueError, SyntaxError):
        return ""
    return str(scopes[-2]) if len(scopes) > 1 else ""  # the last scope is the operator itself
