"""The names that Llama and Qwen2 checkpoints give their tensors."""

from __future__ import annotations

from jpt.backbones.decoder_config import DecoderConfig
from jpt.backbones.decoder_weights import decoder_weights
from jpt.backbones.loading import TensorRule

LAYER = "model.layers.{layer}"

# Frequencies that older versions kept as tensors.
_IGNORED = (r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",)


def llama_rules(config: DecoderConfig) -> list[TensorRule]:
    """Names the tensor of every parameter but the head of a Llama or Qwen2."""
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


LLAMA_WEIGHTS = decoder_weights(llama_rules, _IGNORED)
"""Llama's and Qwen2's checkpoints."""
