"""The contract that a model file carries: what goes in, what comes out, and what it means.

The contract is one JSON object under the metadata key ``edgecv.spec`` of an ONNX file. This
module alone reads and writes it, and needs neither the onnx package nor a runtime
(:mod:`edgecv.onnxfile` finds the entry in the file).

Versions: ``version`` says who wrote it, ``min_reader`` the oldest reader that understands it.
Unknown keys are ignored, so a newer writer may add optional ones; a file whose ``min_reader`` is
above :data:`READER` is refused.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from edgecv.errors import SpecError
from edgecv.jsonobject import JsonObject
from edgecv.onnxfile import read_metadata, write_metadata

VERSION = 2  # of the contracts that this code writes
READER = 2  # the highest min_reader that this code understands
METADATA_KEY = "edgecv.spec"
PIXELS_IN = "pixels_in"  # in `provenance`, of an INT8 file in `quantization`
NET_COLOR = "net_color"  # in it: the order that the net was made for
PARENT_MEAN = "parent_mean"  # in `quantization`: the preparation's, before it was moved to a level
MAX_TENSORS = 256
MAX_RANK = 16

FITS = ("crop", "stretch", "letterbox", "multiple")
COLORS = ("rgb", "bgr", "gray")
INTERPOLATIONS = (
    "pillow-nearest",
    "pillow-box-antialias",
    "pillow-bilinear-antialias",
    "pillow-bicubic-antialias",
    "pillow-lanczos-antialias",
    "opencv-linear",
)
LAYOUTS = ("nchw", "nhwc")
CROP_ROUNDINGS = ("round-half-even", "floor")
SIZE_ROUNDINGS = ("round-half-even", "floor")
PAD_POSITIONS = ("center", "top-left")
PRECISIONS = ("fp32", "fp16", "int8")
DECODINGS = {
    "classify": ("logits", "probabilities", "multilabel-logits"),
    "detect": (
        "yolo-grid",  # v1: S x S x (5B + C)
        "yolo-anchors",  # v2, v3, v5, v7
        "yolox",
        "yolo-anchor-free",  # v6, v8, v9, v11
        "yolo-end2end",  # v10 and other heads that need no NMS: [N, n, 6]
        "fastestdet",
        "yunet",
        "rfb",
        "detections",  # NMS is in the graph
    ),
    "embed": ("embedding",),
    "segment": ("logits", "binary-logits", "probabilities"),
    "landmarks": ("points", "heatmaps"),
}
TASKS = tuple(DECODINGS)
# What readers of version 1 know; a file that needs more says so in its min_reader
_READER_1 = {
    "task": ("classify",),
    "decoding": ("logits", "probabilities"),
    "fit": ("crop", "stretch", "letterbox"),
    "interpolation": INTERPOLATIONS[:5],
    "size_rounding": ("round-half-even",),
    "layout": ("nchw",),
    "dtype": ("float32",),
}
DTYPES = ("float32", "float16", "float64", "uint8", "int8", "int32", "int64", "bool")
PICTURE_DTYPES = ("float32", "float16", "uint8")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: its name, its shape (a string is a symbolic size), its dtype."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes the input tensor: ``[N, C, H, W]``, or ``[N, H, W, C]`` (``layout``).

    The picture is fitted to ``height`` x ``width`` pixels, its channels put in the order
    ``color``, and each value ``v`` (0 to 255) becomes ``(v / divisor - mean) / std``. Where the
    input tensor is of uint8 the pixels go in as they are, and that arithmetic is in the graph.

    ``fit`` is one of

    - ``crop``: the short side is resized to ``resize`` pixels (the long side to
      ``int(resize * long / short)``, torchvision's rule) and the centre is cut out. Its corner
      is ``(size - crop) / 2``, rounded by ``crop_rounding``: ``round-half-even`` is
      torchvision's, ``floor`` most others'. What the picture lacks is padded with ``pad_value``.
    - ``stretch``: resized to ``height`` x ``width``, whatever its aspect ratio.
    - ``letterbox``: resized to fit inside, its aspect ratio kept, and padded with ``pad_value``
      (``pad_position``: the picture lies in the ``center`` or at the ``top-left``).
    - ``multiple``: for nets that take any size: scaled down, its aspect ratio kept, to fit inside
      ``height`` x ``width`` (never up), then padded with ``pad_value`` at the right and the
      bottom until both sides are multiples of ``multiple``.

    The size of a picture whose aspect ratio is kept by the last two is rounded by
    ``size_rounding``: ``round-half-even`` (Ultralytics) or ``floor`` (YOLOX, whose AP moves by
    0.1 points with the other).

    ``interpolation`` names the resampling exactly: the library that defines it, the kernel, and
    whether the kernel widens on downscaling (antialias). ``opencv-linear`` is OpenCV's
    ``INTER_LINEAR`` on bytes, which does not widen.
    """

    height: int
    width: int
    color: str = "rgb"
    fit: str = "crop"
    resize: int | None = None  # the short side, for fit = crop; None: min(height, width)
    interpolation: str = "pillow-bilinear-antialias"
    crop_rounding: str = "round-half-even"
    pad_value: int = 0
    pad_position: str = "center"
    size_rounding: str = "round-half-even"
    multiple: int = 1
    layout: str = "nchw"
    divisor: float = 255.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    @property
    def channels(self) -> int:
        return 1 if self.color == "gray" else 3

    @property
    def swapped(self) -> Preparation:
        """The same, for channels in the other order: RGB for BGR, BGR for RGB."""
        other = {"rgb": "bgr", "bgr": "rgb"}[self.color]
        return replace(self, color=other, mean=self.mean[::-1], std=self.std[::-1])

    def tensor_shape(self, height: int | str, width: int | str) -> tuple[int | str, ...]:
        """The input's shape without the batch, in the order of ``layout``."""
        if self.layout == "nhwc":
            return (height, width, self.channels)
        return (self.channels, height, width)

    def describe(self) -> str:
        """The preparation in one line for people."""
        kernel = f"{self.interpolation}, {self.color.upper()}"
        how = {
            "crop": f"short side to {self.resize or min(self.height, self.width)}, centre crop",
            "stretch": "stretched to",
            "letterbox": f"letterboxed ({self.pad_position}, pad {self.pad_value}) to",
            "multiple": f"padded ({self.pad_value}) to a multiple of {self.multiple}, at most",
        }[self.fit]
        mean, std = (",".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        return (
            f"{how} {self.width}x{self.height} ({kernel}), "
            f"(pixel / {self.divisor:g} - [{mean}]) / [{std}]"
        )


@dataclass(frozen=True)
class Decoding:
    """What the output tensors mean: ``kind`` names the rule, ``options`` its parameters."""

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelSpec:
    """The whole contract of one model file. Checked when made; see the module's docstring."""

    name: str
    task: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preparation: Preparation
    decoding: Decoding
    labels: tuple[str, ...]
    label_ids: tuple[str, ...] = ()  # one per label (WordNet ids, say), or none at all
    precision: str = "fp32"
    target: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    quantization: Mapping[str, Any] = field(default_factory=dict)
    self_test: Mapping[str, Any] = field(default_factory=dict)
    version: int = VERSION

    def __post_init__(self) -> None:
        _check(self)

    @property
    def min_reader(self) -> int:
        """The oldest reader that can run this file rightly."""
        used = {
            "task": self.task,
            "decoding": self.decoding.kind,
            "fit": self.preparation.fit,
            "interpolation": self.preparation.interpolation,
            "size_rounding": self.preparation.size_rounding,
            "layout": self.preparation.layout,
            "dtype": self.inputs[0].dtype,
        }
        return 1 if all(value in _READER_1[key] for key, value in used.items()) else 2

    def to_json(self) -> str:
        """The contract as JSON; the same contract gives the same bytes."""
        data = {**asdict(self), "min_reader": self.min_reader}
        return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str, where: str = "the contract") -> ModelSpec:
        """Read :meth:`to_json`'s output; anything else is a :class:`SpecError` naming ``where``."""
        try:
            data = json.loads(text, parse_float=_finite, parse_constant=_finite, parse_int=_int)
        except (ValueError, RecursionError) as error:
            raise SpecError(
                f"{where}: not valid JSON ({error}); the file is damaged: export it again"
            ) from error
        if not isinstance(data, dict):
            raise SpecError(f"{where}: expected a JSON object, got {type(data).__name__}")
        reader = JsonObject(data, where)
        if (needed := reader.get("min_reader", int)) > READER:
            raise SpecError(
                f"{where}: written for readers of version {needed} and later, this EdgeCV reads up "
                f"to {READER}; update EdgeCV on this machine, or export the model with this version"
            )
        return cls(
            name=reader.get("name", str),
            task=reader.get("task", str),
            inputs=_tensors(reader, "inputs"),
            outputs=_tensors(reader, "outputs"),
            preparation=_preparation(reader.child("preparation")),
            decoding=_decoding(reader.child("decoding")),
            labels=reader.strings("labels"),
            label_ids=reader.strings("label_ids", []),
            precision=reader.get("precision", str),
            target=reader.get("target", str) if data.get("target") is not None else None,
            provenance=reader.get("provenance", dict, {}),
            parity=reader.get("parity", dict, {}),
            quantization=reader.get("quantization", dict, {}),
            self_test=reader.get("self_test", dict, {}),
            version=reader.get("version", int),
        )


def _finite(text: str) -> float:
    """A number of JSON, which knows neither NaN nor infinity: such a contract could be read and
    not written again."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is no finite number")
    return value


def _int(text: str) -> int:
    _finite(text)  # it may stand where a float is expected
    return int(text)


def _tensors(given: JsonObject, key: str) -> tuple[TensorSpec, ...]:
    tensors = []
    items = given.get(key, list)
    if len(items) > MAX_TENSORS:
        raise SpecError(f"{given.where}: {key!r} has {len(items)} tensors; at most {MAX_TENSORS}")
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            raise SpecError(f"{given.where}: {key}[{index}] must be an object")
        reader = JsonObject(item, f"{given.where}: {key}[{index}]")
        shape = reader.get("shape", list)
        if len(shape) > MAX_RANK or not all(
            isinstance(s, int | str) and not isinstance(s, bool) for s in shape
        ):
            raise SpecError(f"{reader.where}: 'shape' must hold at most {MAX_RANK} sizes and names")
        tensors.append(TensorSpec(reader.get("name", str), tuple(shape), reader.get("dtype", str)))
    return tuple(tensors)


def _preparation(reader: JsonObject) -> Preparation:
    resize = reader.data.get("resize")
    return Preparation(
        height=reader.get("height", int),
        width=reader.get("width", int),
        color=reader.get("color", str),
        fit=reader.get("fit", str),
        resize=None if resize is None else reader.get("resize", int),
        interpolation=reader.get("interpolation", str),
        crop_rounding=reader.get("crop_rounding", str),
        pad_value=reader.get("pad_value", int),
        pad_position=reader.get("pad_position", str),
        size_rounding=reader.get("size_rounding", str, "round-half-even"),
        multiple=reader.get("multiple", int, 1),
        layout=reader.get("layout", str, "nchw"),
        divisor=reader.get("divisor", float),
        mean=reader.floats("mean", ()),
        std=reader.floats("std", ()),
    )


def _decoding(reader: JsonObject) -> Decoding:
    return Decoding(reader.get("kind", str), reader.get("options", dict, {}))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise SpecError(message)


def _one_of(value: str, allowed: tuple[str, ...], what: str) -> None:
    _require(value in allowed, f"{what} must be one of {', '.join(allowed)}; got {value!r}")


def check_preparation(p: Preparation) -> None:
    """Refuse a preparation that means nothing, with a :class:`SpecError`."""
    _one_of(p.color, COLORS, "color")
    _one_of(p.fit, FITS, "fit")
    _one_of(p.interpolation, INTERPOLATIONS, "interpolation")
    _one_of(p.crop_rounding, CROP_ROUNDINGS, "crop_rounding")
    _one_of(p.pad_position, PAD_POSITIONS, "pad_position")
    _one_of(p.size_rounding, SIZE_ROUNDINGS, "size_rounding")
    _one_of(p.layout, LAYOUTS, "layout")
    _require(1 <= p.multiple <= 1024, f"multiple must be 1 to 1024 pixels, got {p.multiple}")
    for what, size in (("height", p.height), ("width", p.width), ("resize", p.resize or 1)):
        _require(1 <= size <= 16384, f"{what} must be 1 to 16384 pixels, got {size}")
    _require(0 <= p.pad_value <= 255, f"pad_value must be 0 to 255, got {p.pad_value}")
    for what, values in (("mean", p.mean), ("std", p.std), ("divisor", (p.divisor,))):
        _require(all(map(math.isfinite, values)), f"{what} must be finite, got {values}")
    for what, values in (("mean", p.mean), ("std", p.std)):
        _require(
            len(values) == p.channels,
            f"{what} must have {p.channels} values for color {p.color!r}, got {len(values)}",
        )
    _require(p.divisor > 0 and all(s > 0 for s in p.std), "divisor and std must be positive")


def _check(spec: ModelSpec) -> None:
    _one_of(spec.task, TASKS, "task")
    _one_of(spec.precision, PRECISIONS, "precision")
    _one_of(spec.decoding.kind, DECODINGS[spec.task], f"decoding of task {spec.task!r}")
    check_preparation(spec.preparation)
    _require(len(spec.inputs) == 1, f"expected one picture input, got {len(spec.inputs)}")
    _require(len(spec.outputs) >= 1, "there must be at least one output")
    for tensor in (*spec.inputs, *spec.outputs):
        _one_of(tensor.dtype, DTYPES, f"dtype of {tensor.name!r}")
        sizes = [size for size in tensor.shape if not isinstance(size, str)]
        _require(
            all(size >= 1 for size in sizes),
            f"the sizes of {tensor.name!r} must be at least 1, or names; got {list(tensor.shape)}",
        )
    _check_input(spec.inputs[0], spec.preparation)
    _require(
        len(spec.label_ids) in (0, len(spec.labels)),
        f"label_ids must have one id per label: {len(spec.label_ids)} for {len(spec.labels)}",
    )
    if spec.task == "classify":
        shape = spec.outputs[0].shape
        _require(
            len(shape) in (2, 4),
            f"output {spec.outputs[0].name!r} has the shape {list(shape)}; task 'classify' takes "
            f"[N, classes] or [N, classes, h, w]",
        )
        classes = shape[1] if len(shape) == 4 else shape[-1]  # [N, C, h, w]: fully convolutional
        _require(
            isinstance(classes, str) or classes == len(spec.labels),
            f"output {spec.outputs[0].name!r} has {classes} classes, labels has "
            f"{len(spec.labels)} names",
        )


def _check_input(tensor: TensorSpec, p: Preparation) -> None:
    """The input tensor must be what the preparation makes."""
    height, width = (p.height, p.width) if p.fit != "multiple" else ("height", "width")
    expected = p.tensor_shape(height, width)
    _require(
        len(tensor.shape) == 4
        and all(
            isinstance(size, str) or isinstance(want, str) or size == want
            for size, want in zip(tensor.shape[1:], expected, strict=False)
        ),
        f"input {tensor.name!r} has the shape {list(tensor.shape)}, but the preparation makes "
        f"[N, {', '.join(map(str, expected))}]",
    )
    _one_of(tensor.dtype, PICTURE_DTYPES, f"dtype of the picture input {tensor.name!r}")


# --- the file ---------------------------------------------------------------------------------


def read_spec(path: str | os.PathLike[str]) -> ModelSpec:
    """The contract inside the model file ``path``."""
    text = read_metadata(path).get(METADATA_KEY)
    if text is None:
        raise SpecError(
            f"{path}: this ONNX file carries no EdgeCV contract, so its input preparation and the "
            f"meaning of its outputs are unknown; `edgecv adopt` gives it one"
        )
    return ModelSpec.from_json(text, str(path))


def write_spec(
    source: str | os.PathLike[str] | bytes, spec: ModelSpec, path: str | os.PathLike[str]
) -> None:
    """Write the ONNX model ``source`` (a file or its bytes) to ``path`` with ``spec`` inside.

    An older contract is replaced; everything else is copied byte for byte. ``path`` appears
    whole or not at all.
    """
    write_metadata(source, METADATA_KEY, spec.to_json(), path)
