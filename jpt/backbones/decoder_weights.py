"""What the checkpoints of all decoders have in common: the head, and how a model is split."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from jax.sharding import PartitionSpec

from jpt.backbones.decoder_config import DecoderConfig
from jpt.backbones.loading import TensorRule, TensorSource
from jpt.backbones.weights import Weights, differs, split_layers

HEAD = "lm_head.weight"

# The first matrices are split by column, those that follow by row; tables are split over D.
_PARTITION = (
    *split_layers(
        (
            (r"(query|key|value|feed_forward_in|feed_forward_up)/kernel", (None, "model")),
            (r"(query|key|value|feed_forward_in|feed_forward_up)/bias", ("model",)),
            (r"(attention_out|feed_forward_out)/kernel", ("model", None)),
            (r"(attention_out|feed_forward_out)/bias", (None,)),
            (r"(attention_norm|feed_forward_norm)/(scale|bias)", (None,)),
        )
    ),
    (r"embeddings/(word|position)", PartitionSpec(None, "model")),
    (r"final_norm/(scale|bias)", PartitionSpec()),
    (r"head/words", PartitionSpec(None, "model")),
)


def decoder_weights(
    rules: Callable[[DecoderConfig], list[TensorRule]], ignored: tuple[str, ...]
) -> Weights:
    """Describes the checkpoints of a decoder by what they call its tensors."""

    def with_head(config: DecoderConfig) -> list[TensorRule]:
        head = TensorRule("head/words", HEAD, (config.vocabulary, config.width))
        return [*rules(config), *([] if config.tied_head else [head])]

    def settle(source: TensorSource, config: DecoderConfig, where: str) -> DecoderConfig:
        del where
        words = rules(config)[0].find(None, source.shapes)
        if config.tied_head and differs(source, HEAD, words):
            return dataclasses.replace(config, tied_head=False)
        return config

    def passed_over(config: DecoderConfig) -> tuple[str, ...]:
        return (*ignored, re.escape(HEAD)) if config.tied_head else ignored

    return Weights(with_head, passed_over, settle, _PARTITION)
