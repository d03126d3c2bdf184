"""The shape of a model, from the metadata of a GGUF file to the config of Hugging Face.

What llama.cpp reads of a file decides: a field that changes what it computes is either translated
or refused, one that it ignores is ignored.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jpt.errors import InputError
from jpt.files.gguf_header import GgufHeader
from jpt.files.gguf_rope import recover_rope_scaling

ARCHITECTURES = ("llama", "qwen2")
"""What general.architecture may say; Hugging Face's model_type is the same word."""

WORD_TABLE = "token_embd.weight"
HEAD = "output.weight"
ROPE_FACTORS = "rope_freqs.weight"
_LARGEST_COUNT = 2**31 - 1


def read_gguf_config(header: GgufHeader) -> dict[str, Any]:
    """Translates the metadata."""
    fields = _Fields(header)
    _refuse_variants(fields)
    width, heads = fields.whole("embedding_length"), fields.whole("attention.head_count")
    if width % heads and fields.key("attention.key_length") not in header.metadata:
        raise fields.error("attention.head_count", heads, f"a divisor of the width {width}")
    head_width = fields.whole("attention.key_length", max(1, width // heads))
    _check_head_width(fields, head_width)
    config = {
        "model_type": fields.architecture,
        "vocab_size": _vocabulary(fields),
        "hidden_size": width,
        "intermediate_size": fields.whole("feed_forward_length"),
        "num_hidden_layers": fields.whole("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.whole("attention.head_count_kv", heads),
        "head_dim": head_width,
        "max_position_embeddings": fields.whole("context_length"),
        "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon"),
        "hidden_act": "silu",
        "rope_theta": fields.number("rope.freq_base", 10_000.0),
        "rope_scaling": _rope_scaling(fields, head_width),
        "tie_word_embeddings": HEAD not in header.tensors,
    }
    if fields.architecture == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
        config["mlp_bias"] = "blk.0.ffn_up.bias" in header.tensors
    for name, key in {"bos": "bos", "eos": "eos", "pad": "padding"}.items():
        token = header.metadata.get(f"tokenizer.ggml.{key}_token_id")
        config[f"{name}_token_id"] = token if type(token) is int else None
    return config


class _Fields:
    """The fields that the metadata has for the file's architecture, checked when asked for."""

    def __init__(self, header: GgufHeader) -> None:
        self.header = header
        self.architecture = header.metadata.get("general.architecture")
        if self.architecture not in ARCHITECTURES:
            raise InputError(
                f"{header.path} holds a model of the architecture {_shown(self.architecture)}; GGUF"
                f" files of {' and '.join(ARCHITECTURES)} are loaded: give the model's safetensors"
                " folder"
            )

    def key(self, name: str) -> str:
        return f"{self.architecture}.{name}"

    def error(self, name: str, value: Any, expected: str) -> InputError:
        return InputError(
            f"{self.header.path}: {self.key(name)} is {_shown(value)}; expected {expected}:"
            " download the file again or take the model's safetensors folder"
        )

    def get(self, name: str, default: Any = None) -> Any:
        """A field as it is; one value for all layers where the file lists the same for each."""
        value = self.header.metadata.get(self.key(name), default)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            return value[0].item()
        return value

    def whole(self, name: str, default: int | None = None) -> int:
        """A field that counts something."""
        value = self.get(name, default)
        if type(value) is not int or not 1 <= value <= _LARGEST_COUNT:
            raise self.error(name, value, "a whole number of at least 1, one for all layers")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A field above 0; of the float32 in the file the shortest decimals, as 1e-05."""
        value = self.get(name, default)
        if type(value) not in (int, float) or not 0 < value < 1e30:
            raise self.error(name, value, "a number above 0")
        return float(str(np.float32(value)))


def _shown(value: Any) -> str:
    """A value of a file in a few words."""
    return repr(" ".join(str(value).split())[:60]) if not isinstance(value, int) else str(value)


def _refuse_variants(fields: _Fields) -> None:
    """Raises for what llama.cpp would compute otherwise than the Llama family is computed here."""
    metadata, path = fields.header.metadata, fields.header.path
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise InputError(f"{path} holds no model but {_shown(kind)}; give the model's own file")
    parts = metadata.get("split.count", 0)
    if parts not in (0, 1):
        raise InputError(
            f"{path} is one of {_shown(parts)} parts of a model; join them with"
            " `llama-gguf-split --merge FIRST_PART WHOLE` and give the whole"
        )
    for name, usual in {"expert_count": 0, "attention.causal": True}.items():
        if (value := fields.get(name, usual)) != usual:
            raise fields.error(name, value, f"{usual}, other models are not computed")


def _check_head_width(fields: _Fields, head_width: int) -> None:
    """All of a head is rotated, and values are as wide as keys."""
    for name in ("attention.value_length", "rope.dimension_count"):
        value = fields.whole(name, head_width)
        if value != head_width or value % 2:
            raise fields.error(name, value, f"the even width of a head, here {head_width}")


def _vocabulary(fields: _Fields) -> int:
    """Rows of the word table, which the list of tokens must fit."""
    header = fields.header
    table = header.tensors.get(WORD_TABLE)
    if table is None or len(table.shape) != 2:
        raise InputError(
            f"{header.path} has no tensor {WORD_TABLE} of rows of words; download it again"
        )
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) != table.shape[0]:
        raise InputError(
            f"{header.path} lists {len(tokens)} tokens and has {table.shape[0]} rows of them;"
            " the parts of two models are mixed: convert the model again"
        )
    return table.shape[0]


def _rope_scaling(fields: _Fields, head_width: int) -> dict[str, Any] | None:
    """How positions are scaled: by the metadata, or by a tensor of factors (Llama 3.1)."""
    kind = fields.get("rope.scaling.type", "linear")
    factor = fields.get("rope.scaling.factor", fields.get("rope.scale_linear", 0.0))
    if type(factor) not in (int, float) or not 0 <= factor < 1e6:
        raise fields.error("rope.scaling.factor", factor, "a number above 0")
    # 0 is how llama.cpp writes that nothing is scaled.
    factor = 1.0 if kind == "none" or factor == 0 else float(str(np.float32(factor)))
    if kind not in ("none", "linear"):
        raise fields.error("rope.scaling.type", kind, "none, linear or Llama 3's factors")
    if (spread := fields.get("rope.scaling.attn_factor", 1.0)) != 1.0:
        raise fields.error("rope.scaling.attn_factor", spread, "1")
    tensor = fields.header.tensors.get(ROPE_FACTORS)
    if tensor is None:
        return None if factor == 1.0 else {"rope_type": "linear", "factor": factor}
    theta = fields.number("rope.freq_base", 10_000.0)
    factors = tensor.read().astype(np.float64).reshape(-1)
    found = None
    if factor == 1.0 and factors.size == head_width // 2:
        found = recover_rope_scaling(factors, theta)
    if found is None:
        raise InputError(
            f"{fields.header.path}: the factors of {ROPE_FACTORS} are not those of Llama 3's"
            " scaling, and no other is computed; take the model's safetensors folder"
        )
    return found or None
