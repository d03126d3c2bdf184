"""Shapes of encoders: what a config.json may say, and what is refused in one line."""

from __future__ import annotations

import pytest

from jpt.backbones.encoder import EncoderConfig
from jpt.errors import InputError
from jpt.testing import tiny_bert_config


def read(**changes: object) -> EncoderConfig:
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
        read(**changes)
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
    bert = read()
    assert (bert.positions, bert.position_offset) == (40, 0)
    roberta = read(model_type="roberta", pad_token_id=1)
    assert (roberta.positions, roberta.position_offset) == (38, 2)
    later = read(model_type="roberta", pad_token_id=5)
    assert (later.positions, later.position_offset) == (34, 6)
    assert read(model_type="xlm-roberta", pad_token_id=1) == roberta


def test_head_of_roberta_has_gelu_whatever_the_layers_have() -> None:
    assert read(hidden_act="relu").head_activation == "relu"
    roberta = read(model_type="roberta", pad_token_id=1, hidden_act="relu")
    assert (roberta.activation, roberta.head_activation) == ("relu", "gelu")


def test_defaults_are_those_of_old_files() -> None:
    config = tiny_bert_config()
    for field in ("type_vocab_size", "hidden_act", "pad_token_id", "layer_norm_eps"):
        del config[field]
    read = EncoderConfig.from_huggingface(config)
    assert (read.token_types, read.activation, read.epsilon) == (2, "gelu", 1e-12)
    assert read.tied_head and read.head_width == 8
