"""What the checkpoints of all decoders have in common: the head, which may be a copy of a table."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import numpy as np
from jax.sharding import PartitionSpec

from jpt.backbones.decoder_config import DecoderConfig
from jpt.backbones.loading import Placer, TensorRule, TensorSource, load_parameters
from jpt.types import Parameters

HEAD = "lm_head.weight"

Rules = Callable[[DecoderConfig], list[TensorRule]]
Split = tuple[tuple[str, tuple[str | None, ...]], ...]


def split_layers(split: Split) -> tuple[tuple[str, PartitionSpec], ...]:
    """Says how a layer is split, alone and in the stack, which has one axis more in front.

    Args:
        split: pairs of a regular expression over the path within a layer, and its axes.

    Returns:
        Rows of a partition table.

    Example:
        >>> [pattern for pattern, _ in split_layers((("query/kernel", (None, "model")),))]
        ['last_layer/query/kernel', 'layers/query/kernel']
    """
    return (
        *((rf"last_layer/{path}", PartitionSpec(*axes)) for path, axes in split),
        *((rf"layers/{path}", PartitionSpec(None, *axes)) for path, axes in split),
    )


def head_rules(config: DecoderConfig) -> list[TensorRule]:
    """Names the head's own table, where it has one.

    Args:
        config: shape of the model.

    Returns:
        One rule, or none where the head multiplies by the word table.
    """
    shape = (config.vocabulary, config.width)
    return [] if config.tied_head else [TensorRule("head/words", HEAD, shape)]


def load_decoder(
    source: TensorSource,
    config: DecoderConfig,
    rules: Rules,
    ignored: tuple[str, ...],
    dtype: np.dtype,
    where: str,
    place: Placer | None,
) -> tuple[DecoderConfig, Parameters]:
    """Reads a decoder's parameters from a checkpoint.

    Args:
        source: the checkpoint's tensors.
        config: shape of the model.
        rules: names the tensors of a shape.
        ignored: regular expressions of names that real files have and nobody needs.
        dtype: of the parameters.
        where: what to call the checkpoint in messages.
        place: puts a parameter on its devices.

    Returns:
        The shape, its head untied where the checkpoint has one of its own (as in transformers 5),
        and the parameters.

    Raises:
        InputError: for missing, misshaped or unexpected tensors.
    """
    if config.tied_head and HEAD in source.shapes:
        words = rules(config)[0].find(None, source.shapes)
        if words is not None and not np.array_equal(source.read(HEAD), source.read(words)):
            config = dataclasses.replace(config, tied_head=False)
    copies = (re.escape(HEAD),) if config.tied_head else ()
    params = load_parameters(source, rules(config), (*ignored, *copies), dtype, where, place)
    return config, params
