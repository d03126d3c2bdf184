"""The mesh: what it refuses, where arrays lie, and that it changes no number."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jpt.backbones.encoder_weights import ENCODER_WEIGHTS
from jpt.errors import InputError
from jpt.mesh import (
    batch_sharding,
    make_mesh,
    parameter_shardings,
    parse_mesh,
    place,
    replicated,
)
from jpt.testing import tiny_encoder
from jpt.tuning.losses import Answer
from jpt.tuning.step import build_train_step, init_state, prompt_optimizer
from jpt.types import Batch


@pytest.mark.parametrize(
    ("text", "needles"),
    [
        ("rows:2", ("rows", "data")),
        ("data", ("data",)),
        ("data:0", ("'0'",)),
        ("data:x", ("'x'",)),
        ("data:2,data:2", ("twice",)),
        ("data:4,model:4", ("16 devices", "8")),
    ],
)
def test_wrong_meshes_are_refused(text: str, needles: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as error:
        parse_mesh(text, 8)
    for needle in needles:
        assert needle in str(error.value)


def test_axes_left_out_have_size_one() -> None:
    assert parse_mesh("model:2", 8) == {"prompt": 1, "data": 1, "model": 2}
    assert parse_mesh(None, 8) == {"prompt": 1, "data": 8, "model": 1}
    assert dict(make_mesh("prompt:2,data:2,model:2").shape) == {"prompt": 2, "data": 2, "model": 2}


def test_a_parameter_without_a_rule_is_an_error() -> None:
    with pytest.raises(InputError, match="layers/new/kernel"):
        parameter_shardings(
            {"layers": {"new": {"kernel": jnp.ones((2, 2))}}},
            ENCODER_WEIGHTS.partition,
            make_mesh(),
        )


def test_an_axis_that_does_not_divide_leaves_the_dimension_whole_and_says_so() -> None:
    table = [("a", PartitionSpec(None, "model"))]
    shardings, notes = parameter_shardings({"a": jnp.ones((4, 6))}, table, make_mesh("model:4"))
    assert shardings["a"].spec == PartitionSpec(None, None)
    assert len(notes) == 1 and "6" in notes[0] and "model" in notes[0]


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match="10 rows"):
        batch_sharding(make_mesh("data:4"), 10)


def batch_of(rows: int) -> Batch:
    random = np.random.default_rng(0)
    lengths = random.integers(2, 12, rows).astype(np.int32)
    tokens = random.integers(3, 61, (rows, 12)).astype(np.int32)
    labels = random.integers(0, 2, rows).astype(np.int32)
    return Batch(tokens, lengths, labels, np.ones(rows, np.float32))


@cache
def gradient_step(mesh_text: str) -> tuple[np.ndarray, float]:
    """Takes one step of an optimizer that keeps the gradient, and gives it with the loss."""
    module, params = tiny_encoder()
    mesh = make_mesh(mesh_text)
    shardings, _ = parameter_shardings(params, ENCODER_WEIGHTS.partition, mesh)
    params = place(params, shardings)
    optimizer = optax.trace(0.0)
    start = 0.02 * jax.random.normal(jax.random.key(3), (6, 32))
    state = place(init_state(start, optimizer), replicated(mesh))
    step, answer = build_train_step(module, optimizer), Answer(jnp.array([3, 4], jnp.int32))
    batch = place(batch_of(8), batch_sharding(mesh, 8))
    state, metrics = step(params, state, batch, answer)
    return np.asarray(state.optimizer.trace), float(metrics.loss)


@pytest.mark.parametrize("mesh", ["data:8", "prompt:2,data:2,model:2"])
def test_every_mesh_gives_the_numbers_of_one_device(mesh: str) -> None:
    expected, expected_loss = gradient_step("data:1")
    gradient, loss = gradient_step(mesh)
    np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
    assert abs(loss - expected_loss) <= 1e-5 * abs(expected_loss)


def test_the_state_stays_whole_so_that_all_steps_are_one_program() -> None:
    module, params = tiny_encoder()
    mesh = make_mesh("data:2,model:4")
    shardings, _ = parameter_shardings(params, ENCODER_WEIGHTS.partition, mesh)
    params = place(params, shardings)
    optimizer = prompt_optimizer(1e-2)
    state = place(init_state(jnp.ones((6, 32)), optimizer), replicated(mesh))
    step = build_train_step(module, optimizer, mesh=mesh)
    answer, batch = (
        Answer(jnp.array([3, 4], jnp.int32)),
        place(batch_of(8), batch_sharding(mesh, 8)),
    )
    for _ in range(2):
        given, (state, _) = state, step(params, state, batch, answer)
        assert given.prompt.is_deleted(), "the state was not donated"
        assert state.prompt.sharding.is_fully_replicated
    assert step._cache_size() == 1


def test_weights_are_really_split() -> None:
    _, params = tiny_encoder()
    mesh = make_mesh("model:4")
    shardings, _ = parameter_shardings(params, ENCODER_WEIGHTS.partition, mesh)
    params = place(params, shardings)
    kernel = params["last_layer"]["feed_forward_in"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(32, 12)}
    assert {s.data.shape for s in params["embeddings"]["word"].addressable_shards} == {(61, 8)}
