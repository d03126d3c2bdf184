"""Configs of every family: what is raises, defaults of old files, and real shapes."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jpt.backbones.decoder import Decoder, DecoderConfig
from jpt.backbones.encoder import EncoderConfig
from jpt.backbones.layers import Rotary
from jpt.backbones.t5 import T5, T5Config
from jpt.errors import InputError
from jpt.testing import tiny_bert_config

BERT = tiny_bert_config()
ROBERTA = {**BERT, "model_type": "roberta", "pad_token_id": 1}
GPT2 = {"model_type": "gpt2", "vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4}
GPT2["n_positions"] = 40
LLAMA = {"model_type": "llama", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48}
LLAMA |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA["max_position_embeddings"] = 40
QWEN2 = {**LLAMA, "model_type": "qwen2"}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
FLAT = {"vocab_size": 61, "d_model": 20, "d_kv": 3, "d_ff": 31, "num_layers": 2, "num_heads": 7}
T5_FIELDS = {"model_type": "t5", **FLAT}

FAMILIES = {"bert": EncoderConfig, "roberta": EncoderConfig, "xlm-roberta": EncoderConfig}
FAMILIES |= {"t5": T5Config, "gpt2": DecoderConfig, "llama": DecoderConfig, "qwen2": DecoderConfig}


def read(base: dict[str, Any], **changes: object) -> Any:
    return FAMILIES[base["model_type"]].from_huggingface({**base, **changes})


REFUSED: list[tuple[dict, dict, tuple[str, ...]]] = [
    (BERT, {"model_type": "t5"}, ("model_type bert, roberta", "got 't5'")),
    (BERT, {"model_type": None}, ("model_type", "got None")),
    (BERT, {"position_embedding_type": "relative_key"}, ("'relative_key'", "'absolute'")),
    (BERT, {"is_decoder": True}, ("is_decoder",)),
    (BERT, {"add_cross_attention": True}, ("add_cross_attention", "encoder")),
    (BERT, {"hidden_act": "swiglu"}, ("hidden_act gelu", "relu", "got 'swiglu'")),
    (BERT, {"num_attention_heads": 5}, ("hidden_size", "num_attention_heads 5", "got 32")),
    (BERT, {"num_attention_heads": 0}, ("num_attention_heads", "got 0")),
    (BERT, {"num_hidden_layers": 0}, ("num_hidden_layers", "got 0")),
    (BERT, {"tie_word_embeddings": "false"}, ("tie_word_embeddings", "true or false", "'false'")),
    (BERT, {"hidden_size": "32"}, ("hidden_size", "got '32'")),
    (BERT, {"vocab_size": None}, ("vocab_size", "got None")),
    (BERT, {"max_position_embeddings": True}, ("max_position_embeddings", "got True")),
    (ROBERTA, {"pad_token_id": None}, ("pad_token_id", "got None")),
    (ROBERTA, {"pad_token_id": 39}, ("max_position_embeddings", "= 40", "got 40")),
    (GPT2, {"model_type": "gpt_neo"}, ("model_type gpt2, llama, qwen2", "got 'gpt_neo'")),
    (GPT2, {"model_type": None}, ("model_type", "got None")),
    (GPT2, {"add_cross_attention": True}, ("add_cross_attention false", "without it")),
    (GPT2, {"scale_attn_by_inverse_layer_idx": True}, ("scale_attn_by_inverse_layer_idx false",)),
    (GPT2, {"scale_attn_weights": None}, ("scale_attn_weights", "true or false", "got None")),
    (GPT2, {"activation_function": "mish"}, ("activation_function", "gelu_new", "got 'mish'")),
    (GPT2, {"n_head": 5}, ("n_embd", "n_head 5", "got 32")),
    (GPT2, {"n_layer": 0}, ("n_layer", "at least 1", "got 0")),
    (GPT2, {"n_embd": "32"}, ("n_embd", "got '32'")),
    (GPT2, {"n_inner": -1}, ("n_inner", "got -1")),
    (GPT2, {"n_positions": True}, ("n_positions", "got True")),
    (GPT2, {"vocab_size": None}, ("vocab_size", "got None")),
    (GPT2, {"layer_norm_epsilon": 0}, ("layer_norm_epsilon", "above 0", "got 0")),
    (GPT2, {"layer_norm_epsilon": float("nan")}, ("layer_norm_epsilon", "got nan")),
    (GPT2, {"resid_pdrop": "0.1"}, ("resid_pdrop", "at least 0", "got '0.1'")),
    (LLAMA, {"num_key_value_heads": 3}, ("num_attention_heads", "num_key_value_heads 3", "got 4")),
    (LLAMA, {"num_attention_heads": 6}, ("hidden_size", "heads 6", "got 32", "head_dim")),
    (LLAMA, {"head_dim": 7}, ("head_dim", "even", "got 7")),
    (LLAMA, {"hidden_size": 36}, ("hidden_size / num_attention_heads", "even", "got 9")),
    (LLAMA, {"hidden_act": "swiglu"}, ("hidden_act", "silu", "got 'swiglu'")),
    (LLAMA, {"attention_bias": "yes"}, ("attention_bias", "true or false", "got 'yes'")),
    (LLAMA, {"rope_theta": -1.0}, ("rope_theta", "above 0", "got -1.0")),
    (LLAMA, {"rope_scaling": {"type": "yarn"}}, ("llama3 in rope_scaling", "got 'yarn'")),
    (LLAMA, {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, ("linear", "'dynamic'")),
    (LLAMA, {"rope_parameters": {"rope_type": "longrope"}}, ("rope_parameters", "'longrope'")),
    (LLAMA, {"rope_scaling": {"type": "linear"}}, ("no field 'factor'",)),
    (LLAMA, {"rope_scaling": {"type": "linear", "factor": 0}}, ("factor", "got 0")),
    (LLAMA, {"rope_scaling": [1]}, ("rope_scaling", "object", "got [1]")),
    (LLAMA, {"rope_parameters": {"full_attention": {}}}, ("all layers", "'full_attention'")),
    (LLAMA, {"partial_rotary_factor": 0.5}, ("partial_rotary_factor 1.0", "got 0.5")),
    (LLAMA, {"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, ("low_freq", "got 1.0")),
    (LLAMA, {"rope_scaling": {**LLAMA3, "partial_rotary_factor": 0.5}}, ("got 0.5",)),
    (LLAMA, {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, ("'low_freq_factor'",)),
    (QWEN2, {"use_sliding_window": True, "max_window_layers": 1}, ("use_sliding_window", "4096")),
    (QWEN2, {"layer_types": ["full_attention", "sliding_attention"]}, ("'sliding_attention'",)),
    (T5_FIELDS, {"model_type": "mt5"}, ("model_type t5", "got 'mt5'")),
    (T5_FIELDS, {"model_type": None}, ("model_type", "got None")),
    (T5_FIELDS, {"is_encoder_decoder": False}, ("one stack alone", "is_encoder_decoder")),
    (T5_FIELDS, {"is_decoder": True}, ("one stack alone", "is_decoder")),
    (T5_FIELDS, {"feed_forward_proj": "gated-swish"}, ("gated-gelu", "relu", "'gated-swish'")),
    (T5_FIELDS, {"feed_forward_proj": "wide-gelu"}, ("'wide-gelu'", "gated-gelu")),
    (T5_FIELDS, {"feed_forward_proj": "gated-gated-gelu"}, ("'gated-gated-gelu'",)),
    (T5_FIELDS, {"feed_forward_proj": 3}, ("feed_forward_proj", "relu", "got 3")),
    (T5_FIELDS, {"feed_forward_proj": ""}, ("feed_forward_proj", "relu", "got ''")),
    (T5_FIELDS, {"dense_act_fn": "swish"}, ("dense_act_fn", "silu", "got 'swish'")),
    (T5_FIELDS, {"is_gated_act": "yes"}, ("is_gated_act", "true or false", "got 'yes'")),
    (T5_FIELDS, {"tie_word_embeddings": "no"}, ("tie_word_embeddings", "true or false", "'no'")),
    (T5_FIELDS, {"scale_decoder_outputs": 1}, ("scale_decoder_outputs", "true or false", "got 1")),
    (T5_FIELDS, {"num_heads": 0}, ("num_heads", "at least 1", "got 0")),
    (T5_FIELDS, {"num_layers": 0}, ("num_layers", "got 0")),
    (T5_FIELDS, {"num_decoder_layers": 0}, ("num_decoder_layers", "got 0")),
    (T5_FIELDS, {"num_decoder_layers": 1.5}, ("num_decoder_layers", "got 1.5")),
    (T5_FIELDS, {"d_model": "20"}, ("d_model", "integer", "got '20'")),
    (T5_FIELDS, {"vocab_size": None}, ("vocab_size", "got None")),
    (T5_FIELDS, {"relative_attention_num_buckets": 3}, ("buckets", "at least 4", "got 3")),
    (T5_FIELDS, {"relative_attention_max_distance": 16}, ("above 16", "buckets 32", "got 16")),
    (T5_FIELDS, {"decoder_start_token_id": 61}, ("decoder_start", "vocab_size 61", "got 61")),
    (T5_FIELDS, {"decoder_start_token_id": -1}, ("decoder_start", "at least 0", "got -1")),
    (T5_FIELDS, {"pad_token_id": 99}, ("pad_token_id", "vocab_size 61", "got 99")),
    (T5_FIELDS, {"dropout_rate": 1}, ("dropout_rate below 1", "got 1.0")),
    (T5_FIELDS, {"dropout_rate": "0.1"}, ("dropout_rate", "got '0.1'")),
    (T5_FIELDS, {"layer_norm_epsilon": 0}, ("layer_norm_epsilon", "above 0", "got 0")),
]


@pytest.mark.parametrize(("base", "changes", "said"), REFUSED)
def test_unsupported_variant_is_refused(base: dict, changes: dict, said: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as error:
        read(base, **changes)
    message = str(error.value)
    assert "\n" not in message and message.startswith("config.json"), message
    assert all(words in message for words in said), message


OPTIONAL = {"model_type", "num_key_value_heads"}  # of those in GPT2, LLAMA and T5_FIELDS
NEEDED = {
    "bert": [*BERT][2:8],  # vocab_size to max_position_embeddings
    **{each["model_type"]: [*each.keys() - OPTIONAL] for each in (GPT2, LLAMA, T5_FIELDS)},
    "qwen2": ["num_key_value_heads"],
}
BASES = {base["model_type"]: base for base in (BERT, GPT2, LLAMA, QWEN2, T5_FIELDS)}


@pytest.mark.parametrize(
    ("base", "field"), [(BASES[name], field) for name in NEEDED for field in sorted(NEEDED[name])]
)
def test_missing_field_is_named(base: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=f"no field '{field}'"):
        FAMILIES[base["model_type"]].from_huggingface({k: base[k] for k in base if k != field})


@pytest.mark.parametrize("family", [EncoderConfig, T5Config, DecoderConfig])
def test_no_model_type_is_refused(family: Any) -> None:
    with pytest.raises(InputError, match="model_type .* got None"):
        family.from_huggingface({})


def test_bert_starts_at_position_0_and_roberta_after_its_padding_id() -> None:
    def range_of(config: EncoderConfig) -> tuple[int, int]:
        return config.positions, config.position_offset

    assert range_of(read(BERT)) == (40, 0)
    assert range_of(read(ROBERTA)) == (38, 2)
    assert range_of(read(ROBERTA, pad_token_id=5)) == (34, 6)
    assert read({**ROBERTA, "model_type": "xlm-roberta"}) == read(ROBERTA)


def test_head_of_roberta_has_gelu_whatever_the_layers_have() -> None:
    assert read(BERT, hidden_act="relu").head_activation == "relu"
    roberta = read(ROBERTA, hidden_act="relu")
    assert (roberta.activation, roberta.head_activation) == ("relu", "gelu")


def test_defaults_of_encoders() -> None:
    optional = ("type_vocab_size", "hidden_act", "pad_token_id", "layer_norm_eps")
    config = read({key: value for key, value in BERT.items() if key not in optional})
    assert (config.token_types, config.activation, config.epsilon) == (2, "gelu", 1e-12)
    assert config.tied_head and config.head_width == 8


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
    assert read(QWEN2, **changes) == read(QWEN2)


def test_defaults_of_gpt2() -> None:
    config = read(GPT2)
    assert (config.neurons, config.activation, config.epsilon) == (128, "gelu_new", 1e-5)
    assert (config.head_width, config.key_heads, config.dropout_rate) == (8, 4, 0.1)
    assert config.tied_head and config.rotary is None and config.attention_scale == 8**-0.5
    assert read(GPT2, n_inner=None) == config and read(GPT2, n_inner=50).neurons == 50
    assert read(GPT2, scale_attn_weights=False).attention_scale == 1
    # Another order of the same float32 sums.
    assert read(GPT2, reorder_and_upcast_attn=True) == config


def test_defaults_of_llama() -> None:
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
    config = read(QWEN2, attention_bias=True, mlp_bias=True)  # fields that Qwen2 does not have
    assert config.attention_in_bias
    assert not config.attention_out_bias and not config.feed_forward_bias


def without(part: str) -> dict[str, Any]:
    return {key: value for key, value in LLAMA3.items() if part not in key}


LINEAR = {"type": "linear", "factor": 3.0}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rope_theta": 500}, (500.0,)),
        ({"rope_theta": 5e5, "rope_scaling": None}, (5e5,)),
        ({"rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}}, (100.0,)),
        ({"rope_parameters": {"rope_type": "default"}, "rope_theta": 7.0}, (7.0,)),
        ({"rope_theta": 9.0, "rope_scaling": LINEAR}, (9.0, "linear", 3.0)),
        ({"rope_parameters": LLAMA3}, (5e5, "llama3", 32.0, 1.0, 4.0, 8192)),
        (
            {"rope_theta": 3.0, "rope_scaling": without("theta")},
            (3.0, "llama3", 32.0, 1.0, 4.0, 8192),
        ),
        # As in transformers, the old table overrides the new one.
        ({"rope_scaling": LINEAR, "rope_parameters": LLAMA3}, (1e4, "linear", 3.0)),
        ({"rope_parameters": without("original")}, (5e5, "llama3", 32.0, 1.0, 4.0, 40)),
        (
            {"rope_parameters": LLAMA3, "original_max_position_embeddings": 30},
            (5e5, "llama3", 32.0, 1.0, 4.0, 30),
        ),
    ],
)
def test_rotary_positions_are_read_in_every_form(changes: dict, expected: tuple) -> None:
    assert read(LLAMA, **changes).rotary == Rotary(*expected)


def test_defaults_of_t5() -> None:
    config = read(T5_FIELDS)
    assert (config.encoder_layers, config.layers) == (2, 2)
    assert (config.buckets, config.max_distance) == (32, 128)
    assert (config.activation, config.gated) == ("relu", False)
    assert (config.start_id, config.epsilon, config.dropout_rate) == (0, 1e-6, 0.1)
    assert config.tied_head and config.scaled_head
    assert config.positions == 2048
    assert read(T5_FIELDS, num_decoder_layers=None).layers == 2
    assert read(T5_FIELDS, num_decoder_layers=5).layers == 5


def test_decoder_starts_from_padding_by_default() -> None:
    assert read(T5_FIELDS, pad_token_id=4).start_id == 4
    assert read(T5_FIELDS, pad_token_id=4, decoder_start_token_id=0).start_id == 0
    assert read(T5_FIELDS, pad_token_id=4, decoder_start_token_id=None).start_id == 4
    assert read(T5_FIELDS, pad_token_id=None).start_id == 0


@pytest.mark.parametrize(
    ("tie_word_embeddings", "scale_decoder_outputs", "expected"),
    [
        (True, None, (True, True)),
        (False, None, (False, False)),
        # As transformers 5 writes version 1.1: every head is called tied.
        (True, False, (True, False)),
        (False, False, (False, False)),
        (False, True, (False, True)),
    ],
)
def test_scaling_has_a_field_or_follows_the_tying(
    tie_word_embeddings: bool, scale_decoder_outputs: bool | None, expected: tuple[bool, bool]
) -> None:
    changes = {"tie_word_embeddings": tie_word_embeddings}
    if scale_decoder_outputs is not None:
        changes["scale_decoder_outputs"] = scale_decoder_outputs
    config = read(T5_FIELDS, **changes)
    assert (config.tied_head, config.scaled_head) == expected


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("gelu", {}, ("gelu", False)),
        ("gated-gelu", {}, ("gelu_new", True)),
        ("gated-silu", {}, ("silu", True)),
        ("gated-relu", {}, ("relu", True)),
        # As in transformers, the explicit fields override the name.
        ("gated-gelu", {"dense_act_fn": "gelu"}, ("gelu", True)),
        ("gated-gelu", {"is_gated_act": False}, ("gelu_new", False)),
    ],
)
def test_activation_and_gate(kind: str, changes: dict, expected: tuple[str, bool]) -> None:
    config = read(T5_FIELDS, feed_forward_proj=kind, **changes)
    assert (config.activation, config.gated) == expected


# Numbers of parameters as transformers counts them, an untied head included.
REAL = {
    "gpt2": 124_439_808,
    "llama-3.2-1b": 1_235_814_400,
    "smollm2-135m": 134_515_008,
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-11b": 11_307_321_344,
    "t5-v1_1-xxl": 11_135_332_352,
}


@pytest.mark.parametrize("name", REAL)
def test_real_shapes_have_the_right_number_of_parameters(name: str, reference_folder: Path) -> None:
    path = reference_folder / "configs" / f"{name}.json"
    if name.startswith("t5") and not path.is_file():
        pytest.skip(f"no {path}")
    config = read(json.loads(path.read_text()))
    module = T5(config) if name.startswith("t5") else Decoder(config)
    inputs = jnp.ones((2, 7), jnp.int32), jnp.array([7, 4])
    prompt = jax.ShapeDtypeStruct((100, config.width), jnp.float32)
    key = jax.random.key(0)
    output, variables = jax.eval_shape(module.init_with_output, key, *inputs, prompt)
    assert output.logits.shape == (2, config.vocabulary)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables)) == REAL[name]
