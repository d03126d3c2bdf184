"""The mesh: what it refuses, where arrays lie, and that it changes no number."""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jpt.backbones.encoder import ENCODER_WEIGHTS
from jpt.backbones.registry import FAMILIES
from jpt.errors import InputError
from jpt.parallel import (
    batch_sharding,
    fetch,
    make_mesh,
    own_rows,
    parameter_shardings,
    parse_mesh,
    place,
    place_batch,
    replicated,
)
from jpt.testing import tiny_encoder, tiny_model
from jpt.tuning.losses import NO_TOKEN, Answer, label_scores
from jpt.tuning.step import build_train_step, init_state, prompt_optimizer
from jpt.types import Batch

pytestmark = pytest.mark.usefixtures("plain_programs")


def slow(*values: str) -> object:
    """A case of the slow tests."""
    return pytest.param(*values, marks=pytest.mark.slow)


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
def two_steps(family: str, mesh_text: str) -> tuple[np.ndarray, list[float], np.ndarray]:
    """Does two steps that follow the gradient: the sum of both, the losses, the label scores."""
    module, params = tiny_model(family)
    mesh, optimizer = make_mesh(mesh_text), optax.trace(1.0)
    shardings, _ = parameter_shardings(params, FAMILIES[family].weights.partition, mesh)
    params = place(params, shardings)
    start = np.random.default_rng(3).normal(0, 0.3, (6, 32)).astype(np.float32)
    state = place(init_state(start, optimizer), replicated(mesh))
    # Only T5 and decoders can score words of several pieces.
    pieces = None if family == "bert" else jnp.array([[3, 9], [4, NO_TOKEN]], jnp.int32)
    answer = Answer(jnp.array([3, 4], jnp.int32), pieces)
    step = build_train_step(module, optimizer, mesh=mesh)
    batch, losses = place_batch(batch_of(8), mesh), []
    for _ in range(2):
        state, metrics = step(params, state, batch, answer)
        losses.append(float(metrics.loss))
    scores = jax.jit(partial(label_scores, module))(params, state.prompt, batch, answer)
    return np.asarray(state.optimizer.trace), losses, np.asarray(scores)


FAMILY_NAMES = ("bert", "t5", "gpt2", "llama")
MESHES = (
    "data:8",
    "model:4",
    "model:8",
    "prompt:8",
    "data:4,model:2",
    "data:2,model:4",
    "prompt:2,data:4",
    "prompt:4,model:2",
    "prompt:2,data:2,model:2",
)
EVERY_AXIS = "prompt:2,data:2,model:2"


@pytest.mark.parametrize(
    ("family", "mesh"),
    [
        ("bert", EVERY_AXIS),
        *(slow(f, m) for f in FAMILY_NAMES for m in MESHES if m != EVERY_AXIS),
        *(slow(f, EVERY_AXIS) for f in ("t5", "gpt2", "llama")),
    ],
)
def test_every_mesh_gives_the_numbers_of_one_device(family: str, mesh: str) -> None:
    for found, expected in zip(two_steps(family, mesh), two_steps(family, "data:1"), strict=True):
        assert_near(found, expected)


def assert_near(found: object, expected: object) -> None:
    """Asserts that two arrays are equal as float32 goes: 1e-5 of the largest magnitude."""
    difference = np.abs(np.asarray(found) - np.asarray(expected)).max()
    assert difference <= 1e-5 * np.abs(np.asarray(expected)).max(), difference


def test_a_mesh_that_leaves_a_process_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "jpt.parallel.process_count", lambda: 2
    )  # all devices here are of the first
    with pytest.raises(InputError, match="1 of 2 processes would have no part"):
        make_mesh("data:2")


@pytest.mark.parametrize("mesh", ["data:4", "prompt:2,data:2"])
def test_a_batch_lies_with_its_rows_over_data(mesh: str) -> None:
    devices, batch = make_mesh(mesh), batch_of(8)
    placed = place_batch(batch, devices)
    for given, found in zip(jax.tree.leaves(batch), jax.tree.leaves(placed), strict=True):
        np.testing.assert_array_equal(fetch(found), given)
    rows = 8 // devices.shape["data"]
    assert {shard.data.shape for shard in placed.tokens.addressable_shards} == {(rows, 12)}
    assert own_rows(devices, 8) is None, "a lone process builds the whole batch"
    with pytest.raises(InputError, match="9 rows"):
        own_rows(devices, 9)


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
