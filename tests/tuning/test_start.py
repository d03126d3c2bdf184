"""A run from a given prompt: the moments it copies, the score of its start."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jpt
from jpt.testing import write_tiny_backbone
from jpt.tuning import trainer
from jpt.tuning.run_dir import Checkpoints
from jpt.tuning.tune import Moments, WarmStart, read_start, tune
from tests.toy_task import write_task

RATE = 1e-2
SETTINGS = {"batch_size": 8, "length": 4, "max_tokens": 16, "learning_rate": RATE}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("tasks") / "mood")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> jpt.Backbone:
    return jpt.load_backbone(write_tiny_backbone(tmp_path_factory.mktemp("tiny") / "bert", "bert"))


@pytest.fixture(scope="module")
def source(task: Path, backbone: jpt.Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "source"
    tune(backbone, task, out, steps=5, seed=3, **SETTINGS)
    return out


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_start_is_the_last_prompt_and_reading_it_touches_nothing(source: Path) -> None:
    before = files(source)
    start = read_start("source", source)
    assert files(source) == before
    last = jpt.load_prompt(source / "last.safetensors")
    np.testing.assert_array_equal(start.prompt.values, last.values)
    assert start.prompt.card.steps == 5 and start.record()["moments"] is True


def test_the_first_update_is_the_one_of_adam_with_those_moments(
    task: Path, backbone: jpt.Backbone, source: Path, tmp_path: Path
) -> None:
    start = read_start("source", source)
    bare = WarmStart("source", start.prompt)
    tune(backbone, task, tmp_path / "bare", start=bare, steps=1, **SETTINGS)
    gradient = read_start("bare", tmp_path / "bare").moments.mean.astype(np.float64) / 0.1
    warm = tune(backbone, task, start=start, steps=1, **SETTINGS)

    old_mean, old_square = start.moments.mean, start.moments.square
    assert np.abs(old_mean).max() > 0 and (old_square >= 0).all()
    mean = (0.9 * old_mean + 0.1 * gradient) / (1 - 0.9)
    square = (0.999 * old_square + 0.001 * gradient**2) / (1 - 0.999)
    update = RATE * mean / (np.sqrt(square) + 1e-6)
    expected = start.prompt.values - update
    np.testing.assert_allclose(warm.last.values, expected, rtol=1e-5, atol=1e-6)
    # And not the one of empty moments, which is about the rate, up or down.
    fresh = RATE * gradient / (np.abs(gradient) + 1e-6)
    assert np.abs(update - fresh).max() > RATE / 10


def test_a_start_is_an_init_from_the_same_prompt(
    task: Path, backbone: jpt.Backbone, source: Path
) -> None:
    given = tune(
        backbone, task, start=WarmStart("mine", jpt.load_prompt(source)), steps=2, **SETTINGS
    )
    named = tune(backbone, task, init=f"prompt:{source}", steps=2, **SETTINGS)
    np.testing.assert_array_equal(given.last.values, named.last.values)
    assert given.prompt.card.init == "prompt:mine"


def test_other_values_under_the_same_name_are_another_run(
    task: Path, backbone: jpt.Backbone, source: Path, tmp_path: Path
) -> None:
    prompt = jpt.load_prompt(source)
    tune(backbone, task, tmp_path / "run", start=WarmStart("a", prompt), steps=1, **SETTINGS)
    other = jpt.Prompt(prompt.values + 1, prompt.card)
    with pytest.raises(jpt.InputError, match="holds another run: start.sha256 was"):
        tune(backbone, task, tmp_path / "run", start=WarmStart("a", other), steps=1, **SETTINGS)
    moments = Moments(np.zeros_like(prompt.values), np.zeros_like(prompt.values))
    with pytest.raises(jpt.InputError, match="holds another run"):
        again = WarmStart("a", prompt, moments)
        tune(backbone, task, tmp_path / "run", start=again, steps=1, **SETTINGS)


def test_the_start_is_scored_as_evaluate_does_and_may_be_kept(
    task: Path, backbone: jpt.Backbone, source: Path
) -> None:
    settings = {**SETTINGS, "learning_rate": 1e-30}
    start = WarmStart("source", jpt.load_prompt(source))
    result = tune(backbone, task, start=start, score_start=True, steps=2, **settings)
    score = jpt.evaluate(start.prompt, task, split="validation", backbone=backbone, max_tokens=16)
    first = result.history[0]
    assert (first["step"], first["split"]) == (0, "validation")
    assert first["accuracy"] == score.value and first["loss"] == pytest.approx(score.loss)
    assert result.record["best_step"] == 0 and result.prompt.card.steps == 0  # a tie: the first
    np.testing.assert_array_equal(result.prompt.values, start.prompt.values)
    assert all(line["step"] > 0 for line in tune(backbone, task, steps=1, **SETTINGS).history)


@pytest.mark.parametrize("stop_at", [1, 3])
def test_the_start_is_scored_once_when_a_run_goes_on(
    task: Path,
    backbone: jpt.Backbone,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: int,
) -> None:
    start, real = read_start("source", source), trainer._report
    options = {"start": start, "score_start": True, "steps": 4, "eval_every": 2, **SETTINGS}
    whole = tune(backbone, task, tmp_path / "whole", **options)

    def fail(run, progress, pending, *rest):
        if pending is not None and pending[0] == stop_at:
            raise RuntimeError("power")
        return real(run, progress, pending, *rest)

    monkeypatch.setattr(trainer, "_report", fail)
    with pytest.raises(RuntimeError, match="power"):
        tune(backbone, task, tmp_path / "run", **options)
    monkeypatch.setattr(trainer, "_report", real)
    again = tune(backbone, task, tmp_path / "run", **options)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    scored = [json.loads(line)["step"] for line in lines if '"validation"' in line]
    assert scored == [0, 2, 4]
    np.testing.assert_array_equal(again.last.values, whole.last.values)
    np.testing.assert_array_equal(again.prompt.values, whole.prompt.values)


def test_runs_without_moments_are_refused(
    task: Path, backbone: jpt.Backbone, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(jpt.InputError, match="is no run folder; to copy moments, give"):
        read_start("x", source / "prompt.safetensors")
    with pytest.raises(jpt.InputError, match="holds no result.json"):
        read_start("x", tmp_path)
    run = tmp_path / "run"
    tune(backbone, task, run, steps=1, **SETTINGS)
    (run / "checkpoints").rename(run / "elsewhere")
    with pytest.raises(jpt.InputError, match="holds no checkpoints"):
        read_start("x", run)
    (run / "checkpoints").mkdir()
    with pytest.raises(jpt.InputError, match="holds no checkpoint; to copy"):
        read_start("x", run)
    with Checkpoints(run / "checkpoints") as checkpoints:
        checkpoints.save(1, {"prompt": jnp.ones((4, 32)), "optimizer": {"momentum": jnp.ones(3)}})
    with pytest.raises(jpt.InputError, match="does not fit this run .*; give a source") as refused:
        read_start("x", run)
    assert "\n" not in str(refused.value)
