"""Packed batches equal padded ones in every family: values, gradients, neurons."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpt.backbones.packing import Packing, collect, pack_layout, spread
from jpt.data.batches import pack_indices
from jpt.parallel import make_mesh, place
from tests.helpers.golden import DECODERS, ENCODERS, T5S, load_golden
from tests.helpers.running import FAST_COMPILE

LENGTHS, TEXT = np.array([8, 3, 1, 5], np.int32), 8


def packed_indices(groups: int) -> jax.Array:
    found = pack_indices(LENGTHS, TEXT, groups)
    assert found is not None and found.shape[0] == groups
    return jnp.asarray(found)


def layout(groups: int, front: int) -> Packing:
    return pack_layout(packed_indices(groups), jnp.asarray(LENGTHS), TEXT, front)


def as_matrix(function: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The matrix of a linear map of arrays."""
    size = int(np.prod(shape))
    units = jnp.eye(size).reshape(size, *shape)
    return np.asarray(jax.vmap(function)(units)).reshape(size, -1)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("front", [0, 3])
def test_packed_rows_hold_every_real_token_once(groups: int, front: int) -> None:
    packing = layout(groups, front)
    rows, wide = len(LENGTHS), front + TEXT
    numbers = jnp.arange(1.0, rows * wide + 1).reshape(rows, wide)
    is_real = np.arange(wide)[None] < LENGTHS[:, None] + front
    packed = np.asarray(collect(numbers, packing))
    assert sorted(packed[packed > 0]) == sorted(np.asarray(numbers)[is_real])
    back = spread(jnp.asarray(packed), packing)
    np.testing.assert_array_equal(back, np.where(is_real, numbers, 0))


@pytest.mark.parametrize("groups", [1, 2])
def test_spread_and_collect_are_transposes_with_right_gradients(groups: int) -> None:
    packing = layout(groups, 2)
    packed, rows = packing.position.shape, packing.slot.shape
    out = as_matrix(lambda values: spread(values, packing), packed)
    into = as_matrix(lambda values: collect(values, packing), rows)
    np.testing.assert_array_equal(out, into.T)
    for function, shape, other, matrix in (
        (spread, packed, rows, out),
        (collect, rows, packed, into),
    ):
        back = jax.vjp(lambda values, f=function: f(values, packing), jnp.ones(shape))[1]
        found = as_matrix(lambda cotangent, back=back: back(cotangent)[0], other)
        np.testing.assert_array_equal(found, matrix.T)


def operations(jaxpr: Any) -> set[str]:
    found = set()
    for equation in jaxpr.eqns:
        found.add(equation.primitive.name)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found |= operations(inner)
    return found


def test_backward_pass_has_no_scatter() -> None:
    packing = layout(1, 0)
    into = jax.grad(lambda rows: jnp.square(spread(collect(rows, packing), packing)).sum())
    found = operations(jax.make_jaxpr(into)(jnp.ones((4, TEXT, 3))).jaxpr)
    assert "gather" in found and not {name for name in found if "scatter" in name}


def read(name: str, packed: jax.Array | None, mesh: str | None = None, **options: Any) -> Any:
    """Logits, neurons and the gradient of the prompt, of a batch with much padding."""
    golden = load_golden(name)
    tokens, prompt = golden.input("tokens"), options.pop("prompt", golden.input("prompt"))
    tokens = jnp.resize(tokens, (len(LENGTHS), TEXT)).at[:, -1].set(tokens[0, 0])
    params = golden.params if mesh is None else golden.split(make_mesh(mesh))
    module = golden.module()
    if packed is not None and mesh is not None:
        data = jax.sharding.NamedSharding(make_mesh(mesh), jax.sharding.PartitionSpec("data"))
        tokens, packed = place((tokens, packed), data)

    def loss(prompt: jax.Array) -> tuple[jax.Array, Any]:
        apply = partial(module.apply, {"params": params}, tokens, jnp.asarray(LENGTHS), prompt)
        if "answers" in options:
            found = apply(**options, method="score_answers", packed_index=packed)
            return found.log_probs.sum(), found.log_probs
        found = apply(capture_neurons=True, packed_index=packed, **options)
        return jax.nn.logsumexp(found.logits, -1).sum(), (found.logits, found.neurons)

    run = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=FAST_COMPILE)
    (_, values), gradient = run(prompt)
    return *jax.tree.leaves(values), gradient


def assert_packing_changes_nothing(
    name: str, groups: int = 1, mesh: str | None = None, **options: Any
) -> None:
    found = read(name, packed_indices(groups), mesh, **options)
    expected = read(name, None, **options)
    assert np.abs(expected[-1]).max() > 1e-4, "the prompt has no influence"
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max()


@pytest.mark.parametrize("name", [*ENCODERS, *T5S, *DECODERS])
def test_packed_batch_equals_padded_batch(name: str) -> None:
    assert_packing_changes_nothing(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5_gated", "roberta_tied", "gpt2_tied", "llama_grouped"])
def test_with_a_prompt_a_row_and_in_groups(name: str) -> None:
    shape = (len(LENGTHS), *load_golden(name).stored["prompt"].shape)
    prompt = jax.random.normal(jax.random.key(3), shape)
    assert_packing_changes_nothing(name, 2, prompt=prompt)


@pytest.mark.parametrize("name", ["t5_relu", "gpt2_untied", "qwen2_tied"])
def test_with_answers_of_several_tokens(name: str) -> None:
    assert_packing_changes_nothing(name, answers=jnp.array([[[5, 6, 7], [8, 9, 5]]]))


@pytest.mark.slow
def test_the_encoders_neurons_of_t5() -> None:
    assert_packing_changes_nothing("t5_gated", 2, neuron_stack="encoder")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert_tied", "t5_gated", "llama_grouped"])
def test_each_device_packs_its_own_rows(name: str) -> None:
    assert_packing_changes_nothing(name, 2, mesh="data:2,model:2")


def test_every_position_is_computed_if_all_are_asked_for() -> None:
    assert_packing_changes_nothing("bert_tied", every_position=True)


@pytest.mark.slow
def test_a_row_without_text_stays_finite() -> None:
    lengths = jnp.array([0, 2])
    packed = jnp.asarray(pack_indices(np.asarray(lengths), 6))
    for name in ("gpt2_tied", "llama_plain", "roberta_tied", "t5_relu"):
        golden = load_golden(name)
        batch = (jnp.ones((2, 6), jnp.int32), lengths, golden.input("prompt"))
        run = jax.jit(golden.module().apply, compiler_options=FAST_COMPILE)
        found = run({"params": golden.params}, *batch, packed_index=packed)
        assert np.isfinite(found.logits).all()
