"""T5 as a frozen Linen module that takes a soft prompt.

The prompt's rows stand before the encoder's text and take part in the relative positions like
ordinary tokens. The answer is read at the decoder's first step, from the start token; more tokens
are scored all at once when they are given, or generated one by one with :meth:`T5.start` and
:meth:`T5.advance`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from jpt.backbones.answers import lay_out, score_tokens
from jpt.backbones.layers import WordHead
from jpt.backbones.output import AnswerScores, Cache, ModelOutput
from jpt.backbones.packing import Packing, collect, pack_layout
from jpt.backbones.t5_config import T5Config
from jpt.backbones.t5_layers import LayerInput, Sight, Stack, View
from jpt.backbones.t5_positions import spread_bias

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
        places: Int[Array, "G N"] | None = None,
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
        places = None if every_position else places
        read = (masks["encoder"], wanted["encoder"], places)
        encoded, is_read, packing, encoder_neurons = self._encode(tokens, lengths, prompt, *read)
        if decoder_tokens is None:
            decoder_tokens = self._start_tokens(tokens.shape[0])
        view = self._view(np.arange(decoder_tokens.shape[1]))
        sight = Sight(view, None, encoded, is_read, None, packing)
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
        places: Int[Array, "G N"] | None = None,
    ) -> AnswerScores:
        """Scores every token of several answers to each row, all of them in one pass."""
        masks: dict[str, Array | None] = {**dict.fromkeys(STACKS), neuron_stack: neuron_mask}
        read = (masks["encoder"], None, places)
        encoded, is_read, packing, _ = self._encode(tokens, lengths, prompt, *read)
        branches = lay_out(answers)
        rows, count = tokens.shape[0], len(branches.steps)
        line = jnp.broadcast_to(branches.tokens, (rows, count))
        read = jnp.concatenate([self._start_tokens(rows), line], axis=1)
        # The start token stands before every answer.
        allowed = np.pad(branches.allowed, ((1, 0), (1, 0)))
        allowed[:, 0] = True
        view = self._view(np.concatenate([[0], branches.steps + 1]), allowed)
        sight = Sight(view, None, encoded, is_read, None, packing)
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
        sight = Sight(self._view(np.arange(1)), None, encoded, is_read)
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
        past = View(is_past[None, None], past_bias[:, None])
        sight = Sight(View(None, bias[:, None, slots - 1 : slots]), past, None, is_read[:, None])
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
        places: Int[Array, "G N"] | None = None,
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
        packing = pack_layout(places, lengths, tokens.shape[1], front)
        states, positions = collect(states, packing), np.arange(states.shape[1])
        view = View(is_read[:, None], spread_bias(self.encoder.bias(len(positions)), positions))
        sight = Sight(view, packing=packing)
        states, kept = self.encoder(states, LayerInput(neuron_mask), sight, capture)
        return states, is_read[:, None], packing, kept.neurons

    def _start_tokens(self, rows: int) -> Int[Array, "B 1"]:
        return jnp.full((rows, 1), self.config.start_id, jnp.int32)

    def _view(
        self, places: Int[np.ndarray, "S"], allowed: Bool[np.ndarray, "S S"] | None = None
    ) -> View:
        """Every token of the decoder looks at itself and at those before it, or as is allowed."""
        if allowed is None:
            allowed = places[None] <= places[:, None]
        by_distance = self.decoder.bias(int(places.max()) + 1)
        return View(jnp.asarray(allowed)[None], spread_bias(by_distance, places))


def _prompt_rows(prompt: Float[Array, "... P D"] | None) -> int:
    return 0 if prompt is None else prompt.shape[-2]
