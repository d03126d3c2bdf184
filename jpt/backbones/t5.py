"""T5 encoder-decoders: configuration, weights, relative positions, layers and forward pass."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Int32

from jpt.backbones.answers import branch_answers, score_tokens
from jpt.backbones.attention import KeyBlock, attend
from jpt.backbones.layers import (
    ACTIVATIONS,
    AnswerScores,
    Cache,
    ModelOutput,
    RMSNorm,
    WordHead,
    linear,
    rematerialised,
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
)
from jpt.backbones.packing import Packing, at_position, collect, pack_layout, spread
from jpt.errors import InputError

# --- Configuration

# T5 has no position table; this limit on the prompt is jpt's.
LONGEST_PROMPT = 2048


@dataclass(frozen=True)
class T5Config:
    """Hyperparameters of T5 1.0 or 1.1."""

    model_type: str  # ``"t5"``
    vocabulary: int  # V
    width: int  # D
    encoder_layers: int
    layers: int  # L, of the decoder, whose neurons are captured by default
    heads: int  # H
    head_width: int  # K; H * K may differ from D
    neurons: int  # F of one feed-forward layer
    buckets: int = 32  # relative position buckets
    max_distance: int = 128  # distances from here on share a bucket
    activation: str = "relu"
    gated: bool = False  # gated feed-forward layers (T5 1.1)
    start_id: int = 0  # decoder start token
    scaled_head: bool = True  # whether logits are multiplied by D ** -0.5
    tied_head: bool = True  # whether the head uses the input embeddings
    epsilon: float = 1e-6  # of every norm
    dropout_rate: float = 0.1  # of pretraining; used only if dropout is requested
    positions: int = LONGEST_PROMPT  # maximum prompt length

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any]) -> T5Config:
        """Parse a ``config.json`` of transformers."""
        _refuse_variants(config)
        activation, gated = _read_activation(config)
        encoder_layers = read_whole(config, "num_layers")
        layers = config.get("num_decoder_layers")
        # transformers 5 sets tie_word_embeddings for every model and stores the scaling separately;
        # in older configs it tells T5 1.0 (tied, scaled) from 1.1.
        tied_head = read_flag(config, "tie_word_embeddings", True)
        return cls(
            model_type="t5",
            vocabulary=read_whole(config, "vocab_size"),
            width=read_whole(config, "d_model"),
            encoder_layers=encoder_layers,
            layers=encoder_layers if layers is None else read_whole(config, "num_decoder_layers"),
            heads=read_whole(config, "num_heads"),
            head_width=read_whole(config, "d_kv"),
            neurons=read_whole(config, "d_ff"),
            **_read_relative(config),
            activation=activation,
            gated=gated,
            start_id=_read_start(config),
            scaled_head=read_flag(config, "scale_decoder_outputs", tied_head),
            tied_head=tied_head,
            epsilon=read_number(config, "layer_norm_epsilon", 1e-6),
            dropout_rate=_read_dropout(config),
        )


def _read_activation(config: Mapping[str, Any]) -> tuple[str, bool]:
    """Return the activation and whether the feed-forward layers are gated."""
    kind = config.get("feed_forward_proj", "relu")
    *gate, activation = kind.split("-") if isinstance(kind, str) else ("",)
    if gate not in ([], ["gated"]) or activation not in ACTIVATIONS:
        known = ", ".join((*ACTIVATIONS, *(f"gated-{name}" for name in ACTIVATIONS)))
        raise InputError(f"config.json: expected feed_forward_proj {known}, got {kind!r}")
    if kind == "gated-gelu":
        activation = "gelu_new"  # T5 1.1 was trained with the tanh approximation
    # As in transformers, the explicit fields override feed_forward_proj.
    activation = read_choice(config, "dense_act_fn", ACTIVATIONS, activation)
    return activation, read_flag(config, "is_gated_act", bool(gate))


def _read_relative(config: Mapping[str, Any]) -> dict[str, int]:
    # Fewer than 4 buckets would leave the encoder no exact distance in each direction.
    buckets = read_whole(config, "relative_attention_num_buckets", 32, least=4)
    distance = read_whole(config, "relative_attention_max_distance", 128)
    if distance <= buckets // 2:
        raise InputError(
            f"config.json: expected relative_attention_max_distance above {buckets // 2} (half of "
            f"relative_attention_num_buckets {buckets}), got {distance}"
        )
    return {"buckets": buckets, "max_distance": distance}


def _read_start(config: Mapping[str, Any]) -> int:
    field = "decoder_start_token_id"
    if config.get(field) is None:
        field = "pad_token_id"
    start = 0 if config.get(field) is None else read_whole(config, field, least=0)
    vocabulary = read_whole(config, "vocab_size")
    if start >= vocabulary:
        raise InputError(
            f"config.json: expected {field} below vocab_size {vocabulary}, got {start}"
        )
    return start


def _read_dropout(config: Mapping[str, Any]) -> float:
    rate = read_number(config, "dropout_rate", 0.1, allow_zero=True)
    if rate >= 1:
        raise InputError(f"config.json: expected dropout_rate below 1, got {rate!r}")
    return rate


def _refuse_variants(config: Mapping[str, Any]) -> None:
    """Raise InputError for variants that are not supported."""
    model_type = config.get("model_type")
    if model_type != "t5":
        raise InputError(f"config.json: expected model_type t5, got {model_type!r}")
    if not read_flag(config, "is_encoder_decoder", True) or read_flag(config, "is_decoder", False):
        raise InputError(
            "config.json: expected a T5 with encoder, decoder and head, got one stack alone "
            "(is_encoder_decoder false or is_decoder true)"
        )


# --- Relative positions


def relative_buckets(
    distances: Int[np.ndarray, "N"], bidirectional: bool, buckets: int, max_distance: int
) -> Int32[np.ndarray, "N"]:
    """Return the bucket of each relative position: exact if near, logarithmic if far."""
    first: int | np.ndarray = 0
    if bidirectional:
        buckets //= 2
        first, far = np.where(distances > 0, buckets, 0), np.abs(distances)
    else:
        far = np.maximum(-distances, 0)
    exact = buckets // 2
    # Rounded to float32 at each step as in torch, since exact powers lie on bucket boundaries.
    logarithms = np.log(np.maximum(far, 1) / exact).astype(np.float32)
    scaled = logarithms / np.float32(math.log(max_distance / exact)) * np.float32(buckets - exact)
    magnitude = np.minimum(exact + scaled.astype(np.int64), buckets - 1)
    return (first + np.where(far < exact, far, magnitude)).astype(np.int32)


class RelativeBias(nn.Module):
    """Learned attention bias by relative position."""

    config: T5Config
    bidirectional: bool

    @nn.compact
    def __call__(self, reach: int) -> Float[Array, "H 2*reach-1"]:
        """Return the bias of distances 1 - reach to reach - 1, key minus query."""
        config = self.config
        shape = (config.buckets, config.heads)
        table = self.param("table", nn.initializers.normal(0.02), shape)
        buckets = relative_buckets(
            np.arange(1 - reach, reach), self.bidirectional, config.buckets, config.max_distance
        )
        return table[buckets].astype(jnp.float32).T


def spread_bias(
    by_distance: Float[Array, "H 2*R-1"], positions: Int[np.ndarray, "S"]
) -> Float[Array, "H S S"]:
    """Return the bias of all pairs of a query and a key."""
    reach = (by_distance.shape[1] + 1) // 2
    positions = jnp.asarray(positions)  # so that no S x S constant is stored in the program
    return by_distance[:, positions[None] - positions[:, None] + (reach - 1)]


# --- Layers and stacks


class KeysValues(NamedTuple):
    """Keys and values of one attention."""

    key: Float[Array, "B S H K"]
    value: Float[Array, "B S H K"]


class AttentionView(NamedTuple):
    """Attention mask and relative bias, shared by all layers of a stack."""

    allowed: Bool[Array, "B Q S"] | None
    bias: Float[Array, "H Q S"]


class StackContext(NamedTuple):
    """Inputs that all layers of a stack share."""

    current: AttentionView  # of the tokens of the states
    past: AttentionView | None = None  # of cached tokens
    encoded: Float[Array, "B S D"] | Float[Array, "G M D"] | None = None  # None if cached
    is_read: Bool[Array, "B 1 S"] | None = None  # encoder mask, False for padding
    packing: Packing | None = None  # of the states
    encoded_packing: Packing | None = None  # of the encoder states


class LayerInput(NamedTuple):
    """Inputs of one layer; with a leading layer axis in a scan."""

    neuron_mask: Float[Array, "F"] | None = None
    past: KeysValues | None = None  # cached keys and values of earlier tokens
    cross: KeysValues | None = None  # cached keys and values of the encoder states


class LayerOutput(NamedTuple):
    """Optional outputs of one layer; with a leading layer axis in a scan."""

    neurons: Float[Array, "B *S F"] | None
    current: KeysValues | None
    cross: KeysValues | None


class T5Layer(nn.Module):
    """Pre-norm layer of self-attention, cross-attention (decoder only) and feed-forward."""

    config: T5Config
    dtype: jnp.dtype  # of states and matrix products
    dropout_rate: float = 0.0
    capture: int | str | None = None  # position of the neurons to return, or ``"all"``
    keeps_keys: bool = False  # whether to return keys and values

    @nn.compact
    def __call__(
        self, states: Float[Array, "B Q D"], inputs: LayerInput, context: StackContext
    ) -> tuple[Float[Array, "B Q D"], LayerOutput]:
        rows = self._norm("attention_norm", states)
        current = self._keys_values(rows, context.packing, "key", "value")
        blocks = [KeyBlock(*current, *context.current)]
        if inputs.past is not None and context.past is not None:
            blocks.append(KeyBlock(*inputs.past, *context.past))
        states = states + self._gather(rows, blocks, "query", "attention_out", context.packing)
        cross, computed = inputs.cross, None
        if context.encoded is not None:
            names = ("cross_key", "cross_value")
            cross = computed = self._keys_values(context.encoded, context.encoded_packing, *names)
        if cross is not None:
            rows = self._norm("cross_norm", states)
            block = KeyBlock(*cross, context.is_read)
            names = ("cross_query", "cross_out")
            states = states + self._gather(rows, [block], *names, context.packing)
        update, neurons = self._feed_forward(states, inputs.neuron_mask)
        kept = (current, computed) if self.keeps_keys else (None, None)
        return states + update, LayerOutput(self._captured(neurons, context), *kept)

    def _keys_values(
        self, rows: Float[Array, "B S D"], packing: Packing | None, *names: str
    ) -> KeysValues:
        return KeysValues(*(self._project(name, rows, packing) for name in names))

    def _project(
        self, name: str, rows: Float[Array, "B S D"], packing: Packing | None
    ) -> Float[Array, "B S H K"]:
        heads, width = self.config.heads, self.config.head_width
        projected = linear(heads * width, self.dtype, name, use_bias=False)(rows)
        # [B, S, H*K] -> [B, S, H, K]
        projected = projected.reshape(*rows.shape[:2], heads, width)
        return spread(projected, packing)

    def _gather(
        self,
        rows: Float[Array, "B Q D"],
        blocks: list[KeyBlock],
        query: str,
        out: str,
        packing: Packing | None = None,
    ) -> Float[Array, "B Q D"]:
        drop = self._drop if self.dropout_rate else None
        # T5 does not scale the attention scores.
        gathered = attend(self._project(query, rows, packing), blocks, scale=1.0, drop=drop)
        # [B, Q, H, K] -> [B, Q, H*K]
        gathered = collect(gathered.reshape(*gathered.shape[:2], -1), packing)
        return self._drop(linear(self.config.width, self.dtype, out, use_bias=False)(gathered))

    def _feed_forward(
        self, states: Float[Array, "B Q D"], neuron_mask: Float[Array, "F"] | None
    ) -> tuple[Float[Array, "B Q D"], Float[Array, "B Q F"]]:
        config, rows = self.config, self._norm("feed_forward_norm", states)

        def into(name: str) -> Float[Array, "B Q F"]:
            return linear(config.neurons, self.dtype, name, use_bias=False)(rows)

        neurons = into("feed_forward_gate" if config.gated else "feed_forward_in")
        neurons = kept = ACTIVATIONS[config.activation](neurons)
        if neuron_mask is not None:
            kept = kept * neuron_mask.astype(kept.dtype)[None, None, :]
        if config.gated:
            kept = kept * into("feed_forward_in")
        out = linear(config.width, self.dtype, "feed_forward_out", use_bias=False)
        return self._drop(out(self._drop(kept))), neurons

    def _captured(
        self, neurons: Float[Array, "B S F"], context: StackContext
    ) -> Float[Array, "B *S F"] | None:
        if self.capture is None or isinstance(self.capture, str):
            return neurons if self.capture else None
        if context.packing is None:
            return neurons[:, self.capture]
        position = jnp.full(context.packing.slot.shape[0], self.capture)
        return at_position(neurons, position, context.packing)[:, 0]

    def _norm(self, name: str, rows: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        return RMSNorm(self.config.epsilon, name=name)(rows).astype(self.dtype)

    def _drop(self, rows: Float[Array, "..."]) -> Float[Array, "..."]:
        if not self.dropout_rate:
            return rows
        return nn.Dropout(self.dropout_rate, deterministic=False)(rows)


class Stack(nn.Module):
    """Encoder or decoder stack: a scan over layers, then a norm."""

    config: T5Config
    depth: int
    bidirectional: bool
    dtype: jnp.dtype  # of states and matrix products
    dropout_rate: float
    remat: str

    def setup(self) -> None:
        self.relative = RelativeBias(self.config, self.bidirectional)
        self.norm = RMSNorm(self.config.epsilon)

    @nn.compact
    def __call__(
        self,
        states: Float[Array, "B Q D"],
        inputs: LayerInput,
        context: StackContext,
        capture: int | str | None = None,
        keeps_keys: bool = False,
    ) -> tuple[Float[Array, "B Q D"], LayerOutput]:
        scanned = nn.scan(
            rematerialised(T5Layer, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=self.depth,
        )(self.config, self.dtype, self.dropout_rate, capture, keeps_keys, name="layers")
        states, kept = scanned(self._drop(states.astype(self.dtype)), inputs, context)
        return self._drop(self.norm(states).astype(self.dtype)), kept

    def bias(self, reach: int) -> Float[Array, "H 2*reach-1"]:
        """Return the bias of distances 1 - reach to reach - 1, key minus query."""
        return self.relative(reach)

    def _drop(self, rows: Float[Array, "B Q D"]) -> Float[Array, "B Q D"]:
        if not self.dropout_rate:
            return rows
        return nn.Dropout(self.dropout_rate, deterministic=False)(rows)


# --- Checkpoint names and partition table

_WORDS, _HEAD = "shared.weight", "lm_head.weight"
# Published checkpoints repeat the input embeddings for each stack, or have only these copies.
_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# A relative bias of the cross-attention that no T5 uses.
_IGNORED = (r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",)

_ATTENTION = {"query": "q", "key": "k", "value": "v", "attention_out": "o"}
_CROSS = {"cross_query": "q", "cross_key": "k", "cross_value": "v", "cross_out": "o"}

# Megatron-style: input matrices are split by column, output matrices by row.
_SPLIT = (
    (r"(query|key|value|cross_query|cross_key|cross_value)/kernel", (None, "model")),
    (r"(feed_forward_in|feed_forward_gate)/kernel", (None, "model")),
    (r"(attention_out|cross_out|feed_forward_out)/kernel", ("model", None)),
    (r"(attention_norm|cross_norm|feed_forward_norm)/scale", (None,)),
)


def t5_rules(config: T5Config) -> list[TensorRule]:
    """Return the loading rule of every parameter."""
    table = (config.vocabulary, config.width)
    return [
        TensorRule("embeddings/word", _WORDS, table, aliases=_COPIES),
        *_stack_rules("encoder", config),
        *_stack_rules("decoder", config),
        TensorRule("head/words", _HEAD, table),
    ]


def _stack_rules(stack: str, config: T5Config) -> list[TensorRule]:
    is_decoder = stack == "decoder"
    depth = config.layers if is_decoder else config.encoder_layers
    block, feed_forward = f"{stack}.block.{{layer}}.layer", 2 if is_decoder else 1
    heads = config.heads * config.head_width
    relative = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    shape = (config.buckets, config.heads)
    rules = [
        TensorRule(f"{stack}/relative/table", relative, shape),
        _norm(f"{stack}/norm", f"{stack}.final_layer_norm", config),
        _norm(f"{stack}/layers/attention_norm", f"{block}.0.layer_norm", config, depth),
        *_attention(stack, _ATTENTION, f"{block}.0.SelfAttention", heads, config.width, depth),
    ]
    if is_decoder:
        rules += [
            _norm(f"{stack}/layers/cross_norm", f"{block}.1.layer_norm", config, depth),
            *_attention(stack, _CROSS, f"{block}.1.EncDecAttention", heads, config.width, depth),
        ]
    block = f"{block}.{feed_forward}"
    rules.append(_norm(f"{stack}/layers/feed_forward_norm", f"{block}.layer_norm", config, depth))
    names = {"feed_forward_in": "wi", "feed_forward_out": "wo"}
    if config.gated:
        names |= {"feed_forward_gate": "wi_0", "feed_forward_in": "wi_1"}
    for ours, theirs in names.items():
        shape = (config.neurons, config.width)
        shape = shape[::-1] if theirs == "wo" else shape
        name = f"{block}.DenseReluDense.{theirs}.weight"
        rules.append(_matrix(f"{stack}/layers/{ours}", name, shape, depth))
    return rules


def _attention(
    stack: str, names: dict[str, str], module: str, heads: int, width: int, depth: int
) -> list[TensorRule]:
    return [
        _matrix(
            f"{stack}/layers/{ours}",
            f"{module}.{theirs}.weight",
            (width, heads) if theirs == "o" else (heads, width),
            depth,
        )
        for ours, theirs in names.items()
    ]


def _matrix(path: str, name: str, shape: tuple[int, int], depth: int) -> TensorRule:
    return TensorRule(f"{path}/kernel", name, shape, transpose=True, layers=depth)


def _norm(path: str, name: str, config: T5Config, depth: int = 0) -> TensorRule:
    return TensorRule(f"{path}/scale", f"{name}.weight", (config.width,), layers=depth)


def _check_copies(source: TensorSource, where: str) -> None:
    """Raise InputError if the stacks have different input embeddings."""
    first, *others = [name for name in (_WORDS, *_COPIES) if name in source.shapes] or [None]
    for name in others:
        if differs(source, name, first):
            raise InputError(
                f"{where}: expected {name} to equal {first}, since both stacks of a T5 share the "
                "input embeddings, but they differ"
            )


T5_WEIGHTS = Weights(
    untied_rules=t5_rules,
    ignored=(*_IGNORED, *map(re.escape, _COPIES)),
    partition=(
        *(
            (rf"(encoder|decoder)/layers/{path}", PartitionSpec(None, *axes))
            for path, axes in _SPLIT
        ),
        (r"(encoder|decoder)/relative/table", PartitionSpec(None, "model")),
        (r"(encoder|decoder)/norm/scale", PartitionSpec()),
        (r"embeddings/word", PartitionSpec(None, "model")),
        (r"head/words", PartitionSpec(None, "model")),
    ),
    check=_check_copies,
)
"""Checkpoint format of T5."""


# --- Module
# The prompt precedes the encoder's text and has relative positions like ordinary tokens. The answer
# is read at the decoder's first step; given answers are scored at once, others are generated with
# T5.start and T5.advance.

STACKS = ("decoder", "encoder")


class WordTable(nn.Module):
    """Input embeddings of both stacks."""

    config: T5Config

    def setup(self) -> None:
        shape = (self.config.vocabulary, self.config.width)
        self.word = self.param("word", nn.initializers.normal(1.0), shape)


class T5(nn.Module):
    """Frozen encoder-decoder with a soft prompt."""

    config: T5Config
    dtype: jnp.dtype = jnp.float32  # of states and matrix products
    dropout_rate: float = 0.0  # the paper tunes with T5's dropout
    remat: str = "dots"  # see rematerialised()

    def setup(self) -> None:
        config, shared = self.config, (self.dtype, self.dropout_rate, self.remat)
        self.embeddings = WordTable(config)
        self.encoder = Stack(config, config.encoder_layers, True, *shared)
        self.decoder = Stack(config, config.layers, False, *shared)
        self.head = WordHead(config.tied_head, self.dtype)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"],
        prompt: Float[Array, "P D"] | Float[Array, "B P D"] | None = None,
        *,
        decoder_tokens: Int[Array, "B A"] | None = None,
        label_ids: Int[Array, "C"] | None = None,
        capture_neurons: bool = False,
        neuron_mask: Float[Array, "L F"] | None = None,
        neuron_stack: str = "decoder",
        every_position: bool = False,
        packed_index: Int[Array, "G N"] | None = None,
    ) -> ModelOutput:
        """Read texts behind a prompt and score the first answer token, or ``decoder_tokens``."""
        if neuron_stack not in STACKS:
            raise ValueError(f"expected neuron_stack {' or '.join(STACKS)}, got {neuron_stack!r}")
        keeps_axis = every_position or decoder_tokens is not None
        masks: dict[str, Array | None] = dict.fromkeys(STACKS)
        masks[neuron_stack] = neuron_mask
        capture: dict[str, int | str | None] = dict.fromkeys(STACKS)
        if capture_neurons:
            is_all = keeps_axis if neuron_stack == "decoder" else every_position
            first = {"decoder": 0, "encoder": _prompt_rows(prompt)}[neuron_stack]
            capture[neuron_stack] = "all" if is_all else first
        packed_index = None if every_position else packed_index
        options = (masks["encoder"], capture["encoder"], packed_index)
        encoded, is_read, packing, encoder_neurons = self._encode(tokens, lengths, prompt, *options)
        if decoder_tokens is None:
            decoder_tokens = self._start_tokens(tokens.shape[0])
        view = self._view(np.arange(decoder_tokens.shape[1]))
        context = StackContext(view, None, encoded, is_read, None, packing)
        states = self.embeddings.word[decoder_tokens]
        inputs = LayerInput(masks["decoder"])
        hidden, kept = self.decoder(states, inputs, context, capture["decoder"])
        if not keeps_axis:
            hidden = hidden[:, 0]
        neurons = kept.neurons if neuron_stack == "decoder" else encoder_neurons
        return ModelOutput(self.vocabulary_logits(hidden, label_ids), hidden, neurons)

    def score_answers(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"],
        prompt: Float[Array, "P D"] | Float[Array, "B P D"] | None,
        answers: Int[Array, "R W A"],
        *,
        neuron_mask: Float[Array, "L F"] | None = None,
        neuron_stack: str = "decoder",
        packed_index: Int[Array, "G N"] | None = None,
    ) -> AnswerScores:
        """Score every token of several answers to each row in one pass."""
        masks: dict[str, Array | None] = {**dict.fromkeys(STACKS), neuron_stack: neuron_mask}
        options = (masks["encoder"], None, packed_index)
        encoded, is_read, packing, _ = self._encode(tokens, lengths, prompt, *options)
        branches = branch_answers(answers)
        rows, count = tokens.shape[0], len(branches.steps)
        branched = jnp.broadcast_to(branches.tokens, (rows, count))
        branched = jnp.concatenate([self._start_tokens(rows), branched], axis=1)
        # All answers share the start token.
        allowed = np.pad(branches.allowed, ((1, 0), (1, 0)))
        allowed[:, 0] = True
        view = self._view(np.concatenate([[0], branches.steps + 1]), allowed)
        context = StackContext(view, None, encoded, is_read, None, packing)
        inputs = LayerInput(masks["decoder"])
        hidden, _ = self.decoder(self.embeddings.word[branched], inputs, context)
        logits = self.vocabulary_logits(hidden)
        return score_tokens(logits[:, 0], logits[:, 1:], answers)

    def encode(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"],
        prompt: Float[Array, "P D"] | Float[Array, "B P D"] | None = None,
    ) -> Float[Array, "B S D"]:
        """Return the encoder states of prompt and text; they are undefined at padding."""
        return self._encode(tokens, lengths, prompt, None, None)[0]

    def vocabulary_logits(
        self, hidden: Float[Array, "... D"], label_ids: Int[Array, "C"] | None = None
    ) -> Float[Array, "... C"]:
        """Return the logits of decoder states."""
        logits = self.head(hidden, self.embeddings.word, label_ids)
        return logits * jnp.float32(self.config.width**-0.5 if self.config.scaled_head else 1)

    def start(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"],
        prompt: Float[Array, "P D"] | Float[Array, "B P D"] | None,
        max_new: int,
    ) -> tuple[Float[Array, "B V"], Cache]:
        """Return the logits of the first new token and the cache (prefill)."""
        encoded, is_read, _, _ = self._encode(tokens, lengths, prompt, None, None)
        context = StackContext(self._view(np.arange(1)), None, encoded, is_read)
        states = self.embeddings.word[self._start_tokens(tokens.shape[0])]
        hidden, kept = self.decoder(states, LayerInput(), context, None, True)
        # N slots suffice: the first has the start token, and the last new token is never read.
        padding = ((0, 0), (0, 0), (0, max_new - 1), (0, 0), (0, 0))
        generated = jax.tree.map(lambda leaf: jnp.pad(leaf, padding), kept.current)
        lengths = lengths + _prompt_rows(prompt)
        cache = Cache(None, kept.cross, lengths, generated, jnp.zeros((), jnp.int32))
        return self.vocabulary_logits(hidden[:, 0]), cache

    def advance(self, last: Int[Array, "B"], cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
        """Append one token to each row and return the logits of the next one."""
        step, slots = cache.steps + 1, cache.generated.key.shape[2]
        is_read = jnp.arange(cache.context.key.shape[2])[None] < cache.lengths[:, None]
        bias = self.decoder.bias(slots)
        # The distances of slots 0, 1, ... to the new token are a contiguous slice of the table.
        past_bias = jax.lax.dynamic_slice_in_dim(bias, slots - 1 - step, slots, axis=1)
        is_past = jnp.arange(slots) < step
        past = AttentionView(is_past[None, None], past_bias[:, None])
        context = StackContext(
            AttentionView(None, bias[:, None, slots - 1 : slots]), past, None, is_read[:, None]
        )
        inputs = LayerInput(None, cache.generated, cache.context)
        states = self.embeddings.word[last][:, None]
        hidden, kept = self.decoder(states, inputs, context, None, True)

        def store(slots: Float[Array, "L B N H K"], new: Float[Array, "L B 1 H K"]) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(slots, new, step, axis=2)

        generated = jax.tree.map(store, cache.generated, kept.current)
        return self.vocabulary_logits(hidden[:, 0]), cache.replace(generated=generated, steps=step)

    def _encode(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"],
        prompt: Float[Array, "P D"] | Float[Array, "B P D"] | None,
        neuron_mask: Float[Array, "L F"] | None,
        capture: int | str | None,
        packed_index: Int[Array, "G N"] | None = None,
    ) -> tuple[
        Float[Array, "B S D"] | Float[Array, "G M D"],
        Bool[Array, "B 1 S"],
        Packing | None,
        Float[Array, "L B *S F"] | None,
    ]:
        """Return the encoder states, their padding mask and packing, and the neurons."""
        states, front = self.embeddings.word[tokens].astype(self.dtype), _prompt_rows(prompt)
        if prompt is not None:
            rows = (prompt[None] if prompt.ndim == 2 else prompt).astype(self.dtype)
            rows = jnp.broadcast_to(rows, (tokens.shape[0], *rows.shape[1:]))
            states = jnp.concatenate([rows, states], axis=1)
        is_read = jnp.arange(states.shape[1])[None] < (lengths + front)[:, None]
        packing = pack_layout(packed_index, lengths, tokens.shape[1], front)
        states, positions = collect(states, packing), np.arange(states.shape[1])
        view = AttentionView(
            is_read[:, None], spread_bias(self.encoder.bias(len(positions)), positions)
        )
        context = StackContext(view, packing=packing)
        states, kept = self.encoder(states, LayerInput(neuron_mask), context, capture)
        return states, is_read[:, None], packing, kept.neurons

    def _start_tokens(self, rows: int) -> Int[Array, "B 1"]:
        return jnp.full((rows, 1), self.config.start_id, jnp.int32)

    def _view(
        self, positions: Int[np.ndarray, "S"], allowed: Bool[np.ndarray, "S S"] | None = None
    ) -> AttentionView:
        """Return the decoder's self-attention view, causal by default."""
        if allowed is None:
            allowed = positions[None] <= positions[:, None]
        by_distance = self.decoder.bias(int(positions.max()) + 1)
        return AttentionView(jnp.asarray(allowed)[None], spread_bias(by_distance, positions))


def _prompt_rows(prompt: Float[Array, "... P D"] | None) -> int:
    return 0 if prompt is None else prompt.shape[-2]
