"""Ten steps of each objective are those of torch: same weights, same data, same losses."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jpt.transfer.projector import (
    Pairs,
    Projector,
    TaskBatch,
    distance_step,
    project,
    projector_optimizer,
    start,
    task_step,
)
from jpt.tuning.losses import Answer
from jpt.types import Batch, Parameters
from tests.backbones.golden import FIXTURES as BACKBONES
from tests.backbones.golden import load_golden

pytestmark = pytest.mark.usefixtures("plain_programs")

FILE = Path(__file__).parent / "fixtures" / "projector.safetensors"
TOLERANCE = 1e-4
TARGET = "bert_tied"


@cache
def stored() -> dict[str, np.ndarray]:
    return load_file(FILE)


def module(activation: str) -> Projector:
    _, rows, width = stored()["targets"].shape
    return Projector(rows, width, len(stored()["down.bias"]), activation)


def weights() -> Parameters:
    """The stored weights; torch has its matrices the other way round."""
    found = stored()
    return {
        name: {
            "kernel": jnp.asarray(found[f"{name}.weight"].T),
            "bias": jnp.asarray(found[f"{name}.bias"]),
        }
        for name in ("down", "up")
    } | {
        "norm": {
            "scale": jnp.asarray(found["norm.weight"]),
            "bias": jnp.asarray(found["norm.bias"]),
        }
    }


def distance_losses(activation: str) -> list[float]:
    step = distance_step(module(activation), 1e-4)
    state = start(weights(), projector_optimizer("distance", 1e-4))
    pairs = Pairs(jnp.asarray(stored()["sources"]), jnp.asarray(stored()["targets"]))
    losses = []
    for drawn in stored()["drawn"]:
        state, metrics = step(pairs, state, jnp.asarray(drawn), None)
        losses.append(float(metrics.loss))
    return losses


@cache
def run_tasks(activation: str, shift: int = 0) -> tuple[list[float], np.ndarray]:
    """Ten steps; a shift gives the rows of a task the prompt of another."""
    golden, found = load_golden(TARGET), stored()
    module_, state = module(activation), start(weights(), projector_optimizer("task", 5e-3))
    step, losses = task_step(golden.module(), module_, 5e-3), []
    for place, task in enumerate(found["tasks"]):
        rows = (found[name][place] for name in ("tokens", "lengths", "labels"))
        batch = Batch(*map(jnp.asarray, rows), jnp.ones(len(found["labels"][place])))
        answer = Answer(jnp.asarray(found["label_ids"][task]))
        source = jnp.asarray(found["sources"][(task + shift) % 3])
        state, metrics = step(golden.params, state, TaskBatch(batch, source, answer), None)
        losses.append(float(metrics.loss))
    return losses, project(module_, state.prompt, found["sources"])


@pytest.mark.parametrize("activation", ["leaky_relu", "tanh"])
def test_first_prompts_agree(activation: str) -> None:
    found = project(module(activation), weights(), stored()["sources"])
    np.testing.assert_allclose(found, stored()[f"{activation}/first"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["leaky_relu", "tanh"])
def test_distance_losses_agree_at_every_step(activation: str) -> None:
    expected = stored()[f"{activation}/distance"]
    np.testing.assert_allclose(distance_losses(activation), expected, rtol=TOLERANCE)


@pytest.mark.parametrize("activation", ["leaky_relu", "tanh"])
def test_task_losses_agree_at_every_step(activation: str) -> None:
    losses, projected = run_tasks(activation)
    np.testing.assert_allclose(losses, stored()[f"{activation}/task"], rtol=TOLERANCE)
    expected = stored()[f"{activation}/projected"]
    assert np.abs(projected - expected).max() < 1e-3 * np.abs(expected).max()


def test_fixture_is_telling() -> None:
    """Wrong activation, wrong pairing, lost gradient: each would be seen."""
    found = stored()
    assert FILE.stat().st_size < 200_000
    assert (BACKBONES / TARGET / "model.safetensors").is_file()
    assert len(set(found["tasks"].tolist())) == 3, "all tasks have their turn"
    relu, tanh = found["leaky_relu/task"], found["tanh/task"]
    assert np.abs(relu / tanh - 1).min() > 100 * TOLERANCE
    moved = np.abs(found["leaky_relu/projected"] - found["leaky_relu/first"]).max()
    assert moved > 0.1, "the gradient reaches the projector"


def test_rows_with_another_tasks_prompt_would_be_seen() -> None:
    losses, _ = run_tasks("leaky_relu", shift=1)
    assert np.abs(losses / stored()["leaky_relu/task"] - 1).max() > 100 * TOLERANCE
