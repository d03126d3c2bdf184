"""Plain references: a decoder without caches, searches with margins, a toy generative model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jpt.backbones.decoder import DecoderConfig
from jpt.backbones.layers import Cache, inverse_frequencies
from jpt.types import Parameters

ACTIVATIONS = {
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": lambda x: jnp.maximum(x, 0),
    "silu": lambda x: x / (1 + jnp.exp(-x)),
}


def read_plainly(
    config: DecoderConfig,
    params: Parameters,
    tokens: jax.Array,
    prompt: jax.Array | None,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return the logits [B, T, V] and the neurons [L, B, T, F] at all text positions."""
    with jax.numpy_rank_promotion("allow"):
        states = params["embeddings"]["word"][tokens]
        start = 0
        if prompt is not None:
            start = prompt.shape[-2]
            rows = jnp.broadcast_to(prompt, (tokens.shape[0], start, config.width))
            states = jnp.concatenate([rows, states], axis=1)
        if config.is_gpt2:
            states = states + params["embeddings"]["position"][: states.shape[1]]
        neurons = []
        for number, layer in enumerate(_layers(config, params)):
            layer_mask = 1.0 if mask is None else mask[number]
            states, seen = _layer(config, layer, states, layer_mask)
            neurons.append(seen[:, start:])
        hidden = _norm(config, params["final_norm"], states[:, start:])
        words = params["head"]["words"] if "head" in params else params["embeddings"]["word"]
        return hidden @ words.T, jnp.stack(neurons)


def _layers(config: DecoderConfig, params: Parameters) -> list[Parameters]:
    lower = range(config.layers - 1)
    picked = [jax.tree.map(lambda leaf, n=n: leaf[n], params["layers"]) for n in lower]
    return [*picked, params["last_layer"]]


def _layer(
    config: DecoderConfig, layer: Parameters, states: jax.Array, mask: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
    rows, length, _ = states.shape
    normed = _norm(config, layer["attention_norm"], states)
    query, key, value = (
        _map(layer[name], normed).reshape(rows, length, -1, config.head_width)
        for name in ("query", "key", "value")
    )
    if config.rotary is not None:
        frequencies = inverse_frequencies(config.rotary, config.head_width)
        rotation = np.exp(1j * np.arange(length)[:, None] * frequencies)[:, None]
        query, key = _rotate(query, rotation), _rotate(key, rotation)
    times = config.heads // config.key_heads
    key, value = jnp.repeat(key, times, axis=2), jnp.repeat(value, times, axis=2)
    scores = jnp.einsum("bqhk,bshk->bhqs", query, key) * config.attention_scale
    later = jnp.arange(length)[:, None] < jnp.arange(length)
    weights = jax.nn.softmax(jnp.where(later, -jnp.inf, scores), axis=-1)
    gathered = jnp.einsum("bhqs,bshk->bqhk", weights, value).reshape(rows, length, -1)
    states = states + _map(layer["attention_out"], gathered)
    normed = _norm(config, layer["feed_forward_norm"], states)
    neurons = ACTIVATIONS[config.activation](_map(layer["feed_forward_in"], normed))
    inner = neurons * mask
    if not config.is_gpt2:
        inner = inner * _map(layer["feed_forward_up"], normed)
    return states + _map(layer["feed_forward_out"], inner), neurons


def _map(weights: Parameters, rows: jax.Array) -> jax.Array:
    return rows @ weights["kernel"] + weights.get("bias", 0.0)


def _rotate(heads: jax.Array, rotation: np.ndarray) -> jax.Array:
    half = heads.shape[-1] // 2
    pairs = jax.lax.complex(heads[..., :half], heads[..., half:]) * rotation.astype(np.complex64)
    return jnp.concatenate([pairs.real, pairs.imag], axis=-1)


def _norm(config: DecoderConfig, weights: Parameters, rows: jax.Array) -> jax.Array:
    if config.is_gpt2:
        rows = rows - rows.mean(-1, keepdims=True)
    rows = rows / jnp.sqrt((rows**2).mean(-1, keepdims=True) + config.epsilon)
    return rows * weights["scale"] + weights.get("bias", 0.0)


Scorer = Callable[[np.ndarray], np.ndarray]
"""From sequences [N, n] of one row, n possibly 0, to logits [N, V] of the next token."""
Ranked = list[tuple[float, tuple[int, ...]]]


@dataclass
class Search:
    score: Scorer
    eos: int
    length_tokens: int  # maximum number of tokens
    margin: float = float("inf")  # smallest margin of a choice so far

    def greedy(self) -> list[int]:
        tokens: list[int] = []
        while len(tokens) < self.length_tokens and self.eos not in tokens:
            scores = self.score(np.array([tokens], int))[0]
            best, second = np.argsort(-scores)[:2]
            self._note(scores[best], scores[second])
            tokens.append(int(best))
        return tokens

    def beams(self, count: int) -> list[int]:
        """Search with ``count`` beams, length penalty 1, no early stopping, as transformers 5."""
        # A finished sequence is kept if it is among the best ``count`` continuations of its step;
        # the search ends when no open one, at its present length, beats the worst finished one.
        running: Ranked = [(0.0, ())]
        finished: Ranked = []
        for length in range(1, self.length_tokens + 1):
            ranked = self._continuations(running)
            self._note_boundary(ranked, count)
            is_last = length == self.length_tokens
            ended = [
                (total / length, tokens)
                for total, tokens in ranked[:count]
                if is_last or tokens[-1] == self.eos
            ]
            finished = sorted(finished + ended, reverse=True)
            self._note_boundary(finished, count)
            finished = finished[:count]
            if is_last:
                break
            running = [(total, tokens) for total, tokens in ranked if tokens[-1] != self.eos]
            self._note_boundary(running, count)
            running = running[:count]
            if len(finished) == count:
                best_open, worst_finished = running[0][0] / length, finished[-1][0]
                self._note(max(best_open, worst_finished), min(best_open, worst_finished))
                if best_open <= worst_finished:
                    break
        self._note_boundary(finished, 1)
        return list(finished[0][1])

    def _continuations(self, running: Ranked) -> Ranked:
        """Return every sequence with every next token, the best first."""
        scores = self.score(np.array([tokens for _, tokens in running], int))
        highest = scores.max(axis=1, keepdims=True)
        logs = scores - highest - np.log(np.exp(scores - highest).sum(axis=1, keepdims=True))
        continued = (
            (total + float(log), (*tokens, token))
            for (total, tokens), row in zip(running, logs, strict=True)
            for token, log in enumerate(row)
        )
        return sorted(continued, reverse=True)

    def _note_boundary(self, ranked: Ranked, count: int) -> None:
        if len(ranked) > count:
            self._note(ranked[count - 1][0], ranked[count][0])

    def _note(self, chosen: float, other: float) -> None:
        self.margin = min(self.margin, float(chosen - other))


def padded(sequences: Sequence[Sequence[int]], length_tokens: int) -> np.ndarray:
    rows = [[*tokens, *[-1] * (length_tokens - len(tokens))] for tokens in sequences]
    return np.array(rows, np.int32)


VOCABULARY, WIDTH = 23, 7
Score = Callable[[tuple[int, ...]], np.ndarray]


class ToyWriter(nn.Module):
    """Scores tokens by a sum over prompt, text and generated tokens, weighted by position."""

    on_step: Callable[[], None] | None = None  # called on the host for each token but the first
    on_trace: Callable[[str], None] | None = None  # called when a method is traced

    def setup(self) -> None:
        normal = nn.initializers.normal(1.0)
        self.word = self.param("word", normal, (VOCABULARY, WIDTH))
        self.turn = self.param("turn", normal, (WIDTH, WIDTH))
        self.out = self.param("out", normal, (WIDTH, VOCABULARY))

    def start(
        self, tokens: jax.Array, lengths: jax.Array, prompt: jax.Array | None, max_new: int
    ) -> tuple[jax.Array, Cache]:
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
    params: Parameters
    tokens: np.ndarray  # [B, T]
    lengths: np.ndarray  # [B]
    prompt: np.ndarray | None  # [P, D] or [B, P, D]

    def score(self, row: int) -> Score:
        """Return a function from tokens behind a row to log-probabilities, in float64."""
        word, turn, out = (
            np.asarray(self.params[name], np.float64) for name in ("word", "turn", "out")
        )
        text = self.tokens[row, : self.lengths[row]]
        state = (word[text] * np.cos(np.arange(len(text)))[:, None]).sum(axis=0)
        if self.prompt is not None:
            state = state + (self.prompt if self.prompt.ndim == 2 else self.prompt[row]).mean(0)

        def score(generated: tuple[int, ...]) -> np.ndarray:
            weights = np.cos(np.arange(len(generated)))[:, None]
            read = state + (word[list(generated)].reshape(-1, WIDTH) * weights).sum(axis=0)
            logits = np.tanh(read @ turn) @ out
            return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()

        return score


def draw_case(seed: int, prompt: str = "one", rows: int = 4, length: int = 6) -> ToyCase:
    """Sample weights, texts of different lengths and a prompt (``one``, ``a row``, ``none``)."""
    random = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * random.standard_normal(shape)).astype(np.float32)

    params = {
        "word": normal(VOCABULARY, WIDTH),
        "turn": normal(WIDTH, WIDTH, scale=0.5),
        "out": normal(WIDTH, VOCABULARY, scale=1.2),
    }
    shape = {"one": (3, WIDTH), "a row": (rows, 3, WIDTH), "none": ()}[prompt]
    tokens = random.integers(0, VOCABULARY, (rows, length)).astype(np.int32)
    lengths = random.integers(1, length + 1, rows).astype(np.int32)
    return ToyCase(params, tokens, lengths, normal(*shape) if shape else None)


def plain_greedy(score: Score, count: int, ends: Sequence[int]) -> tuple[list[int], float]:
    tokens: list[int] = []
    margin = np.inf
    while len(tokens) < count and not (tokens and tokens[-1] in ends):
        second, best = np.sort(score(tuple(tokens)))[-2:]
        margin = min(margin, best - second)
        tokens.append(int(score(tuple(tokens)).argmax()))
    return tokens, margin


def plain_beams(
    score: Score, count: int, ends: Sequence[int], beams: int, penalty: float
) -> tuple[list[int], float]:
    """Beam search as ``jpt.backbones.generation`` describes it, and its smallest margin."""
    alive: Ranked = [(0.0, ())]
    ended: Ranked = []
    gaps = [np.inf]

    def first(ranked: Ranked) -> Ranked:
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
