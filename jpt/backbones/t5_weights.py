"""The names that T5 checkpoints give their tensors, and how they are split."""

from __future__ import annotations

import dataclasses
import re

from jax.sharding import PartitionSpec

from jpt.backbones.loading import TensorRule, TensorSource
from jpt.backbones.t5_config import T5Config
from jpt.backbones.weights import Weights, differs
from jpt.errors import InputError

_WORDS, _HEAD = "shared.weight", "lm_head.weight"
# Real files hold the word table once more for each stack, some of them only so.
_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# A table of relative positions between the stacks, which no T5 ever read.
_IGNORED = (r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",)

_ATTENTION = {"query": "q", "key": "k", "value": "v", "attention_out": "o"}
_CROSS = {"cross_query": "q", "cross_key": "k", "cross_value": "v", "cross_out": "o"}

# One table for the family: what leads into heads and neurons is split by column, what leads out of
# them by row; vocabulary tables are split over D, norms stay whole.
_SPLIT = (
    (r"(query|key|value|cross_query|cross_key|cross_value)/kernel", (None, "model")),
    (r"(feed_forward_in|feed_forward_gate)/kernel", (None, "model")),
    (r"(attention_out|cross_out|feed_forward_out)/kernel", ("model", None)),
    (r"(attention_norm|cross_norm|feed_forward_norm)/scale", (None,)),
)


def t5_rules(config: T5Config) -> list[TensorRule]:
    """Names the tensor of every parameter of a T5 model."""
    table = (config.vocabulary, config.width)
    rules = [TensorRule("embeddings/word", _WORDS, table, aliases=_COPIES)]
    if not config.tied_head:
        rules.append(TensorRule("head/words", _HEAD, table))
    return [*rules, *_stack_rules("encoder", config), *_stack_rules("decoder", config)]


def _stack_rules(stack: str, config: T5Config) -> list[TensorRule]:
    """The encoder's or the decoder's: tables, norms and the matrices of each layer."""
    is_decoder = stack == "decoder"
    depth = config.layers if is_decoder else config.encoder_layers
    block, feed_forward = f"{stack}.block.{{layer}}.layer", 2 if is_decoder else 1
    heads = config.heads * config.head_width
    relative = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    shape = (config.buckets, config.heads)
    rules = [
        TensorRule(f"{stack}/relative/table", relative, shape),
        _norm(f"{stack}/norm", f"{stack}.final_layer_norm", config),
        _norm(f"{stack}/layers/attention_norm", f"{block}.0.layer_norm", config, depth),
        *_attention(stack, _ATTENTION, f"{block}.0.SelfAttention", heads, config.width, depth),
    ]
    if is_decoder:
        rules += [
            _norm(f"{stack}/layers/cross_norm", f"{block}.1.layer_norm", config, depth),
            *_attention(stack, _CROSS, f"{block}.1.EncDecAttention", heads, config.width, depth),
        ]
    block = f"{block}.{feed_forward}"
    rules.append(_norm(f"{stack}/layers/feed_forward_norm", f"{block}.layer_norm", config, depth))
    names = {"feed_forward_in": "wi", "feed_forward_out": "wo"}
    if config.gated:
        names |= {"feed_forward_gate": "wi_0", "feed_forward_in": "wi_1"}
    for ours, theirs in names.items():
        shape = (config.neurons, config.width)
        shape = shape[::-1] if theirs == "wo" else shape
        name = f"{block}.DenseReluDense.{theirs}.weight"
        rules.append(_matrix(f"{stack}/layers/{ours}", name, shape, depth))
    return rules


def _attention(
    stack: str, names: dict[str, str], place: str, heads: int, width: int, depth: int
) -> list[TensorRule]:
    return [
        _matrix(
            f"{stack}/layers/{ours}",
            f"{place}.{theirs}.weight",
            (width, heads) if theirs == "o" else (heads, width),
            depth,
        )
        for ours, theirs in names.items()
    ]


def _matrix(path: str, name: str, shape: tuple[int, int], depth: int) -> TensorRule:
    return TensorRule(f"{path}/kernel", name, shape, transpose=True, layers=depth)


def _norm(path: str, name: str, config: T5Config, depth: int = 0) -> TensorRule:
    return TensorRule(f"{path}/scale", f"{name}.weight", (config.width,), layers=depth)


def _find_words(source: TensorSource) -> list[str]:
    """The names under which the file holds the word table."""
    return [name for name in (_WORDS, *_COPIES) if name in source.shapes]


def _settle(source: TensorSource, config: T5Config, where: str) -> T5Config:
    """Unties the head where the file has one that is no copy of its word table."""
    del where
    words = next(iter(_find_words(source)), None)
    if config.tied_head and differs(source, _HEAD, words):
        return dataclasses.replace(config, tied_head=False)
    return config


def _ignored(config: T5Config) -> tuple[str, ...]:
    copies = (*_COPIES, *([_HEAD] * config.tied_head))
    return (*_IGNORED, *map(re.escape, copies))


def _check_copies(source: TensorSource, where: str) -> None:
    """Raises where a stack has words of its own, which T5 does not have."""
    first, *others = _find_words(source)
    for name in others:
        if differs(source, name, first):
            raise InputError(
                f"{where}: {name} differs from {first}, but both stacks of a T5 model read one "
                "word table; use a checkpoint in which they are equal"
            )


T5_WEIGHTS = Weights(
    rules=t5_rules,
    ignored=_ignored,
    settle=_settle,
    partition=(
        *(
            (rf"(encoder|decoder)/layers/{path}", PartitionSpec(None, *axes))
            for path, axes in _SPLIT
        ),
        (r"(encoder|decoder)/relative/table", PartitionSpec(None, "model")),
        (r"(encoder|decoder)/norm/scale", PartitionSpec()),
        (r"embeddings/word", PartitionSpec(None, "model")),
        (r"head/words", PartitionSpec(None, "model")),
    ),
    check=_check_copies,
)
"""T5's checkpoints."""
