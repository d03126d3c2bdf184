"""A run that is killed goes on and ends as if it had never stopped, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import jpt
from jpt.errors import StoppedError
from jpt.tuning import trainer
from tests.toy_task import write_task

STEPS = 24
KILLS = 3
SETTINGS = {"steps": STEPS, "eval_every": 6, "checkpoint_every": 4, "batch_size": 8, "length": 5}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("tasks") / "mood")


@pytest.fixture(scope="module")
def backbone() -> jpt.Backbone:
    return jpt.load_backbone("builtin/bert-small")


@pytest.fixture(scope="module")
def whole(task: Path, backbone: jpt.Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    jpt.tune(backbone, task, out, **SETTINGS)
    return out


def assert_equal_runs(first: Path, second: Path) -> None:
    """Asserts that prompts are equal bit for bit and logs equal but for the clock."""
    for name in ("prompt.safetensors", "last.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name

    def lines(folder: Path) -> list[dict[str, object]]:
        clock = {"elapsed_s", "rows_per_s"}
        read = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [{k: v for k, v in line.items() if k not in clock} for line in read]

    assert lines(first) == lines(second)


def test_the_same_seed_gives_the_same_run(
    task: Path, backbone: jpt.Backbone, whole: Path, tmp_path: Path
) -> None:
    jpt.tune(backbone, task, tmp_path / "again", **SETTINGS)
    assert_equal_runs(whole, tmp_path / "again")
    other = jpt.tune(backbone, task, **SETTINGS, seed=1)
    assert not np.array_equal(other.last.values, jpt.load_prompt(whole).values)


@pytest.mark.parametrize("stop_at", [1, 4, 9, 23])
def test_a_run_stopped_at_any_step_ends_the_same(
    task: Path,
    backbone: jpt.Backbone,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: int,
) -> None:
    """Power goes off in the middle of a step: nothing of it is saved."""
    real = trainer._report

    def fail(run, progress, pending, *rest):
        if pending is not None and pending[0] == stop_at:
            raise RuntimeError("power")
        return real(run, progress, pending, *rest)

    monkeypatch.setattr(trainer, "_report", fail)
    with pytest.raises(RuntimeError, match="power"):
        jpt.tune(backbone, task, tmp_path / "run", **SETTINGS)
    monkeypatch.setattr(trainer, "_report", real)
    assert not (tmp_path / "run" / "result.json").exists()
    jpt.tune(backbone, task, tmp_path / "run", **SETTINGS)
    assert_equal_runs(whole, tmp_path / "run")


def test_sigterm_saves_between_checkpoints(
    task: Path,
    backbone: jpt.Backbone,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = trainer._report

    def terminate(run, progress, pending, *rest):
        if pending is not None and pending[0] == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(run, progress, pending, *rest)

    monkeypatch.setattr(trainer, "_report", terminate)
    with pytest.raises(StoppedError, match="saved after step") as stopped:
        jpt.tune(backbone, task, tmp_path / "run", **SETTINGS)
    assert stopped.value.exit_code == 75
    steps = {int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()}
    assert max(steps) in (6, 7), "the state of the step that was running is saved"
    monkeypatch.setattr(trainer, "_report", real)
    jpt.tune(backbone, task, tmp_path / "run", **SETTINGS)
    assert_equal_runs(whole, tmp_path / "run")


def test_a_half_written_log_line_and_later_lines_are_removed(
    task: Path, backbone: jpt.Backbone, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    jpt.tune(backbone, task, run, **SETTINGS)
    (run / "result.json").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "split": "train"}\n{"step": 99, "spl')
    jpt.tune(backbone, task, run, **SETTINGS)
    assert_equal_runs(whole, run)


@pytest.fixture(scope="module")
def broken(task: Path, backbone: jpt.Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was saved by the clock, after every step, and broke off in the fifteenth."""
    run, real = tmp_path_factory.mktemp("runs") / "broken", trainer._report

    def fail(run, progress, pending, *rest):
        if pending is not None and pending[0] == 15:
            raise RuntimeError("power")
        return real(run, progress, pending, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_report", fail)
        with pytest.raises(RuntimeError, match="power"):
            often = {"checkpoint_every": 1000, "checkpoint_minutes": 1e-9}
            jpt.tune(backbone, task, run, **{**SETTINGS, **often})
    assert newest_checkpoint(run) == 14
    return run


def test_saves_at_other_moments_change_nothing(
    task: Path, backbone: jpt.Backbone, whole: Path, broken: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(broken, tmp_path / "run"))
    jpt.tune(backbone, task, run, **SETTINGS)
    assert_equal_runs(whole, run)


@pytest.mark.slow
def test_other_devices_go_on_with_the_same_run(
    task: Path, backbone: jpt.Backbone, whole: Path, broken: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(broken, tmp_path / "run"))
    found = jpt.tune(backbone, task, run, **SETTINGS, mesh="data:8")
    expected = jpt.load_prompt(whole / "last.safetensors").values
    np.testing.assert_allclose(found.last.values, expected, atol=1e-4 * np.abs(expected).max())
    assert [line["step"] for line in found.history] == [
        json.loads(line)["step"] for line in (whole / "metrics.jsonl").read_text().splitlines()
    ]


def test_a_damaged_checkpoint_costs_steps_and_nothing_else(
    task: Path, backbone: jpt.Backbone, whole: Path, tmp_path: Path, capsys
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / "result.json").unlink()
    newest = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name))
    data = next(path for path in (newest / "state" / "d").iterdir())
    data.write_bytes(data.read_bytes()[:-20])
    jpt.tune(backbone, task, run, **SETTINGS)
    assert "the checkpoint of step 24 is damaged" in capsys.readouterr().err
    assert_equal_runs(whole, run)


def test_an_interrupted_run_holds_its_best_prompt(
    task: Path,
    backbone: jpt.Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = trainer._report

    def interrupt(run, progress, pending, *rest):
        if pending is not None and pending[0] == 15:
            os.kill(os.getpid(), signal.SIGINT)
        return real(run, progress, pending, *rest)

    monkeypatch.setattr(trainer, "_report", interrupt)
    with pytest.raises(StoppedError):
        jpt.tune(backbone, task, tmp_path / "run", **SETTINGS)
    card = jpt.load_prompt(tmp_path / "run").card
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    scores = {line["step"]: line["accuracy"] for line in lines if line["split"] == "validation"}
    assert set(scores) == {6, 12}
    assert card.score == pytest.approx(max(scores.values()))
    assert scores[card.steps] == max(scores.values())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_sigkill_at_random_moments_changes_nothing(
    task: Path, whole: Path, tmp_path: Path, seed: int
) -> None:
    """Real processes, killed soon after they made some progress, some of them while saving."""
    random, run = np.random.default_rng(seed), tmp_path / "run"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    command = [sys.executable, "-m", "jpt.cli", "tune", "--backbone", "builtin/bert-small"]
    command += ["--task", str(task), "--out", str(run), *options]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    for _ in range(KILLS):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        before = newest_checkpoint(run)
        while process.poll() is None and newest_checkpoint(run) == before:
            time.sleep(0.005)
        time.sleep(float(random.uniform(0, 0.3)))
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert last.returncode == 0, last.stderr
    assert_equal_runs(whole, run)
    assert not [path for path in run.rglob("*") if path.name.endswith(".tmp")]


def newest_checkpoint(run: Path) -> int:
    """The highest step that has a folder, whole or being written; 0 without any."""
    folder = run / "checkpoints"
    names = [path.name.split(".")[0] for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=0)
