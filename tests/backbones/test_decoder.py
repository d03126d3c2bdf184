"""Decoders: prompts computed once, masks, fillers, dropout, greedy steps and rotary positions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpt.backbones.decoder import Decoder
from jpt.backbones.layers import Rotary
from jpt.parallel import batch_sharding, make_mesh, place
from jpt.types import Parameters
from tests.helpers.golden import (
    DECODERS,
    EQUAL,
    FAST_COMPILE,
    Golden,
    ask,
    difference,
    load_golden,
    read,
    slope,
    write,
)
from tests.helpers.plain_models import read_plainly

GPT2, LLAMA = "gpt2_tied", "llama_grouped"
both_families = pytest.mark.parametrize("name", [GPT2, LLAMA])


@partial(jax.jit, static_argnums=0, compiler_options=FAST_COMPILE)
def plain_slope(
    golden: Golden, params: Parameters, prompt: jax.Array, mask: jax.Array
) -> tuple[tuple[jax.Array, tuple[jax.Array, jax.Array]], jax.Array]:
    """Loss, scores and neurons, and the gradient, of the plain concatenation [prompt; text]."""

    def loss(prompt: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        tokens = golden.input("tokens")
        scores, neurons = read_plainly(golden.config, params, tokens, prompt, mask)
        answer = golden.at_answer(scores)
        entropy = jax.nn.logsumexp(answer, axis=-1).mean() - answer[:, 7].mean()
        return entropy, (scores, neurons)

    return jax.value_and_grad(loss, has_aux=True)(prompt)


@pytest.mark.parametrize(
    ("name", "is_shared"),
    [("gpt2_untied", True), (LLAMA, True), (LLAMA, False), ("qwen2_untied", True)],
)
def test_prompt_computed_once_equals_the_plain_concatenation(name: str, is_shared: bool) -> None:
    golden = load_golden(name)
    decoder, (tokens, lengths, prompt) = golden.module(), golden.batch
    prompt = prompt if is_shared else golden.rows_of_prompts()
    ones = jnp.ones((golden.config.layers, golden.config.neurons))
    (value, (scores, neurons)), gradient = plain_slope(golden, golden.params, prompt, ones)
    (found, _), slopes = slope(decoder, golden.params, tokens, lengths, prompt)
    assert difference(found, value) < EQUAL
    assert difference(slopes, gradient) < EQUAL
    options = {"capture_neurons": True, "every_position": True}
    whole = ask(golden, tokens, lengths, prompt, **options)
    is_text = np.arange(tokens.shape[1])[None] < golden.stored["lengths"][:, None]
    assert difference(whole.logits[is_text], scores[is_text]) < EQUAL
    assert difference(whole.neurons[:, is_text], neurons[:, is_text]) < EQUAL


@both_families
def test_masked_neurons_equal_the_plain_computation(name: str) -> None:
    golden = load_golden(name)
    mask, (tokens, lengths, prompt) = golden.input("neuron_mask"), golden.batch
    (_, (scores, neurons)), _ = plain_slope(golden, golden.params, prompt, mask)
    found = ask(golden, tokens, lengths, prompt, neuron_mask=mask, capture_neurons=True)
    assert difference(found.logits, golden.at_answer(scores)) < EQUAL
    # Returned are the values before the mask; only later layers change.
    assert difference(found.neurons, golden.at_answer(neurons)) < EQUAL


def test_a_shared_prompt_costs_operations_once() -> None:
    golden = load_golden(LLAMA)
    decoder, params = golden.module(), golden.params
    long = jnp.ones((24, golden.config.width))

    def work(prompt: jax.Array) -> float:
        tokens, lengths = jnp.ones((16, 2), jnp.int32), jnp.full((16,), 2)
        program = slope.lower(decoder, params, tokens, lengths, prompt)
        return program.cost_analysis()["flops"]

    # 24 + 16 * 2 positions of prompt and text, not 16 * (24 + 2).
    assert work(long) < 0.3 * work(jnp.broadcast_to(long[None], (16, *long.shape)))


@both_families
def test_rows_that_only_fill_a_batch_change_nothing(name: str) -> None:
    # Also rows without any text, and buckets longer than GPT-2's positions.
    golden = load_golden(name)
    tokens, lengths, prompt = golden.batch
    longer = golden.config.positions if golden.config.is_gpt2 else tokens.shape[1]
    filled = jnp.zeros((6, longer), jnp.int32).at[:4, : tokens.shape[1]].set(tokens)
    filled_lengths = jnp.concatenate([lengths, jnp.array([0, 1], lengths.dtype)])
    found = ask(golden, filled, filled_lengths, prompt).logits
    assert np.isfinite(found).all()
    assert difference(found[:4], ask(golden, tokens, lengths, prompt).logits) < EQUAL


def with_constants(params: Parameters, **biases: float | None) -> Parameters:
    """Weights whose maps return a constant; None makes neuron d the map's input at d."""
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


@pytest.mark.plain_programs
def test_dropout_of_gpt2_is_independent_by_layer_row_and_position() -> None:
    # The attention adds 1000 where it is kept, so the feed-forward layer sees what was kept.
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
        # Independent masks agree 0.75 ** 2 + 0.25 ** 2 = 0.625 of the time.
        assert abs((first == second).mean() - 0.625) < 0.1
    # After the second layer 0, 1 or 2 additions were kept: the largest are those kept in both.
    largest = seen[1].max(axis=-1, keepdims=True)
    assert abs((seen[1] > 0.9 * largest).mean() - 0.75**2) < 0.06


@pytest.mark.plain_programs
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


@pytest.mark.plain_programs
def test_dropout_of_llama_reaches_attention_weights_alone() -> None:
    golden = load_golden(LLAMA)
    on, key = golden.module(dropout_rate=0.25), jax.random.key(4)
    # If the attention adds nothing, nothing is left that could be dropped.
    params = with_constants(golden.params, attention_out=0.0)
    found = read(on, params, *golden.batch, key).logits
    expected = read(golden.module(), params, *golden.batch).logits
    assert difference(found, expected) < EQUAL


def write_greedily(golden: Golden, params: dict, tokens: jax.Array) -> np.ndarray:
    _, lengths, prompt = golden.batch
    forced = np.full_like(golden.stored["greedy_tokens"], -1)
    _, best = write(golden, params, (tokens, lengths, prompt), forced)
    is_end = best == golden.stored["eos_id"]
    return np.where(np.cumsum(is_end, axis=1) - is_end > 0, -1, best)


@pytest.mark.parametrize("name", DECODERS)
def test_greedy_steps_agree_with_torch(name: str) -> None:
    golden = load_golden(name)
    found = write_greedily(golden, golden.params, golden.input("tokens"))
    assert np.array_equal(found, golden.stored["greedy_tokens"])


@both_families
def test_greedy_steps_on_a_mesh_agree_with_torch(name: str) -> None:
    golden, mesh = load_golden(name), make_mesh("data:2,model:4")
    tokens = place(golden.input("tokens"), batch_sharding(mesh, 4))
    found = write_greedily(golden, golden.split(mesh), tokens)
    assert np.array_equal(found, golden.stored["greedy_tokens"])


@pytest.mark.parametrize("name", [name for name in DECODERS if "gpt2" not in name])
def test_rotary_positions_matter(name: str) -> None:
    golden = load_golden(name)
    config, batch = golden.config, golden.batch
    other = Rotary(config.rotary.base * 2 if config.rotary.kind == "default" else 500.0)
    changed = Decoder(type(config)(**{**vars(config), "rotary": other}))
    found = read(changed, golden.params, *batch).logits
    assert difference(found, golden.at_answer(golden.stored["vocabulary_logits"])) > 0.01
