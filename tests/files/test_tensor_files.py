"""Folders of weights: which file is taken, shards, and what is no weights at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jpt.errors import InputError
from jpt.io.tensors import open_tensors, write_safetensors

FIXTURES = Path(__file__).parent / "fixtures"


def write(path: Path, **values: float) -> None:
    write_safetensors(path, {name: np.full(2, value, "f4") for name, value in values.items()})


def write_index(path: Path, files: object) -> None:
    path.write_text(json.dumps({"metadata": {"total_size": 8}, "weight_map": files}))


def test_safetensors_is_taken_before_the_older_form(tmp_path: Path) -> None:
    shutil.copy(FIXTURES / "nested_zip.bin", tmp_path / "pytorch_model.bin")
    assert list(open_tensors(tmp_path).shapes) == ["encoder.layer.0", "encoder.layer.1"]
    write(tmp_path / "model.safetensors", a=1)
    assert open_tensors(tmp_path).shapes == {"a": (2,)}


@pytest.mark.parametrize("form", ["zip", "stream"])
def test_folder_of_the_older_form(tmp_path: Path, form: str) -> None:
    shutil.copy(FIXTURES / f"state_{form}.bin", tmp_path / "pytorch_model.bin")
    source = open_tensors(str(tmp_path))
    assert source.shapes["transposed"] == (5, 6)
    assert source.dtypes["int16"] == np.int16
    assert source.read("int16").tolist() == [-300, 300]
    assert source.origin("int16") == f"{tmp_path / 'pytorch_model.bin'}: int16"


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    shutil.copy(FIXTURES / "nested_stream.bin", tmp_path / "weights.safetensors")
    assert open_tensors(tmp_path / "weights.safetensors").read("encoder.layer.1").tolist() == [
        -7,
        7,
    ]
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


def test_shards_of_the_older_form(tmp_path: Path) -> None:
    shutil.copy(FIXTURES / "nested_zip.bin", tmp_path / "one.bin")
    shutil.copy(FIXTURES / "state_stream.bin", tmp_path / "two.bin")
    files = {"encoder.layer.1": "one.bin", "int8": "two.bin", "slice": "two.bin"}
    write_index(tmp_path / "pytorch_model.bin.index.json", files)
    source = open_tensors(tmp_path)
    assert list(source.shapes) == list(files)
    assert (source.read("encoder.layer.1").tolist(), source.read("int8").tolist()) == ([-7, 7],) * 2


def test_missing_shards_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "one.safetensors", a=1)
    files = {"a": "one.safetensors", "b": "two.safetensors", "c": "three.safetensors"}
    write_index(tmp_path / "model.safetensors.index.json", files)
    with pytest.raises(InputError, match="2 of the 3 shards .* missing, the first is three.safe"):
        open_tensors(tmp_path)


def test_tensor_that_its_shard_does_not_hold(tmp_path: Path) -> None:
    write(tmp_path / "one.safetensors", a=1)
    write_index(tmp_path / "model.safetensors.index.json", {"b": "one.safetensors"})
    with pytest.raises(InputError, match="'b' is in one.safetensors, which holds 1 other"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("file", ["../secret.bin", "/etc/passwd", "a/b.bin", "", "..", 3, None])
def test_shard_outside_the_folder(tmp_path: Path, file: object) -> None:
    write_index(tmp_path / "model.safetensors.index.json", {"a": file})
    with pytest.raises(InputError, match="a file beside it was expected|are missing"):
        open_tensors(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[1]", "{}", '{"weight_map": {}}', '{"weight_map": [1]}', "{"]
)
def test_broken_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match="index.json (has no 'weight_map'|is not JSON)"):
        open_tensors(tmp_path)


def test_folder_without_weights_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found nothing"):
        open_tensors(tmp_path)
    (tmp_path / "tf_model.h5").touch()
    with pytest.raises(InputError, match="found tf_model.h5; download the safetensors"):
        open_tensors(tmp_path)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        open_tensors(tmp_path / "nowhere")
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(InputError, match="it is a folder"):
        open_tensors(tmp_path)
    with pytest.raises(InputError, match="not a regular file"):
        open_tensors("/dev/zero")


@pytest.mark.parametrize(
    "data, message",
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer of 43 bytes"),
        (b"<!DOCTYPE html>", "neither safetensors nor a file of torch.save"),
        (b"", "neither safetensors nor a file of torch.save"),
    ],
)
def test_what_is_no_weights(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(data)
    with pytest.raises(InputError, match=message):
        open_tensors(tmp_path)


def test_unknown_tensor_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", weight=1, bias=2)
    with pytest.raises(
        InputError, match="2 tensors and none named 'weigth'; the nearest are weight"
    ):
        open_tensors(tmp_path).read("weigth")
