"""The contract: round trips, old files load for ever, damaged and hostile ones are refused."""

import json
import math
from dataclasses import replace

import pytest

from edgecv.errors import InputError, SpecError
from edgecv.measure.ready import READY_MODEL
from edgecv.onnxfile import MAX_FIELDS, read_metadata
from edgecv.spec import (
    Decoding,
    ModelSpec,
    Preparation,
    TensorSpec,
    read_spec,
    write_spec,
)

SPEC = ModelSpec(
    name="tiny",
    task="classify",
    inputs=(TensorSpec("input", ("N", 3, 8, 8)),),
    outputs=(TensorSpec("logits", ("N", 2)),),
    preparation=Preparation(8, 8, resize=9, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0)),
    decoding=Decoding("logits"),
    labels=("cat", "dög"),
    label_ids=("n1", "n2"),
    provenance={"weights": {"sha256": None}},
)
# a ModelProto with an ir_version and an empty graph: enough of an ONNX file for the metadata
BARE = b"\x08\x08" + b"\x3a\x00"


def test_round_trip_through_json():
    assert ModelSpec.from_json(SPEC.to_json()) == SPEC
    assert ModelSpec.from_json(SPEC.to_json()).to_json() == SPEC.to_json()


def test_round_trip_through_a_file(tmp_path):
    path = tmp_path / "tiny.onnx"
    write_spec(BARE, SPEC, path)
    assert read_spec(path) == SPEC
    assert path.read_bytes().startswith(BARE)
    write_spec(path, replace(SPEC, name="other"), path)  # replaces, does not pile up
    assert read_spec(path).name == "other"
    assert len(read_metadata(path)) == 1
    assert path.read_bytes().startswith(BARE)


def test_contract_of_release_1_still_loads(golden):
    """Never regenerate this file: it stands for what is deployed."""
    spec = read_spec(golden / "contract-v1.onnx")
    assert spec.name == "tiny"
    assert spec.labels == ("cat", "dög")
    assert spec.preparation.resize == 9


def test_unknown_optional_keys_are_ignored():
    data = json.loads(SPEC.to_json())
    data["new"] = {"x": 1}
    data["preparation"]["new"] = 1
    data["version"] = 99
    assert ModelSpec.from_json(json.dumps(data)).labels == SPEC.labels


def test_a_newer_min_reader_is_refused_with_the_remedy():
    data = json.loads(SPEC.to_json())
    data["min_reader"] = 3
    with pytest.raises(SpecError, match="update EdgeCV"):
        ModelSpec.from_json(json.dumps(data))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"x"', "[" * 100_000, '{"min_reader": "1"}', '{"min_reader":1}']
)
def test_hostile_json(text):
    with pytest.raises(SpecError):
        ModelSpec.from_json(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["x"] * 100_001}, "'labels' has 100001 entries"),
        ({"outputs": [{"name": "a", "shape": [1], "dtype": "bool"}] * 257}, "257 tensors"),
        ({"inputs": [{"name": "a", "shape": [1] * 17, "dtype": "bool"}]}, "at most 16 sizes"),
    ],
)
def test_sizes_in_a_hostile_contract_are_bounded(change, message):
    with pytest.raises(SpecError, match=message):
        ModelSpec.from_json(json.dumps({**json.loads(SPEC.to_json()), **change}))


@pytest.mark.parametrize("value", [math.nan, math.inf, "1e999", 10**400])
def test_numbers_that_json_does_not_know_are_refused(value):
    data = json.loads(SPEC.to_json())
    for change in ({"parity": {"max_abs": "?"}}, {"preparation": {"divisor": "?"}}):
        key, part = next(iter(change.items()))
        text = json.dumps({**data, key: {**data[key], **part}})
        number = value if isinstance(value, str) else json.dumps(value)
        with pytest.raises(SpecError, match="not valid JSON"):
            ModelSpec.from_json(text.replace('"?"', number))


def test_a_file_that_older_readers_understand_says_so():
    """What a classifier in float32 needs has not changed since the first release."""
    assert SPEC.min_reader == 1
    pixels = replace(
        SPEC,
        inputs=(TensorSpec("input", ("N", 8, 8, 3), "uint8"),),
        preparation=replace(SPEC.preparation, layout="nhwc"),
    )
    assert pixels.min_reader == 2
    assert ModelSpec.from_json(pixels.to_json()) == pixels
    boxes = replace(SPEC, task="detect", decoding=Decoding("yolox", {"strides": [8, 16]}))
    assert json.loads(boxes.to_json())["min_reader"] == 2
    assert ModelSpec.from_json(boxes.to_json()).decoding.options == {"strides": [8, 16]}


@pytest.mark.parametrize("value", [None, 1, 1.5, "x", True, [], {}, [1], {"a": 1}, float("nan")])
def test_every_key_with_every_wrong_type_is_an_error_or_a_valid_contract(value):
    original = json.loads(SPEC.to_json())
    for key in original:
        data = {**original, key: value}
        try:
            assert ModelSpec.from_json(json.dumps(data)).labels is not None
        except SpecError as error:
            message = str(error)
            assert message
    for key in original["preparation"]:
        data = {**original, "preparation": {**original["preparation"], key: value}}
        try:
            ModelSpec.from_json(json.dumps(data))
        except SpecError as error:
            message = str(error)
            assert message


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    whole, path = tmp_path / "whole.onnx", tmp_path / "cut.onnx"
    write_spec(BARE, SPEC, whole)
    data = whole.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(SpecError):
            read_spec(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8\xff\xe0 a jpeg",
        b"plain text",
        b"\x3a" + b"\xff" * 9 + b"\x7f",  # a graph of 2^70 bytes
        b"\x3a\x00\x72\xff\xff\xff\xff\x0f",  # metadata of 4 GB
        b"\x00\x00",  # field 0
        b"\x3b\x3c",  # a group
        b"\xff" * 20,  # a tag that never ends
        b"\x3a\x00\x72\x04\x0a\x02\xff\xfe",  # a key that is not UTF-8
        b"\x3a\x00" + b"\x08\x01" * (MAX_FIELDS + 1),  # would go on for hours
    ],
)
def test_hostile_protobuf(tmp_path, data):
    path = tmp_path / "x.onnx"
    path.write_bytes(data)
    with pytest.raises(SpecError, match=r"x\.onnx"):
        read_spec(path)


def test_missing_files_and_missing_contracts(tmp_path):
    path = tmp_path / "bare.onnx"
    path.write_bytes(BARE)
    with pytest.raises(SpecError, match="carries no EdgeCV contract"):
        read_spec(path)
    with pytest.raises(InputError, match="no such file"):
        read_spec(tmp_path / "absent.onnx")
    with pytest.raises(InputError, match="cannot be read"):
        read_spec(tmp_path)


def test_reading_skips_the_weights(tmp_path):
    """A graph of 3 GB (sparse on the disk): the contract behind it is found by seeking."""
    path = tmp_path / "large.onnx"
    size = 3 << 30
    small = tmp_path / "small.onnx"
    write_spec(b"\x3a\x00", SPEC, small)
    length = b"\x80\x80\x80\x80\x0c"  # 3 << 30 as a varint
    with path.open("wb") as file:
        file.write(b"\x3a" + length)
        file.seek(size, 1)
        file.write(small.read_bytes()[2:])
    assert read_spec(path) == SPEC


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ("one",), "label_ids": ()}, "2 classes, labels has 1"),
        ({"label_ids": ("x",)}, "one id per label"),
        ({"task": "sing"}, "task must be one of"),
        ({"precision": "fp1"}, "precision must be one of"),
        ({"preparation": Preparation(9, 8)}, "the preparation makes"),
        ({"preparation": Preparation(8, 8, mean=(0.0,))}, "mean must have 3 values"),
        ({"preparation": Preparation(8, 8, std=(0.0, 1.0, 1.0))}, "positive"),
        ({"inputs": ()}, "one picture input"),
        ({"outputs": (TensorSpec("logits", ()),)}, "takes .N, classes."),
        ({"outputs": (TensorSpec("logits", (-1, 2)),)}, "at least 1"),
        ({"inputs": (TensorSpec("input", (0, 3, 8, 8)),)}, "at least 1"),
    ],
)
def test_contracts_that_contradict_themselves(change, message):
    with pytest.raises(SpecError, match=message):
        replace(SPEC, **change)


def test_the_ready_model_carries_a_contract():
    assert read_spec(READY_MODEL).task == "classify"
