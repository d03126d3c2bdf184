"""GPT-2 and Llama decoders: configuration, weights, layers and forward pass."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jpt.backbones.answers import order_study, score_tokens
from jpt.backbones.attention import KeyBlock, attend
from jpt.backbones.layers import (
    ACTIVATIONS,
    ROTARY_KINDS,
    Angles,
    AnswerScores,
    Cache,
    LayerNorm,
    ModelOutput,
    RMSNorm,
    Rotary,
    WordHead,
    linear,
    rematerialised,
    rotary_angles,
    rotate,
)
from jpt.backbones.loading import (
    TensorRule,
    TensorSource,
    Weights,
    differs,
    read_choice,
    read_flag,
    read_number,
    read_whole,
    split_layers,
)
from jpt.backbones.packing import Packing, at_position, collect, pack_layout, spread
from jpt.errors import InputError

# --- The shape of a GPT-2, Llama or Qwen2 model, read from its Hugging Face config

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


# --- The tables of a decoder: words, and in GPT-2 positions


class DecoderEmbeddings(nn.Module):
    """The word table, and in GPT-2 the table of positions."""

    config: DecoderConfig  # shape of the model

    def setup(self) -> None:
        """Declares the tables."""
        config, normal = self.config, nn.initializers.normal(0.02)
        self.word = self.param("word", normal, (config.vocabulary, config.width))
        if config.is_gpt2:
            self.position = self.param("position", normal, (config.positions, config.width))

    def words(
        self, tokens: Int[Array, "B S"], positions: Int[Array, "R S"]
    ) -> Float[Array, "B S D"]:
        """Embeds tokens at their positions; R is 1 where all rows have the same positions."""
        return self.place(self.word[tokens], positions)

    def place(
        self, states: Float[Array, "B S D"], positions: Int[Array, "R S"]
    ) -> Float[Array, "B S D"]:
        """Adds the position table to embedded tokens, or to a prompt, in float32."""
        states = states.astype(jnp.float32)
        if not self.config.is_gpt2:
            return states
        # Padding may reach beyond the table; nothing looks at it.
        inside = jnp.minimum(positions, self.config.positions - 1)
        return states + self.position[inside].astype(jnp.float32)


# --- One layer of GPT-2 or Llama: over a prompt and a text behind it, or over one generated token


class Keys(NamedTuple):
    """What a layer lets others look at."""

    key: Float[Array, "*N S G K"]  # keys, turned by their positions
    value: Float[Array, "*N S G K"]  # values


class Segment(NamedTuple):
    """Where the tokens of a prompt, a text or a line of answers stand."""

    angles: Angles | None  # of rotary positions; None in GPT-2
    allowed: Bool[Array, "R S S"]  # which of its own tokens each of them may look at
    # which tokens of the text before it, where it is a line of answers
    text_allowed: Bool[Array, "B 1 T"] | None = None
    # where they stand in their rows, where the states are of real tokens alone
    packing: Packing | None = None


class States(NamedTuple):
    """The states of what a decoder reads."""

    # of the prompt, computed once where all rows have the same one; or None
    prompt: Float[Array, "R P D"] | None
    # of the text, by row, or of its real tokens alone
    text: Float[Array, "B T D"] | Float[Array, "G M D"]
    answers: Float[Array, "B N D"] | None = None  # of a line of answers behind the text; or None


class Segments(NamedTuple):
    """Where the tokens of `States` stand, in the same order."""

    prompt: Segment | None
    text: Segment
    answers: Segment | None = None


class Memory(NamedTuple):
    """What one generated token looks at besides itself, in one layer."""

    shared: Keys | None  # of a prompt that all rows have, without an axis of rows, or None
    prompt: Keys | None  # of a prompt a row, or None
    text: Keys  # of each row's text
    generated: Keys  # of the tokens generated before


class GenerationStep(NamedTuple):
    """Where the generated token of each row stands, and what it may look at."""

    angles: Angles | None  # of rotary positions; None in GPT-2
    text_allowed: Bool[Array, "B 1 T"]  # False for padding
    generated_allowed: Bool[Array, "1 1 N"]  # False for slots that are still empty


class DecoderLayer(nn.Module):
    """One transformer layer with the norms before the maps."""

    config: DecoderConfig  # shape of the model
    dtype: jnp.dtype  # dtype of states and matrix products
    dropout_rate: float = 0.0  # 0 leaves dropout out

    def setup(self) -> None:
        """Declares norms and maps."""
        config = self.config
        norm = LayerNorm if config.is_gpt2 else RMSNorm
        query_width = config.heads * config.head_width
        key_width = config.key_heads * config.head_width
        self.attention_norm = norm(config.epsilon)
        self.query = self._linear(query_width, config.attention_in_bias)
        self.key = self._linear(key_width, config.attention_in_bias)
        self.value = self._linear(key_width, config.attention_in_bias)
        self.attention_out = self._linear(config.width, config.attention_out_bias)
        self.feed_forward_norm = norm(config.epsilon)
        self.feed_forward_in = self._linear(config.neurons, config.feed_forward_bias)
        if not config.is_gpt2:
            self.feed_forward_up = self._linear(config.neurons, config.feed_forward_bias)
        self.feed_forward_out = self._linear(config.width, config.feed_forward_bias)
        self.dropout = nn.Dropout(self.dropout_rate, deterministic=not self.dropout_rate)

    def look(
        self,
        states: Float[Array, "R S D"],
        angles: Angles | None,
        packing: Packing | None = None,
    ) -> tuple[Float[Array, "R S D"], Keys]:
        """Gives the normalised states, and by row the keys and values that others may look at."""
        normed = self.attention_norm(states).astype(self.dtype)
        key = rotate(self._heads(self.key(normed)), angles)
        value = self._heads(self.value(normed))
        return normed, Keys(spread(key, packing), spread(value, packing))

    def update(
        self,
        states: Float[Array, "R Q D"],
        normed: Float[Array, "R Q D"],
        angles: Angles | None,
        blocks: list[KeyBlock],
        neuron_mask: Float[Array, "F"] | None,
        packing: Packing | None = None,
    ) -> tuple[Float[Array, "R Q D"], Float[Array, "R Q F"]]:
        """Adds to states what their queries find and what the feed-forward layer says to it."""
        query = spread(rotate(self._heads(self.query(normed)), angles), packing)
        drop = self.dropout if self.dropout_rate else None
        gathered = attend(query, blocks, self.config.attention_scale, drop)
        # [R, Q, H, K] -> [R, Q, H*K]
        gathered = collect(gathered.reshape(*gathered.shape[:2], -1), packing)
        states = states + self._drop(self.attention_out(gathered))
        normed = self.feed_forward_norm(states).astype(self.dtype)
        neurons = ACTIVATIONS[self.config.activation](self.feed_forward_in(normed))
        kept = neurons
        if neuron_mask is not None:
            kept = kept * neuron_mask.astype(kept.dtype)[None, None]
        if not self.config.is_gpt2:
            kept = kept * self.feed_forward_up(normed)
        return states + self._drop(self.feed_forward_out(kept)), neurons

    def write(
        self, states: Float[Array, "B 1 D"], place: GenerationStep, memory: Memory
    ) -> tuple[Float[Array, "B 1 D"], Keys]:
        """Updates one token of each row that looks back; gives its own keys and values too."""
        normed, own = self.look(states, place.angles)
        blocks = [
            KeyBlock(*memory.text, place.text_allowed),
            KeyBlock(*memory.generated, place.generated_allowed),
            KeyBlock(*own),
        ]
        if memory.shared is not None:
            blocks.append(KeyBlock(memory.shared.key[None], memory.shared.value[None]))
        if memory.prompt is not None:
            blocks.append(KeyBlock(*memory.prompt))
        states, _ = self.update(states, normed, place.angles, blocks, None)
        return states, own

    def follow(
        self,
        states: Float[Array, "B N D"],
        segment: Segment,
        prompt_blocks: list[KeyBlock],
        text_keys: Keys,
        neuron_mask: Float[Array, "F"] | None,
    ) -> Float[Array, "B N D"]:
        """Updates a line of answers, which look at prompt, text and their own tokens."""
        normed, own = self.look(states, segment.angles)
        text = KeyBlock(*text_keys, segment.text_allowed)
        blocks = [*prompt_blocks, text, KeyBlock(*own, segment.allowed)]
        return self.update(states, normed, segment.angles, blocks, neuron_mask)[0]

    def _linear(self, features: int, use_bias: bool) -> nn.Dense:
        return linear(features, self.dtype, None, use_bias)

    def _heads(self, projected: Float[Array, "R S HK"]) -> Float[Array, "R S H K"]:
        return projected.reshape(*projected.shape[:2], -1, self.config.head_width)

    def _drop(self, update: Float[Array, "R Q D"]) -> Float[Array, "R Q D"]:
        """Drops what is added to the states, which Llama does not."""
        return self.dropout(update) if self.config.is_gpt2 else update


class ReadingLayer(DecoderLayer):
    """A layer over a prompt and a text behind it, in the form that ``nn.scan`` repeats."""

    # The prompt looks at itself only, so where all rows have one prompt it is computed once. A line
    # of answers looks at both; neither looks at it.

    capture: str | None = None  # which neurons are returned: ``None``, ``"answer"`` or ``"all"``
    keep: bool = False  # whether keys and values are returned

    def __call__(
        self,
        states: States,
        segments: Segments,
        answer: Int[Array, "B"],
        neuron_mask: Float[Array, "F"] | None,
    ) -> tuple[States, tuple[Float[Array, "B *T F"] | None, tuple[Keys | None, Keys] | None]]:
        """Updates the states of prompt, text and answers."""
        prompt, text, answers = states
        front, body, behind = segments
        blocks, prompt_keys = [], None
        if prompt is not None:
            normed, prompt_keys = self.look(prompt, front.angles)
            own = [KeyBlock(*prompt_keys, front.allowed)]
            prompt, _ = self.update(prompt, normed, front.angles, own, neuron_mask)
            blocks = [KeyBlock(*prompt_keys)]
        normed, text_keys = self.look(text, body.angles, body.packing)
        seen = [*blocks, KeyBlock(*text_keys, body.allowed)]
        text, neurons = self.update(text, normed, body.angles, seen, neuron_mask, body.packing)
        if answers is not None:
            answers = self.follow(answers, behind, blocks, text_keys, neuron_mask)
        if self.capture != "all":
            neurons = at_position(neurons, answer, body.packing)[:, 0] if self.capture else None
        kept = (prompt_keys, text_keys) if self.keep else None
        return States(prompt, text, answers), (neurons, kept)


class WritingLayer(DecoderLayer):
    """A layer over one token of each row, in the form that ``nn.scan`` repeats."""

    def __call__(
        self,
        states: Float[Array, "B 1 D"],
        place: GenerationStep,
        memory: Memory,
    ) -> tuple[Float[Array, "B 1 D"], Keys]:
        """Updates the states and returns the token's own keys and values."""
        return self.write(states, place, memory)


# --- What the checkpoints of all decoders have in common: the head, and how a model is split

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

    def resolve(source: TensorSource, config: DecoderConfig, where: str) -> DecoderConfig:
        del where
        words = rules(config)[0].find(None, source.shapes)
        if config.tied_head and differs(source, HEAD, words):
            return dataclasses.replace(config, tied_head=False)
        return config

    def passed_over(config: DecoderConfig) -> tuple[str, ...]:
        return (*ignored, re.escape(HEAD)) if config.tied_head else ignored

    return Weights(with_head, passed_over, resolve, _PARTITION)


# --- The names that GPT-2 checkpoints give their tensors

# Files saved from the model without its head lack this prefix.
ROOT = "transformer."
GPT2_LAYER = "h.{layer}"

# Causal masks kept as tensors by older versions.
_GPT2_IGNORED = (r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",)


def gpt2_rules(config: DecoderConfig) -> list[TensorRule]:
    """Names the tensor of every parameter but the head of a GPT-2."""
    width, neurons, layers = config.width, config.neurons, config.layers
    rules = [
        _rule("embeddings/word", "wte.weight", (config.vocabulary, width)),
        _rule("embeddings/position", "wpe.weight", (config.positions, width)),
    ]
    for number, name in enumerate(("query", "key", "value")):
        # One tensor holds all three, side by side.
        rules += _gpt2_map(name, "attn.c_attn", width, 3 * width, layers, part=(number, 3))
    rules += [
        *_gpt2_map("attention_out", "attn.c_proj", width, width, layers),
        *_gpt2_map("feed_forward_in", "mlp.c_fc", width, neurons, layers),
        *_gpt2_map("feed_forward_out", "mlp.c_proj", neurons, width, layers),
        *_gpt2_norm("layer/attention_norm", f"{GPT2_LAYER}.ln_1", width, layers),
        *_gpt2_norm("layer/feed_forward_norm", f"{GPT2_LAYER}.ln_2", width, layers),
        *_gpt2_norm("final_norm", "ln_f", width, 0),
    ]
    return rules


def _gpt2_map(
    ours: str,
    theirs: str,
    inputs: int,
    outputs: int,
    layers: int,
    part: tuple[int, int] | None = None,
) -> list[TensorRule]:
    """A linear map of a layer; GPT-2's files have them as [in, out], as we do."""
    shapes = {"kernel": (inputs, outputs), "bias": (outputs,)}
    names = {"kernel": "weight", "bias": "bias"}
    return [
        _rule(f"layer/{ours}/{kind}", f"{GPT2_LAYER}.{theirs}.{names[kind]}", shape, layers, part)
        for kind, shape in shapes.items()
    ]


def _gpt2_norm(path: str, name: str, width: int, layers: int) -> list[TensorRule]:
    return [
        _rule(f"{path}/scale", f"{name}.weight", (width,), layers),
        _rule(f"{path}/bias", f"{name}.bias", (width,), layers),
    ]


def _rule(
    path: str,
    name: str,
    shape: tuple[int, ...],
    layers: int = 0,
    part: tuple[int, int] | None = None,
) -> TensorRule:
    return TensorRule(path, ROOT + name, shape, aliases=(name,), layers=layers, part=part)


GPT2_WEIGHTS = decoder_weights(gpt2_rules, _GPT2_IGNORED)
"""GPT-2's checkpoints."""


# --- The names that Llama and Qwen2 checkpoints give their tensors

LLAMA_LAYER = "model.layers.{layer}"

# Frequencies that older versions kept as tensors.
_LLAMA_IGNORED = (r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",)


def llama_rules(config: DecoderConfig) -> list[TensorRule]:
    """Names the tensor of every parameter but the head of a Llama or Qwen2."""
    width, neurons = config.width, config.neurons
    queries = config.heads * config.head_width
    keys = config.key_heads * config.head_width
    into, out = config.attention_in_bias, config.attention_out_bias
    bias = config.feed_forward_bias
    return [
        TensorRule("embeddings/word", "model.embed_tokens.weight", (config.vocabulary, width)),
        *_llama_map(config, "query", "self_attn.q_proj", (queries, width), into),
        *_llama_map(config, "key", "self_attn.k_proj", (keys, width), into),
        *_llama_map(config, "value", "self_attn.v_proj", (keys, width), into),
        *_llama_map(config, "attention_out", "self_attn.o_proj", (width, queries), out),
        *_llama_map(config, "feed_forward_in", "mlp.gate_proj", (neurons, width), bias),
        *_llama_map(config, "feed_forward_up", "mlp.up_proj", (neurons, width), bias),
        *_llama_map(config, "feed_forward_out", "mlp.down_proj", (width, neurons), bias),
        _llama_norm(config, "attention_norm", "input_layernorm"),
        _llama_norm(config, "feed_forward_norm", "post_attention_layernorm"),
        TensorRule("final_norm/scale", "model.norm.weight", (width,)),
    ]


def _llama_map(
    config: DecoderConfig, ours: str, theirs: str, shape: tuple[int, int], has_bias: bool
) -> list[TensorRule]:
    """A linear map of a layer; the files have them as [out, in]."""
    path, name, layers = f"layer/{ours}", f"{LLAMA_LAYER}.{theirs}", config.layers
    kernel = TensorRule(f"{path}/kernel", f"{name}.weight", shape, transpose=True, layers=layers)
    bias = TensorRule(f"{path}/bias", f"{name}.bias", shape[:1], layers=layers)
    return [kernel, bias] if has_bias else [kernel]


def _llama_norm(config: DecoderConfig, ours: str, theirs: str) -> TensorRule:
    name = f"{LLAMA_LAYER}.{theirs}.weight"
    return TensorRule(f"layer/{ours}/scale", name, (config.width,), layers=config.layers)


LLAMA_WEIGHTS = decoder_weights(llama_rules, _LLAMA_IGNORED)
"""Llama's and Qwen2's checkpoints."""


# --- GPT-2, Llama and Qwen2 as one frozen Linen module that takes a soft prompt
# The input is ``p1 .. pP text``, the prompt at positions 0 to P - 1 (the layout of PEFT), and the
# answer is read at the last text token. What a prompt's rows become does not depend on the text, so
# one prompt for all rows is computed once, and every row looks at the same keys and values.

Prompt = Float[Array, "P D"] | Float[Array, "B P D"] | None


class Decoder(nn.Module):
    """A causal language model that reads text behind a soft prompt, and writes on."""

    config: DecoderConfig  # shape of the model
    dtype: jnp.dtype = jnp.float32  # dtype of states and matrix products, float32 or bfloat16
    # 0 (default) leaves dropout out. With one prompt for all rows, its layers draw once for all of
    # them
    dropout_rate: float = 0.0
    # what the layers keep for the way back: ``"dots"``, ``"full"`` or ``"none"``
    remat: str = "dots"

    def setup(self) -> None:
        """Declares tables, the last layer, the last norm and the head."""
        self.embeddings = DecoderEmbeddings(self.config)
        self.last_layer = DecoderLayer(self.config, self.dtype, self.dropout_rate)
        norm = LayerNorm if self.config.is_gpt2 else RMSNorm
        self.final_norm = norm(self.config.epsilon)
        self.head = WordHead(self.config.tied_head, self.dtype)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"],
        prompt: Prompt = None,
        *,
        label_ids: Int[Array, "C"] | None = None,
        capture_neurons: bool = False,
        neuron_mask: Float[Array, "L F"] | None = None,
        every_position: bool = False,
        packed_index: Int[Array, "G N"] | None = None,
    ) -> ModelOutput:
        """Reads a batch behind a prompt and scores the word after the last text token."""
        capture = ("all" if every_position else "answer") if capture_neurons else None
        options = {"neuron_mask": neuron_mask, "every_position": every_position}
        options["packed_index"] = None if every_position else packed_index
        hidden, neurons, _ = self._read(tokens, lengths, prompt, capture=capture, **options)
        if not every_position:
            hidden = hidden[:, 0]
        return ModelOutput(self._score(hidden, label_ids), hidden, neurons)

    def score_answers(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"],
        prompt: Prompt,
        answers: Int[Array, "R W A"],
        *,
        neuron_mask: Float[Array, "L F"] | None = None,
        packed_index: Int[Array, "G N"] | None = None,
    ) -> AnswerScores:
        """Scores every token of several answers to each row, all of them in one pass."""
        given = {"neuron_mask": neuron_mask, "answers": answers, "packed_index": packed_index}
        hidden, _, _ = self._read(tokens, lengths, prompt, **given)
        logits = self._score(hidden, None)
        return score_tokens(logits[:, 0], logits[:, 1:], answers)

    def start(
        self, tokens: Int[Array, "B T"], lengths: Int[Array, "B"], prompt: Prompt, max_new: int
    ) -> tuple[Float[Array, "B V"], Cache]:
        """Reads a batch behind a prompt and keeps what is needed to write on."""
        hidden, _, kept = self._read(tokens, lengths, prompt, keep=True)
        is_shared = prompt is not None and prompt.ndim == 2
        shared, context, generated = {}, {}, {}
        for folder, (front, text) in kept.items():
            if is_shared and front is not None:
                # [L, 1, P, G, K] -> [L, P, G, K]
                shared[folder] = jax.tree.map(lambda leaf: leaf[:, 0], front)
            context[folder] = {"prompt": None if is_shared else front, "text": text}
            # [L, B, T, G, K] -> [L, B, N, G, K]
            empty = (*text.key.shape[:2], max_new, *text.key.shape[3:])
            generated[folder] = Keys(jnp.zeros(empty, self.dtype), jnp.zeros(empty, self.dtype))
        steps = jnp.zeros((), jnp.int32)
        cache = Cache(shared or None, context, lengths, generated, steps)
        return self._score(hidden[:, 0], None), cache

    def advance(self, last: Int[Array, "B"], cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
        """Reads one more token of each row; its cost does not grow with what was written."""
        memories = {
            folder: Memory(
                None if cache.shared is None else cache.shared[folder],
                cache.context[folder]["prompt"],
                cache.context[folder]["text"],
                cache.generated[folder],
            )
            for folder in cache.context
        }
        memory = memories["last_layer"]
        front = memory.prompt if memory.shared is None else memory.shared
        rows = 0 if front is None else front.key.shape[-3]
        positions = (rows + cache.lengths + cache.steps)[:, None]
        place = GenerationStep(
            self._angles(positions),
            jnp.arange(memory.text.key.shape[2])[None, None] < cache.lengths[:, None, None],
            jnp.arange(memory.generated.key.shape[2])[None, None] < cache.steps,
        )
        states = self.embeddings.words(last[:, None], positions).astype(self.dtype)
        own = {}
        if "layers" in memories:
            states, own["layers"] = self._scan(
                WritingLayer, {}, (nn.broadcast, 0), states, place, memories["layers"]
            )
        memory = jax.tree.map(lambda leaf: leaf[0], memory)
        states, new = self.last_layer.write(states, place, memory)
        own["last_layer"] = jax.tree.map(lambda leaf: leaf[None], new)

        def fill(slots: Float[Array, "L B N G K"], new: Float[Array, "L B 1 G K"]) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(slots, new, cache.steps, axis=2)

        generated = jax.tree.map(fill, cache.generated, own)
        hidden = self.final_norm(states[:, 0]).astype(self.dtype)
        cache = cache.replace(generated=generated, steps=cache.steps + 1)
        return self._score(hidden, None), cache

    def _read(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"],
        prompt: Prompt,
        capture: str | None = None,
        neuron_mask: Float[Array, "L F"] | None = None,
        every_position: bool = False,
        keep: bool = False,
        answers: Int[Array, "R W A"] | None = None,
        packed_index: Int[Array, "G N"] | None = None,
    ) -> tuple[Float[Array, "B Q D"], Float[Array, "L B *T F"] | None, dict[str, Any]]:
        """Gives the last states at the answer or everywhere, the neurons, and what is kept."""
        # With answers, their line's last states stand behind that of the text's last token.
        packing = pack_layout(packed_index, lengths, tokens.shape[1])
        prompt, segments = self._lay_out(prompt, tokens.shape[1], packing)
        text = self.embeddings.words(tokens, self._positions(prompt, tokens.shape[1]))
        states = States(prompt, collect(text.astype(self.dtype), packing))
        if answers is not None and answers.shape[2] > 1:
            states, segments = self._add_answers(states, segments, lengths, answers)
        # A row that only fills the batch may have no text at all.
        answer = jnp.maximum(lengths - 1, 0)
        neurons, kept = [], {}
        if self.config.layers > 1:
            mask = None if neuron_mask is None else neuron_mask[:-1]
            options = {"capture": capture, "keep": keep}
            axes, inputs = (nn.broadcast, nn.broadcast, 0), (segments, answer, mask)
            states, (lower, lower_keys) = self._scan(ReadingLayer, options, axes, states, *inputs)
            neurons.append(lower)
            kept["layers"] = lower_keys
        mask = None if neuron_mask is None else neuron_mask[-1]
        queries = None if every_position else answer
        hidden, last, keys = self._read_last(states, segments, queries, mask)
        kept["last_layer"] = jax.tree.map(lambda leaf: leaf[None], keys)
        if capture is None:
            return hidden, None, kept
        neurons.append((last if every_position else last[:, 0])[None])
        return hidden, jnp.concatenate(neurons), kept

    def _add_answers(
        self,
        states: States,
        segments: Segments,
        lengths: Int[Array, "B"],
        answers: Int[Array, "R W A"],
    ) -> tuple[States, Segments]:
        """Puts a line of answers behind the text: each stands where it would alone."""
        branches, start = (
            order_study(answers),
            0 if states.prompt is None else states.prompt.shape[1],
        )
        rows, length = lengths.shape[0], segments.text.allowed.shape[-1]
        line = jnp.broadcast_to(branches.tokens, (rows, len(branches.steps)))
        positions = start + lengths[:, None] + jnp.asarray(branches.steps)[None]
        is_text = jnp.arange(length)[None, None] < lengths[:, None, None]
        allowed = jnp.asarray(branches.allowed)[None]
        words = self.embeddings.words(line, positions).astype(self.dtype)
        segment = Segment(self._angles(positions), allowed, is_text)
        return states._replace(answers=words), segments._replace(answers=segment)

    def _read_last(
        self,
        states: States,
        segments: Segments,
        answer: Int[Array, "B"] | None,
        neuron_mask: Float[Array, "F"] | None,
    ) -> tuple[Float[Array, "B Q D"], Float[Array, "B Q F"], tuple[Keys | None, Keys]]:
        """Runs the last layer: keys of all, queries of the answer alone where it is given."""
        (prompt, text, answers), (front, body, behind) = states, segments
        prompt_keys = None if prompt is None else self.last_layer.look(prompt, front.angles)[1]
        normed, text_keys = self.last_layer.look(text, body.angles, body.packing)
        angles, allowed = body.angles, body.allowed
        if answer is not None:
            text, normed = (at_position(each, answer, body.packing) for each in (text, normed))
            start = 0 if prompt is None else prompt.shape[1]
            angles = self._angles(start + answer[:, None])
            # [B, 1, T]: the answer looks at the text up to itself.
            allowed = jnp.arange(body.allowed.shape[-1])[None, None] <= answer[:, None, None]
        front_blocks = [] if prompt_keys is None else [KeyBlock(*prompt_keys)]
        blocks = [*front_blocks, KeyBlock(*text_keys, allowed)]
        hidden, neurons = self.last_layer.update(text, normed, angles, blocks, neuron_mask)
        if answers is not None:
            line = self.last_layer.follow(answers, behind, front_blocks, text_keys, neuron_mask)
            hidden = jnp.concatenate([hidden, line], axis=1)
        return self.final_norm(hidden).astype(self.dtype), neurons, (prompt_keys, text_keys)

    def _lay_out(
        self, prompt: Prompt, text: int, packing: Packing | None
    ) -> tuple[Float[Array, "R P D"] | None, Segments]:
        """Embeds the prompt, and says where it and the text stand and what they may look at."""
        if prompt is not None and prompt.ndim == 2:
            prompt = prompt[None]
        if prompt is None or not prompt.shape[1]:
            return None, Segments(None, self._segment(0, text, packing))
        rows = prompt.shape[1]
        prompt = self.embeddings.place(prompt, jnp.arange(rows)[None]).astype(self.dtype)
        return prompt, Segments(self._segment(0, rows), self._segment(rows, text, packing))

    def _segment(self, start: int, length: int, packing: Packing | None = None) -> Segment:
        """Some tokens from a position on, each of which looks back to the first of them."""
        allowed: Bool[Array, "S S"] = jnp.tril(jnp.ones((length, length), bool))
        steps = jnp.arange(length)[None] if packing is None else packing.position % length
        return Segment(self._angles(start + steps), allowed[None], packing=packing)

    def _positions(self, prompt: Float[Array, "R P D"] | None, text: int) -> Int[Array, "1 T"]:
        start = 0 if prompt is None else prompt.shape[1]
        return start + jnp.arange(text)[None]

    def _angles(self, positions: Int[Array, "R S"]) -> Angles | None:
        if self.config.rotary is None:
            return None
        return rotary_angles(self.config.rotary, self.config.head_width, positions)

    def _score(
        self, hidden: Float[Array, "... D"], label_ids: Int[Array, "C"] | None
    ) -> Float[Array, "... C"]:
        return self.head(hidden, self.embeddings.word, label_ids)

    @nn.compact
    def _scan(
        self,
        layer: type[DecoderLayer],
        options: dict[str, Any],
        in_axes: tuple[Any, ...],
        states: Any,
        *inputs: Any,
    ) -> tuple[Any, Any]:
        """Runs all layers but the last as one scan: compile time does not grow with depth."""
        scanned = nn.scan(
            rematerialised(layer, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=in_axes,
            length=self.config.layers - 1,
        )(self.config, self.dtype, self.dropout_rate, **options, name="layers")
        return scanned(states, *inputs)
