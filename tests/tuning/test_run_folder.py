"""The folder of a run: one run at a time, and what a broken one leaves."""

from __future__ import annotations

import errno
import fcntl
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jpt.errors import InputError
from jpt.tuning.run_dir import RunFolder

CONFIG = {"seed": 1, "checkpoint_every": 5, "mesh": None, "data": {"train": {"rows": 3}}}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run", CONFIG)


def names(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.path.iterdir())


def test_a_folder_is_held_by_one_run_and_free_after_any_end(folder: RunFolder) -> None:
    with folder.lock():
        for other in (folder, RunFolder(folder.path, CONFIG)):
            with pytest.raises(InputError, match="another run is at work in .*process"):
                with other.lock():
                    pass
        assert ".lock" in names(folder)
    with pytest.raises(KeyboardInterrupt), folder.lock():
        raise KeyboardInterrupt
    with folder.lock():
        pass
    assert names(folder) == ["config.json"]


def test_a_lock_whose_file_has_just_been_removed_is_taken_again(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder ended between the opening of the file and the lock."""
    real, calls = fcntl.flock, []

    def late(descriptor: int, how: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            (folder.path / ".lock").unlink()
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with folder.lock():
        assert len(calls) == 2
        monkeypatch.setattr(fcntl, "flock", real)
        with pytest.raises(InputError, match="at work"), folder.lock():
            pass


def test_a_disk_without_locks_is_told_and_used(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with folder.lock():
        assert names(folder) == ["config.json"]
    assert "without locks: do not start this run twice" in capsys.readouterr().err


def test_left_over_temporary_files_go_and_are_no_files_of_others(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / ".jpt-0123456789abcdef.tmp").write_text("half of a con")
    (path / ".lock").write_text("process 1 on gone")
    folder = RunFolder(path, CONFIG)  # killed before its config was there
    (path / ".jpt-fedcba9876543210.tmp").mkdir()
    (path / "notes.tmp").write_text("mine")
    with folder.lock():
        assert names(folder) == [".lock", "config.json", "notes.tmp"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="not empty and holds no run"):
        RunFolder(tmp_path / "other", CONFIG)


@pytest.mark.parametrize(
    "change", [{"checkpoint_every": 9}, {"mesh": "data:8"}, {"checkpoint_minutes": 1.5}]
)
def test_other_devices_and_saves_are_the_same_run(
    folder: RunFolder, change: dict[str, Any]
) -> None:
    folder.log({"step": 1, "split": "train"})
    again = RunFolder(folder.path, CONFIG | change)
    assert again.history() == [{"step": 1, "split": "train"}], "it goes on with the same log"
    assert json.loads(again.config_path.read_text()) == CONFIG, "what it began with stays"


@pytest.mark.parametrize(
    "change", [{"seed": 2}, {"clip_norm": 1.0}, {"data": {"train": {"rows": 3, "mesh": 1}}}]
)
def test_what_changes_numbers_is_another_run(folder: RunFolder, change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"holds another run: {next(iter(change))}"):
        RunFolder(folder.path, CONFIG | change)


TAILS: list[Callable[[str], str]] = [
    lambda line: line[:-1],  # cut after the bracket
    lambda line: line[:10],
    lambda line: "\x00" * 40,  # a power cut on some disks
    lambda line: "\x00" * 40 + "\n",
    lambda line: line[:10] + "\n",
]


@pytest.mark.parametrize("tail", TAILS)
def test_a_broken_last_line_of_the_log_goes_and_the_next_one_stands_alone(
    folder: RunFolder, tail: Callable[[str], str]
) -> None:
    for step in (1, 2):
        folder.log({"step": step})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write(tail('{"step": 3}\n'))
    folder.rewind(2)
    folder.log({"step": 3})
    assert [line["step"] for line in folder.history()] == [1, 2, 3]


def test_a_broken_line_in_the_middle_is_told(folder: RunFolder) -> None:
    (folder.path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(InputError, match="metrics.jsonl is damaged: line 2 is no JSON"):
        folder.history()
