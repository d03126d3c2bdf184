"""BERT, RoBERTa and XLM-R encoders: configuration, weights and forward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jpt.backbones.attention import KeyBlock, attend
from jpt.backbones.layers import (
    ACTIVATIONS,
    LayerNorm,
    ModelOutput,
    linear,
    rematerialised,
    score_words,
)
from jpt.backbones.loading import (
    TensorRule,
    TensorSource,
    Weights,
    differs,
    read_flag,
    read_number,
    read_whole,
    split_layers,
)
from jpt.backbones.packing import Packing, at_position, collect, pack_layout, spread
from jpt.errors import InputError

# --- Configuration

MODEL_TYPES = ("bert", "roberta", "xlm-roberta")


@dataclass(frozen=True)
class EncoderConfig:
    """Hyperparameters of a BERT or RoBERTa encoder."""

    model_type: str  # ``"bert"`` or ``"roberta"``
    vocabulary: int  # V
    width: int  # D
    layers: int  # L
    heads: int  # H
    neurons: int  # F of one feed-forward layer
    positions: int  # maximum number of text tokens
    position_offset: int  # table row of the first text token (RoBERTa: padding id + 1)
    token_types: int
    activation: str = "gelu"
    head_activation: str = "gelu"
    epsilon: float = 1e-12  # of every layer norm
    tied_head: bool = True  # whether the head uses the input embeddings
    tied_bias: bool = True  # whether the bias is that of the head, not of its decoder
    dropout_rate: float = 0.1  # of pretraining; used only if dropout is requested

    @property
    def is_bert(self) -> bool:
        """True for BERT, False for RoBERTa."""
        return self.model_type == "bert"

    @property
    def head_width(self) -> int:
        """K, the width of one attention head."""
        return self.width // self.heads

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any]) -> EncoderConfig:
        """Parse a ``config.json`` of transformers."""
        _refuse_variants(config)
        model_type = "bert" if config["model_type"] == "bert" else "roberta"
        positions = read_whole(config, "max_position_embeddings")
        offset = 0 if model_type == "bert" else read_whole(config, "pad_token_id", 1, least=0) + 1
        if offset >= positions:
            raise InputError(
                f"config.json: expected max_position_embeddings above pad_token_id + 1 = {offset}, "
                f"where the positions of text start, got {positions}"
            )
        activation = config.get("hidden_act", "gelu")
        is_tied = read_flag(config, "tie_word_embeddings", True)
        return cls(
            model_type=model_type,
            vocabulary=read_whole(config, "vocab_size"),
            width=read_whole(config, "hidden_size"),
            layers=read_whole(config, "num_hidden_layers"),
            heads=read_whole(config, "num_attention_heads"),
            neurons=read_whole(config, "intermediate_size"),
            positions=positions - offset,
            position_offset=offset,
            token_types=read_whole(config, "type_vocab_size", 2),
            activation=activation,
            # RoBERTa's head uses GELU regardless of hidden_act.
            head_activation=activation if model_type == "bert" else "gelu",
            epsilon=read_number(config, "layer_norm_eps", 1e-12),
            tied_head=is_tied,
            tied_bias=is_tied,
            dropout_rate=read_number(config, "hidden_dropout_prob", 0.1, allow_zero=True),
        )


def _refuse_variants(config: Mapping[str, Any]) -> None:
    """Raise InputError for variants that are not supported."""
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise InputError(
            f"config.json: expected model_type {', '.join(MODEL_TYPES)}, got {model_type!r}"
        )
    kind = config.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise InputError(f"config.json: expected position_embedding_type 'absolute', got {kind!r}")
    if config.get("is_decoder") or config.get("add_cross_attention"):
        raise InputError(
            "config.json: expected an encoder with a masked-LM head, got is_decoder or "
            "add_cross_attention"
        )
    activation = config.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise InputError(
            f"config.json: expected hidden_act {', '.join(ACTIVATIONS)}, got {activation!r}"
        )
    width, heads = read_whole(config, "hidden_size"), read_whole(config, "num_attention_heads")
    if width % heads:
        raise InputError(
            f"config.json: expected hidden_size divisible by num_attention_heads {heads}, got "
            f"{width}"
        )


# --- Checkpoint names and partition table

_LAYER_MAPS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_out": "attention.output.dense",
    "feed_forward_in": "intermediate.dense",
    "feed_forward_out": "output.dense",
}
_LAYER_NORMS = {
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward_norm": "output.LayerNorm",
}
# Unused tensors of published checkpoints: poolers, the next-sentence head, position buffers and
# copies of a tied decoder. (An untied head uses decoder.bias, and the other bias is unused.)
_IGNORED = (
    r"(bert|roberta)\.pooler\..*",
    r"cls\.seq_relationship\..*",
    r"(bert|roberta)\.embeddings\.(position_ids|token_type_ids)",
    r"(cls\.predictions|lm_head)\.(decoder\.bias|bias)",
)
_DECODER = {"bert": "cls.predictions.decoder.weight", "roberta": "lm_head.decoder.weight"}
_DECODER_BIAS = {"bert": "cls.predictions.decoder.bias", "roberta": "lm_head.decoder.bias"}
_HEAD_BIAS = {"bert": "cls.predictions.bias", "roberta": "lm_head.bias"}

# Megatron-style: the first matrix of each pair is split by column, the second by row.
_SPLIT = (
    (r"(query|key|value|feed_forward_in)/kernel", (None, "model")),
    (r"(query|key|value|feed_forward_in)/bias", ("model",)),
    (r"(attention_out|feed_forward_out)/kernel", ("model", None)),
    (r"(attention_out|feed_forward_out)/bias", (None,)),
    (r"(attention_norm|feed_forward_norm)/(scale|bias)", (None,)),
)


def encoder_rules(config: EncoderConfig) -> list[TensorRule]:
    """Return the loading rule of every parameter."""
    root = "bert" if config.is_bert else "roberta"
    table, width = f"{root}.embeddings", config.width
    positions = config.positions + config.position_offset
    words = (config.vocabulary, width)
    rules = [
        TensorRule("embeddings/word", f"{table}.word_embeddings.weight", words),
        TensorRule(
            "embeddings/position", f"{table}.position_embeddings.weight", (positions, width)
        ),
        TensorRule(
            "embeddings/token_type",
            f"{table}.token_type_embeddings.weight",
            (config.token_types, width),
        ),
        *_norm("embeddings/norm", f"{table}.LayerNorm", width),
    ]
    layer = f"{root}.encoder.layer.{{layer}}"
    for ours, theirs in _LAYER_MAPS.items():
        inputs = config.neurons if ours == "feed_forward_out" else width
        outputs = config.neurons if ours == "feed_forward_in" else width
        rules += _linear(f"layer/{ours}", f"{layer}.{theirs}", inputs, outputs, config.layers)
    for ours, theirs in _LAYER_NORMS.items():
        rules += _norm(f"layer/{ours}", f"{layer}.{theirs}", width, config.layers)
    return rules + _head_rules(config)


def _head_rules(config: EncoderConfig) -> list[TensorRule]:
    kind, width = ("bert" if config.is_bert else "roberta"), config.width
    transform = "cls.predictions.transform" if config.is_bert else "lm_head"
    norm = f"{transform}.LayerNorm" if config.is_bert else f"{transform}.layer_norm"
    bias, other = _HEAD_BIAS[kind], _DECODER_BIAS[kind]
    if not config.tied_bias:
        bias, other = other, bias
    return [
        *_linear("head/transform", f"{transform}.dense", width, width),
        *_norm("head/norm", norm, width),
        TensorRule("head/bias", bias, (config.vocabulary,), aliases=(other,)),
        TensorRule("head/words", _DECODER[kind], (config.vocabulary, width)),
    ]


def _linear(path: str, name: str, inputs: int, outputs: int, layers: int = 0) -> list[TensorRule]:
    shape = (outputs, inputs)
    return [
        TensorRule(f"{path}/kernel", f"{name}.weight", shape, transpose=True, layers=layers),
        TensorRule(f"{path}/bias", f"{name}.bias", (outputs,), layers=layers),
    ]


def _norm(path: str, name: str, width: int, layers: int = 0) -> list[TensorRule]:
    # Checkpoints converted from TensorFlow use gamma and beta.
    return [
        TensorRule(f"{path}/{ours}", f"{name}.{theirs}", (width,), aliases=(old,), layers=layers)
        for ours, theirs, old in (
            ("scale", "weight", f"{name}.gamma"),
            ("bias", "bias", f"{name}.beta"),
        )
    ]


def _resolve(source: TensorSource, config: EncoderConfig, where: str) -> EncoderConfig:
    """Untie the bias if the file has two; raise InputError if it has no head."""
    kind = "bert" if config.is_bert else "roberta"
    head = "cls.predictions." if config.is_bert else "lm_head."
    if not any(name.startswith(head) for name in source.shapes):
        raise InputError(
            f"{where} has no masked-LM head (no tensor '{head}*'), which is needed to score label "
            "words; use a checkpoint of the masked-LM model"
        )
    own = differs(source, _DECODER_BIAS[kind], _HEAD_BIAS[kind])
    return dataclasses.replace(config, tied_bias=config.tied_bias and not own)


ENCODER_WEIGHTS = Weights(
    untied_rules=encoder_rules,
    ignored=_IGNORED,
    resolve=_resolve,
    partition=(
        *split_layers(_SPLIT),
        (r"embeddings/(word|position|token_type)", PartitionSpec(None, "model")),
        (r"embeddings/norm/(scale|bias)", PartitionSpec()),
        (r"head/words", PartitionSpec(None, "model")),
        (r"head/transform/(kernel|bias)", PartitionSpec()),
        (r"head/norm/(scale|bias)", PartitionSpec()),
        (r"head/bias", PartitionSpec()),
    ),
)
"""Checkpoint format of BERT and RoBERTa."""


# --- Modules
# The input is ``[MASK] p1 .. pP [CLS] text [SEP]`` and the answer is read at position 0. Mask and
# prompt get no position embedding; the text keeps the positions that it has without a prompt. In
# the paper's code the mask replaces prompt row 0, so P counts only the rows that are read.


class EncoderLayer(nn.Module):
    """Post-norm transformer layer."""

    config: EncoderConfig
    dtype: jnp.dtype  # of states and matrix products
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(
        self,
        states: Float[Array, "B S D"] | Float[Array, "G M D"],
        queries: Float[Array, "B Q D"] | None,
        key_is_text: Bool[Array, "B S"],
        neuron_mask: Float[Array, "F"] | None,
        packing: Packing | None = None,
    ) -> tuple[Float[Array, "B Q D"], Float[Array, "B Q F"]]:
        """Update ``queries`` (None: all states) by attending to ``states``."""
        gathered = self._gather(states, queries, key_is_text, packing)
        queries = states if queries is None else queries
        attended = self._norm("attention_norm", queries + gathered)
        neurons = linear(self.config.neurons, self.dtype, "feed_forward_in")(attended)
        neurons = ACTIVATIONS[self.config.activation](neurons)
        kept = neurons
        if neuron_mask is not None:
            kept = neurons * neuron_mask.astype(neurons.dtype)[None, None, :]
        update = linear(self.config.width, self.dtype, "feed_forward_out")(kept)
        return self._norm("feed_forward_norm", attended + self._drop(update)), neurons

    def _gather(
        self,
        states: Float[Array, "B S D"] | Float[Array, "G M D"],
        queries: Float[Array, "B Q D"] | None,
        key_is_text: Bool[Array, "B S"],
        packing: Packing | None,
    ) -> Float[Array, "B Q D"]:
        def project(name: str, rows: Float[Array, "R Q D"]) -> Float[Array, "R Q H K"]:
            projected = linear(self.config.width, self.dtype, name)(rows)
            # [R, Q, D] -> [R, Q, H, K]
            return projected.reshape(*rows.shape[:2], self.config.heads, self.config.head_width)

        def by_row(name: str) -> Float[Array, "B S H K"]:
            return spread(project(name, states), packing)

        keys = KeyBlock(by_row("key"), by_row("value"), key_is_text[:, None])
        gathered = attend(
            by_row("query") if queries is None else project("query", queries),
            [keys],
            scale=self.config.head_width**-0.5,
            drop=self._drop if self.dropout_rate else None,
        )
        # [B, Q, H, K] -> [B, Q, D]
        gathered = gathered.reshape(*gathered.shape[:2], self.config.width)
        if queries is None:
            gathered = collect(gathered, packing)
        return self._drop(linear(self.config.width, self.dtype, "attention_out")(gathered))

    def _norm(self, name: str, rows: Float[Array, "B Q D"]) -> Float[Array, "B Q D"]:
        return LayerNorm(self.config.epsilon, name=name)(rows).astype(self.dtype)

    def _drop(self, rows: Float[Array, "..."]) -> Float[Array, "..."]:
        if not self.dropout_rate:
            return rows
        return nn.Dropout(self.dropout_rate, deterministic=False)(rows)


class ScannedLayer(EncoderLayer):
    """Encoder layer over all positions, for ``nn.scan``."""

    capture: str | None = None  # neurons to return: ``None``, ``"answer"`` or ``"all"``

    @nn.compact
    def __call__(  # type: ignore[override]
        self,
        states: Float[Array, "B S D"] | Float[Array, "G M D"],
        key_is_text: Bool[Array, "B S"],
        packing: Packing | None,
        neuron_mask: Float[Array, "F"] | None,
    ) -> tuple[Float[Array, "B S D"], Float[Array, "B *S F"] | None]:
        states, neurons = super().__call__(states, None, key_is_text, neuron_mask, packing)
        if self.capture == "answer":
            neurons = _answers(neurons, key_is_text.shape[0], packing)[:, 0]
        return states, neurons if self.capture else None


class EncoderEmbeddings(nn.Module):
    """Embeddings of mask, prompt and text."""

    config: EncoderConfig

    def setup(self) -> None:
        config, normal = self.config, nn.initializers.normal(0.02)
        positions = config.positions + config.position_offset
        self.word = self.param("word", normal, (config.vocabulary, config.width))
        self.position = self.param("position", normal, (positions, config.width))
        self.token_type = self.param("token_type", normal, (config.token_types, config.width))
        self.norm = LayerNorm(config.epsilon)

    def text(
        self,
        tokens: Int[Array, "B T"],
        first_position: int,
        token_types: Int[Array, "B T"] | None,
    ) -> Float[Array, "B T D"]:
        """Embed text that is padded on the right, starting at ``first_position``."""
        start = self.config.position_offset + first_position
        positions = self.position[start : start + tokens.shape[1]].astype(jnp.float32)
        words = self.word[tokens].astype(jnp.float32) + positions[None]
        if token_types is None:
            return self.norm(words + self.token_type[0].astype(jnp.float32)[None, None])
        return self.norm(words + self.token_type[token_types].astype(jnp.float32))

    def front(
        self, mask_id: int, prompt: Float[Array, "R P D"], rows: int
    ) -> Float[Array, "B 1+P D"]:
        """Embed ``[MASK] p1 .. pP`` without positions; RoBERTa adds its token type."""
        mask = self.word[mask_id].astype(jnp.float32)[None, None]
        mask = jnp.broadcast_to(mask, (prompt.shape[0], 1, self.config.width))
        front = jnp.concatenate([mask, prompt.astype(jnp.float32)], axis=1)
        if not self.config.is_bert:
            front = front + self.token_type[0].astype(jnp.float32)[None, None]
        # A prompt shared by all rows is normalised once.
        return jnp.broadcast_to(self.norm(front), (rows, *front.shape[1:]))


class MaskedHead(nn.Module):
    """Masked-LM head: a transform, then logits of tied or untied output embeddings."""

    config: EncoderConfig
    dtype: jnp.dtype  # of the matrix products

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "... D"],
        words: Float[Array, "V D"],
        label_ids: Int[Array, "C"] | None,
    ) -> Float[Array, "... C"]:
        config = self.config
        transformed = linear(config.width, self.dtype, "transform")(hidden)
        transformed = ACTIVATIONS[config.head_activation](transformed)
        transformed = LayerNorm(config.epsilon, name="norm")(transformed).astype(self.dtype)
        if not config.tied_head:
            words = self.param("words", nn.initializers.normal(0.02), words.shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (config.vocabulary,))
        if label_ids is not None:
            words, bias = words[label_ids], bias[label_ids]
        logits = score_words(transformed, words, self.dtype)
        return logits + bias.astype(jnp.float32).reshape((1,) * (logits.ndim - 1) + (-1,))


class Encoder(nn.Module):
    """Frozen masked language model of the BERT family with a soft prompt."""

    config: EncoderConfig
    mask_id: int  # token id at position 0
    dtype: jnp.dtype = jnp.float32  # of states and matrix products
    dropout_rate: float = 0.0  # the paper tunes with dropout inside the layers
    remat: str = "dots"  # see rematerialised()

    def setup(self) -> None:
        shape = (self.config, self.dtype)
        self.embeddings = EncoderEmbeddings(self.config)
        self.last_layer = EncoderLayer(*shape, self.dropout_rate)
        self.head = MaskedHead(*shape)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"],
        prompt: Float[Array, "P D"] | Float[Array, "B P D"] | None = None,
        *,
        label_ids: Int[Array, "C"] | None = None,
        capture_neurons: bool = False,
        neuron_mask: Float[Array, "L F"] | None = None,
        every_position: bool = False,
        first_position: int = 0,
        packed_index: Int[Array, "G N"] | None = None,
    ) -> ModelOutput:
        """Read texts behind a prompt and score the answer at position 0."""
        front = self._front(prompt, tokens.shape[0])
        text = self.embeddings.text(tokens, first_position, None)
        states = jnp.concatenate([front, text], axis=1).astype(self.dtype)
        is_text = self._key_is_text(lengths, front.shape[1], tokens.shape[1])
        packed_index = None if every_position else packed_index
        packing = pack_layout(packed_index, lengths, tokens.shape[1], front.shape[1])
        states = collect(states, packing)
        capture = ("all" if every_position else "answer") if capture_neurons else None
        states, lower = self._lower_layers(states, is_text, packing, neuron_mask, capture)
        last_mask = None if neuron_mask is None else neuron_mask[-1]
        queries = None if every_position else _answers(states, tokens.shape[0], packing)
        hidden, last = self.last_layer(states, queries, is_text, last_mask, packing)
        if not every_position:
            hidden, last = hidden[:, 0], last[:, 0]
        neurons = _stack(lower, last) if capture_neurons else None
        return ModelOutput(self.vocabulary_logits(hidden, label_ids), hidden, neurons)

    def hidden_states(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"],
        token_types: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Return the last hidden states of text alone, as in pretraining."""
        states = self.embeddings.text(tokens, 0, token_types).astype(self.dtype)
        is_text = self._key_is_text(lengths, 0, tokens.shape[1])
        states, _ = self._lower_layers(states, is_text, None, None, None)
        return self.last_layer(states, None, is_text, None)[0]

    def vocabulary_logits(
        self, hidden: Float[Array, "... D"], label_ids: Int[Array, "C"] | None = None
    ) -> Float[Array, "... C"]:
        """Return the masked-LM logits of hidden states."""
        return self.head(hidden, self.embeddings.word, label_ids)

    def _front(
        self, prompt: Float[Array, "P D"] | Float[Array, "B P D"] | None, rows: int
    ) -> Float[Array, "B 1+P D"]:
        if prompt is None:
            prompt = jnp.zeros((0, self.config.width), jnp.float32)
        if prompt.ndim == 2:
            prompt = prompt[None]
        return self.embeddings.front(self.mask_id, prompt, rows)

    def _key_is_text(self, lengths: Int[Array, "B"], front: int, text: int) -> Bool[Array, "B S"]:
        return jnp.arange(front + text)[None, :] < (lengths + front)[:, None]

    @nn.compact
    def _lower_layers(
        self,
        states: Float[Array, "B S D"] | Float[Array, "G M D"],
        is_text: Bool[Array, "B S"],
        packing: Packing | None,
        neuron_mask: Float[Array, "L F"] | None,
        capture: str | None,
    ) -> tuple[Float[Array, "B S D"], Float[Array, "L-1 B *S F"] | None]:
        """Scan over all layers but the last, so that compile time does not grow with depth."""
        if self.config.layers == 1:
            return states, None
        scanned = nn.scan(
            rematerialised(ScannedLayer, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast, 0),
            length=self.config.layers - 1,
        )(self.config, self.dtype, self.dropout_rate, capture, name="layers")
        lower_mask = None if neuron_mask is None else neuron_mask[:-1]
        return scanned(states, is_text, packing, lower_mask)


def _answers(
    values: Float[Array, "B S D"] | Float[Array, "G M D"], rows: int, packing: Packing | None
) -> Float[Array, "B 1 D"]:
    """Return the values at the mask of every row."""
    if packing is None:
        return values[:, :1]  # a slice: its backward pass needs no scatter
    return at_position(values, jnp.zeros(rows, jnp.int32), packing)


def _stack(
    lower: Float[Array, "L-1 B *S F"] | None, last: Float[Array, "B *S F"]
) -> Float[Array, "L B *S F"]:
    return last[None] if lower is None else jnp.concatenate([lower, last[None]])
