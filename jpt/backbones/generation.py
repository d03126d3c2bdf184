"""Greedy and beam-search generation behind a soft prompt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from jpt.backbones.layers import Cache
from jpt.errors import InputError
from jpt.types import Parameters

# --- Greedy search
# Generative modules have two methods: ``start`` reads a batch and scores the first new token,
# ``advance`` appends one token to each row and scores the next. The cache has a fixed size, so all
# tokens cost the same and the loop is one compiled program; it stops when all rows have ended.

NO_TOKEN = -1
"""Fill value behind the end of a generated row."""


class Generation(NamedTuple):
    """Generated tokens of a batch."""

    tokens: Int[Array, "B N"]  # filled up with `NO_TOKEN`
    lengths: Int[Array, "B"]  # number of generated tokens, including the end token


class _State(NamedTuple):
    """Loop state of greedy search."""

    step: Int[Array, ""]  # number of generated tokens
    last: Int[Array, "B"]  # newest token of each row
    is_open: Bool[Array, "B"]  # rows that have not ended
    generated: Generation
    cache: Cache  # without ``last``


def greedy(
    module: nn.Module,
    params: Parameters,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    prompt: Float[Array, "P D"] | Float[Array, "B P D"] | None,
    max_new: int,
    eos_ids: Sequence[int] = (),
) -> Generation:
    """Generate the most probable token at each step; ties go to the lowest id."""
    # Compiled once per batch shape and max_new.
    ends = np.asarray(tuple(eos_ids), np.int32)
    return _greedy(module, params, tokens, lengths, prompt, ends, max_new)


@partial(jax.jit, static_argnums=(0, 6))
def _greedy(
    module: nn.Module,
    params: Parameters,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    prompt: Float[Array, "P D"] | Float[Array, "B P D"] | None,
    eos_ids: Int[Array, "E"],
    max_new: int,
) -> Generation:
    variables, rows = {"params": params}, tokens.shape[0]

    def choose(logits: Float[Array, "B V"], state: _State) -> _State:
        best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        column = jnp.where(state.is_open, best, NO_TOKEN)
        found = state.generated.tokens.at[:, state.step].set(column)
        generated = Generation(found, state.generated.lengths + state.is_open.astype(jnp.int32))
        is_open = state.is_open & ~is_end(best, eos_ids)
        return _State(state.step + 1, best, is_open, generated, state.cache)

    def advance(state: _State) -> _State:
        logits, cache = module.apply(variables, state.last, state.cache, method="advance")
        return choose(logits, state._replace(cache=cache))

    def is_running(state: _State) -> Bool[Array, ""]:
        return (state.step < max_new) & state.is_open.any()

    logits, cache = module.apply(variables, tokens, lengths, prompt, max_new, method="start")
    none = jnp.zeros((rows,), jnp.int32)
    empty = Generation(jnp.full((rows, max_new), NO_TOKEN, jnp.int32), none)
    initial = _State(jnp.zeros((), jnp.int32), none, jnp.ones((rows,), bool), empty, cache)
    return jax.lax.while_loop(is_running, advance, choose(logits, initial)).generated


def is_end(tokens: Int[Array, "*B"], eos_ids: Int[Array, "E"]) -> Bool[Array, "*B"]:
    """Return which tokens are end tokens."""
    ends = eos_ids.reshape(*(1,) * tokens.ndim, -1)
    return (tokens[..., None] == ends).any(axis=-1)


def without_ends(generated: Generation, eos_ids: Sequence[int]) -> list[list[int]]:
    """Return the generated tokens of each row without its end token."""
    rows = [row[:length].tolist() for row, length in zip(*generated, strict=True)]
    return [row[:-1] if row and row[-1] in eos_ids else row for row in rows]


# --- Beam search
# Equivalent to transformers 5 with ``early_stopping=False`` and without sampling. Open sequences
# are ranked by the sum of their log-probabilities, ended ones by that sum over length **
# length_penalty (the end token counts). A step ranks K * max(2, 1 + E) continuations, so that K of
# them stay open even if every beam has one for each of the E end tokens. Ended ones among the best
# K compete for the K best ended sequences. A row is done when it has K ended sequences and its best
# open one, if it ended now, would not beat the worst of them. At ``max_new`` tokens all end.


class _Beams(NamedTuple):
    """Sequences of each row, the best first."""

    scores: Float[Array, "B M"]  # -inf if there is no sequence
    tokens: Int[Array, "B M N"]  # filled up with `NO_TOKEN`
    lengths: Int[Array, "B M"]


class _BeamState(NamedTuple):
    """Loop state of beam search."""

    step: Int[Array, ""]  # number of generated tokens
    open: _Beams  # scored by sums of log-probabilities
    ended: _Beams  # scored with the length penalty
    is_open: Bool[Array, "B"]  # rows that may still find a better ended sequence
    last: Int[Array, "B K"]  # newest token of each open sequence
    parents: Int[Array, "B K"]  # index of the open sequence that each one extends


class _Rules(NamedTuple):
    """Constants of a search."""

    eos_ids: Int[Array, "E"]
    divisors: Float[Array, "N"]  # length ** length_penalty of 1, 2, ... N tokens


def beam_search(
    module: nn.Module,
    params: Parameters,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    prompt: Float[Array, "P D"] | Float[Array, "B P D"] | None,
    max_new: int,
    eos_ids: Sequence[int] = (),
    beams: int = 4,
    length_penalty: float = 1.0,
) -> Generation:
    """Generate the best continuation that beam search finds."""
    # Compiled once per batch shape, max_new, beams and number of eos_ids.
    divisors = np.arange(1, max_new + 1) ** np.float64(length_penalty)
    rules = _Rules(np.asarray(tuple(eos_ids), np.int32), divisors.astype(np.float32))
    return _search(module, params, tokens, lengths, prompt, rules, max_new, beams)


@partial(jax.jit, static_argnums=(0, 6, 7))
def _search(
    module: nn.Module,
    params: Parameters,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    prompt: Float[Array, "P D"] | Float[Array, "B P D"] | None,
    rules: _Rules,
    max_new: int,
    beams: int,
) -> Generation:
    variables, rows = {"params": params}, tokens.shape[0]

    def advance(carry: tuple[_BeamState, Cache]) -> tuple[_BeamState, Cache]:
        state, cache = carry
        cache = cache.replace(generated=_reorder(cache.generated, state.parents))
        last = state.last.reshape(rows * beams)  # [B, K] -> [B*K]
        logits, cache = module.apply(variables, last, cache, method="advance")
        return _choose(logits, state, rules), cache

    def is_running(carry: tuple[_BeamState, Cache]) -> Bool[Array, ""]:
        state, _ = carry
        return (state.step < max_new) & state.is_open.any()

    logits, cache = module.apply(variables, tokens, lengths, prompt, max_new, method="start")
    cache = cache.replace(
        context=jax.tree.map(lambda leaf: jnp.repeat(leaf, beams, axis=1), cache.context),
        generated=jax.tree.map(lambda leaf: jnp.repeat(leaf, beams, axis=1), cache.generated),
        lengths=jnp.repeat(cache.lengths, beams),
    )
    initial = _choose(jnp.repeat(logits, beams, axis=0), _begin(rows, beams, max_new), rules)
    state, _ = jax.lax.while_loop(is_running, advance, (initial, cache))
    return Generation(state.ended.tokens[:, 0], state.ended.lengths[:, 0])


def _begin(rows: int, beams: int, max_new: int) -> _BeamState:
    """Return the initial state: one empty open sequence a row."""
    empty = _Beams(
        jnp.full((rows, beams), -jnp.inf, jnp.float32),
        jnp.full((rows, beams, max_new), NO_TOKEN, jnp.int32),
        jnp.zeros((rows, beams), jnp.int32),
    )
    first = empty._replace(scores=empty.scores.at[:, 0].set(0))
    none, is_open = jnp.zeros((rows, beams), jnp.int32), jnp.ones((rows,), bool)
    return _BeamState(jnp.zeros((), jnp.int32), first, empty, is_open, none, none)


def _choose(logits: Float[Array, "B*K V"], state: _BeamState, rules: _Rules) -> _BeamState:
    """Extend every open sequence by one token and keep the best."""
    beams, length = state.last.shape[1], state.step + 1
    found, parents, tokens = _extend(logits, state, len(rules.eos_ids))
    is_last = length == rules.divisors.shape[0]
    ends = is_end(tokens, rules.eos_ids) | is_last
    divisor = rules.divisors[state.step]
    # Only the best K may end; the lower ranks fill up the open beams.
    may_end = ends & (jnp.arange(tokens.shape[1]) < beams)[None] & state.is_open[:, None]
    ending = found._replace(scores=jnp.where(may_end, found.scores / divisor, -jnp.inf))
    both = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), state.ended, ending)
    ended, _ = _best(both, both.scores, beams)
    going, index = _best(found, jnp.where(ends, -jnp.inf, found.scores), beams)
    is_full = (ended.scores > -jnp.inf).all(axis=1)
    best_open, worst_ended = going.scores[:, 0] / divisor, ended.scores[:, -1]
    is_open = state.is_open & (~is_full | (best_open > worst_ended))
    last, parents = (jnp.take_along_axis(values, index, axis=1) for values in (tokens, parents))
    return _BeamState(length, going, ended, is_open, last, parents)


def _extend(
    logits: Float[Array, "B*K V"], state: _BeamState, n_ends: int
) -> tuple[_Beams, Int[Array, "B M"], Int[Array, "B M"]]:
    """Return the best M one-token continuations with their parents and new tokens."""
    rows, beams = state.last.shape
    vocabulary = logits.shape[-1]
    count = beams * max(2, 1 + n_ends)
    if count > vocabulary:
        raise InputError(
            f"{beams} beams with {n_ends} end tokens rank {count} continuations, but the model has "
            f"{vocabulary} tokens; use {vocabulary // max(2, 1 + n_ends)} beams or fewer"
        )
    scores = jax.nn.log_softmax(logits, axis=-1).reshape(rows, beams, vocabulary)
    totals = (state.open.scores[..., None] + scores).reshape(rows, beams * vocabulary)
    totals, index = jax.lax.top_k(totals, count)
    parents, chosen = index // vocabulary, index % vocabulary
    # [B, K, N] -> [B, M, N]
    tokens = jnp.take_along_axis(state.open.tokens, parents[..., None], axis=1)
    tokens = tokens.at[:, :, state.step].set(chosen)
    lengths = jnp.full(chosen.shape, state.step + 1, jnp.int32)
    return _Beams(totals, tokens, lengths), parents, chosen


def _best(
    found: _Beams, scores: Float[Array, "B M"], count: int
) -> tuple[_Beams, Int[Array, "B K"]]:
    """Return the best sequences of each row by ``scores``, and their indices."""
    scores, index = jax.lax.top_k(scores, count)
    tokens = jnp.take_along_axis(found.tokens, index[..., None], axis=1)
    return _Beams(scores, tokens, jnp.take_along_axis(found.lengths, index, axis=1)), index


def _reorder(generated: Any, parents: Int[Array, "B K"]) -> Any:
    """Give every open sequence the cache entries of its parent."""
    rows, beams = parents.shape

    def take(leaf: Float[Array, "L B*K *S"]) -> Float[Array, "L B*K *S"]:
        by_row = leaf.reshape(leaf.shape[0], rows, beams, *leaf.shape[2:])
        pick = jax.vmap(lambda one, order: one[:, order], in_axes=(1, 0), out_axes=1)
        return pick(by_row, parents).reshape(leaf.shape)

    return jax.tree.map(take, generated)
