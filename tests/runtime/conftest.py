"""Tiny ONNX files, written without the onnx package: a model is a protobuf message."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from edgecv.wire import varint

ELEMENTS = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
}


def number(field, value):
    return varint(field << 3) + varint(value)


def data(field, value):
    value = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(value)) + value


class Tiny:
    """Makes the parts of a model: ``tiny.model([tiny.node(...)], inputs=..., outputs=...)``."""

    @staticmethod
    def tensor(name, array):
        array = np.asarray(array, order="C")  # ascontiguousarray makes scalars [1]
        dims = b"".join(number(1, size) for size in array.shape)
        kind = number(2, ELEMENTS[array.dtype.name])
        return dims + kind + data(8, name) + data(9, array.tobytes())

    @staticmethod
    def external(name, shape, **entries):
        """A float32 tensor whose bytes lie in another file."""
        dims = b"".join(number(1, size) for size in shape)
        pairs = b"".join(data(13, data(1, k) + data(2, str(v))) for k, v in entries.items())
        return dims + number(2, 1) + data(8, name) + pairs + number(14, 1)

    @staticmethod
    def node(op_type, inputs, outputs, **attributes):
        made = b"".join(data(1, name) for name in inputs)
        made += b"".join(data(2, name) for name in outputs) + data(4, op_type)
        for key, value in attributes.items():
            if isinstance(value, int):
                body = number(3, value) + number(20, 2)
            elif isinstance(value, float):
                body = varint(2 << 3 | 5) + struct.pack("<f", value) + number(20, 1)
            elif isinstance(value, bytes):  # a TensorProto
                body = data(5, value) + number(20, 4)
            else:
                body = b"".join(number(8, item) for item in value) + number(20, 7)
            made += data(5, data(1, key) + body)
        return made

    @staticmethod
    def value(name, dtype, shape):
        dims = b"".join(
            data(1, data(2, size) if isinstance(size, str) else number(1, size)) for size in shape
        )
        kind = number(1, ELEMENTS[dtype]) + data(2, dims)
        return data(1, name) + data(2, data(1, kind))

    @staticmethod
    def model(nodes, *, inputs, outputs, initializers=(), opset=13):
        graph = b"".join(data(1, node) for node in nodes) + data(2, "tiny")
        graph += b"".join(data(5, tensor) for tensor in initializers)
        graph += b"".join(data(11, value) for value in inputs)
        graph += b"".join(data(12, value) for value in outputs)
        return number(1, 8) + data(7, graph) + data(8, data(1, "") + number(2, opset))


@pytest.fixture(scope="session")
def tiny():
    return Tiny
