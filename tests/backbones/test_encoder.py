"""DOC"""

from __future__ import annotations

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpt.backbones.encoder import ENCODER_WEIGHTS, Encoder, EncoderConfig, EncoderLayer
from jpt.backbones.layers import ModelOutput
from jpt.errors import InputError
from jpt.parallel import batch_sharding, make_mesh, parameter_shardings, place, replicated
from jpt.testing import tiny_bert_config
from jpt.types import Parameters
from tests.helpers.golden import (
    ENCODERS,
    FAST_COMPILE,
    FIXTURES,
    Golden,
    ask,
    assert_cast,
    assert_no_idle_rule,
    assert_refused_unread,
    assert_same,
    assert_written_again,
    difference,
    learn,
    load,
    load_golden,
    numbers,
    read,
    refusal,
    split_of,
    stored,
    with_extras,
)

# --- encoder

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


# --- encoder config


def encoder_config_read(**changes: object) -> EncoderConfig:
    return EncoderConfig.from_huggingface({**tiny_bert_config(), **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "t5"}, ["model_type 't5'", "bert", "roberta"]),
        ({"model_type": None}, ["model_type None"]),
        ({"position_embedding_type": "relative_key"}, ["'relative_key'", "'absolute'"]),
        ({"is_decoder": True}, ["is_decoder"]),
        ({"add_cross_attention": True}, ["is_decoder", "encoder"]),
        ({"hidden_act": "swiglu"}, ["hidden_act 'swiglu'", "gelu", "relu"]),
        ({"num_attention_heads": 5}, ["hidden_size 32", "5 heads"]),
        ({"num_attention_heads": 0}, ["num_attention_heads is 0"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers is 0"]),
        ({"hidden_size": "32"}, ["hidden_size is '32'"]),
        ({"vocab_size": None}, ["vocab_size is None"]),
        ({"max_position_embeddings": True}, ["max_position_embeddings is True"]),
        ({"model_type": "roberta", "pad_token_id": None}, ["pad_token_id is None"]),
        ({"model_type": "roberta", "pad_token_id": 39}, ["40 positions", "39"]),
    ],
)
def test_variant_that_is_not_computed_is_refused(changes: dict, said: list[str]) -> None:
    with pytest.raises(InputError) as error:
        encoder_config_read(**changes)
    message = str(error.value)
    assert "\n" not in message and message.startswith("config.json")
    assert all(words in message for words in said), message


@pytest.mark.parametrize(
    "field",
    [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
    ],
)
def test_missing_field_is_named(field: str) -> None:
    config = tiny_bert_config()
    del config[field]
    with pytest.raises(InputError, match=f"no field '{field}'"):
        EncoderConfig.from_huggingface(config)


def test_no_model_type_is_refused() -> None:
    with pytest.raises(InputError, match="model_type None"):
        EncoderConfig.from_huggingface({})


def test_bert_starts_at_position_0_and_roberta_after_its_padding_id() -> None:
    bert = encoder_config_read()
    assert (bert.positions, bert.position_offset) == (40, 0)
    roberta = encoder_config_read(model_type="roberta", pad_token_id=1)
    assert (roberta.positions, roberta.position_offset) == (38, 2)
    later = encoder_config_read(model_type="roberta", pad_token_id=5)
    assert (later.positions, later.position_offset) == (34, 6)
    assert encoder_config_read(model_type="xlm-roberta", pad_token_id=1) == roberta


def test_head_of_roberta_has_gelu_whatever_the_layers_have() -> None:
    assert encoder_config_read(hidden_act="relu").head_activation == "relu"
    roberta = encoder_config_read(model_type="roberta", pad_token_id=1, hidden_act="relu")
    assert (roberta.activation, roberta.head_activation) == ("relu", "gelu")


def test_defaults_are_those_of_old_files() -> None:
    config = tiny_bert_config()
    for field in ("type_vocab_size", "hidden_act", "pad_token_id", "layer_norm_eps"):
        del config[field]
    read = EncoderConfig.from_huggingface(config)
    assert (read.token_types, read.activation, read.epsilon) == (2, "gelu", 1e-12)
    assert read.tied_head and read.head_width == 8


# --- encoder weights

WORDS = "bert.embeddings.word_embeddings.weight"
LAYER = "bert.encoder.layer.1"
EXTRAS = {
    "bert_tied": {
        "bert.pooler.dense.weight": numbers(30, 30),
        "bert.pooler.dense.bias": numbers(30),
        "cls.seq_relationship.weight": numbers(2, 30),
        "cls.seq_relationship.bias": numbers(2),
        "bert.embeddings.position_ids": np.arange(19)[None],
        "cls.predictions.decoder.weight": WORDS,
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    "roberta_tied": {
        "roberta.pooler.dense.weight": numbers(36, 36),
        "roberta.pooler.dense.bias": numbers(36),
        "roberta.embeddings.position_ids": np.arange(14)[None],
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
}


@pytest.mark.parametrize(
    ("name", "extra"), [(name, extra) for name in EXTRAS for extra in (*EXTRAS[name], "all")]
)
def test_extras_of_real_files_change_nothing(name: str, extra: str) -> None:
    config, params = load(name, with_extras(name, EXTRAS[name], extra))
    assert config.tied_head
    assert_same(params, load_golden(name).params)


def test_gamma_and_beta_of_old_files_are_read() -> None:
    tensors = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for key, value in stored("bert_tied").items()
    }
    assert "bert.embeddings.LayerNorm.gamma" in tensors
    assert_same(load("bert_tied", tensors)[1], load_golden("bert_tied").params)


@pytest.mark.parametrize(
    ("name", "own", "copy"),
    [
        ("bert_tied", "cls.predictions.bias", "cls.predictions.decoder.bias"),
        ("roberta_tied", "lm_head.bias", "lm_head.decoder.bias"),
        ("bert_untied", "cls.predictions.decoder.bias", "cls.predictions.bias"),
    ],
)
def test_bias_of_the_head_is_found_under_its_other_name(name: str, own: str, copy: str) -> None:
    tensors = stored(name)
    tensors[copy] = tensors.pop(own)
    assert_same(load(name, tensors)[1], load_golden(name).params)


def test_missing_tensors_are_named() -> None:
    tensors = stored("bert_tied")
    del tensors[f"{LAYER}.attention.self.key.bias"], tensors["cls.predictions.bias"]
    message = refusal("bert_tied", tensors)
    assert f"missing: {LAYER}.attention.self.key.bias, cls.predictions.bias" in message


def test_missing_tensors_are_counted_when_they_are_many() -> None:
    tensors = {key: value for key, value in stored("bert_tied").items() if LAYER not in key}
    assert f"missing: {LAYER}.attention.self.query.weight" in (
        message := refusal("bert_tied", tensors)
    )
    assert "and 12 more" in message  # 16 tensors a layer, 4 are shown


def test_unexpected_tensors_are_named() -> None:
    # A layer more than the config says, and a pooler under a name that BERT does not have.
    more = {
        "bert.encoder.layer.3.output.dense.bias": numbers(30),
        "roberta.pooler.dense.bias": numbers(30),
    }
    message = refusal("bert_tied", {**stored("bert_tied"), **more})
    assert f"unexpected: {', '.join(more)}" in message


@pytest.mark.parametrize(
    ("key", "shape", "expected"),
    [
        (f"{LAYER}.intermediate.dense.weight", (30, 37), (37, 30)),  # the other way round
        (WORDS, (54, 30), (53, 30)),
        ("bert.embeddings.position_embeddings.weight", (20, 30), (19, 30)),
        ("cls.predictions.transform.dense.bias", (30, 1), (30,)),
    ],
)
def test_misshaped_tensors_are_named_with_both_shapes(
    key: str, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    message = refusal("bert_tied", {**stored("bert_tied"), key: numbers(*shape)})
    assert f"misshaped: {key} is {list(shape)}, expected {list(expected)}" in message


def test_every_kind_of_misfit_is_told_at_once() -> None:
    tensors = {**stored("bert_tied"), WORDS: numbers(2, 2), "extra": numbers(1)}
    del tensors["bert.embeddings.LayerNorm.bias"]
    message = refusal("bert_tied", tensors)
    assert all(kind in message for kind in ("missing: ", "misshaped: ", "unexpected: extra"))


def test_nothing_is_read_before_everything_fits() -> None:
    assert_refused_unread("bert_tied", {})


@pytest.mark.parametrize(("name", "head"), [("bert_tied", "cls."), ("roberta_tied", "lm_head.")])
def test_checkpoint_without_a_head_says_so(name: str, head: str) -> None:
    tensors = {key: value for key, value in stored(name).items() if not key.startswith(head)}
    assert "no masked-LM head" in refusal(name, tensors)
    # The next-sentence head alone is none either.
    tensors["cls.seq_relationship.bias"] = numbers(2)
    assert "no masked-LM head" in refusal(name, tensors)


@pytest.mark.parametrize(
    ("name", "decoder"),
    [("bert_tied", "cls.predictions.decoder"), ("roberta_tied", "lm_head.decoder")],
)
def test_decoder_that_differs_from_the_word_table_unties_the_head(name: str, decoder: str) -> None:
    tensors, golden = stored(name), load_golden(name)
    shape = (golden.config.vocabulary, golden.config.width)
    tensors[f"{decoder}.weight"] = numbers(*shape)
    config, params = load(name, tensors)
    assert not config.tied_head
    assert np.array_equal(params["head"]["words"], numbers(*shape))
    assert np.array_equal(params["head"]["bias"], golden.params["head"]["bias"])
    # As in transformers, the decoder's own bias counts.
    tensors[f"{decoder}.bias"] = numbers(shape[0])
    assert np.array_equal(load(name, tensors)[1]["head"]["bias"], numbers(shape[0]))


def test_untied_head_needs_its_decoder() -> None:
    tensors = stored("bert_untied")
    del tensors["cls.predictions.decoder.weight"]
    assert "missing: cls.predictions.decoder.weight" in refusal("bert_untied", tensors)


@pytest.mark.parametrize("name", ENCODERS)
def test_writing_and_loading_again_is_exact(name: str) -> None:
    # Of an untied head only the bias in use is kept.
    is_tied = load_golden(name).config.tied_head
    assert_written_again(name, () if is_tied else {"cls.predictions.bias", "lm_head.bias"})


def test_layers_are_stacked_but_for_the_last() -> None:
    golden = load_golden("bert_tied")
    lower, last = golden.params["layers"], golden.params["last_layer"]
    tensors = stored("bert_tied")
    for layer in range(3):
        kernel = tensors[f"bert.encoder.layer.{layer}.intermediate.dense.weight"].T
        found = last["feed_forward_in"] if layer == 2 else lower["feed_forward_in"]
        assert np.array_equal(found["kernel"] if layer == 2 else found["kernel"][layer], kernel)
    assert "layers" not in load_golden("bert_one_layer").params


@pytest.mark.parametrize("kind", [np.float16, jnp.bfloat16, np.float64])
def test_files_of_another_precision_are_cast(kind: np.dtype) -> None:
    assert_cast("bert_one_layer", kind)


@pytest.mark.parametrize("name", ENCODERS)
def test_partition_table_names_every_parameter_once(name: str) -> None:
    assert split_of(name)


def test_partition_table_has_no_idle_rule() -> None:
    assert_no_idle_rule(ENCODERS)


# --- encoder golden

TOLERANCE = 1e-4
# bfloat16 has 8 bits, so states of size 2 to 4 are rounded by up to 2^-7 in every layer. Found:
# logits 1.2e-2 off, neurons 1.1e-2, gradient 2.9e-2 (torch's own bfloat16: 0.9e-2, 1.1e-2, 2.6e-2).
BFLOAT16_TOLERANCE = 3e-2
BFLOAT16_GRADIENT_TOLERANCE = 8e-2

every_fixture = pytest.mark.parametrize("name", ENCODERS)


compiled = partial(jax.jit, static_argnums=(0, 1), compiler_options=FAST_COMPILE)


def _learn(golden: Golden, encoder: Encoder, params: Parameters) -> dict[str, jax.Array]:
    return learn(encoder, params, golden.batch, golden.input("label_ids"), golden.input("labels"))


@compiled
def _look(
    encoder: Encoder, golden: Golden, params: Parameters, neuron_mask: jax.Array
) -> ModelOutput:
    """Everything everywhere, with a neuron mask."""
    options = {"capture_neurons": True, "every_position": True, "neuron_mask": neuron_mask}
    return _read(encoder, golden, params, golden.input("prompt"), **options)


@compiled
def _read_otherwise(encoder: Encoder, golden: Golden, params: Parameters) -> dict[str, jax.Array]:
    """Without a prompt, as in pretraining, and with BERT's text one position later."""

    def plain(module: Encoder) -> jax.Array:
        states = module.hidden_states(*map(golden.input, ("tokens", "lengths", "token_types")))
        return module.vocabulary_logits(states)

    answers = {
        "no_prompt_logits": _read(encoder, golden, params, None).logits,
        "plain_logits": encoder.apply({"params": params}, method=plain),
    }
    if encoder.config.is_bert:
        options = {"label_ids": golden.input("label_ids"), "first_position": 1}
        shifted = _read(encoder, golden, params, golden.input("prompt"), **options)
        answers["shifted_logits"] = shifted.logits
    return answers


def _read(
    encoder: Encoder,
    golden: Golden,
    params: Parameters,
    prompt: jax.Array | None,
    **options: object,
) -> ModelOutput:
    tokens, lengths = golden.input("tokens"), golden.input("lengths")
    return encoder.apply({"params": params}, tokens, lengths, prompt, **options)


@cache
def _answers(name: str) -> dict[str, np.ndarray]:
    """All that jpt says of a fixture's batch, under the names of the stored answers."""
    golden = load_golden(name)
    call = (golden.module(), golden, golden.params)
    mask, label_ids = golden.input("neuron_mask"), golden.input("label_ids")
    whole, masked = _look(*call, jnp.ones_like(mask)), _look(*call, mask)
    answers = {
        "vocabulary_logits": whole.logits[:, 0],
        "hidden": whole.hidden,
        "neurons": whole.neurons,
        "masked_logits": masked.logits[:, 0, label_ids],
        **_learn(golden, golden.module(), golden.params),
        **_read_otherwise(*call),
    }
    return jax.device_get(answers)


@every_fixture
@pytest.mark.parametrize(
    "answer", ["logits", "vocabulary_logits", "loss", "masked_logits", "no_prompt_logits"]
)
def test_answer_agrees(name: str, answer: str) -> None:
    golden = load_golden(name)
    assert difference(_answers(name)[answer], golden.stored[answer]) < TOLERANCE


@every_fixture
def test_prompt_gradient_agrees(name: str) -> None:
    expected = load_golden(name).stored["prompt_gradient"]
    assert difference(_answers(name)["prompt_gradient"], expected) < TOLERANCE
    # Every row is read, so every row has a gradient that counts.
    assert (np.abs(expected).max(axis=1) > 0.01 * np.abs(expected).max()).all()


@every_fixture
def test_neurons_agree_at_the_answer_and_everywhere(name: str) -> None:
    golden, answers = load_golden(name), _answers(name)
    expected = golden.stored["neurons"]
    assert difference(answers["answer_neurons"], expected[:, :, 0]) < TOLERANCE
    is_text = golden.is_text(1 + golden.stored["prompt"].shape[0])
    assert difference(answers["neurons"][:, is_text], expected[:, is_text]) < TOLERANCE


@every_fixture
def test_states_and_plain_text_agree_where_text_is(name: str) -> None:
    golden, answers = load_golden(name), _answers(name)
    is_text = golden.is_text(1 + golden.stored["prompt"].shape[0])
    assert difference(answers["hidden"][is_text], golden.stored["hidden"][is_text]) < TOLERANCE
    is_text, expected = golden.is_text(), golden.stored["plain_logits"]
    assert difference(answers["plain_logits"][is_text], expected[is_text]) < TOLERANCE


@pytest.mark.parametrize("name", [name for name in ENCODERS if name.startswith("bert")])
def test_bert_prompts_tuned_one_position_later_agree(name: str) -> None:
    golden, answers = load_golden(name), _answers(name)
    expected = golden.stored["shifted_logits"]
    assert difference(answers["shifted_logits"], expected) < TOLERANCE
    assert difference(answers["logits"], expected) > 100 * TOLERANCE


# Not the models with ReLU: values rounded to the other side of 0 change their gradient far more
# (0.17, as in torch).
@pytest.mark.parametrize(
    "name", ["roberta_tied", pytest.param("bert_one_layer", marks=pytest.mark.slow)]
)
def test_bfloat16_agrees_within_its_rounding(name: str) -> None:
    golden = load_golden(name)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), golden.params)
    found = jax.device_get(_learn(golden, golden.module(jnp.bfloat16), params))
    assert found["logits"].dtype == found["prompt_gradient"].dtype == np.float32
    largest = np.abs(golden.stored["vocabulary_logits"]).max()
    off = np.abs(found["logits"] - golden.stored["logits"]).max() / largest
    assert off < BFLOAT16_TOLERANCE
    neurons = found["answer_neurons"].astype(np.float32)
    assert difference(neurons, golden.stored["neurons"][:, :, 0]) < BFLOAT16_TOLERANCE
    gradient = golden.stored["prompt_gradient"]
    assert difference(found["prompt_gradient"], gradient) < BFLOAT16_GRADIENT_TOLERANCE


def test_mesh_gives_the_stored_answers() -> None:
    """Seven heads over two columns of devices: the split goes through a head."""
    golden, mesh = load_golden("bert_untied"), make_mesh("data:3,model:2")
    shardings, notes = parameter_shardings(golden.params, ENCODER_WEIGHTS.partition, mesh)
    assert any("feed_forward_in/bias is not sharded: dimension 45" in note for note in notes)
    params = place(golden.params, shardings)
    assert not params["last_layer"]["query"]["kernel"].is_fully_replicated
    rows = batch_sharding(mesh, golden.stored["lengths"].shape[0])
    tokens, lengths = (place(golden.input(name), rows) for name in ("tokens", "lengths"))
    prompt = place(golden.input("prompt"), replicated(mesh))
    output = read(golden.module(), params, tokens, lengths, prompt, capture_neurons=True)
    assert difference(output.logits, golden.stored["vocabulary_logits"]) < TOLERANCE
    assert difference(output.neurons, golden.stored["neurons"][:, :, 0]) < TOLERANCE


@every_fixture
def test_fixture_is_telling(name: str) -> None:
    """What the models must not have in common with a wrong reading of them."""
    stored = load_golden(name).stored
    assert difference(stored["masked_logits"], stored["logits"]) > 0.01
    assert not np.array_equal(np.sort(stored["label_ids"]), stored["label_ids"])
    assert stored["lengths"].min() <= 2 < stored["lengths"].max()


def test_fixtures_are_small() -> None:
    sizes = [file.stat().st_size for name in ENCODERS for file in (FIXTURES / name).iterdir()]
    assert max(sizes) < 100_000 and sum(sizes) < 600_000
