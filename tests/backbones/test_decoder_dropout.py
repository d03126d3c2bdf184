"""Dropout inside the layers of decoders: off by default, and where each family has it."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpt.types import Parameters
from tests.backbones.golden import difference, load_golden, read

pytestmark = pytest.mark.usefixtures("plain_programs")

EQUAL = 1e-5
GPT2, LLAMA = "gpt2_tied", "llama_grouped"


@pytest.mark.parametrize("name", [GPT2, LLAMA])
def test_dropout_is_off_unless_asked_for_and_a_function_of_its_key(name: str) -> None:
    golden = load_golden(name)
    off, on = golden.module(), golden.module(dropout_rate=0.1)
    call = partial(read, on, golden.params, *golden.batch)
    plain = read(off, golden.params, *golden.batch).logits
    first, again = call(jax.random.key(1)).logits, call(jax.random.key(1)).logits
    assert np.array_equal(first, again)
    assert difference(call(jax.random.key(2)).logits, first) > 0.01
    assert difference(first, plain) > 0.01


def with_constants(params: Parameters, **biases: float | None) -> Parameters:
    """Weights whose maps give a constant; None makes neuron d what entered the map at d."""
    shown = jax.tree.map(lambda leaf: leaf, params)
    for layer in (shown["layers"], shown["last_layer"]):
        for name, bias in biases.items():
            shape = layer[name]["kernel"].shape
            kernel = jnp.broadcast_to(jnp.eye(*shape[-2:]) * float(bias is None), shape)
            layer[name] = {
                "kernel": kernel,
                "bias": jnp.full_like(layer[name]["bias"], bias or 0.0),
            }
        layer["feed_forward_norm"] = jax.tree.map(jnp.zeros_like, layer["feed_forward_norm"])
        layer["feed_forward_norm"]["scale"] += 1
    return shown


def test_dropout_of_gpt2_draws_anew_for_every_layer_row_and_position_at_its_rate() -> None:
    """The attention adds 1000 where it is kept, so the feed-forward layer sees what was kept."""
    golden = load_golden(GPT2)
    maps = {"attention_out": 1000.0, "feed_forward_in": None, "feed_forward_out": 0.0}
    params = with_constants(golden.params, **maps)
    options = {"capture_neurons": True, "every_position": True}
    decoder = golden.module(dropout_rate=0.25)
    neurons = read(decoder, params, *golden.batch, jax.random.key(4), **options).neurons
    seen = np.asarray(neurons[..., :30])  # [L, B, T, D]
    kept = seen[0] > 0
    assert abs(kept.mean() - 0.75) < 0.04
    for axis in range(2):
        first, second = np.take(kept, 0, axis), np.take(kept, 1, axis)
        # Equal as often as independent draws are: 0.75 ** 2 + 0.25 ** 2 = 0.625 of the time.
        assert abs((first == second).mean() - 0.625) < 0.1
    # After the second layer 0, 1 or 2 draws were kept: the largest are those kept in both.
    largest = seen[1].max(axis=-1, keepdims=True)
    assert abs((seen[1] > 0.9 * largest).mean() - 0.75**2) < 0.06


def test_dropout_of_gpt2_reaches_what_the_feed_forward_map_adds() -> None:
    golden = load_golden(GPT2)
    params = with_constants(golden.params, attention_out=0.0, feed_forward_out=1000.0)
    params["final_norm"] = {"scale": jnp.ones(30), "bias": jnp.zeros(30)}
    decoder = golden.module(dropout_rate=0.25)
    hidden = read(decoder, params, *golden.batch, jax.random.key(4), every_position=True).hidden
    levels = np.asarray(hidden)
    # Three layers, each kept or not: four levels, the highest kept in all.
    highest = levels > 0.9 * levels.max(axis=-1, keepdims=True)
    assert abs(highest.mean() - 0.75**3) < 0.06


def test_dropout_of_llama_reaches_attention_weights_alone() -> None:
    golden = load_golden(LLAMA)
    on, key = golden.module(dropout_rate=0.25), jax.random.key(4)
    # Where the attention adds nothing, nothing is left that could be dropped.
    silent = with_constants(golden.params, attention_out=0.0)
    found = read(on, silent, *golden.batch, key).logits
    expected = read(golden.module(), silent, *golden.batch).logits
    assert difference(found, expected) < EQUAL
