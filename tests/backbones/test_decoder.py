"""What must hold of a decoder whatever its weights: shortcuts, padding, banks, masks.

The weights are those of the stored models, which are large enough that every part is felt.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpt.backbones.decoder import Decoder
from jpt.types import Parameters
from tests.backbones.golden import FAST_COMPILE, Golden, ask, difference, load_golden, read
from tests.backbones.plain_decoder import read_plainly

EQUAL = 1e-5  # the house's meaning of "equal" in float32

# GPT-2 with two layers; grouped heads, rotary positions and biases; one layer, nothing scanned.
every_model = pytest.mark.parametrize("name", ["gpt2_untied", "llama_grouped", "qwen2_untied"])
GPT2, LLAMA = "gpt2_tied", "llama_grouped"
both_families = pytest.mark.parametrize("name", [GPT2, LLAMA])


def entropy(logits: jax.Array) -> jax.Array:
    """A loss over all words at the answer."""
    return jax.nn.logsumexp(logits, axis=-1).mean() - logits[:, 7].mean()


@partial(jax.jit, static_argnums=0, static_argnames="every_position", compiler_options=FAST_COMPILE)
def slope(
    decoder: Decoder,
    params: Parameters,
    tokens: jax.Array,
    lengths: jax.Array,
    prompt: jax.Array,
    every_position: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """The loss and its gradient with respect to the prompt."""

    def loss(prompt: jax.Array) -> jax.Array:
        options = {"every_position": every_position}
        logits = decoder.apply({"params": params}, tokens, lengths, prompt, **options).logits
        if every_position:
            logits = logits[jnp.arange(tokens.shape[0]), lengths - 1]
        return entropy(logits)

    return jax.value_and_grad(loss)(prompt)


@partial(jax.jit, static_argnums=0, compiler_options=FAST_COMPILE)
def plain_slope(
    golden: Golden, params: Parameters, prompt: jax.Array, mask: jax.Array
) -> tuple[tuple[jax.Array, tuple[jax.Array, jax.Array]], jax.Array]:
    """Loss, scores and neurons, and the gradient, of the plain concatenation [prompt; text]."""
    tokens, lengths, _ = golden.batch

    def loss(prompt: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        scores, neurons = read_plainly(golden.config, params, tokens, prompt, mask)
        return entropy(scores[jnp.arange(tokens.shape[0]), lengths - 1]), (scores, neurons)

    return jax.value_and_grad(loss, has_aux=True)(prompt)


@pytest.mark.parametrize(
    ("name", "is_shared"),
    [("gpt2_untied", True), (LLAMA, True), (LLAMA, False), ("qwen2_untied", True)],
)
def test_prompt_computed_once_equals_the_plain_concatenation(name: str, is_shared: bool) -> None:
    """Values and gradients, of one prompt for all rows and of one a row."""
    golden = load_golden(name)
    decoder, (tokens, lengths, prompt) = golden.module(), golden.batch
    prompt = prompt if is_shared else golden.rows_of_prompts()
    ones = jnp.ones((golden.config.layers, golden.config.neurons))
    (value, (scores, neurons)), gradient = plain_slope(golden, golden.params, prompt, ones)
    found = slope(decoder, golden.params, tokens, lengths, prompt)
    assert difference(found[0], value) < EQUAL
    assert difference(found[1], gradient) < EQUAL
    options = {"capture_neurons": True, "every_position": True}
    whole = ask(golden, tokens, lengths, prompt, **options)
    is_text = np.arange(tokens.shape[1])[None] < golden.stored["lengths"][:, None]
    assert difference(whole.logits[is_text], scores[is_text]) < EQUAL
    assert difference(whole.neurons[:, is_text], neurons[:, is_text]) < EQUAL


@both_families
def test_masked_neurons_equal_the_plain_way(name: str) -> None:
    golden = load_golden(name)
    mask, (tokens, lengths, prompt) = golden.input("neuron_mask"), golden.batch
    (_, (scores, neurons)), _ = plain_slope(golden, golden.params, prompt, mask)
    rows = np.arange(tokens.shape[0])
    found = ask(golden, tokens, lengths, prompt, neuron_mask=mask, capture_neurons=True)
    assert difference(found.logits, scores[rows, lengths - 1]) < EQUAL
    # What is returned is the value before the mask; only later layers feel it.
    assert difference(found.neurons, neurons[:, rows, lengths - 1]) < EQUAL


@pytest.mark.parametrize("name", [LLAMA, "qwen2_untied"])
def test_shortcut_at_the_answer_equals_every_position(name: str) -> None:
    golden = load_golden(name)
    batch, label_ids = golden.batch, golden.input("label_ids")
    rows, last = np.arange(4), golden.stored["lengths"] - 1
    short = ask(golden, *batch, capture_neurons=True)
    plain = ask(golden, *batch, capture_neurons=True, every_position=True)
    assert difference(short.logits, plain.logits[rows, last]) < EQUAL
    assert difference(short.hidden, plain.hidden[rows, last]) < EQUAL
    assert difference(short.neurons, plain.neurons[:, rows, last]) < EQUAL
    fewer = ask(golden, *batch, label_ids=label_ids)
    assert difference(fewer.logits, short.logits[:, label_ids]) < EQUAL


@every_model
def test_neurons_are_returned_only_when_asked_for(name: str) -> None:
    golden = load_golden(name)
    config, text = golden.config, golden.stored["tokens"].shape[1]

    def shape(**options: bool) -> tuple[int, ...] | None:
        apply = partial(golden.module().apply, {"params": golden.params}, **options)
        neurons = jax.eval_shape(apply, *golden.batch).neurons
        return None if neurons is None else neurons.shape

    assert shape() is None and shape(every_position=True) is None
    assert shape(capture_neurons=True) == (config.layers, 4, config.neurons)
    everywhere = shape(capture_neurons=True, every_position=True)
    assert everywhere == (config.layers, 4, text, config.neurons)


def test_one_prompt_is_computed_once_and_not_for_every_row() -> None:
    """Counted in operations, forwards and back."""
    golden = load_golden(LLAMA)
    decoder, params = golden.module(), golden.params
    long = jnp.ones((24, golden.config.width))

    def work(prompt: jax.Array) -> float:
        tokens, lengths = jnp.ones((16, 2), jnp.int32), jnp.full((16,), 2)
        program = slope.lower(decoder, params, tokens, lengths, prompt)
        return program.cost_analysis()["flops"]

    # 24 + 16 * 2 places of prompt and text, not 16 * (24 + 2).
    assert work(long) < 0.3 * work(jnp.broadcast_to(long[None], (16, *long.shape)))


def test_padding_bucket_batch_and_order_change_nothing() -> None:
    golden = load_golden(LLAMA)
    decoder, (tokens, lengths, prompt) = golden.module(), golden.batch
    value, gradient = slope(decoder, golden.params, tokens, lengths, prompt)
    # Padding of real words, to a longer bucket, the rows in another order.
    wide = jnp.full((tokens.shape[0], tokens.shape[1] + 4), 13)
    wide = wide.at[:, : tokens.shape[1]].set(tokens)
    is_text = jnp.arange(wide.shape[1])[None] < lengths[:, None]
    order = jnp.arange(tokens.shape[0])[::-1]
    rows = jnp.where(is_text, wide, 17)[order]
    found = slope(decoder, golden.params, rows, lengths[order], prompt)
    assert difference(found[0], value) < EQUAL and difference(found[1], gradient) < EQUAL
    # One row alone, without any padding.
    alone = ask(golden, tokens[1:2, : int(lengths[1])], lengths[1:2], prompt)
    assert difference(alone.logits, ask(golden, *golden.batch).logits[1:2]) < EQUAL


@both_families
def test_rows_that_only_fill_a_batch_change_nothing(name: str) -> None:
    """Also rows without any text, and buckets that reach beyond GPT-2's positions."""
    golden = load_golden(name)
    tokens, lengths, prompt = golden.batch
    longer = golden.config.positions if golden.config.is_gpt2 else tokens.shape[1]
    filled = jnp.zeros((6, longer), jnp.int32).at[:4, : tokens.shape[1]].set(tokens)
    filled_lengths = jnp.concatenate([lengths, jnp.array([0, 1], lengths.dtype)])
    found = ask(golden, filled, filled_lengths, prompt).logits
    assert np.isfinite(found).all()
    assert difference(found[:4], ask(golden, tokens, lengths, prompt).logits) < EQUAL


@both_families
def test_rows_take_their_prompts_from_a_bank(name: str) -> None:
    golden = load_golden(name)
    tokens, lengths, _ = golden.batch
    bank = golden.rows_of_prompts()
    chosen = jnp.array([3, 0, 3, 1])
    together = ask(golden, tokens, lengths, bank[chosen]).logits
    for row, number in enumerate(chosen):
        alone = ask(golden, tokens, lengths, bank[number]).logits[row]
        assert difference(together[row], alone) < EQUAL
    assert difference(together[1], ask(golden, tokens, lengths, bank[3]).logits[1]) > 0.1


def test_prompts_at_once_equal_one_after_the_other() -> None:
    golden = load_golden("qwen2_untied")
    tokens, lengths, _ = golden.batch
    bank = golden.rows_of_prompts()
    apply = partial(slope, golden.module(), golden.params, tokens, lengths)
    values, gradients = jax.vmap(apply)(bank)
    for number, prompt in enumerate(bank):
        value, gradient = apply(prompt)
        assert difference(values[number], value) < EQUAL
        assert difference(gradients[number], gradient) < EQUAL


@both_families
def test_no_prompt_is_a_prompt_of_no_rows_and_order_counts(name: str) -> None:
    golden = load_golden(name)
    tokens, lengths, prompt = golden.batch
    none, whole = ask(golden, tokens, lengths, None), ask(golden, tokens, lengths, prompt)
    for empty in (prompt[:0], jnp.zeros((4, 0, prompt.shape[1]))):
        assert difference(ask(golden, tokens, lengths, empty).logits, none.logits) < EQUAL
    assert difference(ask(golden, tokens, lengths, prompt[::-1]).logits, whole.logits) > 0.01


@every_model
def test_mask_of_ones_is_no_mask_and_zeros_leave_the_bias_only(name: str) -> None:
    golden = load_golden(name)
    config, batch = golden.config, golden.batch
    ones = jnp.ones((config.layers, config.neurons))
    unmasked = ask(golden, *batch).logits
    assert difference(ask(golden, *batch, neuron_mask=ones).logits, unmasked) < 1e-6
    for layer in range(config.layers):
        masked = ask(golden, *batch, neuron_mask=ones.at[layer].set(0)).logits
        biased = read(golden.module(), without_second_matrix(golden, layer, ...), *batch).logits
        assert difference(masked, biased) < EQUAL
        assert difference(masked, unmasked) > 0.01


@both_families
def test_mask_of_one_neuron_touches_that_neuron_only(name: str) -> None:
    golden = load_golden(name)
    mask = jnp.ones((golden.config.layers, golden.config.neurons)).at[1, 3].set(0)
    params = without_second_matrix(golden, 1, 3)
    expected = read(golden.module(), params, *golden.batch).logits
    assert difference(ask(golden, *golden.batch, neuron_mask=mask).logits, expected) < EQUAL


def without_second_matrix(golden: Golden, layer: int, neuron: object) -> Parameters:
    """The weights with rows of the second feed-forward matrix of one layer set to zero."""
    changed = jax.tree.map(lambda leaf: leaf, golden.params)
    is_last = layer == golden.config.layers - 1
    place = changed["last_layer" if is_last else "layers"]["feed_forward_out"]
    where = neuron if is_last else (layer, neuron)
    place["kernel"] = place["kernel"].at[where].set(0)
    return changed


@pytest.mark.parametrize("remat", ["none", "full"])
def test_what_layers_keep_for_the_way_back_changes_nothing(remat: str) -> None:
    golden = load_golden(LLAMA)
    expected = slope(golden.module(), golden.params, *golden.batch)
    found = slope(Decoder(golden.config, remat=remat), golden.params, *golden.batch)
    assert difference(found[0], expected[0]) < EQUAL
    assert difference(found[1], expected[1]) < EQUAL


@every_model
def test_computing_in_bfloat16_keeps_scores_in_float32(name: str) -> None:
    golden = load_golden(name)
    decoder = golden.module(jnp.bfloat16)
    output = jax.eval_shape(partial(decoder.apply, {"params": golden.params}), *golden.batch)
    assert output.logits.dtype == jnp.float32 and output.hidden.dtype == jnp.bfloat16


@both_families
def test_program_does_not_grow_with_depth(name: str) -> None:
    config = load_golden(name).config
    tokens, lengths = jnp.ones((2, 5), jnp.int32), jnp.array([5, 3])
    prompt = jnp.ones((3, config.width))

    def size(layers: int) -> int:
        decoder = Decoder(dataclasses.replace(config, layers=layers))
        variables = jax.eval_shape(decoder.init, jax.random.key(0), tokens, lengths)
        program = jax.jit(decoder.apply).lower(variables, tokens, lengths, prompt).as_text()
        return len(program.splitlines())

    assert size(12) == size(3)
