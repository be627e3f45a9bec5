"""What the numbers in an ONNX file mean: fields of its messages, types of its tensors.

All are those of onnx.proto3 (github.com/onnx/onnx); they never change once they are given.
"""

from __future__ import annotations

MODEL_IR_VERSION, MODEL_PRODUCER, MODEL_GRAPH, MODEL_OPSET = 1, 2, 7, 8
MODEL_METADATA, MODEL_FUNCTION = 14, 25
OPSET_DOMAIN, OPSET_VERSION = 1, 2
FUNCTION_NODE, FUNCTION_ATTRIBUTE = 7, 11
GRAPH_NODE, GRAPH_NAME, GRAPH_INITIALIZER, GRAPH_SPARSE = 1, 2, 5, 15
GRAPH_INPUT, GRAPH_OUTPUT, GRAPH_VALUE_INFO = 11, 12, 13
NODE_INPUT, NODE_OUTPUT, NODE_NAME, NODE_OP, NODE_ATTRIBUTE, NODE_DOMAIN = 1, 2, 3, 4, 5, 7
ATTRIBUTE_NAME, ATTRIBUTE_INT = 1, 3
ATTRIBUTE_TENSOR, ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS = 5, 10, 6, 11
ATTRIBUTE_SPARSE, ATTRIBUTE_SPARSES = 22, 23
TENSOR_DIMS, TENSOR_TYPE, TENSOR_FLOAT, TENSOR_INT32 = 1, 2, 4, 5
TENSOR_NAME, TENSOR_RAW = 8, 9
TENSOR_EXTERNAL, TENSOR_LOCATION = 13, 14
LOCATION_EXTERNAL = 1  # a value of TENSOR_LOCATION: the data lies in another file
SPARSE_VALUES, SPARSE_INDICES = 1, 2
VALUE_NAME, VALUE_TYPE = 1, 2
TYPE_TENSOR = 1
TENSOR_TYPE_ELEMENT, TENSOR_TYPE_SHAPE = 1, 2
SHAPE_DIM = 1
DIM_VALUE, DIM_SYMBOL = 1, 2
ENTRY_KEY, ENTRY_VALUE = 1, 2  # StringStringEntryProto

MAX_DEPTH = 64  # of messages within one another: protobuf itself stops at 100

# TensorProto.DataType by NumPy's name (bfloat16 has none of its own there)
ELEMENT_TYPES = {
    "float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9, "float16": 10,
    "float64": 11, "bfloat16": 16,
}  # fmt: skip
