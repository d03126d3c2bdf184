"""DOC"""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpt.errors import InputError
from jpt.parallel import make_mesh, place, replicated
from jpt.tuning.run_dir import SUMS, Checkpoints, RunFolder

# --- checkpoints

NUMBER_OF_FILES = 9


def state(number: int) -> dict[str, Any]:
    """A state that tells its own number everywhere."""
    return {"prompt": jnp.full((40, 50), number, jnp.float32), "step": jnp.int32(number)}


def assert_is_state(found: dict[str, Any], number: int) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, state(number))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of three saves, of which the last two are kept."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with Checkpoints(folder, "weights-1") as checkpoints:
        for number in (1, 2, 3):
            checkpoints.save(number, state(number))
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]


DAMAGES = {"flipped": flip, "cut": lambda data: data[: len(data) // 2], "empty": lambda data: b""}


@pytest.mark.parametrize("damage", [*DAMAGES, "gone"])
def test_damage_to_any_file_falls_back_to_the_checkpoint_before(
    folder: Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    files = [path for path in (folder / "3").rglob("*") if path.is_file()]
    files = [path for path in files if path.stat().st_size or damage == "gone"]
    assert len(files) >= NUMBER_OF_FILES
    for file in files:
        if damage == "gone" and file.name == SUMS:
            continue  # as of a version that wrote none
        whole = file.read_bytes()
        if damage == "gone":
            file.unlink()
        else:
            file.write_bytes(DAMAGES[damage](whole))
        with Checkpoints(folder, "weights-1") as checkpoints:
            assert_is_state(checkpoints.load(state(0)), 2)
        said = capfd.readouterr().err
        assert said.count("\n") == 1 and "going on from step 2" in said, said
        assert "the checkpoint of step 3 is damaged (" in said
        file.write_bytes(whole)
    with Checkpoints(folder, "weights-1") as checkpoints:
        assert_is_state(checkpoints.load(state(0)), 3)


def test_a_damaged_checkpoint_is_replaced_by_the_next_save(folder: Path) -> None:
    (folder / "3" / "_CHECKPOINT_METADATA").unlink()
    with Checkpoints(folder) as checkpoints:
        assert_is_state(checkpoints.load(state(0)), 2)
        assert checkpoints.latest_step == 2
        checkpoints.save(3, state(3))
        checkpoints.wait()
        assert checkpoints.latest_step == 3
        assert_is_state(checkpoints.load(state(0)), 3)
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]


def test_damage_everywhere_is_told_in_one_line(folder: Path) -> None:
    for step in ("2", "3"):
        (folder / step / SUMS).write_text("{")
    with Checkpoints(folder) as checkpoints, pytest.raises(InputError, match="start anew") as told:
        checkpoints.load(state(0))
    assert "step 3 is damaged" in str(told.value) and "step 2 is damaged" in str(told.value)
    assert "\n" not in str(told.value)


def test_other_weights_are_refused_and_old_checkpoints_are_not(folder: Path) -> None:
    with Checkpoints(folder, "weights-2") as checkpoints:
        with pytest.raises(InputError, match="other weights .hash weights-1, now weights-2"):
            checkpoints.load(state(0))
    (folder / "3" / SUMS).unlink()  # as versions before left it
    with Checkpoints(folder, "weights-2") as checkpoints:
        assert_is_state(checkpoints.load(state(0)), 3)


def test_a_state_of_another_form_does_not_fit(folder: Path) -> None:
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(InputError, match="step 3 in .* does not fit this run"):
            checkpoints.load({"prompt": jnp.zeros((40, 50))})


@pytest.mark.parametrize("mesh", ["data:8", "data:2,model:4"])
def test_any_mesh_goes_on_from_the_checkpoint_of_another(folder: Path, mesh: str) -> None:
    where = replicated(make_mesh(mesh))
    with Checkpoints(folder) as checkpoints:
        found = checkpoints.load(place(state(0), where))
        assert_is_state(found, 3)
        assert {leaf.sharding for leaf in jax.tree.leaves(found)} == {where}
        checkpoints.save(4, place(state(4), where))
    with Checkpoints(folder) as checkpoints:
        assert_is_state(checkpoints.load(state(0)), 4)


def test_what_a_killed_run_left_half_written_is_no_checkpoint_and_goes(folder: Path) -> None:
    for name in ("4.tmp", "4.tmp.orbax-checkpoint-tmp", "5.orbax-checkpoint-tmp"):
        shutil.copytree(folder / "3", folder / name)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest_step == 3
        checkpoints.remove_leftovers()
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own of 300 kB, where this process may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no rights to mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_leaves_the_checkpoints_before(
    small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    states = [{"prompt": jnp.asarray(random.normal(size=(50, 100)), jnp.float32)} for _ in range(5)]
    with Checkpoints(small_disk / "checkpoints") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, states[step])
        checkpoints.wait()
        fill = (small_disk / "fill").open("wb", buffering=0)
        with pytest.raises(OSError, match="No space"):
            while True:
                fill.write(bytes(1000))
        for _ in range(2):  # and again: the first failure leaves nothing broken
            with pytest.raises(InputError, match="no space is left .* step 2 is kept") as told:
                checkpoints.save(3, states[3])
                checkpoints.wait()
            assert "\n" not in str(told.value)
            assert checkpoints.latest_step == 2
            np.testing.assert_array_equal(
                checkpoints.load(states[0])["prompt"], states[2]["prompt"]
            )
        fill.close()
        (small_disk / "fill").unlink()
        checkpoints.save(4, states[4])
        checkpoints.wait()
        np.testing.assert_array_equal(checkpoints.load(states[0])["prompt"], states[4]["prompt"])
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["2", "4"]
    assert capfd.readouterr().err == "", "orbax has nothing to say"


# --- run folder

CONFIG = {"seed": 1, "checkpoint_every": 5, "mesh": None, "data": {"train": {"rows": 3}}}


@pytest.fixture
def run_folder_folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run", CONFIG)


def names(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.path.iterdir())


def test_a_folder_is_held_by_one_run_and_free_after_any_end(run_folder_folder: RunFolder) -> None:
    with run_folder_folder.lock():
        for other in (run_folder_folder, RunFolder(run_folder_folder.path, CONFIG)):
            with pytest.raises(InputError, match="another run is at work in .*process"):
                with other.lock():
                    pass
        assert ".lock" in names(run_folder_folder)
    with pytest.raises(KeyboardInterrupt), run_folder_folder.lock():
        raise KeyboardInterrupt
    with run_folder_folder.lock():
        pass
    assert names(run_folder_folder) == ["config.json"]


def test_a_lock_whose_file_has_just_been_removed_is_taken_again(
    run_folder_folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder ended between the opening of the file and the lock."""
    real, calls = fcntl.flock, []

    def late(descriptor: int, how: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            (run_folder_folder.path / ".lock").unlink()
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with run_folder_folder.lock():
        assert len(calls) == 2
        monkeypatch.setattr(fcntl, "flock", real)
        with pytest.raises(InputError, match="at work"), run_folder_folder.lock():
            pass


def test_a_disk_without_locks_is_told_and_used(
    run_folder_folder: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with run_folder_folder.lock():
        assert names(run_folder_folder) == ["config.json"]
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
    run_folder_folder: RunFolder, change: dict[str, Any]
) -> None:
    run_folder_folder.log({"step": 1, "split": "train"})
    again = RunFolder(run_folder_folder.path, CONFIG | change)
    assert again.history() == [{"step": 1, "split": "train"}], "it goes on with the same log"
    assert json.loads(again.config_path.read_text()) == CONFIG, "what it began with stays"


@pytest.mark.parametrize(
    "change", [{"seed": 2}, {"clip_norm": 1.0}, {"data": {"train": {"rows": 3, "mesh": 1}}}]
)
def test_what_changes_numbers_is_another_run(
    run_folder_folder: RunFolder, change: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=f"holds another run: {next(iter(change))}"):
        RunFolder(run_folder_folder.path, CONFIG | change)


TAILS: list[Callable[[str], str]] = [
    lambda line: line[:-1],  # cut after the bracket
    lambda line: line[:10],
    lambda line: "\x00" * 40,  # a power cut on some disks
    lambda line: "\x00" * 40 + "\n",
    lambda line: line[:10] + "\n",
]


@pytest.mark.parametrize("tail", TAILS)
def test_a_broken_last_line_of_the_log_goes_and_the_next_one_stands_alone(
    run_folder_folder: RunFolder, tail: Callable[[str], str]
) -> None:
    for step in (1, 2):
        run_folder_folder.log({"step": step})
    with (run_folder_folder.path / "metrics.jsonl").open("a") as file:
        file.write(tail('{"step": 3}\n'))
    run_folder_folder.rewind(2)
    run_folder_folder.log({"step": 3})
    assert [line["step"] for line in run_folder_folder.history()] == [1, 2, 3]


def test_a_broken_line_in_the_middle_is_told(run_folder_folder: RunFolder) -> None:
    (run_folder_folder.path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(InputError, match="metrics.jsonl is damaged: line 2 is no JSON"):
        run_folder_folder.history()
