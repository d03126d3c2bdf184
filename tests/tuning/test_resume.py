"""A run that is killed goes on and ends as if it had never stopped, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import jpt
from jpt.errors import StoppedError
from jpt.tuning import loop
from tests.toy_task import write_task

STEPS = 24
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
    real = loop._report

    def fail(run, progress, pending, *rest):
        if pending is not None and pending[0] == stop_at:
            raise RuntimeError("power")
        return real(run, progress, pending, *rest)

    monkeypatch.setattr(loop, "_report", fail)
    with pytest.raises(RuntimeError, match="power"):
        jpt.tune(backbone, task, tmp_path / "run", **SETTINGS)
    monkeypatch.setattr(loop, "_report", real)
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
    real = loop._report

    def terminate(run, progress, pending, *rest):
        if pending is not None and pending[0] == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(run, progress, pending, *rest)

    monkeypatch.setattr(loop, "_report", terminate)
    with pytest.raises(StoppedError, match="saved after step") as stopped:
        jpt.tune(backbone, task, tmp_path / "run", **SETTINGS)
    assert stopped.value.exit_code == 75
    steps = {int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()}
    assert max(steps) in (6, 7), "the state of the step that was running is saved"
    monkeypatch.setattr(loop, "_report", real)
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


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_sigkill_at_random_moments_changes_nothing(
    task: Path, whole: Path, tmp_path: Path, seed: int
) -> None:
    """Real processes, killed again and again, some of them while saving."""
    random = np.random.default_rng(seed)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    command = [sys.executable, "-m", "jpt.cli", "tune", "--backbone", "builtin/bert-small"]
    command += ["--task", str(task), "--out", str(tmp_path / "run"), *options]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    for _ in range(30):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        config = tmp_path / "run" / "config.json"
        while process.poll() is None and not config.exists():
            time.sleep(0.02)
        try:
            process.wait(float(random.uniform(0.5, 6.0)))
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert process.wait() == 0, "the last run finished"
    assert_equal_runs(whole, tmp_path / "run")
    assert not [p for p in (tmp_path / "run").rglob("*") if p.name.endswith(".tmp")]
