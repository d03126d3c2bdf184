"""The names that BERT and RoBERTa checkpoints give their tensors, and how they are split."""

from __future__ import annotations

import dataclasses

from jax.sharding import PartitionSpec

from jpt.backbones.encoder_config import EncoderConfig
from jpt.backbones.loading import TensorRule, TensorSource
from jpt.backbones.weights import Weights, differs, split_layers
from jpt.errors import InputError

_LAYER_MAPS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_out": "attention.output.dense",
    "feed_forward_in": "intermediate.dense",
    "feed_forward_out": "output.dense",
}
_LAYER_NORMS = {
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward_norm": "output.LayerNorm",
}
# Tensors that real files hold and an encoder with a masked-LM head does not need: poolers, the
# next-sentence head, position buffers, copies of the decoder (of a tied head; an untied head
# scores with the decoder's own bias, and the head's other bias is what nobody reads).
_IGNORED = {
    "bert": (
        r"bert\.pooler\..*",
        r"cls\.seq_relationship\..*",
        r"bert\.embeddings\.(position_ids|token_type_ids)",
        r"cls\.predictions\.(decoder\.weight|decoder\.bias|bias)",
    ),
    "roberta": (
        r"roberta\.pooler\..*",
        r"roberta\.embeddings\.(position_ids|token_type_ids)",
        r"lm_head\.(decoder\.weight|decoder\.bias|bias)",
    ),
}
_DECODER = {"bert": "cls.predictions.decoder.weight", "roberta": "lm_head.decoder.weight"}
_DECODER_BIAS = {"bert": "cls.predictions.decoder.bias", "roberta": "lm_head.decoder.bias"}
_HEAD_BIAS = {"bert": "cls.predictions.bias", "roberta": "lm_head.bias"}

# One table for the family: the first matrix of each pair is split by column, the second by row;
# vocabulary tables are split over D. What ``layers`` stacks has one axis more in front.
_SPLIT = (
    (r"(query|key|value|feed_forward_in)/kernel", (None, "model")),
    (r"(query|key|value|feed_forward_in)/bias", ("model",)),
    (r"(attention_out|feed_forward_out)/kernel", ("model", None)),
    (r"(attention_out|feed_forward_out)/bias", (None,)),
    (r"(attention_norm|feed_forward_norm)/(scale|bias)", (None,)),
)


def encoder_rules(config: EncoderConfig) -> list[TensorRule]:
    """Names the tensor of every parameter of an encoder."""
    root = "bert" if config.is_bert else "roberta"
    table, width = f"{root}.embeddings", config.width
    positions = config.positions + config.position_offset
    rules = [
        TensorRule(
            "embeddings/word", f"{table}.word_embeddings.weight", (config.vocabulary, width)
        ),
        TensorRule(
            "embeddings/position", f"{table}.position_embeddings.weight", (positions, width)
        ),
        TensorRule(
            "embeddings/token_type",
            f"{table}.token_type_embeddings.weight",
            (config.token_types, width),
        ),
        *_norm("embeddings/norm", f"{table}.LayerNorm", width),
    ]
    layer = f"{root}.encoder.layer.{{layer}}"
    for ours, theirs in _LAYER_MAPS.items():
        inputs = config.neurons if ours == "feed_forward_out" else width
        outputs = config.neurons if ours == "feed_forward_in" else width
        rules += _linear(f"layer/{ours}", f"{layer}.{theirs}", inputs, outputs, config.layers)
    for ours, theirs in _LAYER_NORMS.items():
        rules += _norm(f"layer/{ours}", f"{layer}.{theirs}", width, config.layers)
    return rules + _head_rules(config)


def _head_rules(config: EncoderConfig) -> list[TensorRule]:
    kind, width = ("bert" if config.is_bert else "roberta"), config.width
    transform = "cls.predictions.transform" if config.is_bert else "lm_head"
    norm = f"{transform}.LayerNorm" if config.is_bert else f"{transform}.layer_norm"
    bias, other = _HEAD_BIAS[kind], _DECODER_BIAS[kind]
    if not config.tied_head:
        bias, other = other, bias
    rules = [
        *_linear("head/transform", f"{transform}.dense", width, width),
        *_norm("head/norm", norm, width),
        TensorRule("head/bias", bias, (config.vocabulary,), aliases=(other,)),
    ]
    if not config.tied_head:
        rules.append(TensorRule("head/words", _DECODER[kind], (config.vocabulary, width)))
    return rules


def _linear(path: str, name: str, inputs: int, outputs: int, layers: int = 0) -> list[TensorRule]:
    shape = (outputs, inputs)
    return [
        TensorRule(f"{path}/kernel", f"{name}.weight", shape, transpose=True, layers=layers),
        TensorRule(f"{path}/bias", f"{name}.bias", (outputs,), layers=layers),
    ]


def _norm(path: str, name: str, width: int, layers: int = 0) -> list[TensorRule]:
    # Files from the TensorFlow days call the two gamma and beta.
    return [
        TensorRule(f"{path}/{ours}", f"{name}.{theirs}", (width,), aliases=(old,), layers=layers)
        for ours, theirs, old in (
            ("scale", "weight", f"{name}.gamma"),
            ("bias", "bias", f"{name}.beta"),
        )
    ]


def _settle(source: TensorSource, config: EncoderConfig, where: str) -> EncoderConfig:
    """Unties the head where the file has its own; raises where it has none at all."""
    kind = "bert" if config.is_bert else "roberta"
    head = "cls.predictions." if config.is_bert else "lm_head."
    if not any(name.startswith(head) for name in source.shapes):
        raise InputError(
            f"{where} has no masked-LM head (no tensor begins with '{head}'), so no label word "
            "can be scored; use a checkpoint saved from the masked-LM model"
        )
    copies = (
        (_DECODER[kind], f"{kind}.embeddings.word_embeddings.weight"),
        (_DECODER_BIAS[kind], _HEAD_BIAS[kind]),
    )
    if config.tied_head and any(differs(source, *pair) for pair in copies):
        return dataclasses.replace(config, tied_head=False)
    return config


ENCODER_WEIGHTS = Weights(
    rules=encoder_rules,
    ignored=lambda config: _IGNORED["bert" if config.is_bert else "roberta"],
    settle=_settle,
    partition=(
        *split_layers(_SPLIT),
        (r"embeddings/(word|position|token_type)", PartitionSpec(None, "model")),
        (r"embeddings/norm/(scale|bias)", PartitionSpec()),
        (r"head/words", PartitionSpec(None, "model")),
        (r"head/transform/(kernel|bias)", PartitionSpec()),
        (r"head/norm/(scale|bias)", PartitionSpec()),
        (r"head/bias", PartitionSpec()),
    ),
)
"""BERT's and RoBERTa's checkpoints."""
