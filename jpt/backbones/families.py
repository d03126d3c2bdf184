"""The families of language models: what the registry has to know of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jpt.backbones.encoder import Encoder
from jpt.backbones.encoder_config import EncoderConfig
from jpt.backbones.encoder_weights import ENCODER_PARTITION, load_encoder, write_encoder
from jpt.errors import InputError, unknown_name
from jpt.files.tokenizer import SpecialIds
from jpt.mesh import PartitionTable
from jpt.types import Parameters

LARGE_LAYERS = 24
LAYOUTS = ("encoder", "encoder_decoder", "decoder")


@dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        name: what it is called in messages.
        layout: where the prompt stands and the answer is read; one of `LAYOUTS`.
        model_types: what ``config.json`` calls its models.
        pieces: special pieces that it cannot do without.
        config: reads the shape from a Hugging Face config: ``config(dict)``.
        module: builds the Linen module: ``module(config, ids, dtype, dropout_rate, remat)``.
        load: reads parameters: ``load(source, config, dtype, where, place)`` gives shape and
            parameters.
        write: names parameters as a checkpoint does: ``write(params, config)``.
        partition: from parameter path to axes of the mesh.
        choices: tuning options that suit a shape, where they are not the encoders': ``choices(
            config)``.
        init_std: spread of a random prompt; None takes that of the word table.
    """

    name: str
    layout: str
    model_types: tuple[str, ...]
    pieces: tuple[str, ...]
    config: Callable[[Mapping[str, Any]], Any]
    module: Callable[[Any, SpecialIds, jnp.dtype, float, str], nn.Module]
    load: Callable[..., tuple[Any, Parameters]]
    write: Callable[[Parameters, Any], dict[str, Any]]
    partition: PartitionTable
    choices: Callable[[Any], dict[str, Any]]
    init_std: float | None


def _encoder(
    config: EncoderConfig, ids: SpecialIds, dtype: jnp.dtype, dropout_rate: float, remat: str
) -> Encoder:
    return Encoder(config, ids.mask or 0, dtype, dropout_rate, remat)


def _encoder_choices(config: EncoderConfig) -> dict[str, Any]:
    # Paper 1.0 configs: 1e-3 on bert-base and roberta-base, 1e-4 on roberta-large.
    return {"learning_rate": 1e-4} if config.layers >= LARGE_LAYERS else {}


ENCODERS = Family(
    name="BERT and RoBERTa",
    layout="encoder",
    model_types=("bert", "roberta", "xlm-roberta"),
    pieces=("cls", "sep", "mask", "pad"),
    config=EncoderConfig.from_huggingface,
    module=_encoder,
    load=load_encoder,
    write=write_encoder,
    partition=ENCODER_PARTITION,
    choices=_encoder_choices,
    # Paper's code: N(0, 0.02^2), the models' own initializer_range.
    init_std=0.02,
)

FAMILIES: dict[str, Family] = {
    model_type: family for family in (ENCODERS,) for model_type in family.model_types
}
"""The family of each model type."""


def find_family(config: Mapping[str, Any], where: str) -> Family:
    """Finds the family of a model.

    Args:
        config: the parsed ``config.json``.
        where: its file, for messages.

    Returns:
        The family.

    Raises:
        InputError: for a type that no family computes, with the nearest names.

    Example:
        >>> find_family({"model_type": "roberta"}, "config.json").layout
        'encoder'
    """
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise InputError(f"{where}: {unknown_name('model_type', str(model_type), FAMILIES)}")
    return FAMILIES[model_type]
