"""Shapes of T5 models: what a config.json may say, what is refused in one line, real shapes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jpt.backbones.t5 import T5, T5Config
from jpt.errors import InputError

FIELDS: dict[str, Any] = {
    "model_type": "t5",
    "vocab_size": 61,
    "d_model": 20,
    "d_kv": 3,
    "d_ff": 31,
    "num_layers": 2,
    "num_heads": 7,
}


def read(**changes: object) -> T5Config:
    return T5Config.from_huggingface({**FIELDS, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "mt5"}, ["model_type 'mt5'", "t5"]),
        ({"model_type": None}, ["model_type None"]),
        ({"is_encoder_decoder": False}, ["one stack alone", "is_encoder_decoder"]),
        ({"is_decoder": True}, ["one stack alone", "is_decoder"]),
        ({"feed_forward_proj": "gated-swish"}, ["'gated-swish'", "gated-gelu", "relu"]),
        ({"feed_forward_proj": "wide-gelu"}, ["'wide-gelu'", "gated-gelu"]),
        ({"feed_forward_proj": "gated-gated-gelu"}, ["'gated-gated-gelu'"]),
        ({"feed_forward_proj": 3}, ["feed_forward_proj 3", "relu"]),
        ({"feed_forward_proj": ""}, ["feed_forward_proj ''", "relu"]),
        ({"dense_act_fn": "swish"}, ["dense_act_fn is 'swish'", "silu"]),
        ({"is_gated_act": "yes"}, ["is_gated_act is 'yes'", "true or false"]),
        ({"tie_word_embeddings": "no"}, ["tie_word_embeddings is 'no'", "true or false"]),
        ({"scale_decoder_outputs": 1}, ["scale_decoder_outputs is 1", "true or false"]),
        ({"num_heads": 0}, ["num_heads is 0", "at least 1"]),
        ({"num_layers": 0}, ["num_layers is 0"]),
        ({"num_decoder_layers": 0}, ["num_decoder_layers is 0"]),
        ({"num_decoder_layers": 1.5}, ["num_decoder_layers is 1.5"]),
        ({"d_model": "20"}, ["d_model is '20'", "whole number"]),
        ({"vocab_size": None}, ["vocab_size is None"]),
        ({"relative_attention_num_buckets": 3}, ["num_buckets is 3", "at least 4"]),
        (
            {"relative_attention_max_distance": 16},
            ["max_distance 16", "32", "more than 16 is expected"],
        ),
        ({"decoder_start_token_id": 61}, ["decoder_start_token_id is 61", "61 words"]),
        ({"decoder_start_token_id": -1}, ["decoder_start_token_id is -1", "at least 0"]),
        ({"pad_token_id": 99}, ["pad_token_id is 99", "61 words"]),
        ({"dropout_rate": 1}, ["dropout_rate is 1.0", "below 1"]),
        ({"dropout_rate": "0.1"}, ["dropout_rate is '0.1'"]),
        ({"layer_norm_epsilon": 0}, ["layer_norm_epsilon is 0", "above 0"]),
    ],
)
def test_variant_that_is_not_computed_is_refused(changes: dict, said: list[str]) -> None:
    with pytest.raises(InputError) as error:
        read(**changes)
    message = str(error.value)
    assert "\n" not in message and message.startswith("config.json")
    assert all(words in message for words in said), message


@pytest.mark.parametrize("field", [field for field in FIELDS if field != "model_type"])
def test_missing_field_is_named(field: str) -> None:
    config = {key: value for key, value in FIELDS.items() if key != field}
    with pytest.raises(InputError, match=f"no field '{field}'"):
        T5Config.from_huggingface(config)


def test_no_model_type_is_refused() -> None:
    with pytest.raises(InputError, match="model_type None"):
        T5Config.from_huggingface({})


def test_defaults_are_those_of_transformers() -> None:
    config = read()
    assert (config.encoder_layers, config.layers) == (2, 2)
    assert (config.buckets, config.max_distance) == (32, 128)
    assert (config.activation, config.gated) == ("relu", False)
    assert (config.start_id, config.epsilon, config.dropout_rate) == (0, 1e-6, 0.1)
    assert config.tied_head and config.scaled_head
    assert config.positions == 2048
    assert read(num_decoder_layers=None).layers == 2
    assert read(num_decoder_layers=5).layers == 5


def test_decoder_starts_from_padding_unless_told_otherwise() -> None:
    assert read(pad_token_id=4).start_id == 4
    assert read(pad_token_id=4, decoder_start_token_id=0).start_id == 0
    assert read(pad_token_id=4, decoder_start_token_id=None).start_id == 4
    assert read(pad_token_id=None).start_id == 0


@pytest.mark.parametrize(
    ("changes", "tied", "scaled"),
    [
        ({"tie_word_embeddings": True}, True, True),
        ({"tie_word_embeddings": False}, False, False),
        # As transformers 5 writes version 1.1: every head is called tied.
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, True, False),
        ({"tie_word_embeddings": False, "scale_decoder_outputs": False}, False, False),
        ({"tie_word_embeddings": False, "scale_decoder_outputs": True}, False, True),
    ],
)
def test_scaling_is_said_by_itself_or_by_the_tying(
    changes: dict[str, bool], tied: bool, scaled: bool
) -> None:
    config = read(**changes)
    assert (config.tied_head, config.scaled_head) == (tied, scaled)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"feed_forward_proj": "gelu"}, ("gelu", False)),
        ({"feed_forward_proj": "gated-gelu"}, ("gelu_new", True)),
        ({"feed_forward_proj": "gated-silu"}, ("silu", True)),
        ({"feed_forward_proj": "gated-relu"}, ("relu", True)),
        # What the two parts say overrides the name, in transformers too.
        ({"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"}, ("gelu", True)),
        ({"feed_forward_proj": "gated-gelu", "is_gated_act": False}, ("gelu_new", False)),
    ],
)
def test_non_linearity_and_gate(changes: dict[str, Any], expected: tuple[str, bool]) -> None:
    config = read(**changes)
    assert (config.activation, config.gated) == expected


# The number of parameters as transformers counts them, a head of its own included.
REAL = {
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-11b": 11_307_321_344,
    "t5-v1_1-xxl": 11_135_332_352,
}


@pytest.mark.parametrize("name", REAL)
def test_real_shapes_have_the_right_number_of_parameters(name: str, reference_folder: Path) -> None:
    path = reference_folder / "configs" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    config = T5Config.from_huggingface(json.loads(path.read_text()))
    tokens, lengths = jnp.ones((2, 7), jnp.int32), jnp.array([7, 4])
    prompt = jax.ShapeDtypeStruct((100, config.width), jnp.float32)
    output, variables = jax.eval_shape(
        T5(config).init_with_output, jax.random.key(0), tokens, lengths, prompt
    )
    assert output.logits.shape == (2, config.vocabulary)
    counts = [math.prod(leaf.shape) for leaf in jax.tree.leaves(variables)]
    assert sum(counts) == REAL[name]
