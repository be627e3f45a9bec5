"""Pieces of an ONNX file as files of their own, without the onnx package.

Messages are copied as they are, so that a piece is the original's, byte for byte.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgecv import onnxproto as proto
from edgecv.errors import SpecError
from edgecv.onnxgraph import OnnxGraph, Span
from edgecv.wire import integer, message


def cut(
    graph: OnnxGraph,
    outputs: Sequence[str] = (),
    given: dict[str, str] | None = None,
    *,
    keep_outputs: bool = True,
) -> bytes:
    """The model with more ``outputs``, and with tensors ``given`` ({name: dtype}) from outside.

    Nodes that are no longer needed are left out, and so are the declared shapes of intermediates:
    runtimes infer them again. ``keep_outputs``: the graph's own too.
    """
    given = given or {}
    named = list(dict.fromkeys([*(graph.outputs if keep_outputs else ()), *outputs]))
    nodes = graph.needed(named, given)
    read = {name for node in nodes for name in node.reads} | set(named)
    made = {out for node in nodes for out in node.outputs}
    with graph.opened() as data:

        def copied(number: int, span: Span) -> bytes:
            return message(number, data[slice(*span)])

        body = [data[slice(*span)] for span in graph.rest]
        body += [copied(proto.GRAPH_NODE, node.span) for node in nodes]
        body += [
            copied(proto.GRAPH_INITIALIZER, one.span)
            for one in graph.initializers.values()
            if one.name in read and one.name not in given
        ]
        body += [
            copied(proto.GRAPH_INPUT, span)
            for name, span in graph.inputs.items()
            if name in read and name not in given and name not in graph.initializers
        ]
        body += [
            message(proto.GRAPH_INPUT, value_info(name, dtype))
            for name, dtype in given.items()
            if name in read and name not in made
        ]
        body += [
            copied(proto.GRAPH_OUTPUT, graph.outputs[name])
            if name in graph.outputs
            else message(proto.GRAPH_OUTPUT, message(proto.VALUE_NAME, name.encode()))
            for name in named
        ]
        head = b"".join(data[slice(*span)] for span in graph.head)
    return head + message(proto.MODEL_GRAPH, b"".join(body))


def value_info(name: str, dtype: str, shape: Sequence[int] | None = None) -> bytes:
    """A ``ValueInfoProto``; one of no ``shape`` says nothing of its rank either."""
    if dtype not in proto.ELEMENT_TYPES:
        raise SpecError(f"tensor {name!r} is {dtype}, which cannot be fed")
    tensor = integer(proto.TENSOR_TYPE_ELEMENT, proto.ELEMENT_TYPES[dtype])
    if shape is not None:
        dims = (message(proto.SHAPE_DIM, integer(proto.DIM_VALUE, size)) for size in shape)
        tensor += message(proto.TENSOR_TYPE_SHAPE, b"".join(dims))
    kind = message(proto.VALUE_TYPE, message(proto.TYPE_TENSOR, tensor))
    return message(proto.VALUE_NAME, name.encode()) + kind
