"""GPT-2, Llama and Qwen2 as one frozen Linen module that takes a soft prompt.

The input is ``p1 .. pP text``, the prompt at positions 0 to P - 1 (the layout of PEFT), and the
answer is read at the last text token. What a prompt's rows become does not depend on the text, so
one prompt for all rows is computed once, and every row looks at the same keys and values.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from jpt.backbones.answers import lay_out, score_tokens
from jpt.backbones.attention import KeyBlock
from jpt.backbones.decoder_config import DecoderConfig
from jpt.backbones.decoder_embeddings import DecoderEmbeddings
from jpt.backbones.decoder_layers import (
    DecoderLayer,
    Keys,
    Memory,
    ReadingLayer,
    Segment,
    Segments,
    States,
    WritingLayer,
    WritingPlace,
)
from jpt.backbones.layers import LayerNorm, RMSNorm, WordHead, rematerialised
from jpt.backbones.output import AnswerScores, Cache, ModelOutput
from jpt.backbones.packing import Packing, at_position, collect, pack_layout
from jpt.backbones.rotary import Angles, rotary_angles

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
        places: Int[Array, "G N"] | None = None,
    ) -> ModelOutput:
        """Reads a batch behind a prompt and scores the word after the last text token."""
        capture = ("all" if every_position else "answer") if capture_neurons else None
        options = {"neuron_mask": neuron_mask, "every_position": every_position}
        options["places"] = None if every_position else places
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
        places: Int[Array, "G N"] | None = None,
    ) -> AnswerScores:
        """Scores every token of several answers to each row, all of them in one pass."""
        given = {"neuron_mask": neuron_mask, "answers": answers, "places": places}
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
        place = WritingPlace(
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
        places: Int[Array, "G N"] | None = None,
    ) -> tuple[Float[Array, "B Q D"], Float[Array, "L B *T F"] | None, dict[str, Any]]:
        """Gives the last states at the answer or everywhere, the neurons, and what is kept."""
        # With answers, their line's last states stand behind that of the text's last token.
        packing = pack_layout(places, lengths, tokens.shape[1])
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
        branches, start = lay_out(answers), 0 if states.prompt is None else states.prompt.shape[1]
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
