"""Shapes of decoders: what a config.json may say, and what is refused in one line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jpt.backbones.decoder import Decoder, DecoderConfig
from jpt.backbones.layers import Rotary
from jpt.errors import InputError

GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 61,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 40,
}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read(base: dict[str, Any], **changes: object) -> DecoderConfig:
    return DecoderConfig.from_huggingface({**base, **changes})


def qwen2(**changes: object) -> DecoderConfig:
    return read(LLAMA, model_type="qwen2", **changes)


def refusal(base: dict[str, Any], **changes: object) -> str:
    with pytest.raises(InputError) as error:
        read(base, **changes)
    message = str(error.value)
    assert "\n" not in message and message.startswith("config.json"), message
    return message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "gpt_neo"}, ["model_type 'gpt_neo'", "gpt2", "llama", "qwen2"]),
        ({"model_type": None}, ["model_type None"]),
        ({"add_cross_attention": True}, ["add_cross_attention true", "without it"]),
        ({"scale_attn_by_inverse_layer_idx": True}, ["scale_attn_by_inverse_layer_idx true"]),
        ({"scale_attn_weights": None}, ["scale_attn_weights is None", "true or false"]),
        ({"activation_function": "mish"}, ["activation_function is 'mish'", "gelu_new"]),
        ({"n_head": 5}, ["n_embd 32", "n_head 5"]),
        ({"n_layer": 0}, ["n_layer is 0", "at least 1"]),
        ({"n_embd": "32"}, ["n_embd is '32'"]),
        ({"n_inner": -1}, ["n_inner is -1"]),
        ({"n_positions": True}, ["n_positions is True"]),
        ({"vocab_size": None}, ["vocab_size is None"]),
        ({"layer_norm_epsilon": 0}, ["layer_norm_epsilon is 0", "above 0"]),
        ({"layer_norm_epsilon": float("nan")}, ["layer_norm_epsilon is nan"]),
        ({"resid_pdrop": "0.1"}, ["resid_pdrop is '0.1'", "at least 0"]),
    ],
)
def test_variant_of_gpt2_that_is_not_computed_is_refused(changes: dict, said: list[str]) -> None:
    message = refusal(GPT2, **changes)
    assert all(words in message for words in said), message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_key_value_heads": 3}, ["num_attention_heads 4", "num_key_value_heads 3"]),
        ({"num_attention_heads": 6}, ["hidden_size 32", "num_attention_heads 6", "head_dim"]),
        ({"head_dim": 7}, ["head_dim is 7", "even"]),
        ({"hidden_size": 36}, ["hidden_size / num_attention_heads is 9", "even"]),
        ({"hidden_act": "swiglu"}, ["hidden_act is 'swiglu'", "silu"]),
        ({"attention_bias": "yes"}, ["attention_bias is 'yes'", "true or false"]),
        ({"rope_theta": -1.0}, ["rope_theta is -1.0", "above 0"]),
        ({"rope_scaling": {"type": "yarn"}}, ["rope_scaling has rope_type 'yarn'", "llama3"]),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, ["'dynamic'", "linear"]),
        ({"rope_parameters": {"rope_type": "longrope"}}, ["rope_parameters has", "'longrope'"]),
        ({"rope_scaling": {"type": "linear"}}, ["no field 'factor'"]),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, ["factor is 0"]),
        ({"rope_scaling": [1]}, ["rope_scaling is [1]", "object"]),
        ({"rope_parameters": {"full_attention": {}}}, ["'full_attention'", "all layers"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor is 0.5", "1.0"]),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, ["low_freq_factor is 1.0"]),
        ({"rope_scaling": {**LLAMA3, "partial_rotary_factor": 0.5}}, ["is 0.5"]),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, ["'low_freq_factor'"]),
    ],
)
def test_variant_of_llama_that_is_not_computed_is_refused(changes: dict, said: list[str]) -> None:
    message = refusal(LLAMA, **changes)
    assert all(words in message for words in said), message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_sliding_window": True, "max_window_layers": 1}, ["use_sliding_window true", "4096"]),
        ({"layer_types": ["full_attention", "sliding_attention"]}, ["'sliding_attention'"]),
    ],
)
def test_windows_of_qwen2_are_refused(changes: dict, said: list[str]) -> None:
    message = refusal({**LLAMA, "model_type": "qwen2"}, **changes)
    assert all(words in message for words in said), message


@pytest.mark.parametrize(
    "changes",
    [
        {"use_sliding_window": False, "sliding_window": 4, "max_window_layers": 0},
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
        {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
        {"use_sliding_window": True, "layer_types": ["full_attention"] * 2},
    ],
)
def test_windows_that_no_layer_uses_are_fine(changes: dict) -> None:
    assert qwen2(**changes) == qwen2()


@pytest.mark.parametrize(
    ("base", "field"),
    [(GPT2, field) for field in GPT2 if field != "model_type"]
    + [(LLAMA, field) for field in LLAMA if field not in ("model_type", "num_key_value_heads")]
    + [({**LLAMA, "model_type": "qwen2"}, "num_key_value_heads")],
)
def test_missing_field_is_named(base: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=f"no field '{field}'"):
        DecoderConfig.from_huggingface({key: base[key] for key in base if key != field})


def test_defaults_of_gpt2_are_those_of_old_files() -> None:
    config = read(GPT2)
    assert (config.neurons, config.activation, config.epsilon) == (128, "gelu_new", 1e-5)
    assert (config.head_width, config.key_heads, config.dropout_rate) == (8, 4, 0.1)
    assert config.tied_head and config.rotary is None and config.attention_scale == 8**-0.5
    assert read(GPT2, n_inner=None) == config and read(GPT2, n_inner=50).neurons == 50
    assert read(GPT2, scale_attn_weights=False).attention_scale == 1
    # Another order of the same float32 sums.
    assert read(GPT2, reorder_and_upcast_attn=True) == config


def test_defaults_of_llama_are_those_of_old_files() -> None:
    config = read(LLAMA)
    assert (config.head_width, config.key_heads, config.activation) == (8, 2, "silu")
    assert (config.epsilon, config.dropout_rate, config.tied_head) == (1e-6, 0, False)
    assert not (config.attention_in_bias or config.attention_out_bias or config.feed_forward_bias)
    assert config.rotary == Rotary(10_000.0)
    assert read(LLAMA, num_key_value_heads=None).key_heads == 4
    assert read(LLAMA, head_dim=None) == config
    wide = read(LLAMA, head_dim=12)
    assert (wide.head_width, wide.attention_scale) == (12, 12**-0.5)


def test_biases_are_those_of_the_model_type() -> None:
    biased = read(LLAMA, attention_bias=True, mlp_bias=True)
    assert biased.attention_in_bias and biased.attention_out_bias and biased.feed_forward_bias
    config = qwen2(attention_bias=True, mlp_bias=True)  # fields that Qwen2 does not have
    assert config.attention_in_bias
    assert not config.attention_out_bias and not config.feed_forward_bias


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rope_theta": 500}, Rotary(500.0)),
        ({"rope_theta": 5e5, "rope_scaling": None}, Rotary(5e5)),
        ({"rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}}, Rotary(100.0)),
        ({"rope_parameters": {"rope_type": "default"}, "rope_theta": 7.0}, Rotary(7.0)),
        (
            {"rope_theta": 9.0, "rope_scaling": {"type": "linear", "factor": 2}},
            Rotary(9.0, "linear", 2.0),
        ),
        ({"rope_parameters": LLAMA3}, Rotary(5e5, "llama3", 32.0, 1.0, 4.0, 8192)),
        (
            {"rope_theta": 3.0, "rope_scaling": {k: LLAMA3[k] for k in LLAMA3 if "theta" not in k}},
            Rotary(3.0, "llama3", 32.0, 1.0, 4.0, 8192),
        ),
        # As transformers reads it: the old table counts before the new one.
        (
            {"rope_scaling": {"type": "linear", "factor": 3.0}, "rope_parameters": LLAMA3},
            Rotary(1e4, "linear", 3.0),
        ),
        (
            {"rope_parameters": {k: LLAMA3[k] for k in LLAMA3 if "original" not in k}},
            Rotary(5e5, "llama3", 32.0, 1.0, 4.0, 40),
        ),
        (
            {"rope_parameters": LLAMA3, "original_max_position_embeddings": 30},
            Rotary(5e5, "llama3", 32.0, 1.0, 4.0, 30),
        ),
    ],
)
def test_rotary_positions_are_read_in_every_form(changes: dict, expected: Rotary) -> None:
    assert read(LLAMA, **changes).rotary == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt2", 124_439_808),
        ("llama-3.2-1b", 1_235_814_400),
        ("smollm2-135m", 134_515_008),
    ],
)
def test_real_configs_have_the_known_number_of_weights(
    reference_folder: Path, name: str, expected: int
) -> None:
    fields = json.loads((reference_folder / "configs" / f"{name}.json").read_text())
    decoder = Decoder(DecoderConfig.from_huggingface(fields))
    inputs = jnp.ones((1, 3), jnp.int32), jnp.array([3])
    shapes = jax.eval_shape(decoder.init, jax.random.key(0), *inputs)["params"]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == expected
