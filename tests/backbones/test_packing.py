"""Real tokens alone give what padded rows give: values, gradients, neurons, in every family."""

from __future__ import annotations

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


def places_of(groups: int) -> jax.Array:
    found = pack_indices(LENGTHS, TEXT, groups)
    assert found is not None and found.shape[0] == groups
    return jnp.asarray(found)


def layout(groups: int, front: int) -> Packing:
    return pack_layout(places_of(groups), jnp.asarray(LENGTHS), TEXT, front)


def as_matrix(function: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A linear map of arrays as a matrix of what it gives for each unit array."""
    size = int(np.prod(shape))
    units = jnp.eye(size).reshape(size, *shape)
    return np.asarray(jax.vmap(function)(units)).reshape(size, -1)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("front", [0, 3])
def test_a_line_holds_every_real_token_once(groups: int, front: int) -> None:
    packing = layout(groups, front)
    rows, wide = len(LENGTHS), front + TEXT
    numbers = jnp.arange(1.0, rows * wide + 1).reshape(rows, wide)
    is_real = np.arange(wide)[None] < LENGTHS[:, None] + front
    line = np.asarray(collect(numbers, packing))
    assert sorted(line[line > 0]) == sorted(np.asarray(numbers)[is_real])
    back = spread(jnp.asarray(line), packing)
    np.testing.assert_array_equal(back, np.where(is_real, numbers, 0))


@pytest.mark.parametrize("groups", [1, 2])
def test_each_way_is_the_transpose_of_the_other_and_goes_back_as_it(groups: int) -> None:
    packing = layout(groups, 2)
    line, rows = packing.position.shape, packing.place.shape
    out = as_matrix(lambda values: spread(values, packing), line)
    into = as_matrix(lambda values: collect(values, packing), rows)
    np.testing.assert_array_equal(out, into.T)
    for function, shape, matrix in ((spread, line, out), (collect, rows, into)):
        back = jax.vjp(lambda values, way=function: way(values, packing), jnp.ones(shape))[1]
        given = (rows, line)[function is collect]
        found = as_matrix(lambda cotangent, back=back: back(cotangent)[0], given)
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


def test_the_way_back_scatters_nothing() -> None:
    packing = layout(1, 0)
    into = jax.grad(lambda rows: jnp.square(spread(collect(rows, packing), packing)).sum())
    found = operations(jax.make_jaxpr(into)(jnp.ones((4, TEXT, 3))).jaxpr)
    assert "gather" in found and not {name for name in found if "scatter" in name}


# The families


def read(name: str, places: jax.Array | None, mesh: str | None = None, **given: Any) -> Any:
    """Logits, neurons, and the gradient of the prompt, of a batch with much padding."""
    golden = load_golden(name)
    tokens, prompt = golden.input("tokens"), given.pop("prompt", golden.input("prompt"))
    tokens = jnp.resize(tokens, (len(LENGTHS), TEXT)).at[:, -1].set(tokens[0, 0])
    params = golden.params if mesh is None else golden.split(make_mesh(mesh))
    module = golden.module()
    if places is not None and mesh is not None:
        data = jax.sharding.NamedSharding(make_mesh(mesh), jax.sharding.PartitionSpec("data"))
        tokens, places = place((tokens, places), data)

    def loss(prompt: jax.Array) -> tuple[jax.Array, Any]:
        batch = (tokens, jnp.asarray(LENGTHS), prompt)
        if "answers" in given:
            options = {"method": "score_answers", "places": places}
            found = module.apply({"params": params}, *batch, given["answers"], **options)
            return found.log_probs.sum(), found.log_probs
        options = {"capture_neurons": True, "places": places, **given}
        found = module.apply({"params": params}, *batch, **options)
        return jax.nn.logsumexp(found.logits, -1).sum(), (found.logits, found.neurons)

    run = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=FAST_COMPILE)
    (_, values), gradient = run(prompt)
    return *jax.tree.leaves(values), gradient


def assert_alike(found: Any, expected: Any) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max()


def some(name: str) -> Any:
    """A case of the slow tests: each takes seconds to compile, and others are its like."""
    return pytest.param(name, marks=pytest.mark.slow)


ALWAYS = ("bert_untied", "roberta_tied", "t5_gated", "gpt2_tied", "llama_grouped")
EVERY = [name if name in ALWAYS else some(name) for name in (*ENCODERS, *T5S, *DECODERS)]


@pytest.mark.parametrize("name", EVERY)
def test_a_packed_batch_gives_what_a_padded_one_gives(name: str) -> None:
    expected = read(name, None)
    assert np.abs(expected[-1]).max() > 1e-4, "the prompt has to count"
    assert_alike(read(name, places_of(1)), expected)


@pytest.mark.parametrize(
    "name", [some("t5_gated"), "roberta_tied", "gpt2_tied", some("llama_grouped")]
)
def test_with_a_prompt_a_row_and_in_groups(name: str) -> None:
    golden = load_golden(name)
    shape = (len(LENGTHS), *golden.stored["prompt"].shape)
    prompt = jax.random.normal(jax.random.key(3), shape)
    assert_alike(read(name, places_of(2), prompt=prompt), read(name, None, prompt=prompt))


@pytest.mark.parametrize("name", ["t5_relu", some("gpt2_untied"), some("qwen2_tied")])
def test_with_answers_of_several_pieces(name: str) -> None:
    answers = jnp.array([[[5, 6, 7], [8, 9, 5]]])
    found = read(name, places_of(1), answers=answers)
    assert_alike(found, read(name, None, answers=answers))


def test_the_encoders_neurons_of_t5() -> None:
    given = {"neuron_stack": "encoder"}
    assert_alike(read("t5_gated", places_of(2), **given), read("t5_gated", None, **given))


@pytest.mark.parametrize("name", ["bert_tied", "t5_gated", "llama_grouped"])
def test_each_device_packs_its_own_rows(name: str) -> None:
    found = read(name, places_of(2), mesh="data:2,model:2")
    assert_alike(found, read(name, None))


def test_every_position_is_computed_where_all_are_asked_for() -> None:
    given = {"every_position": True}
    expected = read("bert_tied", None, **given)
    assert_alike(read("bert_tied", places_of(1), **given), expected)


def test_a_row_without_text_stays_finite() -> None:
    lengths = jnp.array([0, 2])
    places = jnp.asarray(pack_indices(np.asarray(lengths), 6))
    for name in ("gpt2_tied", "llama_plain", "roberta_tied", "t5_relu"):
        golden = load_golden(name)
        batch = (jnp.ones((2, 6), jnp.int32), lengths, golden.input("prompt"))
        run = jax.jit(golden.module().apply, compiler_options=FAST_COMPILE)
        found = run({"params": golden.params}, *batch, places=places)
        assert np.isfinite(found.logits).all()
