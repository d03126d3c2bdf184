"""One layer of GPT-2 or Llama: over a prompt and a text behind it, or over one generated token."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from jpt.backbones.attention import KeyBlock, attend
from jpt.backbones.decoder_config import DecoderConfig
from jpt.backbones.layers import ACTIVATIONS, LayerNorm, RMSNorm, linear
from jpt.backbones.packing import Packing, at_position, collect, spread
from jpt.backbones.rotary import Angles, rotate


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


class WritingPlace(NamedTuple):
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
        self, states: Float[Array, "B 1 D"], place: WritingPlace, memory: Memory
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
        place: WritingPlace,
        memory: Memory,
    ) -> tuple[Float[Array, "B 1 D"], Keys]:
        """Updates the states and returns the token's own keys and values."""
        return self.write(states, place, memory)
