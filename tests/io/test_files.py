"""Atomic writes, JSON, tables, and damaged torch and safetensors files."""

import errno
import json
import math
import os
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from jpt.io import files
from jpt.io.files import (
    OutFolder,
    atomic_file,
    make_folder,
    read_table,
    write_json,
    write_text,
)
from jpt.io.tensors import open_tensors, write_safetensors
from jpt.io.torch_pickle import read_torch_object
from jpt.results.prompt_table import read_transfer, write_transfer
from jpt.types import TransferMatrix
from tests.helpers.files import check_mutations, refusal
from tests.helpers.running import raises


def test_old_content_stays_until_the_write_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old\n")
    with atomic_file(target) as file:
        file.write(b"new")
        file.flush()
        assert target.read_text() == "old\n"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(error), atomic_file(target) as file:
        file.write(b"half")
        raise error
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


CAUSES = [
    *((errno.ENOSPC, "no space is left on the disk; free some"), (errno.EDQUOT, "quota exceeded")),
    *((errno.EACCES, "no write permission"), (errno.EROFS, "read-only")),
    *((errno.ENOENT, "accepts no new files"), (errno.EIO, "Input/output error")),
]


@pytest.mark.parametrize("where", ["open", "fsync", "replace"])
@pytest.mark.parametrize("number, message", CAUSES)
def test_errors_of_the_system(tmp_path, monkeypatch, where: str, number: int, message: str) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"old": 1})

    monkeypatch.setattr(files.os, where, Mock(side_effect=OSError(number, os.strerror(number))))
    with refusal(f"cannot write {target}: .*{message}"):
        write_json(target, {"new": 1})
    monkeypatch.undo()
    assert json.loads(target.read_text()) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_full_disk(tmp_path: Path) -> None:
    # A limit on file sizes stops the write as a full disk does.
    resource = pytest.importorskip("resource")
    target, before = tmp_path / "a.bin", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with refusal("cannot write .*a.bin: the file is larger than"):
            files.write_bytes(target, b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []


def test_invalid_targets(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "")
    for path, message in (
        (tmp_path / "nowhere" / "a.txt", "folder .*nowhere does not exist; create it"),
        (tmp_path, "it is a folder"),
        ("/dev/null", "not a regular file"),
        (tmp_path / "file" / "a.txt", "a part of this path is a file"),
        (tmp_path / ("x" * 300), "name is too long"),
    ):
        with refusal(message):
            write_text(path, "")
    assert not Path("/dev/null").is_file()
    assert os.listdir(tmp_path) == ["file"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "folder" / "a.txt")
    write_text(tmp_path / "link.txt", "through")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "folder" / "a.txt").read_text() == "through"


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def test_json_with_numpy_numbers(tmp_path: Path) -> None:
    value = {"a": np.float32(0.5), "b": [np.int64(3), None, "ä"], "c": np.bool_(True)}
    write_json(tmp_path / "a.json", value)
    found = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert found == {"a": 0.5, "b": [3, None, "ä"], "c": True}


@pytest.mark.parametrize("number", [float("nan"), float("inf"), np.float32("-inf")])
def test_json_refuses_nan_and_names_its_position(tmp_path: Path, number: float) -> None:
    value = {"score": 1.0, "curve": [{"loss": 0.5}, {"loss": number}]}
    with refusal(r"curve\[1\].loss is NaN or infinite"):
        write_json(tmp_path / "a.json", value)
    assert os.listdir(tmp_path) == []


def test_new_folder_is_complete_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "export"
    with pytest.raises(ValueError, match="stop"), files.new_folder(target) as folder:
        (folder / "a.txt").write_text("half")
        raise ValueError("stop")
    assert os.listdir(tmp_path) == []
    target.mkdir()
    with files.new_folder(target) as folder:
        (folder / "a.txt").write_text("whole")
    assert (target / "a.txt").read_text() == "whole"
    with refusal("exists and is not empty"), files.new_folder(target):
        pass
    assert os.listdir(tmp_path) == ["export"]


def test_make_folder(tmp_path: Path) -> None:
    assert make_folder(tmp_path / "a" / "b") == make_folder(tmp_path / "a" / "b")
    write_text(tmp_path / "file", "")
    with refusal("a file has that name"):
        make_folder(tmp_path / "file")
    with refusal("a part of this path is a file"):
        make_folder(tmp_path / "file" / "a")


HEADER = "target_task,source_prompt,metric,value\n"


def test_floats_come_back_bit_for_bit(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=50) * 10.0 ** np.arange(-25, 25)
    files.write_table(tmp_path / "a.csv", ["x"], [[value] for value in values])
    rows = read_table(tmp_path / "a.csv", ["x"])
    np.testing.assert_array_equal([float(row["x"]) for row in rows], values)


def test_names_with_commas_quotes_and_other_scripts(tmp_path: Path) -> None:
    names = ['a,"b"', "größer", "line\nbreak", " spaced "]
    files.write_table(tmp_path / "a.csv", ["name", "x"], [[name, 1] for name in names])
    assert [row["name"] for row in read_table(tmp_path / "a.csv", ["name"])] == names


def test_a_matrix_with_holes_comes_back(tmp_path: Path) -> None:
    values = np.array([[0.5, np.nan], [np.nan, 0.25]])
    matrix = TransferMatrix(("t", "u"), ("a", "b"), values, ("accuracy", "f1"))
    write_transfer(tmp_path / "transfer.csv", matrix)
    again = read_transfer(tmp_path / "transfer.csv")
    assert (again.targets, again.prompts, again.metrics) == (("t", "u"), ("a", "b"), matrix.metrics)
    np.testing.assert_array_equal(again.values, values)


def test_broken_tables(tmp_path: Path) -> None:
    for text, message in (
        ("", r"lacks target_task"),
        ("target_task,metric,value\n", "lacks source_prompt"),
        (HEADER, "has a header and no rows"),
        (HEADER + "a,b,accuracy\n", "line 2: expected 4 values, got 3"),
        (HEADER + "a,b,accuracy,high\n", "line 2: value is 'high'; expected a number"),
        (HEADER + "a,b,accuracy,inf\n", "line 2: value is 'inf'"),
        (HEADER + "a,b,accuracy,1\na,b,accuracy,1\n", "line 3: b on a is repeated"),
        (HEADER + "a,b,accuracy,1\na,c,f1,1\n", "line 3: .*got f1 and accuracy for a"),
        (HEADER + 'a,"b,accuracy,1\n', "not a CSV table"),
        ("value,value\n", "names a column twice|lacks"),
    ):
        (tmp_path / "transfer.csv").write_text(text)
        with refusal(f"transfer.csv.*({message})"):
            read_transfer(tmp_path / "transfer.csv")


def test_empty_cells_and_broken_bytes(tmp_path: Path) -> None:
    assert math.isnan(files.read_number("a.csv", 2, {"x": " "}, "x"))
    (tmp_path / "transfer.csv").write_bytes(b"\xff\xfe\x00a")
    with refusal("not a CSV table"):
        read_transfer(tmp_path / "transfer.csv")


FIXTURES = Path(__file__).parent / "fixtures"
MUTATED = (
    *("state_zip.bin", "state_stream.bin", "checkpoint_zip.bin", "checkpoint_stream.bin"),
    *("protocol4_stream.bin", "expected.safetensors"),
)


@pytest.mark.parametrize("name", MUTATED)
def test_mutated_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes((FIXTURES / name).read_bytes())

    def read() -> None:
        source = open_tensors(path)
        for tensor in source.shapes:
            source.read(tensor)
        if path.suffix == ".bin":
            read_torch_object(path)

    check_mutations(path, read)


def test_mutated_index_of_shards(tmp_path: Path) -> None:
    names = {}
    for file in ("one.safetensors", "two.safetensors"):
        tensors = {f"{file}.{part}": np.full((3, 2), part, np.float32) for part in range(4)}
        write_safetensors(tmp_path / file, tensors)
        names |= dict.fromkeys(tensors, file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 192}, "weight_map": names}))

    def read() -> None:
        source = open_tensors(tmp_path)
        for tensor in source.shapes:
            assert source.read(tensor).shape == (3, 2)

    check_mutations(index, read)


@pytest.mark.parametrize("how", ["moved", "deleted", "replaced"])
def test_folder_for_results_has_to_stay(tmp_path: Path, how: str) -> None:
    path = tmp_path / "new" / "out"
    folder = OutFolder(path)
    folder.check()
    assert not path.parent.exists(), "created with the first file"
    assert folder.file() == path and folder.file("a.csv") == path / "a.csv"
    path.parent.rename(tmp_path / "elsewhere")
    if how == "deleted":
        shutil.rmtree(tmp_path / "elsewhere")
    if how == "replaced":
        path.mkdir(parents=True)
    found = "another folder" if how == "replaced" else "none"
    raises(folder.file, "a.csv", match=f"^{path}: expected the folder that .*, got {found}: it was")
    if how == "moved":
        (tmp_path / "elsewhere").rename(path.parent)
        assert folder.file() == path
