"""Encoders: the scan over layers, where dropout is, plain text and shifted positions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpt.backbones.encoder import ENCODER_WEIGHTS, Encoder, EncoderLayer
from jpt.backbones.layers import ModelOutput
from jpt.parallel import make_mesh, parameter_shardings, place
from jpt.types import Parameters
from tests.helpers.golden import ENCODERS, EQUAL, FAST_COMPILE, ask, difference, load_golden, read

TOLERANCE = 1e-4


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


def linear_of(weights: Parameters, kernel: float = 0, bias: float = 0) -> Parameters:
    """Weights of the same shape: a constant bias, and a diagonal kernel."""
    shape = weights["kernel"].shape
    kernel = jnp.broadcast_to(kernel * jnp.eye(*shape[-2:]), shape)
    return {"kernel": kernel, "bias": jnp.full_like(weights["bias"], bias)}


def show_dropout(params: Parameters, **maps: dict[str, float]) -> Parameters:
    """Weights with which neuron d of a layer is the feed-forward map's input at d."""
    # Large constants in ``maps`` dominate the residual, so that after the norm only dropped values
    # are negative.
    shown = jax.tree.map(lambda leaf: leaf, params)
    maps = {"attention_out": {}, "feed_forward_in": {"kernel": 1.0}, **maps}
    for layer in (shown["layers"], shown["last_layer"]):
        for name, constants in maps.items():
            layer[name] = linear_of(layer[name], **constants)
        for name in ("attention_norm", "feed_forward_norm"):
            zeros = jnp.zeros_like(layer[name]["bias"])
            layer[name] = {"scale": zeros + 1, "bias": zeros}
    return shown


def read_with_dropout(rate: float, **maps: dict[str, float]) -> ModelOutput:
    golden = load_golden("bert_tied")
    params, options = show_dropout(golden.params, **maps), {"capture_neurons": True}
    encoder, key = golden.module(dropout_rate=rate), jax.random.key(4)
    return read(encoder, params, *golden.batch, key, every_position=True, **options)


def test_dropout_is_independent_by_layer_row_and_position() -> None:
    neurons = read_with_dropout(0.25, attention_out={"bias": 1000}).neurons
    kept = np.asarray(neurons[..., :30] > 0)  # [L, B, S, D]
    assert abs(kept.mean() - 0.75) < 0.02
    for axis in range(3):
        first, second = np.take(kept, 0, axis), np.take(kept, 1, axis)
        # Independent masks agree 0.75 ** 2 + 0.25 ** 2 = 0.625 of the time.
        assert abs((first == second).mean() - 0.625) < 0.05


def test_dropout_reaches_what_the_feed_forward_map_adds() -> None:
    hidden = read_with_dropout(0.25, feed_forward_out={"bias": 1000}).hidden
    assert abs(np.asarray(hidden > 0).mean() - 0.75) < 0.03


def test_dropout_reaches_the_attention_weights() -> None:
    # All values are one constant, so the outputs of heads differ only by their dropped weights.
    maps = {"value": {"bias": 1000}, "attention_out": {"kernel": 1.0}}
    neurons = np.asarray(read_with_dropout(0.25, **maps).neurons[..., :30])
    heads = neurons.reshape(*neurons.shape[:-1], 5, 6).max(axis=-1)  # the kept part of each head
    assert (heads.std(axis=-1) > 0.01).mean() > 0.95


@pytest.mark.parametrize("name", ENCODERS)
def test_plain_text_agrees_with_torch(name: str) -> None:
    golden = load_golden(name)

    @partial(jax.jit, compiler_options=FAST_COMPILE)
    def run(params: Parameters) -> jax.Array:
        def plain(module: Encoder) -> jax.Array:
            inputs = map(golden.input, ("tokens", "lengths", "token_types"))
            return module.vocabulary_logits(module.hidden_states(*inputs))

        return golden.module().apply({"params": params}, method=plain)

    found, is_text = run(golden.params), golden.is_text()
    assert difference(found[is_text], golden.stored["plain_logits"][is_text]) < TOLERANCE


@pytest.mark.parametrize("name", [name for name in ENCODERS if name.startswith("bert")])
def test_bert_prompts_tuned_one_position_later_agree(name: str) -> None:
    golden = load_golden(name)
    expected, options = golden.stored["shifted_logits"], {"label_ids": golden.input("label_ids")}
    shifted = ask(golden, *golden.batch, first_position=1, **options).logits
    assert difference(shifted, expected) < TOLERANCE
    assert difference(ask(golden, *golden.batch, **options).logits, expected) > 100 * TOLERANCE


def test_heads_may_be_split_over_devices() -> None:
    # Seven heads over two columns of devices.
    golden, mesh = load_golden("bert_untied"), make_mesh("data:3,model:2")
    shardings, notes = parameter_shardings(golden.params, ENCODER_WEIGHTS.partition, mesh)
    assert any("feed_forward_in/bias" in note and "45" in note for note in notes)
    params = place(golden.params, shardings)
    assert not params["last_layer"]["query"]["kernel"].is_fully_replicated
