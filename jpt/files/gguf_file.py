"""GGUF files of the Llama family: weights under Hugging Face's names, and the config of the model.

llama.cpp's files hold everything in one: weights, often quantised, shape and tokenizer. Weights
are turned into floats when they are read, one tensor at a time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jpt.errors import InputError
from jpt.files.gguf_config import HEAD, ROPE_FACTORS, WORD_TABLE, read_gguf_config
from jpt.files.gguf_header import GgufHeader, read_gguf_header
from jpt.files.gguf_values import KINDS, GgufTensor, require_gguf
from jpt.files.tensor_files import TensorSource

_NAMES = {
    WORD_TABLE: "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    HEAD: "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_TENSOR = re.compile(
    rf"blk\.(0|[1-9][0-9]{{0,5}})\.({'|'.join(_LAYER_NAMES)})\.(weight|bias)"
)
# llama.cpp rotates neighbouring rows in these architectures, so their files hold them so.
_PAIRED = ("llama",)


@dataclass(frozen=True)
class GgufFile:
    """A model in a GGUF file."""

    path: Path  # the file
    config: dict[str, Any]  # the fields of a ``config.json`` of Hugging Face
    source: TensorSource  # the weights under Hugging Face's names
    metadata: Mapping[str, Any]  # what else the file says, its tokenizer above all


def open_gguf(path: str | Path) -> GgufFile:
    """Opens a GGUF file without reading its weights."""
    header = read_gguf_header(path)
    config = read_gguf_config(header)
    if any(KINDS[tensor.kind].is_quantised for tensor in header.tensors.values()):
        require_gguf(header.path)
    tensors = _rename(header, config)
    return GgufFile(header.path, config, TensorSource(header.path, tensors, {}), header.metadata)


def _rename(header: GgufHeader, config: Mapping[str, Any]) -> dict[str, GgufTensor]:
    """Each weight under its name in Hugging Face's checkpoints, rows in their order."""
    tensors: dict[str, GgufTensor] = {}
    layers: set[str] = set()
    for name, tensor in header.tensors.items():
        if name == ROPE_FACTORS and config["model_type"] == "llama":
            continue  # part of the config
        found = _LAYER_TENSOR.fullmatch(name)
        if found is None and name not in _NAMES:
            raise InputError(
                f"{header.path}: a {config['model_type']} model that is computed here has no tensor"
                f" {name[:80]!r}; take the model's safetensors folder"
            )
        if found is None:
            tensors[_NAMES[name]] = tensor
            continue
        layer, part, end = found.groups()
        layers.add(layer)
        tensors[f"model.layers.{layer}.{_LAYER_NAMES[part]}.{end}"] = (
            _unpair(header, name, tensor, part, config) if part in ("attn_q", "attn_k") else tensor
        )
    if len(layers) != config["num_hidden_layers"]:
        raise InputError(
            f"{header.path} says {config['num_hidden_layers']} layers and has weights of"
            f" {len(layers)}; download or copy it again"
        )
    return tensors


def _unpair(
    header: GgufHeader, name: str, tensor: GgufTensor, part: str, config: Mapping[str, Any]
) -> GgufTensor:
    heads = config["num_attention_heads" if part == "attn_q" else "num_key_value_heads"]
    rows = heads * config["head_dim"]
    if tensor.shape[0] != rows:
        raise InputError(
            f"{header.path}: {name} has {tensor.shape[0]} rows, but {heads} heads of"
            f" {config['head_dim']} have {rows}; download or copy it again"
        )
    return tensor.unpaired(heads) if config["model_type"] in _PAIRED else tensor
