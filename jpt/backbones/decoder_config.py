"""The shape of a GPT-2, Llama or Qwen2 model, read from its Hugging Face config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jpt.backbones.config_fields import read_choice, read_flag, read_number, read_whole
from jpt.backbones.layers import ACTIVATIONS
from jpt.backbones.rotary import ROTARY_KINDS, Rotary
from jpt.errors import InputError

GPT2_TYPES = ("gpt2",)
LLAMA_TYPES = ("llama", "qwen2")


@dataclass(frozen=True)
class DecoderConfig:
    """What shapes a decoder."""

    model_type: str  # ``"gpt2"``, ``"llama"`` or ``"qwen2"``
    vocabulary: int  # V, rows of the word table
    width: int  # D
    layers: int  # L
    heads: int  # H, of queries
    key_heads: int  # G, of keys and values; a divisor of H
    head_width: int  # K of one head; H times K need not be D
    neurons: int  # F of one feed-forward layer
    positions: int  # how many positions prompt and text may fill
    activation: str  # name of the non-linearity of the feed-forward layers
    epsilon: float  # of every norm
    tied_head: bool  # whether the head multiplies by the word table or has a table of its own
    rotary: Rotary | None  # how positions turn queries and keys; None where positions have a table
    attention_scale: float  # multiplies the products of queries and keys
    attention_in_bias: bool  # whether queries, keys and values have a bias
    attention_out_bias: bool  # whether the map after the attention has one
    feed_forward_bias: bool  # whether the maps of the feed-forward layers have one
    # rate the model was trained with, used only when dropout is asked for
    dropout_rate: float = 0.0

    @property
    def is_gpt2(self) -> bool:
        """Whether norms, positions and feed-forward layers are GPT-2's rather than Llama's."""
        return self.model_type == "gpt2"

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any]) -> DecoderConfig:
        """Reads a ``config.json`` that transformers wrote, of any age."""
        model_type = config.get("model_type")
        if model_type in GPT2_TYPES:
            return _read_gpt2(config)
        if model_type in LLAMA_TYPES:
            return _read_llama(config)
        known = ", ".join((*GPT2_TYPES, *LLAMA_TYPES))
        raise InputError(f"config.json has model_type {model_type!r}; this family loads {known}")


def _read_gpt2(config: Mapping[str, Any]) -> DecoderConfig:
    # `reorder_and_upcast_attn` is fine: scores and softmax are in float32 here in any case.
    for field in ("add_cross_attention", "scale_attn_by_inverse_layer_idx"):
        if read_flag(config, field, False):
            raise InputError(
                f"config.json has {field} true, which is not computed here; "
                "use a GPT-2 model without it"
            )
    width, heads = read_whole(config, "n_embd"), read_whole(config, "n_head")
    if width % heads:
        raise InputError(
            f"config.json has n_embd {width}, which n_head {heads} does not divide; "
            "the heads must share the width evenly"
        )
    is_scaled = read_flag(config, "scale_attn_weights", True)
    has_own_size = config.get("n_inner") is not None
    return DecoderConfig(
        model_type="gpt2",
        vocabulary=read_whole(config, "vocab_size"),
        width=width,
        layers=read_whole(config, "n_layer"),
        heads=heads,
        key_heads=heads,
        head_width=width // heads,
        neurons=read_whole(config, "n_inner") if has_own_size else 4 * width,
        positions=read_whole(config, "n_positions"),
        activation=read_choice(config, "activation_function", ACTIVATIONS, "gelu_new"),
        epsilon=read_number(config, "layer_norm_epsilon", 1e-5),
        tied_head=read_flag(config, "tie_word_embeddings", True),
        rotary=None,
        attention_scale=(width // heads) ** -0.5 if is_scaled else 1.0,
        attention_in_bias=True,
        attention_out_bias=True,
        feed_forward_bias=True,
        dropout_rate=read_number(config, "resid_pdrop", 0.1, allow_zero=True),
    )


def _read_llama(config: Mapping[str, Any]) -> DecoderConfig:
    is_qwen2 = config["model_type"] == "qwen2"
    _refuse_windows(config)
    heads = read_whole(config, "num_attention_heads")
    key_heads, head_width = _head_sizes(config, heads)
    attention_bias = not is_qwen2 and read_flag(config, "attention_bias", False)
    return DecoderConfig(
        model_type=config["model_type"],
        vocabulary=read_whole(config, "vocab_size"),
        width=read_whole(config, "hidden_size"),
        layers=read_whole(config, "num_hidden_layers"),
        heads=heads,
        key_heads=key_heads,
        head_width=head_width,
        neurons=read_whole(config, "intermediate_size"),
        positions=read_whole(config, "max_position_embeddings"),
        activation=read_choice(config, "hidden_act", ACTIVATIONS, "silu"),
        epsilon=read_number(config, "rms_norm_eps", 1e-6),
        tied_head=read_flag(config, "tie_word_embeddings", False),
        rotary=_read_rotary(config),
        attention_scale=head_width**-0.5,
        # Qwen2 has biases where its config names none.
        attention_in_bias=is_qwen2 or attention_bias,
        attention_out_bias=attention_bias,
        feed_forward_bias=not is_qwen2 and read_flag(config, "mlp_bias", False),
        dropout_rate=read_number(config, "attention_dropout", 0.0, allow_zero=True),
    )


def _head_sizes(config: Mapping[str, Any], heads: int) -> tuple[int, int]:
    """Reads G and K, which old files leave out or write as null."""
    key_heads = heads
    if config.get("num_key_value_heads") is not None or config["model_type"] == "qwen2":
        key_heads = read_whole(config, "num_key_value_heads")
    if heads % key_heads:
        raise InputError(
            f"config.json has num_attention_heads {heads}, which num_key_value_heads {key_heads} "
            "does not divide; each key head must serve equally many query heads"
        )
    if config.get("head_dim") is not None:
        head_width, named = read_whole(config, "head_dim"), "head_dim"
    else:
        width, named = read_whole(config, "hidden_size"), "hidden_size / num_attention_heads"
        if width % heads:
            raise InputError(
                f"config.json has hidden_size {width}, which num_attention_heads {heads} does not "
                "divide; give the width of a head as head_dim"
            )
        head_width = width // heads
    if head_width % 2:
        raise InputError(
            f"config.json: {named} is {head_width}; rotary positions turn pairs, so an even "
            "number is expected"
        )
    return key_heads, head_width


def _refuse_windows(config: Mapping[str, Any]) -> None:
    """Raises where some layers look at the nearest tokens only."""
    kinds = config.get("layer_types")
    if kinds is None and read_flag(config, "use_sliding_window", False):
        window = config.get("sliding_window", 4096)
        first = read_whole(config, "max_window_layers", 28, least=0)
        if window is not None and first < read_whole(config, "num_hidden_layers"):
            raise InputError(
                f"config.json has use_sliding_window true (sliding_window {window} from layer "
                f"{first} on), which is not computed here; set use_sliding_window to false where "
                "texts are shorter than the window"
            )
    if kinds is not None and kinds != ["full_attention"] * len(kinds):
        other = next(kind for kind in kinds if kind != "full_attention")
        raise InputError(
            f"config.json: layer_types has {other!r}, which is not computed here; every layer "
            "must be 'full_attention'"
        )


def _read_rotary(config: Mapping[str, Any]) -> Rotary:
    """Reads rotary positions as files have them since transformers 5, or as before."""
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    fields = config.get(name) or {}
    if not isinstance(fields, Mapping):
        raise InputError(f"config.json: {name} is {fields!r}; an object of fields is expected")
    nested = [key for key, value in fields.items() if isinstance(value, Mapping)]
    if nested:
        raise InputError(
            f"config.json: {name} has a table for {nested[0]!r}; one for all layers is expected"
        )
    kind = fields.get("rope_type", fields.get("type", "default"))
    if kind not in ROTARY_KINDS:
        raise InputError(
            f"config.json: {name} has rope_type {kind!r}, which is not computed here; known are "
            f"{', '.join(ROTARY_KINDS)}"
        )
    for place in (config, fields):
        if place.get("partial_rotary_factor", 1.0) not in (None, 1.0):
            raise InputError(
                f"config.json: partial_rotary_factor is {place['partial_rotary_factor']!r}; only "
                "whole heads are turned here, so 1.0 is expected"
            )
    base = read_number(fields if "rope_theta" in fields else config, "rope_theta", 10_000.0)
    if kind == "default":
        return Rotary(base)
    factor = read_number(fields, "factor")
    if kind == "linear":
        return Rotary(base, kind, factor)
    return _read_llama3(config, fields, base, factor)


def _read_llama3(
    config: Mapping[str, Any], fields: Mapping[str, Any], base: float, factor: float
) -> Rotary:
    low, high = (read_number(fields, f"{end}_freq_factor") for end in ("low", "high"))
    if low >= high:
        raise InputError(
            f"config.json: low_freq_factor is {low} and high_freq_factor is {high}; "
            "the first must be the smaller"
        )
    # As in transformers: the field beside the table counts before the one in it.
    field = "original_max_position_embeddings"
    place = next((place for place in (config, fields) if field in place), None)
    original = read_whole(place or config, field if place else "max_position_embeddings")
    return Rotary(base, "llama3", factor, low, high, original)
