"""T5 encoder-decoders: configuration, weights, relative positions, layers and forward pass."""

from __future__ import annotations

import dataclasses
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

# --- The shape of a T5 model, read from its Hugging Face config

# T5 has no table of positions; this bounds the prompt, and text has the same room.
LONGEST_PROMPT = 2048


@dataclass(frozen=True)
class T5Config:
    """What shapes a T5 model, version 1.0 or 1.1."""

    model_type: str  # ``"t5"``
    vocabulary: int  # V, rows of the word table
    width: int  # D
    encoder_layers: int  # layers of the encoder
    layers: int  # L, layers of the decoder, whose neurons are read by default
    heads: int  # H
    head_width: int  # K, width of one attention head; not D / H in general
    neurons: int  # F of one feed-forward layer
    buckets: int = 32  # how many kinds of relative position there are
    max_distance: int = 128  # from here on all distances are of one kind
    activation: str = "relu"  # name of the non-linearity of the feed-forward layers
    # whether a second matrix, without a non-linearity, is multiplied with the first
    gated: bool = False
    start_id: int = 0  # the token that the decoder reads first
    scaled_head: bool = True  # whether scores are multiplied by D ** -0.5
    # whether the head multiplies by the word table or has a table of its own
    tied_head: bool = True
    epsilon: float = 1e-6  # of every norm
    # rate the model was trained with, used only when dropout is asked for
    dropout_rate: float = 0.1
    positions: int = LONGEST_PROMPT  # the longest prompt

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any]) -> T5Config:
        """Reads a ``config.json`` that transformers wrote."""
        _refuse_variants(config)
        activation, gated = _read_activation(config)
        encoder_layers = read_whole(config, "num_layers")
        layers = config.get("num_decoder_layers")
        # Files of transformers 5 say tied of every model and name the scaling apart; older ones
        # say by the tying which version a model is, and version 1.0 alone scales.
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
    """Gives the name of the non-linearity and whether the layers are gated."""
    kind = config.get("feed_forward_proj", "relu")
    *gate, activation = kind.split("-") if isinstance(kind, str) else ("",)
    if gate not in ([], ["gated"]) or activation not in ACTIVATIONS:
        known = ", ".join((*ACTIVATIONS, *(f"gated-{name}" for name in ACTIVATIONS)))
        raise InputError(f"config.json has feed_forward_proj {kind!r}; known are {known}")
    if kind == "gated-gelu":
        activation = "gelu_new"  # T5 1.1 was trained with the approximation by tanh
    # As in transformers, what a file says of the two parts overrides the name.
    activation = read_choice(config, "dense_act_fn", ACTIVATIONS, activation)
    return activation, read_flag(config, "is_gated_act", bool(gate))


def _read_relative(config: Mapping[str, Any]) -> dict[str, int]:
    """Reads how relative positions are sorted into buckets."""
    # With fewer than 4 buckets, the encoder has no distance of its own for each direction.
    buckets = read_whole(config, "relative_attention_num_buckets", 32, least=4)
    distance = read_whole(config, "relative_attention_max_distance", 128)
    if distance <= buckets // 2:
        raise InputError(
            f"config.json has relative_attention_max_distance {distance}; with {buckets} "
            f"relative_attention_num_buckets more than {buckets // 2} is expected"
        )
    return {"buckets": buckets, "max_distance": distance}


def _read_start(config: Mapping[str, Any]) -> int:
    """Reads the token that the decoder starts from; T5 starts from padding."""
    field = "decoder_start_token_id"
    if config.get(field) is None:
        field = "pad_token_id"
    start = 0 if config.get(field) is None else read_whole(config, field, least=0)
    vocabulary = read_whole(config, "vocab_size")
    if start >= vocabulary:
        raise InputError(
            f"config.json: {field} is {start}, but the vocabulary (vocab_size) has "
            f"{vocabulary} words; a number below that is expected"
        )
    return start


def _read_dropout(config: Mapping[str, Any]) -> float:
    rate = read_number(config, "dropout_rate", 0.1, allow_zero=True)
    if rate >= 1:
        raise InputError(f"config.json: dropout_rate is {rate!r}; a number below 1 is expected")
    return rate


def _refuse_variants(config: Mapping[str, Any]) -> None:
    """Raises for what the T5 family does not compute, naming the field."""
    model_type = config.get("model_type")
    if model_type != "t5":
        raise InputError(f"config.json has model_type {model_type!r}; this family loads t5")
    if not read_flag(config, "is_encoder_decoder", True) or read_flag(config, "is_decoder", False):
        raise InputError(
            "config.json describes one stack alone (is_encoder_decoder, is_decoder); "
            "a T5 with encoder, decoder and head is needed"
        )


# --- Relative positions as T5 has them: distances sorted into buckets, a learnt bias for each


def relative_buckets(
    distances: Int[np.ndarray, "N"], bidirectional: bool, buckets: int, max_distance: int
) -> Int32[np.ndarray, "N"]:
    """Sorts relative positions into buckets: near ones by themselves, far ones by magnitude."""
    first: int | np.ndarray = 0
    if bidirectional:
        buckets //= 2
        first, far = np.where(distances > 0, buckets, 0), np.abs(distances)
    else:
        far = np.maximum(-distances, 0)
    exact = buckets // 2
    # Rounded to float32 step by step, as torch computes it: whole powers lie on the boundaries.
    logarithms = np.log(np.maximum(far, 1) / exact).astype(np.float32)
    scaled = logarithms / np.float32(math.log(max_distance / exact)) * np.float32(buckets - exact)
    magnitude = np.minimum(exact + scaled.astype(np.int64), buckets - 1)
    return (first + np.where(far < exact, far, magnitude)).astype(np.int32)


class RelativeBias(nn.Module):
    """The table of what each head adds to its scores by relative position."""

    config: T5Config  # shape of the model
    bidirectional: bool  # whether the stack looks both ways

    @nn.compact
    def __call__(self, reach: int) -> Float[Array, "H 2*reach-1"]:
        """Gives the bias of distances from 1 - reach up to reach - 1, key minus query."""
        config = self.config
        shape = (config.buckets, config.heads)
        table = self.param("table", nn.initializers.normal(0.02), shape)
        kinds = relative_buckets(
            np.arange(1 - reach, reach), self.bidirectional, config.buckets, config.max_distance
        )
        return table[kinds].astype(jnp.float32).T


def spread_bias(
    by_distance: Float[Array, "H 2*R-1"], packed_index: Int[np.ndarray, "S"]
) -> Float[Array, "H S S"]:
    """Lays the bias of each distance out over all pairs of a query and a key."""
    reach = (by_distance.shape[1] + 1) // 2
    packed_index = jnp.asarray(packed_index)  # so that no table of S x S is stored in the program
    return by_distance[:, packed_index[None] - packed_index[:, None] + (reach - 1)]


# --- The layer that both stacks of T5 repeat, and the stacks


class KeysValues(NamedTuple):
    """What a layer computed of some tokens for queries to look at."""

    key: Float[Array, "B S H K"]
    value: Float[Array, "B S H K"]


class AttentionView(NamedTuple):
    """Which keys the queries of all layers of a stack may look at, and the bias by position."""

    allowed: Bool[Array, "B Q S"] | None
    bias: Float[Array, "H Q S"]


class StackContext(NamedTuple):
    """What all layers of a stack share."""

    own: AttentionView  # view of the states' own tokens
    past: AttentionView | None = None  # view of the tokens whose keys are given
    # the encoder's states, where keys of them are to be computed
    encoded: Float[Array, "B S D"] | Float[Array, "G M D"] | None = None
    is_read: Bool[Array, "B 1 S"] | None = None  # which of the encoder's positions are no padding
    # where the states stand in their rows, where they are of real tokens alone
    packing: Packing | None = None
    encoded_packing: Packing | None = None  # where the encoder's stand


class LayerInput(NamedTuple):
    """What each layer gets for itself; in a scan every array has an axis of layers in front."""

    # multiplies the activations before the last matrix
    neuron_mask: Float[Array, "F"] | None = None
    past: KeysValues | None = None  # keys and values of tokens before the states'
    cross: KeysValues | None = None  # keys and values of the encoder's states, computed before


class LayerOutput(NamedTuple):
    """What each layer gives beside the states, where it is asked for."""

    neurons: Float[Array, "B *S F"] | None
    own: KeysValues | None
    cross: KeysValues | None


class T5Layer(nn.Module):
    """One layer with the norms before the maps: own tokens, the encoder's states, feed forward."""

    config: T5Config  # shape of the model
    dtype: jnp.dtype  # dtype of states and matrix products
    dropout_rate: float = 0.0  # 0 leaves dropout out
    capture: int | str | None = None  # neurons at which position are returned, ``"all"``, or none
    keeps_keys: bool = False  # whether keys and values are returned

    @nn.compact
    def __call__(
        self, states: Float[Array, "B Q D"], given: LayerInput, sight: StackContext
    ) -> tuple[Float[Array, "B Q D"], LayerOutput]:
        """Updates the states from their own tokens, earlier ones and what the encoder read."""
        rows = self._norm("attention_norm", states)
        own = self._keys_values(rows, sight.packing, "key", "value")
        blocks = [KeyBlock(*own, *sight.own)]
        if given.past is not None and sight.past is not None:
            blocks.append(KeyBlock(*given.past, *sight.past))
        states = states + self._gather(rows, blocks, "query", "attention_out", sight.packing)
        cross, computed = given.cross, None
        if sight.encoded is not None:
            names = ("cross_key", "cross_value")
            cross = computed = self._keys_values(sight.encoded, sight.encoded_packing, *names)
        if cross is not None:
            rows = self._norm("cross_norm", states)
            block = KeyBlock(*cross, sight.is_read)
            states = states + self._gather(rows, [block], "cross_query", "cross_out", sight.packing)
        update, neurons = self._feed_forward(states, given.neuron_mask)
        kept = (own, computed) if self.keeps_keys else (None, None)
        return states + update, LayerOutput(self._captured(neurons, sight), *kept)

    def _keys_values(
        self, rows: Float[Array, "B S D"], packing: Packing | None, *names: str
    ) -> KeysValues:
        return KeysValues(*(self._project(name, rows, packing) for name in names))

    def _project(
        self, name: str, rows: Float[Array, "B S D"], packing: Packing | None
    ) -> Float[Array, "B S H K"]:
        """Maps states, and puts what comes out by row."""
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
        """Collects what the queries look for; T5 leaves their products with keys unscaled."""
        drop = self._drop if self.dropout_rate else None
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
        self, neurons: Float[Array, "B S F"], sight: StackContext
    ) -> Float[Array, "B *S F"] | None:
        if self.capture is None or isinstance(self.capture, str):
            return neurons if self.capture else None
        if sight.packing is None:
            return neurons[:, self.capture]
        position = jnp.full(sight.packing.place.shape[0], self.capture)
        return at_position(neurons, position, sight.packing)[:, 0]

    def _norm(self, name: str, rows: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        return RMSNorm(self.config.epsilon, name=name)(rows).astype(self.dtype)

    def _drop(self, rows: Float[Array, "..."]) -> Float[Array, "..."]:
        if not self.dropout_rate:
            return rows
        return nn.Dropout(self.dropout_rate, deterministic=False)(rows)


class Stack(nn.Module):
    """The layers of the encoder or of the decoder as one scan, and the norm after them."""

    config: T5Config  # shape of the model
    depth: int  # number of layers
    bidirectional: bool  # whether every token may look at every other; else at earlier ones
    dtype: jnp.dtype  # dtype of states and matrix products
    dropout_rate: float  # 0 leaves dropout out
    remat: str  # what is kept for the way back

    def setup(self) -> None:
        """Declares the table of relative positions and the norm."""
        self.relative = RelativeBias(self.config, self.bidirectional)
        self.norm = RMSNorm(self.config.epsilon)

    @nn.compact
    def __call__(
        self,
        states: Float[Array, "B Q D"],
        given: LayerInput,
        sight: StackContext,
        capture: int | str | None = None,
        keeps_keys: bool = False,
    ) -> tuple[Float[Array, "B Q D"], LayerOutput]:
        """Runs all layers: compile time does not grow with depth."""
        scanned = nn.scan(
            rematerialised(T5Layer, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=self.depth,
        )(self.config, self.dtype, self.dropout_rate, capture, keeps_keys, name="layers")
        states, kept = scanned(self._drop(states.astype(self.dtype)), given, sight)
        return self._drop(self.norm(states).astype(self.dtype)), kept

    def bias(self, reach: int) -> Float[Array, "H 2*reach-1"]:
        """Gives the bias of distances from 1 - reach up to reach - 1, key minus query."""
        return self.relative(reach)

    def _drop(self, rows: Float[Array, "B Q D"]) -> Float[Array, "B Q D"]:
        if not self.dropout_rate:
            return rows
        return nn.Dropout(self.dropout_rate, deterministic=False)(rows)


# --- The names that T5 checkpoints give their tensors, and how they are split

_WORDS, _HEAD = "shared.weight", "lm_head.weight"
# Real files hold the word table once more for each stack, some of them only so.
_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# A table of relative positions between the stacks, which no T5 ever read.
_IGNORED = (r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",)

_ATTENTION = {"query": "q", "key": "k", "value": "v", "attention_out": "o"}
_CROSS = {"cross_query": "q", "cross_key": "k", "cross_value": "v", "cross_out": "o"}

# One table for the family: what leads into heads and neurons is split by column, what leads out of
# them by row; vocabulary tables are split over D, norms stay whole.
_SPLIT = (
    (r"(query|key|value|cross_query|cross_key|cross_value)/kernel", (None, "model")),
    (r"(feed_forward_in|feed_forward_gate)/kernel", (None, "model")),
    (r"(attention_out|cross_out|feed_forward_out)/kernel", ("model", None)),
    (r"(attention_norm|cross_norm|feed_forward_norm)/scale", (None,)),
)


def t5_rules(config: T5Config) -> list[TensorRule]:
    """Names the tensor of every parameter of a T5 model."""
    table = (config.vocabulary, config.width)
    rules = [TensorRule("embeddings/word", _WORDS, table, aliases=_COPIES)]
    if not config.tied_head:
        rules.append(TensorRule("head/words", _HEAD, table))
    return [*rules, *_stack_rules("encoder", config), *_stack_rules("decoder", config)]


def _stack_rules(stack: str, config: T5Config) -> list[TensorRule]:
    """The encoder's or the decoder's: tables, norms and the matrices of each layer."""
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
    stack: str, names: dict[str, str], place: str, heads: int, width: int, depth: int
) -> list[TensorRule]:
    return [
        _matrix(
            f"{stack}/layers/{ours}",
            f"{place}.{theirs}.weight",
            (width, heads) if theirs == "o" else (heads, width),
            depth,
        )
        for ours, theirs in names.items()
    ]


def _matrix(path: str, name: str, shape: tuple[int, int], depth: int) -> TensorRule:
    return TensorRule(f"{path}/kernel", name, shape, transpose=True, layers=depth)


def _norm(path: str, name: str, config: T5Config, depth: int = 0) -> TensorRule:
    return TensorRule(f"{path}/scale", f"{name}.weight", (config.width,), layers=depth)


def _find_words(source: TensorSource) -> list[str]:
    """The names under which the file holds the word table."""
    return [name for name in (_WORDS, *_COPIES) if name in source.shapes]


def _resolve(source: TensorSource, config: T5Config, where: str) -> T5Config:
    """Unties the head where the file has one that is no copy of its word table."""
    del where
    words = next(iter(_find_words(source)), None)
    if config.tied_head and differs(source, _HEAD, words):
        return dataclasses.replace(config, tied_head=False)
    return config


def _ignored(config: T5Config) -> tuple[str, ...]:
    copies = (*_COPIES, *([_HEAD] * config.tied_head))
    return (*_IGNORED, *map(re.escape, copies))


def _check_copies(source: TensorSource, where: str) -> None:
    """Raises where a stack has words of its own, which T5 does not have."""
    first, *others = _find_words(source)
    for name in others:
        if differs(source, name, first):
            raise InputError(
                f"{where}: {name} differs from {first}, but both stacks of a T5 model read one "
                "word table; use a checkpoint in which they are equal"
            )


T5_WEIGHTS = Weights(
    rules=t5_rules,
    ignored=_ignored,
    resolve=_resolve,
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
"""T5's checkpoints."""


# --- T5 as a frozen Linen module that takes a soft prompt
# The prompt's rows stand before the encoder's text and take part in the relative positions like
# ordinary tokens. The answer is read at the decoder's first step, from the start token; more tokens
# are scored all at once when they are given, or generated one by one with :meth:`T5.start` and
# :meth:`T5.advance`.

STACKS = ("decoder", "encoder")


class WordTable(nn.Module):
    """The word table, which both stacks read and a tied head scores with."""

    config: T5Config  # shape of the model

    def setup(self) -> None:
        """Declares the table."""
        shape = (self.config.vocabulary, self.config.width)
        self.word = self.param("word", nn.initializers.normal(1.0), shape)


class T5(nn.Module):
    """An encoder-decoder that reads text behind a soft prompt."""

    config: T5Config  # shape of the model
    dtype: jnp.dtype = jnp.float32  # dtype of states and matrix products, float32 or bfloat16
    # 0 (default) leaves dropout out. Paper: on during tuning, where T5 has it
    dropout_rate: float = 0.0
    # what is kept for the way back; see :func:`jpt.backbones.layers.rematerialised`
    remat: str = "dots"

    def setup(self) -> None:
        """Declares the word table, the two stacks and the head."""
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
        """Reads a batch behind a prompt and scores the first token of the answer."""
        if neuron_stack not in STACKS:
            raise ValueError(f"neuron_stack is {neuron_stack!r}; expected one of {STACKS}")
        keeps_axis = every_position or decoder_tokens is not None
        masks: dict[str, Array | None] = dict.fromkeys(STACKS)
        masks[neuron_stack] = neuron_mask
        wanted: dict[str, int | str | None] = dict.fromkeys(STACKS)
        if capture_neurons:
            is_all = keeps_axis if neuron_stack == "decoder" else every_position
            first = {"decoder": 0, "encoder": _prompt_rows(prompt)}[neuron_stack]
            wanted[neuron_stack] = "all" if is_all else first
        packed_index = None if every_position else packed_index
        read = (masks["encoder"], wanted["encoder"], packed_index)
        encoded, is_read, packing, encoder_neurons = self._encode(tokens, lengths, prompt, *read)
        if decoder_tokens is None:
            decoder_tokens = self._start_tokens(tokens.shape[0])
        view = self._view(np.arange(decoder_tokens.shape[1]))
        sight = StackContext(view, None, encoded, is_read, None, packing)
        states = self.embeddings.word[decoder_tokens]
        given = LayerInput(masks["decoder"])
        hidden, kept = self.decoder(states, given, sight, wanted["decoder"])
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
        """Scores every token of several answers to each row, all of them in one pass."""
        masks: dict[str, Array | None] = {**dict.fromkeys(STACKS), neuron_stack: neuron_mask}
        read = (masks["encoder"], None, packed_index)
        encoded, is_read, packing, _ = self._encode(tokens, lengths, prompt, *read)
        branches = branch_answers(answers)
        rows, count = tokens.shape[0], len(branches.steps)
        line = jnp.broadcast_to(branches.tokens, (rows, count))
        read = jnp.concatenate([self._start_tokens(rows), line], axis=1)
        # The start token stands before every answer.
        allowed = np.pad(branches.allowed, ((1, 0), (1, 0)))
        allowed[:, 0] = True
        view = self._view(np.concatenate([[0], branches.steps + 1]), allowed)
        sight = StackContext(view, None, encoded, is_read, None, packing)
        hidden, _ = self.decoder(self.embeddings.word[read], LayerInput(masks["decoder"]), sight)
        logits = self.vocabulary_logits(hidden)
        return score_tokens(logits[:, 0], logits[:, 1:], answers)

    def encode(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"],
        prompt: Float[Array, "P D"] | Float[Array, "B P D"] | None = None,
    ) -> Float[Array, "B S D"]:
        """Reads prompt and text with the encoder; what stands at padding means nothing."""
        return self._encode(tokens, lengths, prompt, None, None)[0]

    def vocabulary_logits(
        self, hidden: Float[Array, "... D"], label_ids: Int[Array, "C"] | None = None
    ) -> Float[Array, "... C"]:
        """Scores words by the head."""
        logits = self.head(hidden, self.embeddings.word, label_ids)
        return logits * jnp.float32(self.config.width**-0.5 if self.config.scaled_head else 1)

    def start(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"],
        prompt: Float[Array, "P D"] | Float[Array, "B P D"] | None,
        max_new: int,
    ) -> tuple[Float[Array, "B V"], Cache]:
        """Reads the input and scores the first token to be generated."""
        encoded, is_read, _, _ = self._encode(tokens, lengths, prompt, None, None)
        sight = StackContext(self._view(np.arange(1)), None, encoded, is_read)
        states = self.embeddings.word[self._start_tokens(tokens.shape[0])]
        hidden, kept = self.decoder(states, LayerInput(), sight, None, True)
        # The start token's keys stand in the first slot, so N slots serve N new tokens.
        room = ((0, 0), (0, 0), (0, max_new - 1), (0, 0), (0, 0))
        generated = jax.tree.map(lambda leaf: jnp.pad(leaf, room), kept.own)
        lengths = lengths + _prompt_rows(prompt)
        cache = Cache(None, kept.cross, lengths, generated, jnp.zeros((), jnp.int32))
        return self.vocabulary_logits(hidden[:, 0]), cache

    def advance(self, last: Int[Array, "B"], cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
        """Reads the newest token of each row and scores the next one."""
        place, slots = cache.steps + 1, cache.generated.key.shape[2]
        is_read = jnp.arange(cache.context.key.shape[2])[None] < cache.lengths[:, None]
        bias = self.decoder.bias(slots)
        # Distances of slot 0, 1, ... from the new token are one piece of the table.
        past_bias = jax.lax.dynamic_slice_in_dim(bias, slots - 1 - place, slots, axis=1)
        is_past = jnp.arange(slots) < place
        past = AttentionView(is_past[None, None], past_bias[:, None])
        sight = StackContext(
            AttentionView(None, bias[:, None, slots - 1 : slots]), past, None, is_read[:, None]
        )
        given = LayerInput(None, cache.generated, cache.context)
        hidden, kept = self.decoder(self.embeddings.word[last][:, None], given, sight, None, True)

        def store(slots: Float[Array, "L B N H K"], new: Float[Array, "L B 1 H K"]) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(slots, new, place, axis=2)

        generated = jax.tree.map(store, cache.generated, kept.own)
        return self.vocabulary_logits(hidden[:, 0]), cache.replace(generated=generated, steps=place)

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
        """Gives the encoder's states, which positions are no padding, packing, and neurons."""
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
        sight = StackContext(view, packing=packing)
        states, kept = self.encoder(states, LayerInput(neuron_mask), sight, capture)
        return states, is_read[:, None], packing, kept.neurons

    def _start_tokens(self, rows: int) -> Int[Array, "B 1"]:
        return jnp.full((rows, 1), self.config.start_id, jnp.int32)

    def _view(
        self, packed_index: Int[np.ndarray, "S"], allowed: Bool[np.ndarray, "S S"] | None = None
    ) -> AttentionView:
        """Every token of the decoder looks at itself and at those before it, or as is allowed."""
        if allowed is None:
            allowed = packed_index[None] <= packed_index[:, None]
        by_distance = self.decoder.bias(int(packed_index.max()) + 1)
        return AttentionView(jnp.asarray(allowed)[None], spread_bias(by_distance, packed_index))


def _prompt_rows(prompt: Float[Array, "... P D"] | None) -> int:
    return 0 if prompt is None else prompt.shape[-2]
