"""GPT-2 and Llama decoders: configuration, weights, layers and forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jpt.backbones.answers import branch_answers, score_tokens
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
    Weights,
    read_choice,
    read_flag,
    read_number,
    read_whole,
    split_layers,
)
from jpt.backbones.packing import Packing, at_position, collect, pack_layout, spread
from jpt.errors import InputError

# --- Configuration

GPT2_TYPES = ("gpt2",)
LLAMA_TYPES = ("llama", "qwen2")


@dataclass(frozen=True)
class DecoderConfig:
    """Hyperparameters of a GPT-2, Llama or Qwen2 decoder."""

    model_type: str  # ``"gpt2"``, ``"llama"`` or ``"qwen2"``
    vocabulary: int  # V
    width: int  # D
    layers: int  # L
    heads: int  # H, query heads
    key_heads: int  # G, key and value heads; a divisor of H
    head_width: int  # K; H * K may differ from D
    neurons: int  # F of one feed-forward layer
    positions: int  # maximum number of prompt and text tokens
    activation: str
    epsilon: float  # of every norm
    tied_head: bool  # whether the head uses the input embeddings
    rotary: Rotary | None  # None for learned position embeddings
    attention_scale: float
    attention_in_bias: bool  # of queries, keys and values
    attention_out_bias: bool
    feed_forward_bias: bool
    dropout_rate: float = 0.0  # of pretraining; used only if dropout is requested

    @property
    def is_gpt2(self) -> bool:
        """True for the GPT-2 architecture, False for Llama's."""
        return self.model_type == "gpt2"

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any]) -> DecoderConfig:
        """Parse a ``config.json`` of transformers, of any version."""
        model_type = config.get("model_type")
        if model_type in GPT2_TYPES:
            return _read_gpt2(config)
        if model_type in LLAMA_TYPES:
            return _read_llama(config)
        known = ", ".join((*GPT2_TYPES, *LLAMA_TYPES))
        raise InputError(f"config.json: expected model_type {known}, got {model_type!r}")


def _read_gpt2(config: Mapping[str, Any]) -> DecoderConfig:
    # reorder_and_upcast_attn needs no support: scores and softmax are always in float32.
    for field in ("add_cross_attention", "scale_attn_by_inverse_layer_idx"):
        if read_flag(config, field, False):
            raise InputError(
                f"config.json: expected {field} false, got true; use a GPT-2 model without it"
            )
    width, heads = read_whole(config, "n_embd"), read_whole(config, "n_head")
    if width % heads:
        raise InputError(f"config.json: expected n_embd divisible by n_head {heads}, got {width}")
    is_scaled = read_flag(config, "scale_attn_weights", True)
    has_inner = config.get("n_inner") is not None
    return DecoderConfig(
        model_type="gpt2",
        vocabulary=read_whole(config, "vocab_size"),
        width=width,
        layers=read_whole(config, "n_layer"),
        heads=heads,
        key_heads=heads,
        head_width=width // heads,
        neurons=read_whole(config, "n_inner") if has_inner else 4 * width,
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
        # Qwen2 has biases that its config does not mention.
        attention_in_bias=is_qwen2 or attention_bias,
        attention_out_bias=attention_bias,
        feed_forward_bias=not is_qwen2 and read_flag(config, "mlp_bias", False),
        dropout_rate=read_number(config, "attention_dropout", 0.0, allow_zero=True),
    )


def _head_sizes(config: Mapping[str, Any], heads: int) -> tuple[int, int]:
    """Return G and K, which older configs omit or set to null."""
    key_heads = heads
    if config.get("num_key_value_heads") is not None or config["model_type"] == "qwen2":
        key_heads = read_whole(config, "num_key_value_heads")
    if heads % key_heads:
        raise InputError(
            f"config.json: expected num_attention_heads divisible by num_key_value_heads "
            f"{key_heads}, got {heads}"
        )
    if config.get("head_dim") is not None:
        head_width, named = read_whole(config, "head_dim"), "head_dim"
    else:
        width, named = read_whole(config, "hidden_size"), "hidden_size / num_attention_heads"
        if width % heads:
            raise InputError(
                f"config.json: expected hidden_size divisible by num_attention_heads {heads}, got "
                f"{width}; set head_dim"
            )
        head_width = width // heads
    if head_width % 2:
        raise InputError(
            f"config.json: expected {named} to be even (rotary positions rotate pairs), got "
            f"{head_width}"
        )
    return key_heads, head_width


def _refuse_windows(config: Mapping[str, Any]) -> None:
    """Raise InputError if any layer uses sliding-window attention."""
    kinds = config.get("layer_types")
    if kinds is None and read_flag(config, "use_sliding_window", False):
        window = config.get("sliding_window", 4096)
        first = read_whole(config, "max_window_layers", 28, least=0)
        if window is not None and first < read_whole(config, "num_hidden_layers"):
            raise InputError(
                f"config.json: expected use_sliding_window false, got true (sliding_window "
                f"{window} from layer {first} on); set it to false if all texts are shorter than "
                "the window"
            )
    if kinds is not None and kinds != ["full_attention"] * len(kinds):
        other = next(kind for kind in kinds if kind != "full_attention")
        raise InputError(
            f"config.json: expected layer_types 'full_attention' in every layer, got {other!r}"
        )


def _read_rotary(config: Mapping[str, Any]) -> Rotary:
    """Parse ``rope_parameters`` (transformers 5) or ``rope_scaling`` (older)."""
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    fields = config.get(name) or {}
    if not isinstance(fields, Mapping):
        raise InputError(f"config.json: expected {name} to be an object, got {fields!r}")
    nested = [key for key, value in fields.items() if isinstance(value, Mapping)]
    if nested:
        raise InputError(
            f"config.json: expected one {name} for all layers, got one for {nested[0]!r}"
        )
    kind = fields.get("rope_type", fields.get("type", "default"))
    if kind not in ROTARY_KINDS:
        raise InputError(
            f"config.json: expected rope_type {', '.join(ROTARY_KINDS)} in {name}, got {kind!r}"
        )
    for table in (config, fields):
        if table.get("partial_rotary_factor", 1.0) not in (None, 1.0):
            raise InputError(
                "config.json: expected partial_rotary_factor 1.0, got "
                f"{table['partial_rotary_factor']!r}"
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
            f"config.json: expected low_freq_factor below high_freq_factor {high}, got {low}"
        )
    # As in transformers, the top-level field overrides the one in the table.
    field = "original_max_position_embeddings"
    table = next((table for table in (config, fields) if field in table), None)
    original = read_whole(table or config, field if table else "max_position_embeddings")
    return Rotary(base, "llama3", factor, low, high, original)


# --- Embeddings


class DecoderEmbeddings(nn.Module):
    """Word embeddings, and in GPT-2 position embeddings."""

    config: DecoderConfig

    def setup(self) -> None:
        config, normal = self.config, nn.initializers.normal(0.02)
        self.word = self.param("word", normal, (config.vocabulary, config.width))
        if config.is_gpt2:
            self.position = self.param("position", normal, (config.positions, config.width))

    def words(
        self, tokens: Int[Array, "B S"], positions: Int[Array, "R S"]
    ) -> Float[Array, "B S D"]:
        """Embed tokens at their positions; R is 1 if all rows share their positions."""
        return self.add_positions(self.word[tokens], positions)

    def add_positions(
        self, states: Float[Array, "B S D"], positions: Int[Array, "R S"]
    ) -> Float[Array, "B S D"]:
        """Add position embeddings to embedded tokens or to a prompt, in float32."""
        states = states.astype(jnp.float32)
        if not self.config.is_gpt2:
            return states
        # Padding may exceed the table, but is never attended to.
        inside = jnp.minimum(positions, self.config.positions - 1)
        return states + self.position[inside].astype(jnp.float32)


# --- Layers


class Keys(NamedTuple):
    """Keys (after rotation) and values of one layer."""

    key: Float[Array, "*N S G K"]
    value: Float[Array, "*N S G K"]


class Segment(NamedTuple):
    """Positions and attention masks of a prompt, a text or answers behind the text."""

    angles: Angles | None  # None in GPT-2
    allowed: Bool[Array, "R S S"]  # mask within the segment
    text_allowed: Bool[Array, "B 1 T"] | None = None  # answers only: mask over the text
    packing: Packing | None = None  # if the states are packed


class States(NamedTuple):
    """Hidden states of the segments."""

    prompt: Float[Array, "R P D"] | None  # R is 1 if all rows share the prompt
    text: Float[Array, "B T D"] | Float[Array, "G M D"]  # padded or packed
    answers: Float[Array, "B N D"] | None = None


class Segments(NamedTuple):
    """Segments of `States`, in the same order."""

    prompt: Segment | None
    text: Segment
    answers: Segment | None = None


class Memory(NamedTuple):
    """Cached keys and values that a generated token attends to, in one layer."""

    shared: Keys | None  # prompt of all rows, without a row axis
    prompt: Keys | None  # one prompt a row
    text: Keys
    generated: Keys


class GenerationStep(NamedTuple):
    """Position and attention masks of one generated token a row."""

    angles: Angles | None  # None in GPT-2
    text_allowed: Bool[Array, "B 1 T"]  # False for padding
    generated_allowed: Bool[Array, "1 1 N"]  # False for empty slots


class DecoderLayer(nn.Module):
    """Pre-norm transformer layer."""

    config: DecoderConfig
    dtype: jnp.dtype  # of states and matrix products
    dropout_rate: float = 0.0

    def setup(self) -> None:
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
        """Return the normalised states, and the unpacked keys and values."""
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
        """Apply attention over ``blocks`` and the feed-forward layer; also return the neurons."""
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

    def decode(
        self, states: Float[Array, "B 1 D"], step: GenerationStep, memory: Memory
    ) -> tuple[Float[Array, "B 1 D"], Keys]:
        """Update one token of each row; also return its keys and values."""
        normed, keys = self.look(states, step.angles)
        blocks = [
            KeyBlock(*memory.text, step.text_allowed),
            KeyBlock(*memory.generated, step.generated_allowed),
            KeyBlock(*keys),
        ]
        if memory.shared is not None:
            blocks.append(KeyBlock(memory.shared.key[None], memory.shared.value[None]))
        if memory.prompt is not None:
            blocks.append(KeyBlock(*memory.prompt))
        states, _ = self.update(states, normed, step.angles, blocks, None)
        return states, keys

    def follow(
        self,
        states: Float[Array, "B N D"],
        segment: Segment,
        prompt_blocks: list[KeyBlock],
        text_keys: Keys,
        neuron_mask: Float[Array, "F"] | None,
    ) -> Float[Array, "B N D"]:
        """Update the answers, which attend to prompt, text and themselves."""
        normed, keys = self.look(states, segment.angles)
        text = KeyBlock(*text_keys, segment.text_allowed)
        blocks = [*prompt_blocks, text, KeyBlock(*keys, segment.allowed)]
        return self.update(states, normed, segment.angles, blocks, neuron_mask)[0]

    def _linear(self, features: int, use_bias: bool) -> nn.Dense:
        return linear(features, self.dtype, None, use_bias)

    def _heads(self, projected: Float[Array, "R S HK"]) -> Float[Array, "R S H K"]:
        return projected.reshape(*projected.shape[:2], -1, self.config.head_width)

    def _drop(self, update: Float[Array, "R Q D"]) -> Float[Array, "R Q D"]:
        # Llama has no dropout on the residual branches.
        return self.dropout(update) if self.config.is_gpt2 else update


class ReadingLayer(DecoderLayer):
    """Decoder layer over prompt, text and answers, for ``nn.scan``."""

    # The prompt attends to itself only, so a prompt shared by all rows is computed once.

    capture: str | None = None  # neurons to return: ``None``, ``"answer"`` or ``"all"``
    keep: bool = False  # whether to return keys and values

    def __call__(
        self,
        states: States,
        segments: Segments,
        answer: Int[Array, "B"],
        neuron_mask: Float[Array, "F"] | None,
    ) -> tuple[States, tuple[Float[Array, "B *T F"] | None, tuple[Keys | None, Keys] | None]]:
        prompt, text, answers = states
        front, body, behind = segments
        blocks, prompt_keys = [], None
        if prompt is not None:
            normed, prompt_keys = self.look(prompt, front.angles)
            causal = [KeyBlock(*prompt_keys, front.allowed)]
            prompt, _ = self.update(prompt, normed, front.angles, causal, neuron_mask)
            blocks = [KeyBlock(*prompt_keys)]
        normed, text_keys = self.look(text, body.angles, body.packing)
        past = [*blocks, KeyBlock(*text_keys, body.allowed)]
        text, neurons = self.update(text, normed, body.angles, past, neuron_mask, body.packing)
        if answers is not None:
            answers = self.follow(answers, behind, blocks, text_keys, neuron_mask)
        if self.capture != "all":
            neurons = at_position(neurons, answer, body.packing)[:, 0] if self.capture else None
        kept = (prompt_keys, text_keys) if self.keep else None
        return States(prompt, text, answers), (neurons, kept)


class GeneratingLayer(DecoderLayer):
    """Decoder layer over one generated token a row, for ``nn.scan``."""

    def __call__(
        self,
        states: Float[Array, "B 1 D"],
        step: GenerationStep,
        memory: Memory,
    ) -> tuple[Float[Array, "B 1 D"], Keys]:
        return self.decode(states, step, memory)


# --- Checkpoints: head and partition table of all decoders

HEAD = "lm_head.weight"

# Megatron-style: input matrices are split by column, output matrices by row.
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


# --- Checkpoints: GPT-2

# Absent from checkpoints of the model without its head.
ROOT = "transformer."
GPT2_LAYER = "h.{layer}"

# Causal masks that older versions saved as tensors.
_GPT2_IGNORED = (r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",)


def gpt2_rules(config: DecoderConfig) -> list[TensorRule]:
    """Return the loading rules of GPT-2."""
    width, neurons, layers = config.width, config.neurons, config.layers
    rules = [
        _rule("embeddings/word", "wte.weight", (config.vocabulary, width)),
        _rule("embeddings/position", "wpe.weight", (config.positions, width)),
    ]
    for number, name in enumerate(("query", "key", "value")):
        rules += _gpt2_map(name, "attn.c_attn", width, 3 * width, layers, part=(number, 3))
    rules += [
        *_gpt2_map("attention_out", "attn.c_proj", width, width, layers),
        *_gpt2_map("feed_forward_in", "mlp.c_fc", width, neurons, layers),
        *_gpt2_map("feed_forward_out", "mlp.c_proj", neurons, width, layers),
        *_gpt2_norm("layer/attention_norm", f"{GPT2_LAYER}.ln_1", width, layers),
        *_gpt2_norm("layer/feed_forward_norm", f"{GPT2_LAYER}.ln_2", width, layers),
        *_gpt2_norm("final_norm", "ln_f", width, 0),
        TensorRule("head/words", HEAD, (config.vocabulary, width)),
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
    # GPT-2 stores kernels as [in, out], as jpt does.
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


GPT2_WEIGHTS = Weights(gpt2_rules, _GPT2_IGNORED, _PARTITION)
"""Checkpoint format of GPT-2."""


# --- Checkpoints: Llama and Qwen2

LLAMA_LAYER = "model.layers.{layer}"

# Rotary frequencies that older versions saved as tensors.
_LLAMA_IGNORED = (r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",)


def llama_rules(config: DecoderConfig) -> list[TensorRule]:
    """Return the loading rules of Llama and Qwen2."""
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
        TensorRule("head/words", HEAD, (config.vocabulary, width)),
    ]


def _llama_map(
    config: DecoderConfig, ours: str, theirs: str, shape: tuple[int, int], has_bias: bool
) -> list[TensorRule]:
    path, name, layers = f"layer/{ours}", f"{LLAMA_LAYER}.{theirs}", config.layers
    kernel = TensorRule(f"{path}/kernel", f"{name}.weight", shape, transpose=True, layers=layers)
    bias = TensorRule(f"{path}/bias", f"{name}.bias", shape[:1], layers=layers)
    return [kernel, bias] if has_bias else [kernel]


def _llama_norm(config: DecoderConfig, ours: str, theirs: str) -> TensorRule:
    name = f"{LLAMA_LAYER}.{theirs}.weight"
    return TensorRule(f"layer/{ours}/scale", name, (config.width,), layers=config.layers)


LLAMA_WEIGHTS = Weights(llama_rules, _LLAMA_IGNORED, _PARTITION)
"""Checkpoint format of Llama and Qwen2."""


# --- Module
# The input is ``p1 .. pP text`` with the prompt at positions 0 to P - 1 (as in PEFT), and the
# answer is read at the last text token. The prompt does not attend to the text, so a prompt shared
# by all rows is computed once and all rows attend to the same keys and values.

Prompt = Float[Array, "P D"] | Float[Array, "B P D"] | None


class Decoder(nn.Module):
    """Frozen causal language model with a soft prompt."""

    config: DecoderConfig
    dtype: jnp.dtype = jnp.float32  # of states and matrix products
    dropout_rate: float = 0.0  # a prompt shared by all rows shares its dropout masks
    remat: str = "dots"  # see rematerialised()

    def setup(self) -> None:
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
        """Read texts behind a prompt and score the token after the last text token."""
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
        """Score every token of several answers to each row in one pass."""
        options = {"neuron_mask": neuron_mask, "answers": answers, "packed_index": packed_index}
        hidden, _, _ = self._read(tokens, lengths, prompt, **options)
        logits = self._score(hidden, None)
        return score_tokens(logits[:, 0], logits[:, 1:], answers)

    def start(
        self, tokens: Int[Array, "B T"], lengths: Int[Array, "B"], prompt: Prompt, max_new: int
    ) -> tuple[Float[Array, "B V"], Cache]:
        """Return the logits of the first new token and the cache (prefill)."""
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
        """Append one token to each row and return the logits of the next one."""
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
        step = GenerationStep(
            self._angles(positions),
            jnp.arange(memory.text.key.shape[2])[None, None] < cache.lengths[:, None, None],
            jnp.arange(memory.generated.key.shape[2])[None, None] < cache.steps,
        )
        states = self.embeddings.words(last[:, None], positions).astype(self.dtype)
        keys = {}
        if "layers" in memories:
            states, keys["layers"] = self._scan(
                GeneratingLayer, {}, (nn.broadcast, 0), states, step, memories["layers"]
            )
        memory = jax.tree.map(lambda leaf: leaf[0], memory)
        states, new = self.last_layer.decode(states, step, memory)
        keys["last_layer"] = jax.tree.map(lambda leaf: leaf[None], new)

        def fill(slots: Float[Array, "L B N G K"], new: Float[Array, "L B 1 G K"]) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(slots, new, cache.steps, axis=2)

        generated = jax.tree.map(fill, cache.generated, keys)
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
        """Return last hidden states (answer position, answers, or all), neurons, and keys."""
        packing = pack_layout(packed_index, lengths, tokens.shape[1])
        prompt, segments = self._embed_prompt(prompt, tokens.shape[1], packing)
        text = self.embeddings.words(tokens, self._positions(prompt, tokens.shape[1]))
        states = States(prompt, collect(text.astype(self.dtype), packing))
        if answers is not None and answers.shape[2] > 1:
            states, segments = self._add_answers(states, segments, lengths, answers)
        # Filler rows of a batch may have no text.
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
        """Append the answers, each at the positions right behind the text."""
        branches, start = (
            branch_answers(answers),
            0 if states.prompt is None else states.prompt.shape[1],
        )
        rows, length = lengths.shape[0], segments.text.allowed.shape[-1]
        tokens = jnp.broadcast_to(branches.tokens, (rows, len(branches.steps)))
        positions = start + lengths[:, None] + jnp.asarray(branches.steps)[None]
        is_text = jnp.arange(length)[None, None] < lengths[:, None, None]
        allowed = jnp.asarray(branches.allowed)[None]
        embedded = self.embeddings.words(tokens, positions).astype(self.dtype)
        segment = Segment(self._angles(positions), allowed, is_text)
        return states._replace(answers=embedded), segments._replace(answers=segment)

    def _read_last(
        self,
        states: States,
        segments: Segments,
        answer: Int[Array, "B"] | None,
        neuron_mask: Float[Array, "F"] | None,
    ) -> tuple[Float[Array, "B Q D"], Float[Array, "B Q F"], tuple[Keys | None, Keys]]:
        """Run the last layer, with the query of the answer position only if it is given."""
        (prompt, text, answers), (front, body, behind) = states, segments
        prompt_keys = None if prompt is None else self.last_layer.look(prompt, front.angles)[1]
        normed, text_keys = self.last_layer.look(text, body.angles, body.packing)
        angles, allowed = body.angles, body.allowed
        if answer is not None:
            text, normed = (at_position(each, answer, body.packing) for each in (text, normed))
            start = 0 if prompt is None else prompt.shape[1]
            angles = self._angles(start + answer[:, None])
            allowed = jnp.arange(body.allowed.shape[-1])[None, None] <= answer[:, None, None]
        front_blocks = [] if prompt_keys is None else [KeyBlock(*prompt_keys)]
        blocks = [*front_blocks, KeyBlock(*text_keys, allowed)]
        hidden, neurons = self.last_layer.update(text, normed, angles, blocks, neuron_mask)
        if answers is not None:
            last = self.last_layer.follow(answers, behind, front_blocks, text_keys, neuron_mask)
            hidden = jnp.concatenate([hidden, last], axis=1)
        return self.final_norm(hidden).astype(self.dtype), neurons, (prompt_keys, text_keys)

    def _embed_prompt(
        self, prompt: Prompt, text: int, packing: Packing | None
    ) -> tuple[Float[Array, "R P D"] | None, Segments]:
        """Return the embedded prompt and the segments of prompt and text."""
        if prompt is not None and prompt.ndim == 2:
            prompt = prompt[None]
        if prompt is None or not prompt.shape[1]:
            return None, Segments(None, self._segment(0, text, packing))
        rows = prompt.shape[1]
        prompt = self.embeddings.add_positions(prompt, jnp.arange(rows)[None]).astype(self.dtype)
        return prompt, Segments(self._segment(0, rows), self._segment(rows, text, packing))

    def _segment(self, start: int, length: int, packing: Packing | None = None) -> Segment:
        """Return a causal segment of ``length`` tokens."""
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
        """Scan over all layers but the last, so that compile time does not grow with depth."""
        scanned = nn.scan(
            rematerialised(layer, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=in_axes,
            length=self.config.layers - 1,
        )(self.config, self.dtype, self.dropout_rate, **options, name="layers")
        return scanned(states, *inputs)
