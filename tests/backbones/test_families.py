"""What holds for the models of every family: batches, prompts, masks, dropout, compilation."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpt.types import Parameters
from tests.helpers.golden import (
    DECODERS,
    ENCODERS,
    EQUAL,
    T5S,
    Golden,
    ask,
    difference,
    load_golden,
    read,
    slope,
)

# Of encoders one without a scan; GPT-2 with two layers; grouped heads, rotary positions and biases.
MODELS = ("bert_one_layer", "roberta_untied", "gpt2_untied", "llama_grouped", "qwen2_untied")
MODELS = (*MODELS, "t5_relu")
one_of_each = pytest.mark.parametrize("name", ["roberta_untied", "llama_grouped", "t5_relu"])


def assert_equal(found: Any, expected: Any) -> None:
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert difference(one, other) < EQUAL


@pytest.mark.parametrize("name", [name for name in MODELS if name != "gpt2_untied"])
def test_shortcut_at_the_answer_equals_every_position(name: str) -> None:
    golden = load_golden(name)
    batch, label_ids = golden.batch, golden.input("label_ids")
    short = ask(golden, *batch, capture_neurons=True)
    plain = ask(golden, *batch, capture_neurons=True, every_position=True)
    assert_equal(short, jax.tree.map(golden.at_answer, plain))
    fewer = ask(golden, *batch, label_ids=label_ids)
    assert_equal(fewer.logits, short.logits[:, label_ids])
    if name in ENCODERS:
        (found, _), gradient = slope(golden.module(), golden.params, *batch)
        every = slope(golden.module(), golden.params, *batch, every_position=True)
        assert_equal((found, gradient), (every[0][0], every[1]))


@pytest.mark.parametrize("name", MODELS)
def test_neurons_are_returned_only_if_captured(name: str) -> None:
    golden = load_golden(name)
    config, (tokens, _, prompt) = golden.config, golden.batch
    rows, text = tokens.shape

    def shape(**options: bool) -> tuple[int, ...] | None:
        neurons = read.eval_shape(golden.module(), golden.params, *golden.batch, **options).neurons
        return None if neurons is None else neurons.shape

    positions = {"encoder": 1 + len(prompt) + text, "decoder": text, "encoder_decoder": 1}
    positions = positions[golden.family.layout]
    assert shape() is None and shape(every_position=True) is None
    assert shape(capture_neurons=True) == (config.layers, rows, config.neurons)
    everywhere = shape(capture_neurons=True, every_position=True)
    assert everywhere == (config.layers, rows, positions, config.neurons)


@one_of_each
def test_padding_bucket_batch_and_order_change_nothing(name: str) -> None:
    golden = load_golden(name)
    module, (tokens, lengths, prompt) = golden.module(), golden.batch
    (value, logits), gradient = slope(module, golden.params, tokens, lengths, prompt)
    # Padding of real words, to a longer bucket, the rows in another order.
    rows, order = golden.with_other_padding(), jnp.arange(tokens.shape[0])[::-1]
    (found, others), slopes = slope(module, golden.params, rows[order], lengths[order], prompt)
    assert_equal((found, others[order], slopes), (value, logits, gradient))
    # One row alone, without any padding.
    row = int(np.argsort(golden.stored["lengths"])[-2])
    length = int(lengths[row])
    assert length < tokens.shape[1]
    alone = ask(golden, tokens[row : row + 1, :length], lengths[row : row + 1], prompt)
    assert_equal(alone.logits, logits[row : row + 1])


@pytest.mark.parametrize("name", ["roberta_untied", "gpt2_tied", "llama_grouped", "t5_relu"])
def test_rows_take_their_prompts_from_a_bank(name: str) -> None:
    golden = load_golden(name)
    tokens, lengths, _ = golden.batch
    bank = golden.rows_of_prompts()
    chosen = jnp.array([len(bank) - 1, 0, len(bank) - 1, 1])[: len(tokens)]
    together = ask(golden, tokens, lengths, bank[chosen]).logits
    for row, number in enumerate(chosen):
        assert_equal(together[row], ask(golden, tokens, lengths, bank[number]).logits[row])
    assert difference(together[1], ask(golden, tokens, lengths, bank[-1]).logits[1]) > 0.01


@pytest.mark.parametrize("name", ["bert_one_layer", "roberta_untied"])
def test_one_prompt_for_all_is_the_same_prompt_a_row(name: str) -> None:
    golden = load_golden(name)
    tokens, lengths, prompt = golden.batch
    repeated = jnp.broadcast_to(prompt[None], (len(tokens), *prompt.shape))
    expected = ask(golden, tokens, lengths, prompt).logits
    assert_equal(ask(golden, tokens, lengths, repeated).logits, expected)


@pytest.mark.parametrize("name", ["roberta_untied", "qwen2_untied", "t5_relu"])
def test_prompts_at_once_equal_one_after_the_other(name: str) -> None:
    golden = load_golden(name)
    tokens, lengths, _ = golden.batch
    bank = golden.rows_of_prompts()
    apply = partial(slope, golden.module(), golden.params, tokens, lengths)
    found = jax.vmap(apply)(bank)
    for number, prompt in enumerate(bank):
        assert_equal(jax.tree.map(lambda leaf, n=number: leaf[n], found), apply(prompt))


@pytest.mark.parametrize("name", ["roberta_untied", "gpt2_tied", "llama_grouped", "t5_relu"])
def test_no_prompt_is_a_prompt_of_no_rows(name: str) -> None:
    golden = load_golden(name)
    tokens, lengths, prompt = golden.batch
    none, whole = ask(golden, tokens, lengths, None), ask(golden, tokens, lengths, prompt)
    empty = [prompt[:0]]
    if name in DECODERS:
        empty.append(jnp.zeros((len(tokens), 0, prompt.shape[1])))
    for each in empty:
        assert_equal(ask(golden, tokens, lengths, each).logits, none.logits)
    assert difference(whole.logits, none.logits) > 0.1


@pytest.mark.parametrize("name", ["bert_tied", "gpt2_tied", "llama_grouped", "t5_relu"])
def test_prompt_rows_have_an_order_except_in_encoders(name: str) -> None:
    golden = load_golden(name)
    tokens, lengths, prompt = golden.batch
    expected = ask(golden, tokens, lengths, prompt).logits
    found = difference(ask(golden, tokens, lengths, prompt[::-1]).logits, expected)
    assert found < EQUAL if name in ENCODERS else found > 0.01


def without_second_matrix(
    golden: Golden, stack: str | None, layer: int, neuron: Any = ...
) -> Parameters:
    """The weights with rows of the second feed-forward matrix of one layer set to zero."""
    changed, where = jax.tree.map(lambda leaf: leaf, golden.params), (layer, neuron)
    if stack is not None:
        folder = changed[stack]["layers"]
    elif layer == golden.config.layers - 1:
        folder, where = changed["last_layer"], neuron
    else:
        folder = changed["layers"]
    second = folder["feed_forward_out"]
    second["kernel"] = second["kernel"].at[where].set(0)
    return changed


def options_of(stack: str | None) -> dict[str, Any]:
    return {"capture_neurons": True, **({} if stack is None else {"neuron_stack": stack})}


@pytest.mark.parametrize(
    ("name", "stack"),
    [
        *((name, None) for name in MODELS[:-1]),
        *((name, stack) for name in ("t5_relu", "t5_gated") for stack in ("decoder", "encoder")),
    ],
)
def test_mask_of_ones_is_no_mask_and_zeros_leave_the_bias_only(
    name: str, stack: str | None
) -> None:
    golden, options = load_golden(name), options_of(stack)
    config, batch = golden.config, golden.batch
    depth = config.encoder_layers if stack == "encoder" else config.layers
    ones = jnp.ones((depth, config.neurons))
    unmasked = ask(golden, *batch, **options)
    found = ask(golden, *batch, neuron_mask=ones, **options)
    assert difference(found.logits, unmasked.logits) < 1e-6
    for layer in range(depth):
        masked = ask(golden, *batch, neuron_mask=ones.at[layer].set(0), **options)
        bare = without_second_matrix(golden, stack, layer)
        assert_equal(masked.logits, read(golden.module(), bare, *batch, **options).logits)
        assert difference(masked.logits, unmasked.logits) > 0.01
        # Returned are the values before the mask; only later layers change.
        assert_equal(masked.neurons[: layer + 1], unmasked.neurons[: layer + 1])


@pytest.mark.parametrize(
    ("name", "stack", "layer"),
    [
        ("roberta_untied", None, 0),
        ("gpt2_tied", None, 1),
        ("llama_grouped", None, 1),
        ("t5_gated", "decoder", 0),
    ],
)
def test_mask_of_one_neuron_affects_that_neuron_only(
    name: str, stack: str | None, layer: int
) -> None:
    golden = load_golden(name)
    mask = jnp.ones((golden.config.layers, golden.config.neurons)).at[layer, 3].set(0)
    params = without_second_matrix(golden, stack, layer, 3)
    expected = read(golden.module(), params, *golden.batch).logits
    assert_equal(ask(golden, *golden.batch, neuron_mask=mask).logits, expected)


@pytest.mark.parametrize("name", ["bert_tied", "gpt2_tied", "llama_grouped", "t5_one_layer"])
def test_dropout_is_off_by_default_and_a_function_of_its_key(name: str) -> None:
    golden = load_golden(name)
    call = partial(read, golden.module(dropout_rate=0.1), golden.params, *golden.batch)
    plain = ask(golden, *golden.batch).logits
    first, again = call(jax.random.key(1)).logits, call(jax.random.key(1)).logits
    assert np.array_equal(first, again)
    assert difference(call(jax.random.key(2)).logits, first) > 0.01
    assert difference(first, plain) > 0.01
    # Without dropout, a key changes nothing.
    assert np.array_equal(ask(golden, *golden.batch, jax.random.key(1)).logits, plain)


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("name", ["llama_grouped", "t5_gated_silu"])
def test_rematerialisation_changes_no_gradient(name: str, remat: str) -> None:
    golden = load_golden(name)
    module = type(golden.module())(golden.config, remat=remat)
    expected = slope(golden.module(), golden.params, *golden.batch)
    assert_equal(slope(module, golden.params, *golden.batch), expected)


@pytest.mark.parametrize("name", [*MODELS, "t5_gated_silu"])
def test_computing_in_bfloat16_keeps_scores_in_float32(name: str) -> None:
    golden = load_golden(name)
    output = read.eval_shape(golden.module(jnp.bfloat16), golden.params, *golden.batch)
    assert output.logits.dtype == jnp.float32 and output.hidden.dtype == jnp.bfloat16


@pytest.mark.parametrize("name", ["bert_tied", "gpt2_tied", "llama_grouped", "t5_relu"])
def test_program_does_not_grow_with_depth(name: str) -> None:
    golden = load_golden(name)
    inputs = jnp.ones((2, 5), jnp.int32), jnp.array([5, 3]), jnp.ones((3, golden.config.width))

    def size(layers: int) -> int:
        changes = {"encoder_layers": layers + 1} if name in T5S else {}
        config = dataclasses.replace(golden.config, layers=layers, **changes)
        module = golden.module().clone(config=config)
        variables = jax.eval_shape(module.init, jax.random.key(0), *inputs[:2])
        return len(jax.jit(module.apply).lower(variables, *inputs).as_text().splitlines())

    assert size(12) == size(3)
