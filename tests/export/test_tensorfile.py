"""Our safetensors against the safetensors package, in both directions, and damaged files."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgecv.errors import InputError
from edgecv.gallery.tensorfile import read_tensors, write_tensors

TENSORS = {
    "vectors": np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32),
    "names": np.arange(15, dtype=np.uint8).reshape(5, 3),
    "ids": np.arange(-2, 3, dtype=np.int64),
    "wide": np.linspace(0, 1, 4),
    "scalar": np.array(3, np.int32),
    "empty": np.empty((0, 7), np.float32),
}


def same(found):
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert np.array_equal(found[name], tensor)


def write(path, tensors=TENSORS, metadata=None):
    with path.open("wb") as file:
        write_tensors(file, tensors, metadata or {})


def test_the_package_reads_what_we_write(tmp_path):
    write(tmp_path / "a", metadata={"format": "x"})
    same(load_file(tmp_path / "a"))
    write(tmp_path / "b", {"t": TENSORS["vectors"].T})  # not contiguous
    assert np.array_equal(load_file(tmp_path / "b")["t"], TENSORS["vectors"].T)


def test_we_read_what_the_package_writes(tmp_path):
    save_file(TENSORS, tmp_path / "a", {"who": "anna"})
    found, metadata = read_tensors(tmp_path / "a")
    same(found)
    assert metadata == {"who": "anna"}


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    write(tmp_path / "a")
    data = (tmp_path / "a").read_bytes()
    for size in range(len(data)):
        (tmp_path / "b").write_bytes(data[:size])
        with pytest.raises(InputError):
            read_tensors(tmp_path / "b")
    (tmp_path / "b").write_bytes(data + b"x")
    with pytest.raises(InputError, match="bytes behind the last"):
        read_tensors(tmp_path / "b")


@pytest.mark.parametrize(
    "header",
    [
        "[]", "{", "{}{}", '{"__metadata__": 3}', '{"a": 3}', '{"a": {}}',
        '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        '{"a": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
        ' "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [4611686018427387905], "data_offsets": [0, 4]}}',
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused(tmp_path, header):
    text = header.encode()
    (tmp_path / "a").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(InputError):
        read_tensors(tmp_path / "a")


def test_a_huge_header_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "a").write_bytes((2**62).to_bytes(8, "little") + json.dumps({}).encode())
    with pytest.raises(InputError, match="cut off"):
        read_tensors(tmp_path / "a")
