"""What TensorRT's parser made of an ONNX file: tensors, ranges of open sizes, types of layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgecv.errors import InputError, RuntimeFailure
from edgecv.spec import METADATA_KEY, ModelSpec, TensorSpec

# TensorRT's names of types -> NumPy's
DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
PRECISIONS = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8"}
HEAVY = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")
BATCH = (1, 1, 32)  # of a symbolic batch, where nobody says otherwise: tuned for single pictures


def tensors(count: int, get: Callable[[int], Any]) -> tuple[TensorSpec, ...]:
    """The ``count`` inputs or outputs that ``get`` gives; unnamed symbolic sizes get a name."""
    found = []
    for tensor in map(get, range(count)):
        dtype = tensor.dtype.name
        if dtype not in DTYPES:
            raise RuntimeFailure(f"tensor {tensor.name!r} is {dtype}; EdgeCV runs plain tensors")
        shape = tuple(
            size if size >= 0 else tensor.get_dimension_name(axis) or f"{tensor.name}_{axis}"
            for axis, size in enumerate(tensor.shape)
        )
        found.append(TensorSpec(tensor.name, shape, DTYPES[dtype]))
    return tuple(found)


def size_ranges(
    inputs: tuple[TensorSpec, ...],
    asked: Mapping[str, tuple[int, int, int]],
    metadata: Mapping[str, str],
    path: Path,
) -> dict[str, tuple[int, int, int]]:
    """The range of each symbolic size of the inputs: what was asked, or what the contract says."""
    ranges: dict[str, tuple[int, int, int]] = {}
    for tensor in inputs:
        for axis, symbol in enumerate(tensor.shape):
            if isinstance(symbol, int):
                continue
            if symbol in asked:
                ranges[symbol] = asked[symbol]
            elif axis == 0:
                ranges.setdefault(symbol, BATCH)
            elif (size := _size_of_contract(metadata, axis, path)) is not None:
                ranges.setdefault(symbol, size)
            else:
                raise InputError(
                    f"{path}: input {tensor.name!r} has the symbolic size {symbol!r}, for which an "
                    f"engine needs a range: --shape {symbol}=LEAST,USUAL,MOST"
                )
    if unknown := set(asked) - set(ranges):
        raise InputError(
            f"{path}: has no symbolic size {', '.join(sorted(unknown))}; it has "
            f"{', '.join(sorted(ranges)) or 'none'}"
        )
    return ranges


def _size_of_contract(
    metadata: Mapping[str, str], axis: int, path: Path
) -> tuple[int, int, int] | None:
    """Pictures of any size (fit = multiple) come to at most the contract's height and width."""
    text = metadata.get(METADATA_KEY)
    if text is None:
        return None
    p = ModelSpec.from_json(text, str(path)).preparation
    first = 1 if p.layout == "nhwc" else 2
    if axis not in (first, first + 1):
        return None
    size = p.height if axis == first else p.width
    most = -(-size // p.multiple) * p.multiple
    return (min(p.multiple, most), most, most) if p.fit == "multiple" else (size, size, size)


def heavy_nodes(network: Any, fp32: str) -> dict[str, int]:
    """How many convolutions and products are typed how; a strongly typed engine keeps to that."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    made_by = {
        layer.get_output(i).name: layer.type.name
        for layer in layers
        for i in range(layer.num_outputs)
    }
    counts: Counter[str] = Counter()
    for layer in layers:
        if layer.type.name not in HEAVY:
            continue
        tensor = layer.get_input(0)
        if made_by.get(tensor.name) == "DEQUANTIZE":  # fused with it: integers are multiplied
            counts["int8"] += 1
        else:
            precision = PRECISIONS.get(tensor.dtype.name, tensor.dtype.name.lower())
            counts[fp32 if precision == "fp32" else precision] += 1
    return dict(counts.most_common())
