"""The shape of a T5 model, read from its Hugging Face config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jpt.backbones.config_fields import read_choice, read_flag, read_number, read_whole
from jpt.backbones.layers import ACTIVATIONS
from jpt.errors import InputError

# T5 has no table of positions; this bounds the prompt, and text has the same room.
LONGEST_PROMPT = 2048


@dataclass(frozen=True)
class T5Config:
    """What shapes a T5 model, version 1.0 or 1.1."""

    model_type: str  # ``"t5"``
    vocabulary: int  # V, rows of the word table
    width: int  # D
    encoder_layers: int  # layers of the encoder
    layers: int  # L, layers of the decoder, whose neurons are read by default
    heads: int  # H
    head_width: int  # K, width of one attention head; not D / H in general
    neurons: int  # F of one feed-forward layer
    buckets: int = 32  # how many kinds of relative position there are
    max_distance: int = 128  # from here on all distances are of one kind
    activation: str = "relu"  # name of the non-linearity of the feed-forward layers
    # whether a second matrix, without a non-linearity, is multiplied with the first
    gated: bool = False
    start_id: int = 0  # the token that the decoder reads first
    scaled_head: bool = True  # whether scores are multiplied by D ** -0.5
    # whether the head multiplies by the word table or has a table of its own
    tied_head: bool = True
    epsilon: float = 1e-6  # of every norm
    # rate the model was trained with, used only when dropout is asked for
    dropout_rate: float = 0.1
    positions: int = LONGEST_PROMPT  # the longest prompt

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any]) -> T5Config:
        """Reads a ``config.json`` that transformers wrote."""
        _refuse_variants(config)
        activation, gated = _read_activation(config)
        encoder_layers = read_whole(config, "num_layers")
        layers = config.get("num_decoder_layers")
        # Files of transformers 5 say tied of every model and name the scaling apart; older ones
        # say by the tying which version a model is, and version 1.0 alone scales.
        tied_head = read_flag(config, "tie_word_embeddings", True)
        return cls(
            model_type="t5",
            vocabulary=read_whole(config, "vocab_size"),
            width=read_whole(config, "d_model"),
            encoder_layers=encoder_layers,
            layers=encoder_layers if layers is None else read_whole(config, "num_decoder_layers"),
            heads=read_whole(config, "num_heads"),
            head_width=read_whole(config, "d_kv"),
            neurons=read_whole(config, "d_ff"),
            **_read_relative(config),
            activation=activation,
            gated=gated,
            start_id=_read_start(config),
            scaled_head=read_flag(config, "scale_decoder_outputs", tied_head),
            tied_head=tied_head,
            epsilon=read_number(config, "layer_norm_epsilon", 1e-6),
            dropout_rate=_read_dropout(config),
        )


def _read_activation(config: Mapping[str, Any]) -> tuple[str, bool]:
    """Gives the name of the non-linearity and whether the layers are gated."""
    kind = config.get("feed_forward_proj", "relu")
    *gate, activation = kind.split("-") if isinstance(kind, str) else ("",)
    if gate not in ([], ["gated"]) or activation not in ACTIVATIONS:
        known = ", ".join((*ACTIVATIONS, *(f"gated-{name}" for name in ACTIVATIONS)))
        raise InputError(f"config.json has feed_forward_proj {kind!r}; known are {known}")
    if kind == "gated-gelu":
        activation = "gelu_new"  # T5 1.1 was trained with the approximation by tanh
    # As in transformers, what a file says of the two parts overrides the name.
    activation = read_choice(config, "dense_act_fn", ACTIVATIONS, activation)
    return activation, read_flag(config, "is_gated_act", bool(gate))


def _read_relative(config: Mapping[str, Any]) -> dict[str, int]:
    """Reads how relative positions are sorted into buckets."""
    # With fewer than 4 buckets, the encoder has no distance of its own for each direction.
    buckets = read_whole(config, "relative_attention_num_buckets", 32, least=4)
    distance = read_whole(config, "relative_attention_max_distance", 128)
    if distance <= buckets // 2:
        raise InputError(
            f"config.json has relative_attention_max_distance {distance}; with {buckets} "
            f"relative_attention_num_buckets more than {buckets // 2} is expected"
        )
    return {"buckets": buckets, "max_distance": distance}


def _read_start(config: Mapping[str, Any]) -> int:
    """Reads the token that the decoder starts from; T5 starts from padding."""
    field = "decoder_start_token_id"
    if config.get(field) is None:
        field = "pad_token_id"
    start = 0 if config.get(field) is None else read_whole(config, field, least=0)
    vocabulary = read_whole(config, "vocab_size")
    if start >= vocabulary:
        raise InputError(
            f"config.json: {field} is {start}, but the vocabulary (vocab_size) has "
            f"{vocabulary} words; a number below that is expected"
        )
    return start


def _read_dropout(config: Mapping[str, Any]) -> float:
    rate = read_number(config, "dropout_rate", 0.1, allow_zero=True)
    if rate >= 1:
        raise InputError(f"config.json: dropout_rate is {rate!r}; a number below 1 is expected")
    return rate


def _refuse_variants(config: Mapping[str, Any]) -> None:
    """Raises for what the T5 family does not compute, naming the field."""
    model_type = config.get("model_type")
    if model_type != "t5":
        raise InputError(f"config.json has model_type {model_type!r}; this family loads t5")
    if not read_flag(config, "is_encoder_decoder", True) or read_flag(config, "is_decoder", False):
        raise InputError(
            "config.json describes one stack alone (is_encoder_decoder, is_decoder); "
            "a T5 with encoder, decoder and head is needed"
        )
