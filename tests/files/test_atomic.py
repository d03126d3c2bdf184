"""Writes are whole or not there, and what stops them is told with the cure."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from jpt.errors import InputError
from jpt.io import files
from jpt.io.files import atomic_file, make_folder, new_folder, write_bytes, write_json, write_text


def test_old_content_stays_until_all_is_written(tmp_path: Path) -> None:
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
    (errno.ENOSPC, "no space is left on the disk; free some"),
    (errno.EDQUOT, "quota is used up"),
    (errno.EACCES, "no permission to write there"),
    (errno.EROFS, "read-only"),
    (errno.ENOENT, "takes no new files in this folder"),
    (errno.EIO, "Input/output error"),
]


@pytest.mark.parametrize("where", ["open", "fsync", "replace"])
@pytest.mark.parametrize("number, message", CAUSES)
def test_what_the_system_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, number: int, message: str
) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"old": 1})

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, where, refuse)
    with pytest.raises(InputError, match=f"cannot write {target}: .*{message}"):
        write_json(target, {"new": 1})
    monkeypatch.undo()
    assert json.loads(target.read_text()) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files stops the write for real, as a full disk does."""
    resource = pytest.importorskip("resource")
    target, before = tmp_path / "a.bin", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(InputError, match="cannot write .*a.bin: the file is larger than"):
            write_bytes(target, b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []


def test_targets_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder .*nowhere does not exist; create it"):
        write_text(tmp_path / "nowhere" / "a.txt", "")
    with pytest.raises(InputError, match="this is a folder"):
        write_text(tmp_path, "")
    with pytest.raises(InputError, match="not a regular file"):
        write_text("/dev/null", "")
    assert not Path("/dev/null").is_file()
    write_text(tmp_path / "file", "")
    with pytest.raises(InputError, match="a part of this path is a file"):
        write_text(tmp_path / "file" / "a.txt", "")
    with pytest.raises(InputError, match="name is too long"):
        write_text(tmp_path / ("x" * 300), "")
    assert os.listdir(tmp_path) == ["file"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "folder" / "a.txt")
    write_text(tmp_path / "link.txt", "through")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "folder" / "a.txt").read_text() == "through"


def test_others_may_read_as_the_umask_says(tmp_path: Path) -> None:
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
def test_json_refuses_nan_and_names_its_place(tmp_path: Path, number: float) -> None:
    value = {"score": 1.0, "curve": [{"loss": 0.5}, {"loss": number}]}
    with pytest.raises(InputError, match=r"curve\[1\].loss is NaN or infinite"):
        write_json(tmp_path / "a.json", value)
    assert os.listdir(tmp_path) == []


def test_new_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "export"
    with pytest.raises(ValueError, match="stop"), new_folder(target) as folder:
        (folder / "a.txt").write_text("half")
        raise ValueError("stop")
    assert os.listdir(tmp_path) == []
    target.mkdir()
    with new_folder(target) as folder:
        (folder / "a.txt").write_text("whole")
    assert (target / "a.txt").read_text() == "whole"
    with pytest.raises(InputError, match="exists and is not empty"), new_folder(target):
        pass
    assert os.listdir(tmp_path) == ["export"]


def test_make_folder(tmp_path: Path) -> None:
    assert make_folder(tmp_path / "a" / "b") == make_folder(tmp_path / "a" / "b")
    write_text(tmp_path / "file", "")
    with pytest.raises(InputError, match="a file has that name"):
        make_folder(tmp_path / "file")
    with pytest.raises(InputError, match="a part of this path is a file"):
        make_folder(tmp_path / "file" / "a")
