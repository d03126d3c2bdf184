"""Checkpoints and run folders: damage, full disks, locks, leftovers and configs."""

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
from orbax.checkpoint import v1 as orbax

from jpt.errors import InputError
from jpt.parallel import make_mesh, place, replicated
from jpt.tuning.run_dir import SUMS, Checkpoints, RunFolder
from tests.helpers.running import raises

IDENTITY = {"seed": 0, "fingerprint": "weights-1", "label_ids": ((7,), (8, 9))}


def state(number: int) -> dict[str, Any]:
    return {"prompt": jnp.full((40, 50), number, jnp.float32), "step": jnp.int32(number)}


def assert_is_state(found: dict[str, Any], number: int) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, state(number))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with Checkpoints(folder, IDENTITY) as checkpoints:
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


def assert_loads(folder: Path, number: int, identity: dict[str, Any] | None = None) -> None:
    with Checkpoints(folder, identity) as checkpoints:
        assert_is_state(checkpoints.load(state(0)), number)


@pytest.mark.parametrize("damage", [*DAMAGES, "gone"])
def test_damage_to_any_file_falls_back_to_the_checkpoint_before(folder, damage: str, capfd) -> None:
    files = [path for path in (folder / "3").rglob("*") if path.is_file()]
    files = [path for path in files if path.stat().st_size or damage == "gone"]
    assert len(files) >= 9
    for file in files:
        if damage == "gone" and file.name == SUMS:
            continue  # as written by older versions
        whole = file.read_bytes()
        if damage == "gone":
            file.unlink()
        else:
            file.write_bytes(DAMAGES[damage](whole))
        assert_loads(folder, 2, IDENTITY)
        err = capfd.readouterr().err
        assert err.count("\n") == 1 and "; resuming from step 2" in err, err
        assert "the checkpoint of step 3 is damaged (" in err
        file.write_bytes(whole)
    assert_loads(folder, 3, IDENTITY)


def test_next_save_replaces_a_damaged_checkpoint(folder: Path) -> None:
    (folder / "3" / "_CHECKPOINT_METADATA").unlink()
    with Checkpoints(folder) as checkpoints:
        assert_is_state(checkpoints.load(state(0)), 2)
        assert checkpoints.latest_step == 2
        checkpoints.save(3, state(3))
        checkpoints.wait()
        assert checkpoints.latest_step == 3
        assert_is_state(checkpoints.load(state(0)), 3)
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]


def test_damage_everywhere_is_one_line(folder: Path) -> None:
    for step in ("2", "3"):
        (folder / step / SUMS).write_text("{")
    with Checkpoints(folder) as checkpoints, pytest.raises(InputError, match="start anew") as error:
        checkpoints.load(state(0))
    message = str(error.value)
    assert "step 3 is damaged" in message and "step 2 is damaged" in message and "\n" not in message


def test_other_states_are_refused(folder: Path) -> None:
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(InputError, match="step 3 does not fit this run"):
            checkpoints.load({"prompt": jnp.zeros((40, 50))})


def test_checkpoint_of_another_run_is_refused(folder: Path) -> None:
    (folder / "3" / SUMS).unlink()  # of an earlier version
    assert_loads(folder, 3, {**IDENTITY, "metric": "f1"})  # a field that earlier versions lack
    changed = "seed was 0 and is now 1, new was None and is now True; remove the folder"
    with Checkpoints(folder, {**IDENTITY, "seed": 1, "new": True}) as checkpoints:
        raises(checkpoints.load, state(0), match=f"of another run at step 3: {changed}")
    orbax.save_checkpointables(folder / "4", {"state": state(4)})
    with Checkpoints(folder, IDENTITY) as checkpoints:
        raises(checkpoints.load, state(0), match="at step 4: its version did not record the run")


@pytest.mark.parametrize("mesh", ["data:8", "data:2,model:4"])
def test_any_mesh_resumes_from_the_checkpoint_of_another(folder: Path, mesh: str) -> None:
    where = replicated(make_mesh(mesh))
    with Checkpoints(folder) as checkpoints:
        found = checkpoints.load(place(state(0), where))
        assert_is_state(found, 3)
        assert {leaf.sharding for leaf in jax.tree.leaves(found)} == {where}
        checkpoints.save(4, place(state(4), where))
    assert_loads(folder, 4)


def test_incomplete_checkpoints_are_removed(folder: Path) -> None:
    for name in ("4.tmp", "4.tmp.orbax-checkpoint-tmp", "5.orbax-checkpoint-tmp"):
        shutil.copytree(folder / "3", folder / name)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest_step == 3
        checkpoints.remove_leftovers()
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no rights to mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_full_disk_keeps_earlier_checkpoints(small_disk: Path, capfd) -> None:
    random = np.random.default_rng(0)
    states = [{"prompt": jnp.asarray(random.normal(size=(50, 100)), jnp.float32)} for _ in range(5)]

    def assert_loads_state(number: int) -> None:
        found = checkpoints.load(states[0])["prompt"]
        np.testing.assert_array_equal(found, states[number]["prompt"])

    with Checkpoints(small_disk / "checkpoints") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, states[step])
        checkpoints.wait()
        fill = (small_disk / "fill").open("wb", buffering=0)
        with pytest.raises(OSError, match="No space"):
            while True:
                fill.write(bytes(1000))
        for _ in range(2):  # the first failure leaves nothing broken
            with pytest.raises(InputError, match="no space is left .* step 2 is kept") as error:
                checkpoints.save(3, states[3])
                checkpoints.wait()
            assert "\n" not in str(error.value) and checkpoints.latest_step == 2
            assert_loads_state(2)
        fill.close()
        (small_disk / "fill").unlink()
        checkpoints.save(4, states[4])
        checkpoints.wait()
        assert_loads_state(4)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["2", "4"]
    assert capfd.readouterr().err == "", "nothing is logged by orbax"


CONFIG = {"seed": 1, "checkpoint_every": 5, "mesh": None, "data": {"train": {"rows": 3}}}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run", CONFIG)


def names(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.path.iterdir())


def test_lock_is_exclusive_and_released_after_any_end(run: RunFolder) -> None:
    with run.lock():
        for other in (run, RunFolder(run.path, CONFIG)):
            with pytest.raises(InputError, match="in use by another run .*process"):
                with other.lock():
                    pass
        assert ".lock" in names(run)
    with pytest.raises(KeyboardInterrupt), run.lock():
        raise KeyboardInterrupt
    with run.lock():
        pass
    assert names(run) == ["config.json"]


def test_lock_file_removed_before_the_lock_is_taken_again(run: RunFolder, monkeypatch) -> None:
    real, calls = fcntl.flock, []

    def late(descriptor: int, how: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            (run.path / ".lock").unlink()
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with run.lock():
        assert len(calls) == 2
        monkeypatch.setattr(fcntl, "flock", real)
        with pytest.raises(InputError, match="in use"), run.lock():
            pass


def test_file_system_without_locks_is_used(run: RunFolder, monkeypatch, capsys) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with run.lock():
        assert names(run) == ["config.json"]
    assert "without locks; do not start this run twice" in capsys.readouterr().err


def test_leftovers_are_removed_and_other_files_kept(tmp_path: Path) -> None:
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
    raises(RunFolder, tmp_path / "other", CONFIG, match="not empty and holds no run")


@pytest.mark.parametrize(
    "change", [{"checkpoint_every": 9}, {"mesh": "data:8"}, {"checkpoint_minutes": 1.5}]
)
def test_other_devices_and_saves_are_the_same_run(run: RunFolder, change: dict) -> None:
    run.log({"step": 1, "split": "train"})
    result = run.finish({"steps": 3, "elapsed_s": 0.5})
    again = RunFolder(run.path, CONFIG | change)
    assert again.result == result and list(result["checksums"]) == ["config.json", "metrics.jsonl"]
    assert again.history() == [{"step": 1, "split": "train"}]
    assert json.loads(again.config_path.read_text()) == CONFIG


@pytest.mark.parametrize(
    "change", [{"seed": 2}, {"clip_norm": 1.0}, {"data": {"train": {"rows": 3, "mesh": 1}}}]
)
def test_options_that_change_numbers_are_another_run(run: RunFolder, change: dict) -> None:
    raises(RunFolder, run.path, CONFIG | change, match=f"holds another run: {next(iter(change))}")


TAILS: list[Callable[[str], str]] = [
    lambda line: line[:-1],  # cut after the bracket
    lambda line: line[:10],
    lambda line: "\x00" * 40,  # a power cut on some disks
    lambda line: "\x00" * 40 + "\n",
    lambda line: line[:10] + "\n",
]


@pytest.mark.parametrize("tail", TAILS)
def test_incomplete_last_log_line_is_dropped(run: RunFolder, tail: Callable[[str], str]) -> None:
    for step in (1, 2):
        run.log({"step": step, "split": "train"})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(tail('{"step": 3, "split": "train"}\n'))
    run.rewind(2)
    run.log({"step": 3, "split": "train"})
    assert [line["step"] for line in run.history()] == [1, 2, 3]


def test_broken_log_line_is_named(run: RunFolder) -> None:
    (run.path / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\n{"st\n{"step": 3}\n')
    raises(run.history, match="metrics.jsonl is damaged: line 2 is not JSON")


def test_lock_of_another_run_in_the_same_place_is_kept(run: RunFolder) -> None:
    with pytest.raises(InputError, match="got another folder"), run.lock():
        run.path.rename(run.path.with_name("moved"))
        other = RunFolder(run.path, CONFIG)
        with other.lock():
            try:
                run.log({"step": 1, "split": "train"})
            finally:
                assert ".lock" in names(run)
    assert names(run) == ["config.json"]
