"""DOC"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jpt
from jpt.errors import DivergedError, StoppedError
from jpt.tuning import run_dir, trainer
from jpt.tuning.logging import Progress
from jpt.tuning.run_dir import Checkpoints, RunFolder
from jpt.tuning.step import StepMetrics, TuneState
from jpt.tuning.trainer import LoopState, Run, Schedule, init_state_of, resume, run_loop
from jpt.types import Score
from tests.helpers.toys import write_task

# --- resume

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


# --- guards

GUARDS_STEPS = 12


def toy_run(
    folder: RunFolder,
    checkpoints: Checkpoints,
    loss: Callable[[int], float] = lambda step: 1 / step,
    score: Callable[[float], tuple[float, float]] = lambda value: (value, 0.5),
    minutes: float | None = None,
    every: int = 4,
) -> tuple[Run, LoopState]:
    """A run whose prompt counts its steps, with losses and scores as they are asked for."""

    def step(params: Any, state: TuneState, batch: int, answer: Any) -> tuple[TuneState, Any]:
        number = batch + 1
        found = jnp.float32(loss(number))
        worse = jnp.where(jnp.isfinite(found), 0.0, jnp.nan)
        state = TuneState(state.step + 1, state.prompt + 0.01 + worse, state.optimizer)
        return state, StepMetrics(found, jnp.float32(0.5), jnp.float32(1.0))

    def scored(prompt: jax.Array) -> Score:
        value, mean_loss = score(float(prompt[0, 0]))
        return Score("accuracy", value, mean_loss, 10, 0.5, {"a": 5, "b": 5}, np.zeros(10, int))

    schedule = Schedule(GUARDS_STEPS, 4, every, 2, checkpoint_minutes=minutes)
    run = Run(None, None, step, lambda number: number, scored, schedule, folder, checkpoints)
    best = folder.path / "best.npy"
    run.keep_best = lambda state: np.save(best, np.asarray(state.best_prompt))
    tune = TuneState(jnp.int32(0), jnp.zeros((2, 3)), {"m": jnp.zeros(())})
    return run, resume(run, init_state_of(tune))


def carry_out(path: Path, **changes: Any) -> LoopState:
    folder = RunFolder(path, {"seed": 1})
    with folder.lock(), Checkpoints(path / "checkpoints") as checkpoints:
        run, state = toy_run(folder, checkpoints, **changes)
        with Progress(GUARDS_STEPS, shown=False) as progress:
            return run_loop(run, state, progress)


def saved_steps(path: Path) -> list[int]:
    return sorted(int(step.name) for step in (path / "checkpoints").iterdir())


def logged(path: Path) -> list[tuple[int, str]]:
    lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["split"]) for line in lines]


# Numbers that are none


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [1, 7, 8, 9, GUARDS_STEPS])
def test_a_loss_that_is_no_number_stops_with_the_last_good_state(
    tmp_path: Path, bad: float, at: int
) -> None:
    """Also in a step that is scored and saved: what it gives is neither."""
    with pytest.raises(DivergedError) as told:
        carry_out(tmp_path, loss=lambda step: bad if step == at else 1 / step)
    message, last = str(told.value), 4 * ((at - 1) // 4)
    assert f"step {at} gives no finite numbers" in message and f"loss {bad}" in message
    assert at == 1 or f"after step {at - 1}, whose loss was {1 / (at - 1):.4g}" in message
    assert (f"the state of step {last} is kept" if last else "no state was saved") in message
    assert "\n" not in message and "learning_rate" in message
    if last:
        assert saved_steps(tmp_path)[-1] == last
        assert np.isfinite(np.load(tmp_path / "best.npy")).all()
        assert max(step for step, split in logged(tmp_path) if split == "validation") == last
    # Without the cause the run goes on from there.
    state = carry_out(tmp_path)
    np.testing.assert_allclose(state.tune.prompt, 0.01 * GUARDS_STEPS, rtol=1e-6)


@pytest.mark.parametrize("found", [(math.nan, 0.5), (0.9, math.nan), (0.9, math.inf)])
def test_a_score_that_is_no_number_is_never_the_best(
    tmp_path: Path, found: tuple[float, float]
) -> None:
    score = lambda value: found if value > 0.075 else (value, 0.5)  # noqa: E731
    with pytest.raises(DivergedError, match="step 8 gives no finite .* step 4 is kept"):
        carry_out(tmp_path, score=score)
    assert saved_steps(tmp_path) == [4]
    np.testing.assert_allclose(np.load(tmp_path / "best.npy"), 0.04, rtol=1e-6)


def test_a_rate_beyond_reason_is_stopped_in_a_real_run(tmp_path: Path) -> None:
    rows = [{"text": "Fine.", "label": 1}, {"text": "Dull.", "label": 0}] * 4
    given = {"data": {"train": rows, "validation": rows}, "batch_size": 2, "length": 3}
    with pytest.raises(DivergedError, match="no finite numbers.* try a lower learning_rate"):
        jpt.tune("builtin/bert-small", "sst2", tmp_path / "run", learning_rate=1e38, **given)


# Saves by the clock


def test_a_save_is_due_after_so_many_minutes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that goes on by half a minute whenever it is read."""
    saves: list[int] = []
    real = Checkpoints.save
    monkeypatch.setattr(
        Checkpoints, "save", lambda self, step, state: (saves.append(step), real(self, step, state))
    )
    carry_out(tmp_path / "steps", every=GUARDS_STEPS)
    assert saves == [GUARDS_STEPS]
    now = iter(range(10**6))
    monkeypatch.setattr(trainer.time, "monotonic", lambda: 30.0 * next(now))
    saves.clear()
    state = carry_out(tmp_path / "minutes", every=GUARDS_STEPS, minutes=2)
    assert len(saves) > 2 and saves[-1] == GUARDS_STEPS and len(set(saves)) == len(saves)
    np.testing.assert_allclose(state.tune.prompt, 0.01 * GUARDS_STEPS, rtol=1e-6)


# The best prompt is there while the run goes on


def test_the_best_prompt_is_written_as_soon_as_it_is_found(tmp_path: Path) -> None:
    def stop(step: int) -> float:
        if step == 10:
            os.kill(os.getpid(), signal.SIGINT)
        return 1 / step

    with pytest.raises(StoppedError, match="saved after step") as stopped:
        carry_out(tmp_path, loss=stop)
    assert stopped.value.exit_code == 130
    np.testing.assert_allclose(np.load(tmp_path / "best.npy"), 0.08, rtol=1e-6)
    carry_out(tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "best.npy"), 0.12, rtol=1e-6)


def test_a_resumed_run_forgets_a_best_prompt_of_after_its_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DivergedError):  # at step 11, after the scoring of step 8
        carry_out(tmp_path, loss=lambda step: math.nan if step == 11 else 1.0, every=6)
    assert saved_steps(tmp_path) == [6]
    np.testing.assert_allclose(np.load(tmp_path / "best.npy"), 0.08, rtol=1e-6)
    folder = RunFolder(tmp_path, {"seed": 1})
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        toy_run(folder, checkpoints)
    np.testing.assert_allclose(np.load(tmp_path / "best.npy"), 0.04, rtol=1e-6)
    assert logged(tmp_path) == [(4, "validation")]


# A full disk


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_disk_that_fills_up_between_two_steps_changes_nothing_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = carry_out(tmp_path / "whole")
    path = tmp_path / "run"
    real = RunFolder.log

    def half(self: RunFolder, line: dict[str, Any]) -> None:
        """The disk takes half of a line."""
        if line["step"] == 8:
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line)[:20])
            patch.setattr(run_dir, "LOG", "/dev/full")
        real(self, line)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", half)
        with pytest.raises(jpt.InputError, match="cannot write /dev/full: no space is left"):
            carry_out(path)
    assert saved_steps(path) == [4]
    state = carry_out(path)
    jax.tree.map(np.testing.assert_array_equal, state, whole)
    assert logged(path) == logged(tmp_path / "whole")


@pytest.mark.slow
def test_a_full_disk_is_one_line_on_the_command_line(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: no save of a checkpoint fits."""
    code = (
        "import resource, sys, jpt.cli.app\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))\n"
        "sys.argv = ['jpt', *sys.argv[1:]]\n"
        "jpt.cli.app.main()"
    )
    command = [sys.executable, "-c", code, "tune", "--backbone", "builtin/bert-small"]
    command += ["--task", "builtin/imdb_number", "--out", str(tmp_path / "run"), "--steps", "2"]
    command += ["--batch-size", "4", "--checkpoint-every", "1", "--length", "40"]
    given = {**os.environ, "JAX_PLATFORMS": "cpu", "JPT_CACHE": ""}
    found = subprocess.run([*command, "--max-tokens", "64"], env=given, capture_output=True)
    said = found.stderr.decode().replace("\r", "\n").splitlines()
    assert found.returncode == 2, said
    assert said[-1].startswith("jpt: cannot write ") and "larger than this disk" in said[-1]
    assert "Traceback" not in found.stderr.decode() and "Warning" not in found.stderr.decode()


# Two runs on one folder


def test_a_second_run_on_a_folder_is_refused_and_hears_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "run"
    code = (
        "import sys, time, pathlib\nfrom jpt.tuning.run_dir import RunFolder\n"
        "folder = RunFolder(pathlib.Path(sys.argv[1]), {'seed': 1})\n"
        "with folder.lock():\n    print('held', flush=True)\n    time.sleep(600)"
    )
    first = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    try:
        assert first.stdout is not None and first.stdout.readline() == b"held\n"
        with pytest.raises(jpt.InputError, match=f"at work in .*process {first.pid} on "):
            carry_out(path)
    finally:
        first.kill()
        first.wait()
    # The kernel lets go of what a killed process held, whatever it left lying there.
    assert (path / ".lock").exists()
    carry_out(path)
    assert not (path / ".lock").exists()
