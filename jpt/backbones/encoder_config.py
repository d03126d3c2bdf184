"""The shape of a BERT or RoBERTa model, read from its Hugging Face config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jpt.backbones.config_fields import read_number, read_whole
from jpt.backbones.layers import ACTIVATIONS
from jpt.errors import InputError

MODEL_TYPES = ("bert", "roberta", "xlm-roberta")


@dataclass(frozen=True)
class EncoderConfig:
    """What shapes an encoder and how its input is laid out."""

    model_type: str  # ``"bert"`` or ``"roberta"``
    vocabulary: int  # V, rows of the word table
    width: int  # D
    layers: int  # L
    heads: int  # H
    neurons: int  # F of one feed-forward layer
    positions: int  # how many text tokens the position table serves
    position_offset: int  # position of the first text token in the table (RoBERTa: padding id + 1)
    token_types: int  # rows of the token type table
    activation: str = "gelu"  # name of the non-linearity of the feed-forward layers
    head_activation: str = "gelu"  # name of the non-linearity of the masked-LM head
    epsilon: float = 1e-12  # of every layer norm
    # whether the head multiplies by the word table or has a table of its own
    tied_head: bool = True
    # rate the model was trained with, used only when dropout is asked for
    dropout_rate: float = 0.1

    @property
    def is_bert(self) -> bool:
        """Whether names and layout are BERT's rather than RoBERTa's."""
        return self.model_type == "bert"

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any]) -> EncoderConfig:
        """Reads a ``config.json`` that transformers wrote."""
        _refuse_variants(config)
        model_type = "bert" if config["model_type"] == "bert" else "roberta"
        positions = read_whole(config, "max_position_embeddings")
        offset = 0 if model_type == "bert" else read_whole(config, "pad_token_id", 1, least=0) + 1
        if offset >= positions:
            raise InputError(
                f"config.json has {positions} positions (max_position_embeddings), but text "
                f"starts after padding id {offset - 1}; nothing is left for it"
            )
        activation = config.get("hidden_act", "gelu")
        return cls(
            model_type=model_type,
            vocabulary=read_whole(config, "vocab_size"),
            width=read_whole(config, "hidden_size"),
            layers=read_whole(config, "num_hidden_layers"),
            heads=read_whole(config, "num_attention_heads"),
            neurons=read_whole(config, "intermediate_size"),
            positions=positions - offset,
            position_offset=offset,
            token_types=read_whole(config, "type_vocab_size", 2),
            activation=activation,
            # RoBERTa's head has GELU whatever the layers have.
            head_activation=activation if model_type == "bert" else "gelu",
            epsilon=read_number(config, "layer_norm_eps", 1e-12),
            tied_head=bool(config.get("tie_word_embeddings", True)),
            dropout_rate=read_number(config, "hidden_dropout_prob", 0.1, allow_zero=True),
        )


def _refuse_variants(config: Mapping[str, Any]) -> None:
    """Raises for what the encoder family does not compute, naming the field."""
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise InputError(
            f"config.json has model_type {model_type!r}; this family loads {', '.join(MODEL_TYPES)}"
        )
    kind = config.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise InputError(f"config.json has position_embedding_type {kind!r}; expected 'absolute'")
    if config.get("is_decoder") or config.get("add_cross_attention"):
        raise InputError("config.json says is_decoder; an encoder with a masked-LM head is needed")
    activation = config.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise InputError(
            f"config.json has hidden_act {activation!r}; known are {', '.join(ACTIVATIONS)}"
        )
    width, heads = read_whole(config, "hidden_size"), read_whole(config, "num_attention_heads")
    if width % heads:
        raise InputError(f"config.json has hidden_size {width}, which {heads} heads do not divide")
