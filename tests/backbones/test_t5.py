"""What must hold of T5 whatever its weights: padding, banks, masks, caches, dropout, positions.

The weights are those of the stored models, which are large enough that every part is felt.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jpt.backbones.t5 import (
    T5,
    AttentionView,
    LayerInput,
    StackContext,
    T5Layer,
    relative_buckets,
    spread_bias,
)
from jpt.types import Parameters
from tests.backbones.golden import (
    FAST_COMPILE,
    T5S,
    Golden,
    advance,
    ask,
    difference,
    load_golden,
    read,
    start,
    write,
)

EQUAL = 1e-5  # the house's meaning of "equal" in float32

every_stack = pytest.mark.parametrize("stack", ["decoder", "encoder"])


@partial(jax.jit, static_argnums=0, compiler_options=FAST_COMPILE)
def prompt_gradient(
    model: T5, params: Parameters, tokens: jax.Array, lengths: jax.Array, prompt: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A loss over all words at the answer, and its gradient."""

    def loss(prompt: jax.Array) -> jax.Array:
        logits = model.apply({"params": params}, tokens, lengths, prompt).logits
        return jax.nn.logsumexp(logits, axis=-1).mean() - logits[:, 7].mean()

    return jax.value_and_grad(loss)(prompt)


def test_positions_of_the_decoder_are_kept_when_asked_for() -> None:
    golden = load_golden("t5_relu")
    short = ask(golden, *golden.batch, capture_neurons=True)
    rows, config = golden.stored["lengths"].shape[0], golden.config
    assert short.logits.shape == (rows, config.vocabulary) and short.hidden.shape == (rows, 22)
    assert short.neurons.shape == (config.layers, rows, config.neurons)
    plain = ask(golden, *golden.batch, capture_neurons=True, every_position=True)
    for found, kept in ((short.logits, plain.logits), (short.hidden, plain.hidden)):
        assert difference(found[:, None], kept) < EQUAL
    assert difference(short.neurons[:, :, None], plain.neurons) < EQUAL
    # The first of several tokens is scored as if it were alone.
    taught = ask(golden, *golden.batch, decoder_tokens=golden.input("decoder_tokens"))
    assert taught.logits.shape == (rows, 6, config.vocabulary) and taught.neurons is None
    assert difference(taught.logits[:, 0], short.logits) < EQUAL
    labels = golden.input("label_ids")
    fewer = ask(golden, *golden.batch, label_ids=labels)
    assert difference(fewer.logits, short.logits[:, labels]) < EQUAL and fewer.neurons is None


def test_neurons_of_the_encoder_are_read_at_the_first_token_of_text() -> None:
    golden = load_golden("t5_relu")
    prompt_rows = golden.stored["prompt"].shape[0]
    options = {"capture_neurons": True, "neuron_stack": "encoder"}
    plain = ask(golden, *golden.batch, every_position=True, **options).neurons
    assert plain.shape == (2, *golden.stored["encoded"].shape[:2], golden.config.neurons)
    short = ask(golden, *golden.batch, **options)
    assert difference(short.neurons, plain[:, :, prompt_rows]) < EQUAL
    taught = {"decoder_tokens": golden.input("decoder_tokens")}
    assert difference(ask(golden, *golden.batch, **taught, **options).neurons, short.neurons) == 0


def test_unknown_stack_is_refused() -> None:
    golden = load_golden("t5_relu")
    with pytest.raises(ValueError, match="'both'"):
        golden.module().apply({"params": golden.params}, *golden.batch, neuron_stack="both")


def test_padding_bucket_batch_and_order_change_nothing() -> None:
    golden = load_golden("t5_relu")
    tokens, lengths, prompt = golden.batch
    expected = ask(golden, tokens, lengths, prompt).logits
    # Padding of real words, to a longer bucket, the rows in another order.
    wide = jnp.full((tokens.shape[0], tokens.shape[1] + 4), 13)
    wide = wide.at[:, : tokens.shape[1]].set(tokens)
    is_text = jnp.arange(wide.shape[1])[None] < lengths[:, None]
    order = jnp.array([2, 0, 3, 1])
    rows, counts = jnp.where(is_text, wide, 17)[order], lengths[order]
    # The fillers' gradient and the text's, once each.
    found = prompt_gradient(golden.module(), golden.params, rows, counts, prompt)
    plain = prompt_gradient(golden.module(), golden.params, tokens, lengths, prompt)
    assert difference(found[1], plain[1]) < EQUAL
    logits, cache = start(golden.module(), golden.params, rows, counts, prompt, max_new=5)
    assert difference(logits, expected[order]) < EQUAL
    # Later tokens do not see the padding either.
    short, short_cache = start(golden.module(), golden.params, tokens, lengths, prompt, max_new=5)
    assert difference(short, expected) < EQUAL
    last = jnp.array([3, 5, 8, 13])
    found, _ = advance(golden.module(), golden.params, last[order], cache)
    plain, _ = advance(golden.module(), golden.params, last, short_cache)
    assert difference(found, plain[order]) < EQUAL
    # One row alone, without any padding.
    length = int(lengths[1])
    alone = ask(golden, tokens[1:2, :length], lengths[1:2], prompt)
    assert length < tokens.shape[1] and difference(alone.logits, expected[1:2]) < EQUAL


def test_prompts_of_rows_and_of_a_bank_are_those_of_single_runs() -> None:
    golden = load_golden("t5_relu")
    tokens, lengths, prompt = golden.batch
    expected = ask(golden, tokens, lengths, prompt).logits
    bank = jnp.stack([prompt, prompt[::-1], 2 * prompt])
    chosen = jnp.array([2, 0, 1, 0])
    together = ask(golden, tokens, lengths, bank[chosen]).logits
    assert difference(together[1], expected[1]) < EQUAL
    assert difference(together[3], expected[3]) < EQUAL
    reversed_rows = ask(golden, tokens, lengths, bank[1]).logits
    assert difference(together[2], reversed_rows[2]) < EQUAL
    # Unlike in the encoders, rows of a prompt have an order.
    assert difference(reversed_rows, expected) > 0.01
    # All prompts at once, as a step over a bank is taken.
    apply = partial(prompt_gradient, golden.module(), golden.params, tokens, lengths)
    values, gradients = jax.vmap(apply)(bank)
    for number, rows in enumerate(bank):
        value, gradient = apply(rows)
        assert difference(values[number], value) < EQUAL
        assert difference(gradients[number], gradient) < EQUAL


def test_no_prompt_is_a_prompt_of_no_rows() -> None:
    golden = load_golden("t5_relu")
    tokens, lengths, prompt = golden.batch
    none = ask(golden, tokens, lengths, None)
    assert difference(ask(golden, tokens, lengths, prompt[:0]).logits, none.logits) < EQUAL


def without_second_matrix(params: Parameters, stack: str, layer: int) -> Parameters:
    """The weights with the second feed-forward matrix of one layer set to zero."""
    changed = jax.tree.map(lambda leaf: leaf, params)
    place = changed[stack]["layers"]["feed_forward_out"]
    place["kernel"] = place["kernel"].at[layer].set(0)
    return changed


@every_stack
@pytest.mark.parametrize("name", ["t5_relu", "t5_gated"])
def test_mask_of_ones_is_no_mask_and_zeros_leave_nothing(name: str, stack: str) -> None:
    golden, options = load_golden(name), {"capture_neurons": True, "neuron_stack": stack}
    depth = {"decoder": golden.config.layers, "encoder": golden.config.encoder_layers}[stack]
    ones = jnp.ones((depth, golden.config.neurons))
    unmasked = ask(golden, *golden.batch, **options)
    found = ask(golden, *golden.batch, neuron_mask=ones, **options)
    assert difference(found.logits, unmasked.logits) < 1e-6
    for layer in range(depth):
        masked = ask(golden, *golden.batch, neuron_mask=ones.at[layer].set(0), **options)
        bare = without_second_matrix(golden.params, stack, layer)
        bare = read(golden.module(), bare, *golden.batch, **options)
        assert difference(masked.logits, bare.logits) < EQUAL
        assert difference(masked.logits, unmasked.logits) > 0.01
        # What is returned is the value before the mask; only later layers feel it.
        until = slice(0, layer + 1)
        assert difference(masked.neurons[until], unmasked.neurons[until]) < EQUAL


def test_neuron_of_a_gated_layer_is_the_gate_before_the_product() -> None:
    """Where the second branch is zero, the answer changes and the neurons of that layer do not."""
    golden = load_golden("t5_gated")
    params = jax.tree.map(lambda leaf: leaf, golden.params)
    branch = params["decoder"]["layers"]["feed_forward_in"]
    branch["kernel"] = jnp.zeros_like(branch["kernel"])
    plain = ask(golden, *golden.batch, capture_neurons=True)
    found = read(golden.module(), params, *golden.batch, capture_neurons=True)
    assert difference(found.neurons, plain.neurons) < EQUAL
    assert difference(found.logits, plain.logits) > 0.01


def test_mask_of_one_neuron_touches_that_neuron_only() -> None:
    golden = load_golden("t5_gated")
    mask = jnp.ones((golden.config.layers, golden.config.neurons)).at[0, 3].set(0)
    params = jax.tree.map(lambda leaf: leaf, golden.params)
    second = params["decoder"]["layers"]["feed_forward_out"]
    second["kernel"] = second["kernel"].at[0, 3].set(0)
    expected = read(golden.module(), params, *golden.batch).logits
    assert difference(ask(golden, *golden.batch, neuron_mask=mask).logits, expected) < EQUAL


def test_scan_equals_a_loop_over_layers() -> None:
    golden = load_golden("t5_gated")
    tokens, lengths, prompt = golden.batch
    weights, model = golden.params["encoder"], golden.module()

    @partial(jax.jit, compiler_options=FAST_COMPILE)
    def both_ways(prompt: jax.Array) -> tuple[jax.Array, jax.Array]:
        front = jnp.broadcast_to(prompt[None], (tokens.shape[0], *prompt.shape))
        words = golden.params["embeddings"]["word"][tokens]
        states = jnp.concatenate([front, words], axis=1)
        is_read = jnp.asarray(golden.is_text(prompt.shape[0]))
        by_distance = model.bind({"params": golden.params}).encoder.bias(states.shape[1])
        sight = StackContext(
            AttentionView(is_read[:, None], spread_bias(by_distance, np.arange(states.shape[1])))
        )
        for number in range(golden.config.encoder_layers):
            one = jax.tree.map(lambda leaf, number=number: leaf[number], weights["layers"])
            layer = T5Layer(golden.config, jnp.float32)
            states, _ = layer.apply({"params": one}, states, LayerInput(), sight)
        mean_square = jnp.square(states).mean(-1, keepdims=True)
        scale = weights["norm"]["scale"][None, None]
        states = states * jax.lax.rsqrt(mean_square + golden.config.epsilon) * scale
        batch = (tokens, lengths, prompt)
        return model.apply({"params": golden.params}, *batch, method="encode"), states

    (found, expected), is_read = both_ways(prompt), golden.is_text(prompt.shape[0])
    assert difference(found[is_read], expected[is_read]) < EQUAL


def written(golden: Golden, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The best tokens and their scores, one by one."""
    forced = np.full((golden.stored["lengths"].shape[0], count), -1, np.int32)
    return write(golden, golden.params, golden.batch, forced)


@pytest.mark.parametrize("name", ["t5_relu", "t5_gated_silu"])
def test_token_by_token_equals_all_at_once(name: str) -> None:
    golden = load_golden(name)
    scores, tokens = written(golden, 9)
    first = np.full((len(tokens), 1), golden.config.start_id, np.int32)
    given = jnp.asarray(np.concatenate([first, tokens[:, :-1]], axis=1))
    plain = ask(golden, *golden.batch, decoder_tokens=given).logits
    assert difference(scores, plain) < EQUAL
    # How many slots there are changes nothing.
    assert difference(written(golden, 4)[0], scores[:, :4]) < EQUAL


def test_one_new_token_needs_one_slot() -> None:
    golden = load_golden("t5_relu")
    logits, cache = start(golden.module(), golden.params, *golden.batch, max_new=1)
    assert difference(logits, golden.stored["vocabulary_logits"]) < 1e-4
    assert cache.generated.key.shape[2] == 1 and int(cache.steps) == 0


def test_what_the_encoder_read_is_computed_once() -> None:
    """Going on needs neither the encoder's weights nor the maps to the keys of its states."""
    golden = load_golden("t5_relu")
    model, last = golden.module(), jnp.array([3, 5, 8, 13])
    logits, cache = start(model, golden.params, *golden.batch, max_new=5)
    assert cache.shared is None
    expected, after = advance(model, golden.params, last, cache)
    layers = dict(golden.params["decoder"]["layers"])
    del layers["cross_key"], layers["cross_value"]
    params = {"embeddings": golden.params["embeddings"], "decoder": {**golden.params["decoder"]}}
    params["decoder"]["layers"] = layers
    found, _ = advance(model, params, last, cache)
    assert difference(found, expected) == 0
    for old, new in zip(
        jax.tree.leaves(cache.context), jax.tree.leaves(after.context), strict=True
    ):
        assert np.array_equal(old, new)
    assert np.array_equal(after.lengths, cache.lengths) and int(after.steps) == 1


def test_program_of_a_token_is_one_whatever_was_written() -> None:
    """The same shapes and the same program at every step, so the same cost."""
    golden = load_golden("t5_relu")
    model, last = golden.module(), jnp.array([3, 5, 8, 13])
    _, cache = start(model, golden.params, *golden.batch, max_new=5)

    @jax.jit
    def step(params: Parameters, last: jax.Array, cache: object) -> object:
        return model.apply({"params": params}, last, cache, method="advance")[1]

    early = step.lower(golden.params, last, cache).as_text()
    for _ in range(3):
        _, cache = advance(model, golden.params, last, cache)
    assert step.lower(golden.params, last, cache).as_text() == early


def test_rows_of_a_cache_may_change_places() -> None:
    """As beam search does: every leaf but the count of steps has the rows at one axis."""
    golden = load_golden("t5_relu")
    model, last = golden.module(), jnp.array([3, 5, 8, 13])
    _, cache = start(model, golden.params, *golden.batch, max_new=5)
    _, cache = advance(model, golden.params, last, cache)
    order = jnp.array([2, 2, 0, 3])

    def take(tree: object) -> object:
        return jax.tree.map(lambda leaf: leaf[:, order], tree)

    moved = cache.replace(
        context=take(cache.context), generated=take(cache.generated), lengths=cache.lengths[order]
    )
    expected, _ = advance(model, golden.params, last, cache)
    found, _ = advance(model, golden.params, last[order], moved)
    assert difference(found, expected[order]) < EQUAL


@pytest.mark.parametrize("remat", ["none", "full"])
def test_what_is_kept_for_the_way_back_changes_no_gradient(remat: str) -> None:
    golden = load_golden("t5_gated_silu")
    expected = prompt_gradient(golden.module(), golden.params, *golden.batch)
    model = T5(golden.config, remat=remat)
    found = prompt_gradient(model, golden.params, *golden.batch)
    assert difference(found[1], expected[1]) < EQUAL


def test_dropout_is_off_unless_asked_for_and_a_function_of_its_key() -> None:
    golden = load_golden("t5_one_layer")
    on = golden.module(dropout_rate=0.1)
    call = partial(read, on, golden.params, *golden.batch)
    plain = ask(golden, *golden.batch).logits
    first, again = call(jax.random.key(1)).logits, call(jax.random.key(1)).logits
    assert np.array_equal(first, again)
    assert difference(call(jax.random.key(2)).logits, first) > 0.01
    assert difference(first, plain) > 0.01
    # Where dropout is off, a key changes nothing.
    assert np.array_equal(ask(golden, *golden.batch, jax.random.key(1)).logits, plain)


def test_dropout_stands_where_t5_has_it() -> None:
    """Attention weights, what they gather, neurons, what they add; ends of both stacks."""
    golden = load_golden("t5_one_layer")
    model = golden.module(dropout_rate=0.1)

    def run(key: jax.Array) -> jax.Array:
        return model.apply({"params": golden.params}, *golden.batch, rngs={"dropout": key}).logits

    seen: set[str] = set()

    def watch(call: Callable, inputs: tuple, options: dict, context: Any) -> Any:
        if isinstance(context.module, nn.Dropout):
            seen.add("/".join(context.module.path))
        return call(*inputs, **options)

    with nn.intercept_methods(watch):
        jax.eval_shape(run, jax.random.key(0))
    places = Counter(path.rsplit("/", 1)[0] for path in seen)
    assert places == {"encoder": 2, "encoder/layers": 4, "decoder": 2, "decoder/layers": 6}


def show_dropout(params: Parameters, stack: str) -> Parameters:
    """Weights with which neuron d of a layer is large where d was kept of what attention added.

    Every layer adds far more than the layer before, the same at all d.
    """
    shown = jax.tree.map(lambda leaf: leaf, params)
    layers = shown[stack]["layers"]
    depth = layers["query"]["kernel"].shape[0]
    sizes = 1e4 ** jnp.arange(1.0, depth + 1)

    def fill(name: str, kernel: jax.Array) -> None:
        layers[name] = {"kernel": jnp.broadcast_to(kernel, layers[name]["kernel"].shape)}

    fill("value", jnp.ones((1, 1, 1)))
    fill("attention_out", sizes[:, None, None])
    fill("feed_forward_out", jnp.zeros((1, 1, 1)))
    fill("feed_forward_in", jnp.eye(*layers["feed_forward_in"]["kernel"].shape[1:])[None])
    if stack == "decoder":
        fill("cross_out", jnp.zeros((1, 1, 1)))
    for name in ("attention_norm", "feed_forward_norm"):
        layers[name] = {"scale": jnp.ones_like(layers[name]["scale"])}
    # Positive words, whose sum no value of a head can lose.
    shown["embeddings"] = {"word": jnp.ones_like(params["embeddings"]["word"])}
    return shown


@every_stack
def test_dropout_draws_anew_for_every_layer_row_and_position_at_its_rate(stack: str) -> None:
    golden = load_golden("t5_relu")
    params, model = show_dropout(golden.params, stack), golden.module(dropout_rate=0.25)
    tokens, lengths = jnp.full((12, 9), 3), jnp.full((12,), 9)
    options = {"capture_neurons": True, "every_position": True, "neuron_stack": stack}
    if stack == "decoder":
        options["decoder_tokens"] = tokens[:, :6]
    output = read(model, params, tokens, lengths, None, jax.random.key(4), **options)
    kept = np.asarray(output.neurons[..., : golden.config.width] > 0.1)  # [L, B, S, D]
    assert abs(kept.mean() - 0.75) < 0.02
    for axis in range(3):
        first, second = np.take(kept, 0, axis), np.take(kept, 1, axis)
        # Equal as often as independent draws are: 0.75 ** 2 + 0.25 ** 2 = 0.625 of the time.
        assert abs((first == second).mean() - 0.625) < 0.06


def test_computing_in_bfloat16_keeps_scores_in_float32() -> None:
    golden = load_golden("t5_gated_silu")
    model, last = golden.module(jnp.bfloat16), jnp.array([3, 5, 8, 13])
    output = read.eval_shape(model, golden.params, *golden.batch)
    assert output.logits.dtype == jnp.float32 and output.hidden.dtype == jnp.bfloat16
    logits, cache = start.eval_shape(model, golden.params, *golden.batch, max_new=3)
    assert {leaf.dtype for leaf in jax.tree.leaves(cache.generated)} == {jnp.dtype(jnp.bfloat16)}
    assert logits.dtype == jnp.float32
    logits, after = advance.eval_shape(model, golden.params, last, cache)
    # The same cache again, so that generation can loop over it.
    assert logits.dtype == jnp.float32 and after == cache


def test_program_does_not_grow_with_depth() -> None:
    config = load_golden("t5_relu").config
    tokens, lengths = jnp.ones((2, 5), jnp.int32), jnp.array([5, 3])

    def size(layers: int) -> int:
        model = T5(dataclasses.replace(config, layers=layers, encoder_layers=layers + 1))
        variables = jax.eval_shape(model.init, jax.random.key(0), tokens, lengths)
        program = jax.jit(model.apply).lower(variables, tokens, lengths).as_text()
        return len(program.splitlines())

    assert size(12) == size(3)


@pytest.mark.parametrize("name", T5S)
def test_relative_positions_fall_into_the_buckets_of_torch(name: str) -> None:
    golden = load_golden(name)
    distances, sizes = np.arange(-300, 301), (golden.config.buckets, golden.config.max_distance)
    for way, expected in zip((True, False), golden.stored["relative_buckets"], strict=True):
        assert np.array_equal(relative_buckets(distances, way, *sizes), expected)


def test_buckets_of_real_models_begin_where_torch_begins_them() -> None:
    """32 buckets up to distance 128, as every published T5 has them, prompts of 2,048 rows too."""
    distances = np.arange(0, 5000)
    backward = relative_buckets(-distances, True, 32, 128)
    first = [int(np.argmax(backward == bucket)) for bucket in range(16)]
    assert first == [*range(8), 8, 12, 16, 23, 32, 46, 64, 91] and backward[-1] == 15
    assert np.array_equal(relative_buckets(distances[1:], True, 32, 128), backward[1:] + 16)
    causal = relative_buckets(-distances, False, 32, 128)
    first = [int(np.argmax(causal == bucket)) for bucket in range(16, 32)]
    assert first == [16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
    assert np.array_equal(causal[:16], distances[:16]) and causal[-1] == 31
    assert relative_buckets(distances, False, 32, 128).max() == 0


def test_bias_is_laid_out_by_key_minus_query() -> None:
    by_distance = jnp.arange(-3, 4)[None]
    places = np.arange(4)
    assert np.array_equal(spread_bias(by_distance, places)[0], places[None] - places[:, None])
