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

# --- Text that a model writes on its own, token by token; the best token each time
# A module that can write has two methods: ``start`` reads a batch and scores its first new token,
# ``advance`` reads one more token of each row and scores the next. Each keeps keys and values in a
# :class:`~jpt.backbones.layers.Cache` of a fixed size, so that a token costs the same whatever was
# written before it. The whole loop is one compiled program, which ends when all rows have ended.
# Beam search over the same two methods is in :mod:`jpt.backbones.generation`.

NOTHING = -1
"""What stands behind the end of a row that was written."""


class Generation(NamedTuple):
    """What a model wrote for each row of a batch."""

    tokens: Int[Array, "B N"]  # the new tokens, and `NOTHING` behind the end
    lengths: Int[Array, "B"]  # how many tokens are new, the one that ends the row included


class _State(NamedTuple):
    """Where greedy search stands."""

    step: Int[Array, ""]  # how many tokens were chosen
    last: Int[Array, "B"]  # the newest of each row
    is_open: Bool[Array, "B"]  # which rows have not ended
    written: Generation  # all that were chosen
    cache: Cache  # what the model remembers; ``last`` is not yet in it


def greedy(
    module: nn.Module,
    params: Parameters,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    prompt: Float[Array, "P D"] | Float[Array, "B P D"] | None,
    max_new: int,
    eos_ids: Sequence[int] = (),
) -> Generation:
    """Takes the most probable token each time, the first of equal ones."""
    # Compiled once for each shape of the batch and ``max_new``.
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
        column = jnp.where(state.is_open, best, NOTHING)
        found = state.written.tokens.at[:, state.step].set(column)
        written = Generation(found, state.written.lengths + state.is_open.astype(jnp.int32))
        is_open = state.is_open & ~is_end(best, eos_ids)
        return _State(state.step + 1, best, is_open, written, state.cache)

    def write(state: _State) -> _State:
        logits, cache = module.apply(variables, state.last, state.cache, method="advance")
        return choose(logits, state._replace(cache=cache))

    def goes_on(state: _State) -> Bool[Array, ""]:
        return (state.step < max_new) & state.is_open.any()

    logits, cache = module.apply(variables, tokens, lengths, prompt, max_new, method="start")
    none = jnp.zeros((rows,), jnp.int32)
    empty = Generation(jnp.full((rows, max_new), NOTHING, jnp.int32), none)
    begun = _State(jnp.zeros((), jnp.int32), none, jnp.ones((rows,), bool), empty, cache)
    return jax.lax.while_loop(goes_on, write, choose(logits, begun)).written


def is_end(tokens: Int[Array, "*B"], eos_ids: Int[Array, "E"]) -> Bool[Array, "*B"]:
    """Says which tokens end a row."""
    ends = eos_ids.reshape(*(1,) * tokens.ndim, -1)
    return (tokens[..., None] == ends).any(axis=-1)


def without_ends(written: Generation, eos_ids: Sequence[int]) -> list[list[int]]:
    """Takes what was written apart by rows, and the token that ends a row off."""
    rows = [row[:length].tolist() for row, length in zip(*written, strict=True)]
    return [row[:-1] if row and row[-1] in eos_ids else row for row in rows]


# --- Beam search: the best of several continuations that are written side by side
# It finds what the beam search of transformers 5 finds with ``early_stopping=False`` and without
# sampling. Scores are sums of log-probabilities; one that ended is ranked by its score over its
# length, the number of new tokens with the one that ends it, to the power of the length penalty.
# Each step ranks enough continuations of all beams that K of them go on even if every beam has one
# for each token that ends it. Of the best K, those that end join the K best ended ones; the best K
# that do not end go on. A row is done when K have ended and its best open one, were it to end at
# its present length, would not be better than the worst of them. At the last token all end.


class _Beams(NamedTuple):
    """Sequences of each row, the best first."""

    scores: Float[Array, "B M"]  # minus infinity where there is none
    tokens: Int[Array, "B M N"]  # `NOTHING` behind the end
    lengths: Int[Array, "B M"]  # how many tokens each has


class _BeamState(NamedTuple):
    """Where the search stands."""

    step: Int[Array, ""]  # how many tokens were chosen
    open: _Beams  # sequences that go on, with sums of log-probabilities
    ended: _Beams  # sequences that have ended, with their final scores
    is_open: Bool[Array, "B"]  # which rows could still get a better ended sequence
    last: Int[Array, "B K"]  # the newest token of each open sequence
    parents: Int[Array, "B K"]  # from which of the open sequences before each came


class _Rules(NamedTuple):
    """What does not change during a search."""

    eos_ids: Int[Array, "E"]  # tokens that end a sequence
    # what the score of an ended sequence of 1, 2, ... N tokens is divided by
    divisors: Float[Array, "N"]


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
    """Writes the continuation that scores best among those that several beams find."""
    # Compiled once for each shape of the batch, ``max_new``, ``beams`` and number of ``eos_ids``.
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

    def write(carried: tuple[_BeamState, Cache]) -> tuple[_BeamState, Cache]:
        state, cache = carried
        cache = cache.replace(generated=_reorder(cache.generated, state.parents))
        last = state.last.reshape(rows * beams)  # [B, K] -> [B*K]
        logits, cache = module.apply(variables, last, cache, method="advance")
        return _choose(logits, state, rules), cache

    def goes_on(carried: tuple[_BeamState, Cache]) -> Bool[Array, ""]:
        state, _ = carried
        return (state.step < max_new) & state.is_open.any()

    logits, cache = module.apply(variables, tokens, lengths, prompt, max_new, method="start")
    cache = cache.replace(
        context=jax.tree.map(lambda leaf: jnp.repeat(leaf, beams, axis=1), cache.context),
        generated=jax.tree.map(lambda leaf: jnp.repeat(leaf, beams, axis=1), cache.generated),
        lengths=jnp.repeat(cache.lengths, beams),
    )
    begun = _choose(jnp.repeat(logits, beams, axis=0), _begin(rows, beams, max_new), rules)
    state, _ = jax.lax.while_loop(goes_on, write, (begun, cache))
    return Generation(state.ended.tokens[:, 0], state.ended.lengths[:, 0])


def _begin(rows: int, beams: int, max_new: int) -> _BeamState:
    """One open sequence a row, with no token yet."""
    nothing = _Beams(
        jnp.full((rows, beams), -jnp.inf, jnp.float32),
        jnp.full((rows, beams, max_new), NOTHING, jnp.int32),
        jnp.zeros((rows, beams), jnp.int32),
    )
    first = nothing._replace(scores=nothing.scores.at[:, 0].set(0))
    none, is_open = jnp.zeros((rows, beams), jnp.int32), jnp.ones((rows,), bool)
    return _BeamState(jnp.zeros((), jnp.int32), first, nothing, is_open, none, none)


def _choose(logits: Float[Array, "B*K V"], state: _BeamState, rules: _Rules) -> _BeamState:
    """Goes on with every open sequence by one token, and keeps the best."""
    beams, length = state.last.shape[1], state.step + 1
    found, parents, words = _continue(logits, state, len(rules.eos_ids))
    is_last = length == rules.divisors.shape[0]
    ends = is_end(words, rules.eos_ids) | is_last
    divisor = rules.divisors[state.step]
    # Only the best K may end; those below are there so that enough go on.
    may_end = ends & (jnp.arange(words.shape[1]) < beams)[None] & state.is_open[:, None]
    ending = found._replace(scores=jnp.where(may_end, found.scores / divisor, -jnp.inf))
    both = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), state.ended, ending)
    ended, _ = _best(both, both.scores, beams)
    going, places = _best(found, jnp.where(ends, -jnp.inf, found.scores), beams)
    is_full = (ended.scores > -jnp.inf).all(axis=1)
    hope, worst = going.scores[:, 0] / divisor, ended.scores[:, -1]
    is_open = state.is_open & (~is_full | (hope > worst))
    last, parents = (jnp.take_along_axis(values, places, axis=1) for values in (words, parents))
    return _BeamState(length, going, ended, is_open, last, parents)


def _continue(
    logits: Float[Array, "B*K V"], state: _BeamState, n_ends: int
) -> tuple[_Beams, Int[Array, "B M"], Int[Array, "B M"]]:
    """Ranks continuations by one token: the best M, from which sequences, by which tokens."""
    rows, beams = state.last.shape
    words = logits.shape[-1]
    count = beams * max(2, 1 + n_ends)
    if count > words:
        raise InputError(
            f"{beams} beams with {n_ends} tokens that end a text rank {count} continuations, but "
            f"the model has {words} words; use {words // max(2, 1 + n_ends)} beams or less"
        )
    scores = jax.nn.log_softmax(logits, axis=-1).reshape(rows, beams, words)
    totals = (state.open.scores[..., None] + scores).reshape(rows, beams * words)
    totals, places = jax.lax.top_k(totals, count)
    parents, chosen = places // words, places % words
    # [B, K, N] -> [B, M, N]
    tokens = jnp.take_along_axis(state.open.tokens, parents[..., None], axis=1)
    tokens = tokens.at[:, :, state.step].set(chosen)
    lengths = jnp.full(chosen.shape, state.step + 1, jnp.int32)
    return _Beams(totals, tokens, lengths), parents, chosen


def _best(
    found: _Beams, scores: Float[Array, "B M"], count: int
) -> tuple[_Beams, Int[Array, "B K"]]:
    """Takes the best sequences of each row by the given scores, and says which they were."""
    scores, places = jax.lax.top_k(scores, count)
    tokens = jnp.take_along_axis(found.tokens, places[..., None], axis=1)
    return _Beams(scores, tokens, jnp.take_along_axis(found.lengths, places, axis=1)), places


def _reorder(generated: Any, parents: Int[Array, "B K"]) -> Any:
    """Gives every open sequence the memory of the one it came from."""
    rows, beams = parents.shape

    def take(leaf: Float[Array, "L B*K *S"]) -> Float[Array, "L B*K *S"]:
        by_row = leaf.reshape(leaf.shape[0], rows, beams, *leaf.shape[2:])
        pick = jax.vmap(lambda one, order: one[:, order], in_axes=(1, 0), out_axes=1)
        return pick(by_row, parents).reshape(leaf.shape)

    return jax.tree.map(take, generated)
