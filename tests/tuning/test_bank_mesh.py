"""The step of a bank gives the numbers of one device on every mesh, for every family."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jpt.backbones.registry import FAMILIES
from jpt.data import batches
from jpt.parallel import make_mesh, parameter_shardings, place
from jpt.testing import tiny_model
from jpt.tuning.losses import Answer
from jpt.tuning.multi_run import (
    multi_run_train_step,
    run_sharding,
    stack_answers,
    stack_batches,
    stack_trees,
)
from jpt.tuning.step import init_state, paper_train_step, prompt_optimizer
from jpt.types import Batch

pytestmark = pytest.mark.usefixtures("plain_programs")

RATES = (0.01, 0.003, 0.1, 0.01)
LABELS = ((7, 8), (9, 10, 11), (12, 8), (7, 9, 11))


def batch_of(number: int) -> Batch:
    random = np.random.default_rng(number)
    width = 6 + 4 * (number % 2)
    lengths = random.integers(2, width, 4).astype(np.int32)
    tokens = random.integers(5, 60, (4, width)).astype(np.int32)
    return Batch(tokens, lengths, np.array([0, 1, 1, 0], np.int32), np.ones(4, np.float32))


def starts(width: int) -> list[np.ndarray]:
    random = np.random.default_rng(9)
    return [0.3 * random.standard_normal((5, width), np.float32) for _ in RATES]


def bank_steps(family: str, mesh_text: str, packed: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Two steps of four runs: their losses, and what Adam remembers of the first gradients."""
    module, params = tiny_model(family)
    mesh = make_mesh(mesh_text)
    shardings, _ = parameter_shardings(params, FAMILIES[family].weights.partition, mesh)
    rows = NamedSharding(mesh, PartitionSpec("prompt", "data"))
    answer = stack_answers([Answer(jnp.asarray(ids)) for ids in LABELS])
    given = place(
        (answer, jnp.asarray(RATES), jnp.zeros(len(RATES), jnp.uint32)), run_sharding(mesh)
    )
    blank = [init_state(values, prompt_optimizer(1.0)) for values in starts(32)]
    state = place(stack_trees(blank), run_sharding(mesh))
    groups = mesh.shape["data"] if packed else None
    batch = stack_batches([batch_of(number) for number in range(4)], 0, groups)
    assert (batch.packed_index is not None) == packed
    batch = place(batch, rows)
    step, losses, first = multi_run_train_step(module, "labels", mesh), [], None
    for _ in range(2):
        state, metrics = step(place(params, shardings), state, batch, *given)
        losses.append(np.asarray(metrics.loss))
        first = np.asarray(optax.tree.get(state.optimizer, "mu")) if first is None else first
    return np.stack(losses), first


@cache
def single_steps(family: str) -> tuple[np.ndarray, np.ndarray]:
    """The same, every run by itself and its batch as short as it is."""
    module, params = tiny_model(family)
    losses, first = [], []
    for number, values in enumerate(starts(32)):
        state = init_state(values, prompt_optimizer(1.0))
        answer = Answer(jnp.asarray(LABELS[number]))
        step, own = paper_train_step(module, RATES[number], 0), []
        for turn in range(2):
            state, metrics = step(params, state, batch_of(number), answer)
            own.append(float(metrics.loss))
            if turn == 0:
                first.append(np.asarray(optax.tree.get(state.optimizer, "mu")))
        losses.append(own)
    return np.asarray(losses).T, np.stack(first)


def assert_near(found: Any, expected: Any) -> None:
    """Asserts equality as float32 goes: 1e-5 of the largest magnitude."""
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def slow(*values: str) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


EVERY_AXIS = "prompt:2,data:2,model:2"
CASES = [
    (family, mesh)
    for family in ("bert", "t5", "gpt2", "llama")
    for mesh in ("prompt:1", EVERY_AXIS, "prompt:4,model:2", "model:4")
]


@pytest.mark.parametrize(
    ("family", "mesh"),
    [
        ("bert", EVERY_AXIS),
        slow("gpt2", "prompt:4,data:2"),
        *(slow(*case) for case in CASES if case != ("bert", EVERY_AXIS)),
    ],
)
def test_a_bank_on_a_mesh_is_each_run_alone(family: str, mesh: str) -> None:
    losses, first = bank_steps(family, mesh)
    plain_losses, plain_first = single_steps(family)
    assert np.abs(losses[1] - losses[0]).min() > 1e-5, "every run has to move"
    assert_near(losses, plain_losses)
    for run in range(len(RATES)):
        assert_near(first[run], plain_first[run])


@pytest.mark.parametrize(
    ("family", "mesh"), [("gpt2", EVERY_AXIS), slow("bert", EVERY_AXIS), slow("t5", "prompt:2")]
)
def test_a_packed_bank_is_each_run_alone(
    monkeypatch: pytest.MonkeyPatch, family: str, mesh: str
) -> None:
    monkeypatch.setattr(batches, "MOST_SHARES", batches.SHARES)
    losses, first = bank_steps(family, mesh, packed=True)
    plain_losses, plain_first = single_steps(family)
    assert_near(losses, plain_losses)
    for run in range(len(RATES)):
        assert_near(first[run], plain_first[run])


def test_runs_lie_over_their_axis() -> None:
    mesh = make_mesh("prompt:4")
    blank = [init_state(values, prompt_optimizer(1.0)) for values in starts(32)]
    state = place(stack_trees(blank), run_sharding(mesh))
    assert {shard.data.shape for shard in state.prompt.addressable_shards} == {(1, 5, 32)}
