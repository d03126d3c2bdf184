"""A tiny model that writes, and greedy and beam search over it in plain Python.

What it scores depends on every token before, on their order and on the prompt, so that a memory of
another sequence, or one with a slot too many, gives another text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jpt.backbones.layers import Cache
from jpt.types import Parameters

VOCABULARY, WIDTH = 23, 7
Score = Callable[[tuple[int, ...]], np.ndarray]


class ToyWriter(nn.Module):
    """Scores words by a sum over the prompt, the text, and what was written, each at its place.

    Attributes:
        on_step: called on the host for each token but the first.
        on_trace: called where a method is traced.
    """

    on_step: Callable[[], None] | None = None
    on_trace: Callable[[str], None] | None = None

    def setup(self) -> None:
        """Declares words, a map of states, and what scores them."""
        normal = nn.initializers.normal(1.0)
        self.word = self.param("word", normal, (VOCABULARY, WIDTH))
        self.turn = self.param("turn", normal, (WIDTH, WIDTH))
        self.out = self.param("out", normal, (WIDTH, VOCABULARY))

    def start(
        self, tokens: jax.Array, lengths: jax.Array, prompt: jax.Array | None, max_new: int
    ) -> tuple[jax.Array, Cache]:
        """Reads prompt and text."""
        if self.on_trace is not None:
            self.on_trace("start")
        shared = None if prompt is None else prompt.mean(axis=-2)
        if shared is not None and shared.ndim == 1:
            shared = shared[None]
        text = self.word[tokens][None, :, :, None]  # [1, B, T, 1, D]
        slots = jnp.zeros((1, tokens.shape[0], max_new, 1, WIDTH), jnp.float32)
        context = {"text": text}
        if prompt is not None and prompt.ndim == 3:
            context["prompt"], shared = shared[None], None
        cache = Cache(shared, context, lengths, slots, jnp.zeros((), jnp.int32))
        return self._score(cache), cache

    def advance(self, last: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Reads the newest token."""
        if self.on_trace is not None:
            self.on_trace("advance")
        if self.on_step is not None:
            jax.debug.callback(self.on_step, ordered=True)
        new = self.word[last][None, :, None, None]
        slots = jax.lax.dynamic_update_slice_in_dim(cache.generated, new, cache.steps, axis=2)
        cache = cache.replace(generated=slots, steps=cache.steps + 1)
        return self._score(cache), cache

    def _score(self, cache: Cache) -> jax.Array:
        text, slots = cache.context["text"][0, :, :, 0], cache.generated[0, :, :, 0]
        is_text = jnp.arange(text.shape[1])[None] < cache.lengths[:, None]
        is_read = jnp.arange(slots.shape[1]) < cache.steps
        text_weights = jnp.where(is_text, _weights(text.shape[1])[None], 0.0)
        slot_weights = jnp.where(is_read, _weights(slots.shape[1]), 0.0)
        state = jnp.einsum("btd,bt->bd", text, text_weights)
        state = state + jnp.einsum("bnd,n->bd", slots, slot_weights)
        for front in (cache.shared, cache.context.get("prompt", [None])[0]):
            if front is not None:
                state = state + jnp.broadcast_to(front, state.shape)
        return jnp.tanh(state @ self.turn) @ self.out


def _weights(count: int) -> jax.Array:
    return jnp.cos(jnp.arange(count, dtype=jnp.float32))


@dataclass(frozen=True)
class ToyCase:
    """Weights and a padded batch.

    Attributes:
        params: of the model.
        tokens: [B, T].
        lengths: [B].
        prompt: [P, D], [B, P, D] or None.
    """

    params: Parameters
    tokens: np.ndarray
    lengths: np.ndarray
    prompt: np.ndarray | None

    def score(self, row: int) -> Score:
        """Scores of the word after what was written behind a row, computed in float64."""
        word, turn, out = (
            np.asarray(self.params[name], np.float64) for name in ("word", "turn", "out")
        )
        text = self.tokens[row, : self.lengths[row]]
        state = (word[text] * np.cos(np.arange(len(text)))[:, None]).sum(axis=0)
        if self.prompt is not None:
            state = state + (self.prompt if self.prompt.ndim == 2 else self.prompt[row]).mean(0)

        def score(written: tuple[int, ...]) -> np.ndarray:
            places = np.cos(np.arange(len(written)))[:, None]
            read = state + (word[list(written)].reshape(-1, WIDTH) * places).sum(axis=0)
            logits = np.tanh(read @ turn) @ out
            return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()

        return score


def draw_case(seed: int, prompt: str = "one", rows: int = 4, length: int = 6) -> ToyCase:
    """Draws weights, texts of unlike lengths and a prompt (``one``, ``a row`` or ``none``)."""
    random = np.random.default_rng(seed)

    def draw(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * random.standard_normal(shape)).astype(np.float32)

    params = {
        "word": draw(VOCABULARY, WIDTH),
        "turn": draw(WIDTH, WIDTH, scale=0.5),
        "out": draw(WIDTH, VOCABULARY, scale=1.2),
    }
    shape = {"one": (3, WIDTH), "a row": (rows, 3, WIDTH), "none": ()}[prompt]
    tokens = random.integers(0, VOCABULARY, (rows, length)).astype(np.int32)
    lengths = random.integers(1, length + 1, rows).astype(np.int32)
    return ToyCase(params, tokens, lengths, draw(*shape) if shape else None)


def plain_greedy(score: Score, count: int, ends: Sequence[int]) -> tuple[list[int], float]:
    """Takes the best word each time; gives the words and the closest choice."""
    written: list[int] = []
    margin = np.inf
    while len(written) < count and not (written and written[-1] in ends):
        second, best = np.sort(score(tuple(written)))[-2:]
        margin = min(margin, best - second)
        written.append(int(score(tuple(written)).argmax()))
    return written, margin


def plain_beams(
    score: Score, count: int, ends: Sequence[int], beams: int, penalty: float
) -> tuple[list[int], float]:
    """Beam search as the docstring of ``jpt.backbones.generation`` has it."""
    alive: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    ended: list[tuple[float, tuple[int, ...]]] = []
    gaps = [np.inf]

    def first(ranked: list[tuple[float, tuple[int, ...]]]) -> list[tuple[float, tuple[int, ...]]]:
        ranked = sorted(ranked, reverse=True)
        gaps.extend(a[0] - b[0] for a, b in pairwise(ranked[beams - 1 : beams + 1]))
        return ranked[:beams]

    for length in range(1, count + 1):
        longer = [
            (total + log, (*words, word))
            for total, words in alive
            for word, log in enumerate(score(words))
        ]
        for total, words in first(longer):
            if words[-1] in ends or length == count:
                ended.append((total / length**penalty, words))
        ended = first(ended)
        alive = first([each for each in longer if each[1][-1] not in ends])
        if len(ended) == beams and length < count:
            hope = alive[0][0] / length**penalty
            gaps.append(abs(hope - ended[-1][0]))
            if hope <= ended[-1][0]:
                break
    gaps.extend(a[0] - b[0] for a, b in pairwise(ended[:2]))
    return list(ended[0][1]), min(gaps)
