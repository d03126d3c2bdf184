"""Training loop: resume, interruption, divergence, checkpoints and full disks."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jpt
from jpt.errors import DivergedError, StoppedError
from jpt.tuning import run_dir, trainer
from jpt.tuning.run_dir import Checkpoints, RunFolder
from jpt.tuning.trainer import Fitted, Problem, fit
from jpt.types import Score
from tests.helpers.running import assert_equal_runs, at_step, crash_at, raises, read_log
from tests.helpers.toys import write_task

KILLS = 3
SETTINGS = {"steps": 24, "eval_every": 6, "checkpoint_every": 4, "batch_size": 8, "length": 5}

Tune = Callable[..., Any]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("tasks") / "mood")


@pytest.fixture(scope="module")
def tune(task: Path) -> Tune:
    return partial(jpt.tune, jpt.load_backbone("builtin/bert-small"), task, **SETTINGS)


@pytest.fixture(scope="module")
def whole(tune: Tune, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tune(tmp_path_factory.mktemp("runs") / "whole").folder


def newest_checkpoint(run: Path) -> int:
    """The highest step that has a folder, complete or not; 0 without any."""
    folder = run / "checkpoints"
    names = [path.name.split(".")[0] for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


@pytest.mark.slow
def test_the_same_seed_and_other_save_intervals_change_nothing(
    tune, whole, tmp_path, crashed
) -> None:
    assert_equal_runs(whole, tune(tmp_path / "again").folder)
    assert not np.array_equal(tune(seed=1).last.values, jpt.load_prompt(whole).values)
    run = Path(shutil.copytree(crashed, tmp_path / "run"))
    tune(run)
    assert_equal_runs(whole, run)


@pytest.mark.parametrize("stop_at", [1, 4, 9, 23])
def test_crashed_run_ends_the_same(tune: Tune, whole: Path, tmp_path: Path, stop_at: int) -> None:
    with crash_at(stop_at):
        tune(tmp_path)
    assert not (tmp_path / "result.json").exists()
    tune(tmp_path)
    assert_equal_runs(whole, tmp_path)


def test_sigterm_saves_between_checkpoints(tune: Tune, whole: Path, tmp_path: Path) -> None:
    with at_step(6, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        with pytest.raises(StoppedError, match="saved after step") as stopped:
            tune(tmp_path)
    assert stopped.value.exit_code == 75
    assert newest_checkpoint(tmp_path) in (6, 7), "the state of the running step is saved"
    tune(tmp_path)
    assert_equal_runs(whole, tmp_path)


@pytest.fixture(scope="module")
def crashed(tune: Tune, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "crashed"
    with crash_at(15):
        tune(run, checkpoint_every=1000, checkpoint_minutes=1e-9)
    assert newest_checkpoint(run) == 14
    return run


@pytest.mark.slow
def test_other_devices_resume_the_run(tune, whole: Path, crashed: Path, tmp_path: Path) -> None:
    found = tune(Path(shutil.copytree(crashed, tmp_path / "run")), mesh="data:8")
    expected = jpt.load_prompt(whole / "last.safetensors").values
    np.testing.assert_allclose(found.last.values, expected, atol=1e-4 * np.abs(expected).max())
    assert [line["step"] for line in found.history] == [line["step"] for line in read_log(whole)]


def test_damaged_checkpoint_costs_only_steps(tune, whole: Path, tmp_path: Path, capsys) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / "result.json").unlink()
    data = next((run / "checkpoints" / str(newest_checkpoint(run)) / "state" / "d").iterdir())
    data.write_bytes(data.read_bytes()[:-20])
    tune(run)
    assert "the checkpoint of step 24 is damaged" in capsys.readouterr().err
    assert_equal_runs(whole, run)


def test_interrupted_run_has_its_best_prompt(tune: Tune, tmp_path: Path) -> None:
    with at_step(15, lambda: os.kill(os.getpid(), signal.SIGINT)), pytest.raises(StoppedError):
        tune(tmp_path)
    card = jpt.load_prompt(tmp_path).card
    lines = [line for line in read_log(tmp_path) if line["split"] == "validation"]
    scores = {line["step"]: line["accuracy"] for line in lines}
    assert set(scores) == {6, 12} and card.score == pytest.approx(max(scores.values()))
    assert scores[card.steps] == max(scores.values())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_sigkill_at_random_moments(task: Path, whole: Path, tmp_path: Path, seed: int) -> None:
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


STEPS = 12


def toy_loss(frozen: None, params: jax.Array, batch: jax.Array, key: Any) -> tuple[Any, None]:
    return batch * (1 + 0 * params.sum()), None


def move(gradient: jax.Array, state: Any, params: Any = None) -> tuple[jax.Array, Any]:
    """Move by 0.01 whatever the gradient is, as long as it is finite."""
    return jnp.where(jnp.isfinite(gradient), 0.01, jnp.nan), state


TOY = optax.GradientTransformation(lambda params: {"m": jnp.zeros(())}, move)


def toy_problem(
    loss: Callable[[int], float] = lambda step: 1 / step,
    score: Callable[[float], tuple[float, float]] = lambda value: (value, 0.5),
    minutes: float | None = None,
    every: int = 4,
) -> Problem:
    def scored(prompt: jax.Array) -> Score:
        value, mean_loss = score(float(prompt[0, 0]))
        return Score("accuracy", value, mean_loss, 10, 0.5, {"a": 5, "b": 5}, np.zeros(10, int))

    return Problem(
        frozen=None,
        init=np.zeros((2, 3)),
        loss=toy_loss,
        batch=lambda number: jnp.float32(loss(number + 1)),
        evaluate=scored,
        config={"seed": 1},
        finish=lambda fitted, folder: {},
        optimizer=TOY,
        keep=lambda best, folder: np.save(folder.path / "best.npy", best.params),
        steps=STEPS,
        eval_every=4,
        checkpoint_every=every,
        checkpoint_minutes=minutes,
        batch_size=2,
    )


def run_toy(path: Path, **changes: Any) -> Fitted:
    return fit(toy_problem(**changes), RunFolder(path, {"seed": 1}))


def saved_steps(path: Path) -> list[int]:
    return sorted(int(step.name) for step in (path / "checkpoints").iterdir())


def logged(path: Path) -> list[tuple[int, str]]:
    return [(line["step"], line["split"]) for line in read_log(path)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [1, 7, 8, 9, STEPS])
def test_non_finite_loss_keeps_the_last_good_state(tmp_path: Path, bad: float, at: int) -> None:
    with pytest.raises(DivergedError) as error:
        run_toy(tmp_path, loss=lambda step: bad if step == at else 1 / step)
    message, last = str(error.value), 4 * ((at - 1) // 4)
    assert f"non-finite loss at step {at}" in message and f"loss {bad}" in message
    assert at == 1 or f"(last finite: {1 / (at - 1):.4g} at step {at - 1})" in message
    assert (f"the state of step {last} is kept" if last else "no state was saved") in message
    assert "\n" not in message and "learning_rate" in message
    if last:
        assert saved_steps(tmp_path)[-1] == last
        assert np.isfinite(np.load(tmp_path / "best.npy")).all()
        assert max(step for step, split in logged(tmp_path) if split == "validation") == last
    # Without the cause the run resumes from there.
    np.testing.assert_allclose(run_toy(tmp_path).last, 0.01 * STEPS, rtol=1e-6)


@pytest.mark.parametrize("found", [(math.nan, 0.5), (0.9, math.nan), (0.9, math.inf)])
def test_non_finite_score_is_never_the_best(tmp_path: Path, found: tuple[float, float]) -> None:
    with pytest.raises(DivergedError, match="non-finite loss at step 8 .* step 4 is kept"):
        run_toy(tmp_path, score=lambda value: found if value > 0.075 else (value, 0.5))
    assert saved_steps(tmp_path) == [4]
    np.testing.assert_allclose(np.load(tmp_path / "best.npy"), 0.04, rtol=1e-6)


@pytest.mark.slow
def test_huge_learning_rate_is_stopped(tmp_path: Path) -> None:
    rows = [{"text": "Fine.", "label": 1}, {"text": "Dull.", "label": 0}] * 4
    given = {"data": {"train": rows, "validation": rows}, "batch_size": 2, "length": 3}
    with pytest.raises(DivergedError, match="non-finite loss.* lower learning_rate"):
        jpt.tune("builtin/bert-small", "sst2", tmp_path / "run", learning_rate=1e38, **given)


def test_saves_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saves: list[int] = []
    real = Checkpoints.save
    monkeypatch.setattr(
        Checkpoints, "save", lambda self, step, state: (saves.append(step), real(self, step, state))
    )
    run_toy(tmp_path / "steps", every=STEPS)
    assert saves == [STEPS]
    now = iter(range(10**6))  # half a minute per reading
    monkeypatch.setattr(trainer.time, "monotonic", lambda: 30.0 * next(now))
    saves.clear()
    state = run_toy(tmp_path / "minutes", every=STEPS, minutes=2)
    assert len(saves) > 2 and saves[-1] == STEPS and len(set(saves)) == len(saves)
    np.testing.assert_allclose(state.last, 0.01 * STEPS, rtol=1e-6)


def test_best_prompt_is_written_during_the_run(tmp_path: Path) -> None:
    def stop(step: int) -> float:
        if step == 10:
            os.kill(os.getpid(), signal.SIGINT)
        return 1 / step

    with pytest.raises(StoppedError, match="saved after step") as stopped:
        run_toy(tmp_path, loss=stop)
    assert stopped.value.exit_code == 130
    np.testing.assert_allclose(np.load(tmp_path / "best.npy"), 0.08, rtol=1e-6)
    run_toy(tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "best.npy"), 0.12, rtol=1e-6)


def test_resumed_run_drops_a_best_prompt_after_its_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DivergedError):  # at step 11, after the scoring of step 8
        run_toy(tmp_path, loss=lambda step: math.nan if step == 11 else 1.0, every=6)
    assert saved_steps(tmp_path) == [6]
    np.testing.assert_allclose(np.load(tmp_path / "best.npy"), 0.08, rtol=1e-6)
    folder = RunFolder(tmp_path, {"seed": 1})
    with folder.checkpoints() as checkpoints:
        toy = toy_problem()
        trainer._resume(trainer._Run(toy, toy.schedule, folder, checkpoints))
    np.testing.assert_allclose(np.load(tmp_path / "best.npy"), 0.04, rtol=1e-6)
    assert logged(tmp_path) == [(4, "validation")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_disk_full_between_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_toy(tmp_path / "whole")
    path = tmp_path / "run"
    real = RunFolder.log

    def half(self: RunFolder, line: dict[str, Any]) -> None:
        if line["step"] == 8:
            with (self.path / "metrics.jsonl").open("a") as file:  # half a line is written
                file.write(json.dumps(line)[:20])
            patch.setattr(run_dir, "LOG", "/dev/full")
        real(self, line)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", half)
        raises(run_toy, path, match="cannot write /dev/full: no space is left")
    assert saved_steps(path) == [4]
    found = run_toy(path)
    np.testing.assert_array_equal(found.last, whole.last)
    np.testing.assert_array_equal(found.best.params, whole.best.params)
    assert logged(path) == logged(tmp_path / "whole")


@pytest.mark.slow
def test_full_disk_is_one_line_on_the_command_line(tmp_path: Path) -> None:
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


def test_second_run_on_a_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    code = (
        "import sys, time, pathlib\nfrom jpt.tuning.run_dir import RunFolder\n"
        "folder = RunFolder(pathlib.Path(sys.argv[1]), {'seed': 1})\n"
        "with folder.lock():\n    print('held', flush=True)\n    time.sleep(600)"
    )
    first = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    try:
        assert first.stdout is not None and first.stdout.readline() == b"held\n"
        raises(run_toy, path, match=f"in use by .*process {first.pid} on ")
    finally:
        first.kill()
        first.wait()
    # The kernel releases the lock of a killed process, though its file is left.
    assert (path / ".lock").exists()
    run_toy(path)
    assert not (path / ".lock").exists()
