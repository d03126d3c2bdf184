"""Safetensors files, and weights in files, folders and shards."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from jpt.io.tensors import open_tensors, read_header, write_safetensors
from tests.helpers.files import refusal

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
    tensors["f4"].read()[:] = 7  # a copy
    assert tensors["f4"].read().tolist() == [[0, 1, 2], [3, 4, 5]]


def test_the_package_reads_our_files(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    write_safetensors(tmp_path / "a.safetensors", {"a": array}, {"b": "1", "a": "2"})
    with safe_open(tmp_path / "a.safetensors", framework="numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("a"), array)
        assert file.metadata() == {"a": "2", "b": "1"}


def write_raw(path: Path, header: object, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(shape: object, offsets: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


SHAPES = ["1", [-1], [True], [1.0], [2**61, 2**61], [1] * 100, [2]]
OFFSETS = [([1], [0]), ([1], [4, 0]), ([2], [0, 8]), ([2**40], [0, 2**42])]
BROKEN = {
    "header is no JSON": (b"{nonsense", b""),
    "header is not UTF-8": (b"{\xff}", b""),
    "header is nested without end": (b"[" * 200_000, b""),
    "header is a list": ([1], b""),
    "entry is a number": ({"a": 3}, b""),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, b"1234"),
    **{f"{shape}": ({"a": entry(shape, [0, 4])}, b"1234") for shape in SHAPES},
    **{f"{shape} at {at}": ({"a": entry(shape, at)}, b"1234") for shape, at in OFFSETS},
    "bytes behind the last": ({"a": entry([1], [0, 4])}, b"123456"),
    "a gap": ({"a": entry([1], [4, 8])}, b"12345678"),
    "one over another": ({"a": entry([1], [0, 4]), "b": entry([1], [0, 4])}, b"1234"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b""),
    "metadata is a text": ({"__metadata__": "a"}, b""),
}


GARBAGE = [b"", b"\x02\0\0", b"\xff" * 8, b"\xff" * 40, b"\x10" + b"\0" * 9]


@pytest.mark.parametrize("content", [*BROKEN.values(), *GARBAGE], ids=[*BROKEN, *range(5)])
def test_broken_file(tmp_path: Path, content: bytes | tuple[object, bytes]) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content) if isinstance(content, bytes) else write_raw(path, *content)
    with refusal("a.safetensors is not a complete safetensors file: "):
        read_header(path)


def test_unsupported_type_and_truncated_file(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a.safetensors", {"a": entry([1], [0, 1], "F8_E4M3")}, b"1")
    with refusal("tensor 'a' has the unsupported type 'F8_E4M3'"):
        read_header(path)
    write_safetensors(path, {"a": np.zeros(100, np.float32)})
    data = path.read_bytes()
    path.write_bytes(data[:-10])
    with refusal(f"ends after {len(data) - 10} of {len(data)} bytes"):
        read_header(path)


def test_other_file_types_are_named(tmp_path: Path) -> None:
    for start, kind in (
        (b"PK\x03\x04\0\0\x08\x08", "a zip archive or a torch.save file"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF", "a pickle or a torch.save file"),
        (b"\x93NUMPY\x01\x00v", "a NumPy array"),
        (b"version https://git-lfs", "a Git LFS pointer"),
    ):
        (tmp_path / "a.safetensors").write_bytes(start + b"x" * 30)
        with refusal(f"is not a safetensors file: it is {kind}"):
            read_header(tmp_path / "a.safetensors")


FIXTURES = Path(__file__).parent / "fixtures"


def write(path: Path, **values: float) -> None:
    write_safetensors(path, {name: np.full(2, value, "f4") for name, value in values.items()})


def write_index(path: Path, files: object) -> None:
    path.write_text(json.dumps({"metadata": {"total_size": 8}, "weight_map": files}))


def test_safetensors_is_preferred(tmp_path: Path) -> None:
    shutil.copy(FIXTURES / "nested_zip.bin", tmp_path / "pytorch_model.bin")
    assert list(open_tensors(tmp_path).shapes) == ["encoder.layer.0", "encoder.layer.1"]
    write(tmp_path / "model.safetensors", a=1)
    assert open_tensors(tmp_path).shapes == {"a": (2,)}


@pytest.mark.parametrize("form", ["zip", "stream"])
def test_folder_of_torch_files(tmp_path: Path, form: str) -> None:
    shutil.copy(FIXTURES / f"state_{form}.bin", tmp_path / "pytorch_model.bin")
    source = open_tensors(str(tmp_path))
    assert source.shapes["transposed"] == (5, 6)
    assert source.dtypes["int16"] == np.int16
    assert source.read("int16").tolist() == [-300, 300]
    assert source.origin("int16") == f"{tmp_path / 'pytorch_model.bin'}: int16"


def test_the_format_is_recognised_by_content(tmp_path: Path) -> None:
    shutil.copy(FIXTURES / "nested_stream.bin", tmp_path / "weights.safetensors")
    source = open_tensors(tmp_path / "weights.safetensors")
    assert source.read("encoder.layer.1").tolist() == [-7, 7]
    write(tmp_path / "weights.bin", a=1)
    assert open_tensors(tmp_path / "weights.bin").read("a").tolist() == [1, 1]


def test_shards_of_safetensors(tmp_path: Path) -> None:
    write(tmp_path / "model-1.safetensors", a=1, unused=5)
    write(tmp_path / "model-2.safetensors", b=2)
    index = tmp_path / "model.safetensors.index.json"
    write_index(index, {"b": "model-2.safetensors", "a": "model-1.safetensors"})
    source = open_tensors(tmp_path)
    assert source.shapes == {"b": (2,), "a": (2,)}
    assert (source.read("a")[0], source.read("b")[0]) == (1, 2)
    assert source.origin("b").endswith("model-2.safetensors: b")
    assert open_tensors(index).shapes == source.shapes


def test_shards_of_torch_files(tmp_path: Path) -> None:
    shutil.copy(FIXTURES / "nested_zip.bin", tmp_path / "one.bin")
    shutil.copy(FIXTURES / "state_stream.bin", tmp_path / "two.bin")
    files = {"encoder.layer.1": "one.bin", "int8": "two.bin", "slice": "two.bin"}
    write_index(tmp_path / "pytorch_model.bin.index.json", files)
    source = open_tensors(tmp_path)
    assert list(source.shapes) == list(files)
    assert (source.read("encoder.layer.1").tolist(), source.read("int8").tolist()) == ([-7, 7],) * 2


INDEX = "model.safetensors.index.json"


def test_shards_that_do_not_match_the_index(tmp_path: Path) -> None:
    write(tmp_path / "one.safetensors", a=1)
    files = {"a": "one.safetensors", "b": "two.safetensors", "c": "three.safetensors"}
    write_index(tmp_path / INDEX, files)
    with refusal("2 of the 3 shards .* missing, the first is three.safe"):
        open_tensors(tmp_path)
    write_index(tmp_path / INDEX, {"b": "one.safetensors"})
    with refusal("'b' in one.safetensors, got 1 other"):
        open_tensors(tmp_path)
    for file in ("../secret.bin", "/etc/passwd", "a/b.bin", "", "..", 3, None):
        write_index(tmp_path / INDEX, {"a": file})
        with refusal("expected a shard in the same folder|are missing"):
            open_tensors(tmp_path)


def test_broken_index(tmp_path: Path) -> None:
    for text in ("", "[1]", "{}", '{"weight_map": {}}', '{"weight_map": [1]}', "{"):
        (tmp_path / INDEX).write_text(text)
        with refusal("index.json (has no 'weight_map'|is not JSON)"):
            open_tensors(tmp_path)


def test_missing_weights(tmp_path: Path) -> None:
    with refusal("found nothing"):
        open_tensors(tmp_path)
    (tmp_path / "tf_model.h5").touch()
    with refusal("found tf_model.h5; download the safetensors"):
        open_tensors(tmp_path)
    with refusal("no such file"):
        open_tensors(tmp_path / "nowhere")
    (tmp_path / "model.safetensors").mkdir()
    with refusal("it is a folder"):
        open_tensors(tmp_path)
    with refusal("not a regular file"):
        open_tensors("/dev/zero")


def test_files_without_weights(tmp_path: Path) -> None:
    for data, message in (
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer of 43 bytes"),
        *(
            (data, "expected a safetensors or torch.save file")
            for data in (b"<!DOCTYPE html>", b"")
        ),
    ):
        (tmp_path / "pytorch_model.bin").write_bytes(data)
        with refusal(message):
            open_tensors(tmp_path)


def test_unknown_tensor_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", weight=1, bias=2)
    with refusal("2 tensors and none named 'weigth'; the nearest are weight"):
        open_tensors(tmp_path).read("weigth")
