"""The families of language models: what the registry has to know of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jpt.backbones.decoder import Decoder
from jpt.backbones.decoder_config import DecoderConfig
from jpt.backbones.encoder import Encoder
from jpt.backbones.encoder_config import EncoderConfig
from jpt.backbones.encoder_weights import ENCODER_WEIGHTS
from jpt.backbones.gpt2_weights import GPT2_WEIGHTS
from jpt.backbones.llama_weights import LLAMA_WEIGHTS
from jpt.backbones.t5 import T5
from jpt.backbones.t5_config import T5Config
from jpt.backbones.t5_weights import T5_WEIGHTS
from jpt.backbones.weights import Weights
from jpt.errors import InputError, unknown_name
from jpt.files.tokenizer import SpecialIds

LARGE_LAYERS = 24
LAYOUTS = ("encoder", "encoder_decoder", "decoder")


@dataclass(frozen=True)
class Family:
    """One family of models."""

    name: str  # what it is called in messages
    layout: str  # where the prompt stands and the answer is read; one of `LAYOUTS`
    model_types: tuple[str, ...]  # what ``config.json`` calls its models
    pieces: tuple[str, ...]  # special pieces that it cannot do without
    # reads the shape from a Hugging Face config: ``config(dict)``
    config: Callable[[Mapping[str, Any]], Any]
    # builds the Linen module: ``module(config, ids, dtype, dropout_rate, remat)``
    module: Callable[[Any, SpecialIds, jnp.dtype, float, str], nn.Module]
    weights: Weights  # how its parameters stand in files and lie on a mesh
    # tuning options that suit a shape, where they are not the encoders': ``choices( config)``
    choices: Callable[[Any], dict[str, Any]]
    init_std: float | None  # spread of a random prompt; None takes that of the word table


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
    weights=ENCODER_WEIGHTS,
    choices=_encoder_choices,
    # Paper's code: N(0, 0.02^2), the models' own initializer_range.
    init_std=0.02,
)


def _t5(config: T5Config, ids: SpecialIds, dtype: jnp.dtype, dropout_rate: float, remat: str) -> T5:
    del ids  # its start token stands in the config
    return T5(config, dtype, dropout_rate, remat)


def _t5_choices(config: T5Config) -> dict[str, Any]:
    # Paper 1.0 configs: 5e-3 on t5-small and t5-base, 1e-3 on t5-large; one rate for all sizes from
    # there on.
    rate = 1e-3 if config.layers >= LARGE_LAYERS else 5e-3
    return {"learning_rate": rate, "objective": "vocabulary"}


def _decoder(
    config: DecoderConfig, ids: SpecialIds, dtype: jnp.dtype, dropout_rate: float, remat: str
) -> Decoder:
    del ids
    return Decoder(config, dtype, dropout_rate, remat)


def _decoder_choices(config: DecoderConfig) -> dict[str, Any]:
    # The paper has no decoders.
    del config
    return {"learning_rate": 5e-3, "objective": "vocabulary"}


T5S = Family(
    name="T5",
    layout="encoder_decoder",
    model_types=("t5",),
    pieces=("eos", "pad"),
    config=T5Config.from_huggingface,
    module=_t5,
    weights=T5_WEIGHTS,
    choices=_t5_choices,
    # Paper's code: N(0, 1), what torch gives an embedding that nobody initialises.
    init_std=1.0,
)

GPT2S = Family(
    name="GPT-2",
    layout="decoder",
    model_types=("gpt2",),
    pieces=("eos",),
    config=DecoderConfig.from_huggingface,
    module=_decoder,
    weights=GPT2_WEIGHTS,
    choices=_decoder_choices,
    init_std=None,
)

LLAMAS = dataclasses.replace(
    GPT2S,
    name="Llama and Qwen2",
    model_types=("llama", "qwen2"),
    weights=LLAMA_WEIGHTS,
)

FAMILIES: dict[str, Family] = {
    model_type: family
    for family in (ENCODERS, T5S, GPT2S, LLAMAS)
    for model_type in family.model_types
}
"""The family of each model type."""


def find_family(config: Mapping[str, Any], where: str) -> Family:
    """Finds the family of a model."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(f"{where}: {unknown_name('model_type', str(model_type), FAMILIES)}")
    return FAMILIES[model_type]
