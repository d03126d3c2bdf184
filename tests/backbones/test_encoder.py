"""What must hold of an encoder whatever its weights: shortcuts, padding, banks, masks, dropout.

The weights are those of the stored models, which are large enough that every part is felt.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpt.backbones.encoder import Encoder, EncoderLayer
from jpt.backbones.layers import ModelOutput
from jpt.types import Parameters
from tests.backbones.golden import FAST_COMPILE, Golden, ask, difference, load_golden, read

EQUAL = 1e-5  # the house's meaning of "equal" in float32

# One layer, where nothing is scanned, and two; ReLU compiles quickly.
every_model = pytest.mark.parametrize("name", ["bert_one_layer", "roberta_untied"])


@partial(jax.jit, static_argnums=(0, 1), compiler_options=FAST_COMPILE)
def prompt_gradient(
    encoder: Encoder,
    every_position: bool,
    params: Parameters,
    tokens: jax.Array,
    lengths: jax.Array,
    prompt: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """A loss over all words at the answer, and its gradient."""

    def loss(prompt: jax.Array) -> jax.Array:
        output = encoder.apply(
            {"params": params}, tokens, lengths, prompt, every_position=every_position
        )
        logits = output.logits[:, 0] if every_position else output.logits
        return jax.nn.logsumexp(logits, axis=-1).mean() - logits[:, 7].mean()

    return jax.value_and_grad(loss)(prompt)


@every_model
def test_shortcut_at_the_answer_equals_the_plain_way(name: str) -> None:
    golden = load_golden(name)
    inputs = golden.batch
    short = ask(golden, *inputs, capture_neurons=True)
    plain = ask(golden, *inputs, capture_neurons=True, every_position=True)
    assert difference(short.logits, plain.logits[:, 0]) < EQUAL
    assert difference(short.hidden, plain.hidden[:, 0]) < EQUAL
    assert difference(short.neurons, plain.neurons[:, :, 0]) < EQUAL
    fewer = ask(golden, *inputs, label_ids=golden.input("label_ids"))
    assert difference(fewer.logits, short.logits[:, golden.input("label_ids")]) < EQUAL
    found = prompt_gradient(golden.module(), False, golden.params, *inputs)
    expected = prompt_gradient(golden.module(), True, golden.params, *inputs)
    assert difference(found[0], expected[0]) < EQUAL
    assert difference(found[1], expected[1]) < EQUAL


@every_model
def test_neurons_are_returned_only_when_asked_for(name: str) -> None:
    golden = load_golden(name)
    config, (tokens, lengths, prompt) = golden.config, golden.batch
    rows, longest = tokens.shape
    assert ask(golden, tokens, lengths, prompt).neurons is None
    short = ask(golden, tokens, lengths, prompt, capture_neurons=True).neurons
    assert short.shape == (config.layers, rows, config.neurons)
    plain = ask(golden, tokens, lengths, prompt, capture_neurons=True, every_position=True).neurons
    positions = 1 + prompt.shape[0] + longest
    assert plain.shape == (config.layers, rows, positions, config.neurons)


def test_padding_bucket_batch_and_order_change_nothing() -> None:
    golden = load_golden("roberta_untied")
    tokens, lengths, prompt = golden.batch
    expected = ask(golden, tokens, lengths, prompt).logits
    # Padding of real words, to a longer bucket, the rows in another order.
    wide = jnp.full((tokens.shape[0], tokens.shape[1] + 4), 13)
    wide = wide.at[:, : tokens.shape[1]].set(tokens)
    is_text = jnp.arange(wide.shape[1])[None] < lengths[:, None]
    order = jnp.arange(tokens.shape[0])[::-1]
    rows = jnp.where(is_text, wide, 17)[order]
    assert difference(ask(golden, rows, lengths[order], prompt).logits[order], expected) < EQUAL
    found = prompt_gradient(golden.module(), False, golden.params, rows, lengths[order], prompt)
    plain = prompt_gradient(golden.module(), False, golden.params, tokens, lengths, prompt)
    assert difference(found[1], plain[1]) < EQUAL
    # One row alone, without any padding.
    row = int(np.argmin(np.abs(golden.stored["lengths"] - 6)))
    length = int(golden.stored["lengths"][row])
    assert length < tokens.shape[1]
    alone = ask(golden, tokens[row : row + 1, :length], lengths[row : row + 1], prompt)
    assert difference(alone.logits, expected[row : row + 1]) < EQUAL


@every_model
def test_one_prompt_for_all_is_the_same_prompt_a_row(name: str) -> None:
    golden = load_golden(name)
    tokens, lengths, prompt = golden.batch
    repeated = jnp.broadcast_to(prompt[None], (tokens.shape[0], *prompt.shape))
    expected = ask(golden, tokens, lengths, prompt).logits
    assert difference(ask(golden, tokens, lengths, repeated).logits, expected) < EQUAL


def bank_of(golden: Golden, prompts: int) -> jax.Array:
    prompt = golden.input("prompt")
    return jax.random.normal(jax.random.key(5), (prompts, *prompt.shape), jnp.float32)


def test_rows_take_their_prompts_from_a_bank() -> None:
    golden = load_golden("roberta_untied")
    tokens, lengths, _ = golden.batch
    bank, chosen = bank_of(golden, 4), jnp.array([3, 0, 3])
    together = ask(golden, tokens, lengths, bank[chosen]).logits
    for row, number in enumerate(chosen):
        alone = ask(golden, tokens, lengths, bank[number]).logits[row]
        assert difference(together[row], alone) < EQUAL
    assert difference(together[1], ask(golden, tokens, lengths, bank[3]).logits[1]) > 0.1


def test_prompts_at_once_equal_one_after_the_other() -> None:
    golden = load_golden("roberta_untied")
    tokens, lengths, _ = golden.batch
    bank = bank_of(golden, 3)
    apply = partial(prompt_gradient, golden.module(), False, golden.params, tokens, lengths)
    values, gradients = jax.vmap(apply)(bank)
    for number, prompt in enumerate(bank):
        value, gradient = apply(prompt)
        assert difference(values[number], value) < EQUAL
        assert difference(gradients[number], gradient) < EQUAL


def test_no_prompt_is_a_prompt_of_no_rows() -> None:
    golden = load_golden("roberta_untied")
    tokens, lengths, prompt = golden.batch
    none = ask(golden, tokens, lengths, None)
    assert difference(ask(golden, tokens, lengths, prompt[:0]).logits, none.logits) < EQUAL
    assert difference(ask(golden, tokens, lengths, prompt).logits, none.logits) > 0.1


def test_rows_of_the_prompt_have_no_order() -> None:
    """Without positions, prompt rows are a set."""
    golden = load_golden("bert_tied")
    tokens, lengths, prompt = golden.batch
    expected = ask(golden, tokens, lengths, prompt).logits
    assert difference(ask(golden, tokens, lengths, prompt[::-1]).logits, expected) < EQUAL


@every_model
def test_mask_of_ones_is_no_mask_and_zeros_leave_the_bias_only(name: str) -> None:
    golden = load_golden(name)
    config, inputs = golden.config, golden.batch
    ones = jnp.ones((config.layers, config.neurons))
    unmasked = ask(golden, *inputs, capture_neurons=True)
    assert difference(ask(golden, *inputs, neuron_mask=ones).logits, unmasked.logits) < 1e-6
    for layer in range(config.layers):
        masked = ask(
            golden, *inputs, neuron_mask=ones.at[layer].set(0), capture_neurons=True
        )  # fmt: skip
        biased = read(golden.module(), without_second_matrix(golden.params, layer), *inputs)
        assert difference(masked.logits, biased.logits) < EQUAL
        assert difference(masked.logits, unmasked.logits) > 0.01
        # What is returned is the value before the mask; only later layers feel it.
        assert difference(masked.neurons[: layer + 1], unmasked.neurons[: layer + 1]) < EQUAL


def without_second_matrix(params: Parameters, layer: int) -> Parameters:
    """The weights with the second feed-forward matrix of one layer set to zero."""
    lower = 0 if "layers" not in params else params["layers"]["query"]["bias"].shape[0]
    changed = jax.tree.map(lambda leaf: leaf, params)
    place = changed["layers" if layer < lower else "last_layer"]["feed_forward_out"]
    which = layer if layer < lower else ...
    place["kernel"] = place["kernel"].at[which].set(0)
    return changed


def test_mask_of_one_neuron_touches_that_neuron_only() -> None:
    golden = load_golden("roberta_untied")
    inputs = golden.batch
    mask = jnp.ones((golden.config.layers, golden.config.neurons)).at[0, 3].set(0)
    params = jax.tree.map(lambda leaf: leaf, golden.params)
    second = params["layers"]["feed_forward_out"]
    second["kernel"] = second["kernel"].at[0, 3].set(0)
    expected = read(golden.module(), params, *inputs).logits
    assert difference(ask(golden, *inputs, neuron_mask=mask).logits, expected) < EQUAL


def test_scan_equals_a_loop_over_layers() -> None:
    golden = load_golden("bert_tied")
    tokens, lengths, prompt = golden.batch
    encoder, params = golden.module(), golden.params

    @partial(jax.jit, compiler_options=FAST_COMPILE)
    def loop(params: Parameters) -> jax.Array:
        bound = encoder.bind({"params": params})
        front = bound.embeddings.front(encoder.mask_id, prompt[None], tokens.shape[0])
        states = jnp.concatenate([front, bound.embeddings.text(tokens, 0, None)], axis=1)
        is_text = jnp.arange(states.shape[1])[None] < (lengths + front.shape[1])[:, None]
        first, second = (jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"]) for i in (0, 1))
        for weights in (first, second, params["last_layer"]):
            layer = EncoderLayer(golden.config, jnp.float32)
            states, _ = layer.apply({"params": weights}, states, states, is_text, None)
        return states

    found = ask(golden, tokens, lengths, prompt, every_position=True).hidden
    assert difference(found, loop(params)) < EQUAL


def test_dropout_is_off_unless_asked_for_and_a_function_of_its_key() -> None:
    golden = load_golden("bert_tied")
    inputs, off, on = golden.batch, golden.module(), golden.module(dropout_rate=0.1)
    call = partial(read, on, golden.params, *inputs)
    plain = read(off, golden.params, *inputs).logits
    first, again = call(jax.random.key(1)).logits, call(jax.random.key(1)).logits
    assert np.array_equal(first, again)
    assert difference(call(jax.random.key(2)).logits, first) > 0.01
    assert difference(first, plain) > 0.01
    # Where dropout is off, a key changes nothing.
    assert np.array_equal(read(off, golden.params, *inputs, jax.random.key(1)).logits, plain)


def linear_of(weights: Parameters, kernel: float = 0, bias: float = 0) -> Parameters:
    """Weights of the same shape: a constant bias, and a diagonal kernel."""
    shape = weights["kernel"].shape
    kernel = jnp.broadcast_to(kernel * jnp.eye(*shape[-2:]), shape)
    return {"kernel": kernel, "bias": jnp.full_like(weights["bias"], bias)}


def show_dropout(params: Parameters, **places: dict[str, float]) -> Parameters:
    """Weights with which neuron d of a layer is what entered its feed-forward map at d.

    The attention adds what ``places`` say, by default nothing. Large constants there dominate what
    was there before, so that after the norm only what was dropped is negative.
    """
    shown = jax.tree.map(lambda leaf: leaf, params)
    places = {"attention_out": {}, "feed_forward_in": {"kernel": 1.0}, **places}
    for layer in (shown["layers"], shown["last_layer"]):
        for name, constants in places.items():
            layer[name] = linear_of(layer[name], **constants)
        for name in ("attention_norm", "feed_forward_norm"):
            norm = layer[name]
            layer[name] = {
                "scale": jnp.ones_like(norm["scale"]),
                "bias": jnp.zeros_like(norm["bias"]),
            }
    return shown


def read_with_dropout(rate: float, **places: dict[str, float]) -> ModelOutput:
    golden = load_golden("bert_tied")
    params, options = show_dropout(golden.params, **places), {"capture_neurons": True}
    encoder, key = golden.module(dropout_rate=rate), jax.random.key(4)
    return read(encoder, params, *golden.batch, key, every_position=True, **options)


def test_dropout_draws_anew_for_every_layer_row_and_position_at_its_rate() -> None:
    neurons = read_with_dropout(0.25, attention_out={"bias": 1000}).neurons
    kept = np.asarray(neurons[..., :30] > 0)  # [L, B, S, D]
    assert abs(kept.mean() - 0.75) < 0.02
    for axis in range(3):
        first, second = np.take(kept, 0, axis), np.take(kept, 1, axis)
        # Equal as often as independent draws are: 0.75 ** 2 + 0.25 ** 2 = 0.625 of the time.
        assert abs((first == second).mean() - 0.625) < 0.05


def test_dropout_reaches_what_the_feed_forward_map_adds() -> None:
    hidden = read_with_dropout(0.25, feed_forward_out={"bias": 1000}).hidden
    assert abs(np.asarray(hidden > 0).mean() - 0.75) < 0.03


def test_dropout_reaches_the_attention_weights() -> None:
    """All values are one constant, so what heads gather differs by their dropped weights alone."""
    places = {"value": {"bias": 1000}, "attention_out": {"kernel": 1.0}}
    neurons = np.asarray(read_with_dropout(0.25, **places).neurons[..., :30])
    heads = neurons.reshape(*neurons.shape[:-1], 5, 6).max(axis=-1)  # what was kept of each head
    assert (heads.std(axis=-1) > 0.01).mean() > 0.95


@every_model
def test_computing_in_bfloat16_keeps_scores_in_float32(name: str) -> None:
    golden = load_golden(name)
    output = read(golden.module(jnp.bfloat16), golden.params, *golden.batch)
    assert output.logits.dtype == jnp.float32 and output.hidden.dtype == jnp.bfloat16


def test_program_does_not_grow_with_depth() -> None:
    config = load_golden("bert_tied").config
    tokens, lengths = jnp.ones((2, 5), jnp.int32), jnp.array([5, 3])

    def size(layers: int) -> int:
        encoder = Encoder(dataclasses.replace(config, layers=layers), mask_id=4)
        variables = jax.eval_shape(encoder.init, jax.random.key(0), tokens, lengths)
        program = jax.jit(encoder.apply).lower(variables, tokens, lengths).as_text()
        return len(program.splitlines())

    assert size(12) == size(3)
