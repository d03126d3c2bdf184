"""A sweep that is killed when its runs had ended leaves nothing behind, and heeds SIGTERM then."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from jpt.errors import StoppedError
from jpt.io.files import read_json, write_json
from jpt.recipes.sweep import SweepProgress, sweep, tidy_ended
from jpt.tuning.run_dir import RunFolder
from tests.tiny_sweep import read_prompts, write_fixed

pytestmark = pytest.mark.usefixtures("plain_programs")

LEFT = ("runs/a/.lock", "runs/a/.jpt-0.tmp", "banks/one/runs.json", "banks/one/checkpoints/5/d")


def write_ended(folder: Path) -> list[str]:
    """Two runs that have ended, with all that a killed process can leave."""
    for name in ("a", "b"):
        RunFolder(folder / "runs" / name, {"seed": name}).finish({"score": 1})
    for name in LEFT:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    write_json(folder / "banks/one/runs.json", ["a", "b"])
    return ["a", "b"]


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_is_left_of_ended_runs_goes(tmp_path: Path) -> None:
    tidy_ended(tmp_path, write_ended(tmp_path))
    kept = {f"runs/{name}/{file}.json" for name in "ab" for file in ("config", "result")}
    assert files(tmp_path) == kept and not (tmp_path / "banks").exists()


def test_a_bank_with_something_to_do_stays(tmp_path: Path) -> None:
    write_ended(tmp_path)
    (tmp_path / "runs/b/result.json").unlink()
    tidy_ended(tmp_path, ["a"])
    assert files(tmp_path) >= {*LEFT[2:], "runs/a/result.json"} and not (
        files(tmp_path) & {*LEFT[:2]}
    )
    shutil.rmtree(tmp_path / "runs/a")  # its owner wants it done again
    tidy_ended(tmp_path, [])
    assert files(tmp_path) >= {*LEFT[2:]}


def test_what_another_process_holds_stays(tmp_path: Path) -> None:
    names = write_ended(tmp_path)
    with RunFolder(tmp_path / "runs/a", {"seed": "a"}).lock():
        tidy_ended(tmp_path, names)
        assert files(tmp_path) >= {*LEFT[2:], "runs/a/.lock"}
    tidy_ended(tmp_path, names)
    assert not (tmp_path / "banks").exists()


def test_sigterm_in_the_last_turn_of_a_bank_ends_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = {"fixed": write_fixed(tmp_path / "given"), "grid": {"seed": [0, 1]}}
    grid |= {"run": {"places": 1}}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    sweep(grid, whole)

    def terminate(progress: SweepProgress, *_: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as asked:
        asked.setattr(SweepProgress, "ended", terminate)
        with pytest.raises(StoppedError) as end:
            sweep(grid, stopped)
    assert end.value.exit_code == 75
    assert len(list(stopped.rglob("result.json"))) == 1, "no further bank has begun"
    (stopped / ".jpt-0.tmp").touch()
    sweep(grid, stopped)
    assert read_prompts(stopped) == read_prompts(whole) and files(stopped) == files(whole)
    rows = [read_json(folder / "sweep.json")["runs"] for folder in (stopped, whole)]
    assert [row["test"] for row in rows[0]] == [row["test"] for row in rows[1]]
