"""The safetensors container, against the package that defines it and against broken headers."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from jpt.errors import InputError
from jpt.io.tensors import read_header, write_safetensors

TYPES = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"]


def test_every_type_comes_back(tmp_path: Path) -> None:
    arrays = {kind: np.arange(6).reshape(2, 3).astype(kind) for kind in TYPES}
    arrays["bfloat16"] = np.arange(4).astype(ml_dtypes.bfloat16)
    arrays["scalar"] = np.array(2.5, np.float32)
    arrays["empty"] = np.zeros((0, 3), np.float32)
    arrays["transposed"] = np.arange(6, dtype=np.float32).reshape(2, 3).T
    write_safetensors(tmp_path / "a.safetensors", arrays, {"card": "ä"})
    tensors, metadata = read_header(tmp_path / "a.safetensors")
    assert metadata == {"card": "ä"}
    assert sorted(tensors) == sorted(arrays)
    for name, array in arrays.items():
        found = tensors[name].read()
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert found.tobytes() == np.ascontiguousarray(array).tobytes()


def test_the_package_reads_what_is_written(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    write_safetensors(tmp_path / "a.safetensors", {"a": array}, {"b": "1", "a": "2"})
    with safe_open(tmp_path / "a.safetensors", framework="numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("a"), array)
        assert file.metadata() == {"a": "2", "b": "1"}


def test_values_read_are_the_callers_own(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", {"a": np.zeros(3, np.float32)})
    tensors, _ = read_header(tmp_path / "a.safetensors")
    tensors["a"].read()[:] = 7
    assert tensors["a"].read().tolist() == [0, 0, 0]


def write_raw(path: Path, header: object, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(shape: object, places: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": places}


BROKEN = {
    "header is no JSON": (b"{nonsense", b""),
    "header is not UTF-8": (b"{\xff}", b""),
    "header is nested without end": (b"[" * 200_000, b""),
    "header is a list": ([1], b""),
    "entry is a number": ({"a": 3}, b""),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, b"1234"),
    "shape of a text": ({"a": entry("1", [0, 4])}, b"1234"),
    "negative shape": ({"a": entry([-1], [0, 4])}, b"1234"),
    "shape of truth": ({"a": entry([True], [0, 4])}, b"1234"),
    "shape of a float": ({"a": entry([1.0], [0, 4])}, b"1234"),
    "huge shape": ({"a": entry([2**61, 2**61], [0, 4])}, b"1234"),
    "many axes": ({"a": entry([1] * 100, [0, 4])}, b"1234"),
    "one place": ({"a": entry([1], [0])}, b"1234"),
    "places the wrong way": ({"a": entry([1], [4, 0])}, b"1234"),
    "too short for its shape": ({"a": entry([2], [0, 4])}, b"1234"),
    "beyond the end": ({"a": entry([2], [0, 8])}, b"1234"),
    "far beyond the end": ({"a": entry([2**40], [0, 2**42])}, b"1234"),
    "bytes behind the last": ({"a": entry([1], [0, 4])}, b"123456"),
    "a gap": ({"a": entry([1], [4, 8])}, b"12345678"),
    "one over another": ({"a": entry([1], [0, 4]), "b": entry([1], [0, 4])}, b"1234"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b""),
    "metadata is a text": ({"__metadata__": "a"}, b""),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_header(tmp_path: Path, name: str) -> None:
    path = write_raw(tmp_path / "a.safetensors", *BROKEN[name])
    with pytest.raises(InputError, match="a.safetensors is not a whole safetensors file: "):
        read_header(path)


@pytest.mark.parametrize("data", [b"", b"\x02\0\0", b"\xff" * 8, b"\xff" * 40, b"\x10" + b"\0" * 9])
def test_garbage(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(InputError, match="is not a whole safetensors file"):
        read_header(tmp_path / "a.safetensors")


def test_unknown_type_is_named(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a.safetensors", {"a": entry([1], [0, 1], "F8_E4M3")}, b"1")
    with pytest.raises(InputError, match="tensor 'a' has the type 'F8_E4M3'"):
        read_header(path)


def test_truncated_tensor_says_the_sizes(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", {"a": np.zeros(100, np.float32)})
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(data[:-10])
    with pytest.raises(InputError, match=f"ends after {len(data) - 10} of {len(data)} bytes"):
        read_header(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "start, kind",
    [
        (b"PK\x03\x04\0\0\x08\x08", "a zip archive or a file of torch.save"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF", "a pickle or a file of torch.save"),
        (b"\x93NUMPY\x01\x00v", "a NumPy array"),
        (b"version https://git-lfs", "a Git LFS pointer"),
    ],
)
def test_other_kinds_of_files_are_named(tmp_path: Path, start: bytes, kind: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(start + b"x" * 30)
    with pytest.raises(InputError, match=f"is not a safetensors file: it is {kind}"):
        read_header(tmp_path / "a.safetensors")
