"""The names that Llama and Qwen2 checkpoints give their tensors, and how they are split."""

from __future__ import annotations

import numpy as np
from jax.sharding import PartitionSpec

from jpt.backbones.decoder_config import DecoderConfig
from jpt.backbones.decoder_weights import head_rules, load_decoder, split_layers
from jpt.backbones.loading import Placer, TensorRule, TensorSource, write_parameters
from jpt.types import Parameters

LAYER = "model.layers.{layer}"

# Frequencies that older versions kept as tensors.
_IGNORED = (r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",)

# The first matrices are split by column, those that follow by row; tables are split over D.
LLAMA_PARTITION: tuple[tuple[str, PartitionSpec], ...] = (
    *split_layers(
        (
            (r"(query|key|value|feed_forward_in|feed_forward_up)/kernel", (None, "model")),
            (r"(query|key|value|feed_forward_in|feed_forward_up)/bias", ("model",)),
            (r"(attention_out|feed_forward_out)/kernel", ("model", None)),
            (r"(attention_out|feed_forward_out)/bias", (None,)),
            (r"(attention_norm|feed_forward_norm)/scale", (None,)),
        )
    ),
    (r"embeddings/word", PartitionSpec(None, "model")),
    (r"final_norm/scale", PartitionSpec()),
    (r"head/words", PartitionSpec(None, "model")),
)


def llama_rules(config: DecoderConfig) -> list[TensorRule]:
    """Names the tensor of every parameter of a Llama or Qwen2.

    Args:
        config: shape of the model.

    Returns:
        One rule for each parameter.

    Example:
        >>> from jpt.backbones.decoder_config import DecoderConfig
        >>> config = DecoderConfig.from_huggingface(
        ...     {"model_type": "llama", "vocab_size": 61, "hidden_size": 32,
        ...      "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        ...      "max_position_embeddings": 40}
        ... )
        >>> llama_rules(config)[1].name
        'model.layers.{layer}.self_attn.q_proj.weight'
    """
    width, neurons = config.width, config.neurons
    queries = config.heads * config.head_width
    keys = config.key_heads * config.head_width
    into, out = config.attention_in_bias, config.attention_out_bias
    bias = config.feed_forward_bias
    return [
        TensorRule("embeddings/word", "model.embed_tokens.weight", (config.vocabulary, width)),
        *_map(config, "query", "self_attn.q_proj", (queries, width), into),
        *_map(config, "key", "self_attn.k_proj", (keys, width), into),
        *_map(config, "value", "self_attn.v_proj", (keys, width), into),
        *_map(config, "attention_out", "self_attn.o_proj", (width, queries), out),
        *_map(config, "feed_forward_in", "mlp.gate_proj", (neurons, width), bias),
        *_map(config, "feed_forward_up", "mlp.up_proj", (neurons, width), bias),
        *_map(config, "feed_forward_out", "mlp.down_proj", (width, neurons), bias),
        _norm(config, "attention_norm", "input_layernorm"),
        _norm(config, "feed_forward_norm", "post_attention_layernorm"),
        TensorRule("final_norm/scale", "model.norm.weight", (width,)),
        *head_rules(config),
    ]


def _map(
    config: DecoderConfig, ours: str, theirs: str, shape: tuple[int, int], has_bias: bool
) -> list[TensorRule]:
    """A linear map of a layer; the files have them as [out, in]."""
    path, name, layers = f"layer/{ours}", f"{LAYER}.{theirs}", config.layers
    kernel = TensorRule(f"{path}/kernel", f"{name}.weight", shape, transpose=True, layers=layers)
    bias = TensorRule(f"{path}/bias", f"{name}.bias", shape[:1], layers=layers)
    return [kernel, bias] if has_bias else [kernel]


def _norm(config: DecoderConfig, ours: str, theirs: str) -> TensorRule:
    name = f"{LAYER}.{theirs}.weight"
    return TensorRule(f"layer/{ours}/scale", name, (config.width,), layers=config.layers)


def load_llama(
    source: TensorSource,
    config: DecoderConfig,
    dtype: np.dtype,
    where: str,
    place: Placer | None = None,
) -> tuple[DecoderConfig, Parameters]:
    """Reads a Llama's or Qwen2's parameters from a checkpoint.

    Args:
        source: the checkpoint's tensors.
        config: shape of the model.
        dtype: of the parameters.
        where: what to call the checkpoint in messages.
        place: puts a parameter on its devices.

    Returns:
        The shape, its head untied where the checkpoint has one of its own, and the parameters.

    Raises:
        InputError: for missing, misshaped or unexpected tensors.
    """
    return load_decoder(source, config, llama_rules, _IGNORED, dtype, where, place)


def write_llama(params: Parameters, config: DecoderConfig) -> dict[str, np.ndarray]:
    """Names a Llama's or Qwen2's parameters as a Hugging Face checkpoint does.

    Args:
        params: the parameters.
        config: shape of the model.

    Returns:
        Tensors by name.
    """
    return write_parameters(params, llama_rules(config))
