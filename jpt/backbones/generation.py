"""Text that a model writes on its own, token by token; the best token each time.

A module that can write has two methods: ``start`` reads a batch and scores its first new token,
``advance`` reads one more token of each row and scores the next. Each keeps keys and values in a
:class:`~jpt.backbones.output.Cache` of a fixed size, so that a token costs the same whatever was
written before it. The whole loop is one compiled program, which ends when all rows have ended.
Beam search over the same two methods is in :mod:`jpt.backbones.beams`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from jpt.backbones.output import Cache
from jpt.types import Parameters

NOTHING = -1
"""What stands behind the end of a row that was written."""


class Written(NamedTuple):
    """What a model wrote for each row of a batch."""

    tokens: Int[Array, "B N"]  # the new tokens, and `NOTHING` behind the end
    lengths: Int[Array, "B"]  # how many tokens are new, the one that ends the row included


class _State(NamedTuple):
    """Where greedy search stands."""

    step: Int[Array, ""]  # how many tokens were chosen
    last: Int[Array, "B"]  # the newest of each row
    is_open: Bool[Array, "B"]  # which rows have not ended
    written: Written  # all that were chosen
    cache: Cache  # what the model remembers; ``last`` is not yet in it


def greedy(
    module: nn.Module,
    params: Parameters,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    prompt: Float[Array, "P D"] | Float[Array, "B P D"] | None,
    max_new: int,
    eos_ids: Sequence[int] = (),
) -> Written:
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
) -> Written:
    variables, rows = {"params": params}, tokens.shape[0]

    def choose(logits: Float[Array, "B V"], state: _State) -> _State:
        best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        column = jnp.where(state.is_open, best, NOTHING)
        found = state.written.tokens.at[:, state.step].set(column)
        written = Written(found, state.written.lengths + state.is_open.astype(jnp.int32))
        is_open = state.is_open & ~is_end(best, eos_ids)
        return _State(state.step + 1, best, is_open, written, state.cache)

    def write(state: _State) -> _State:
        logits, cache = module.apply(variables, state.last, state.cache, method="advance")
        return choose(logits, state._replace(cache=cache))

    def goes_on(state: _State) -> Bool[Array, ""]:
        return (state.step < max_new) & state.is_open.any()

    logits, cache = module.apply(variables, tokens, lengths, prompt, max_new, method="start")
    none = jnp.zeros((rows,), jnp.int32)
    empty = Written(jnp.full((rows, max_new), NOTHING, jnp.int32), none)
    begun = _State(jnp.zeros((), jnp.int32), none, jnp.ones((rows,), bool), empty, cache)
    return jax.lax.while_loop(goes_on, write, choose(logits, begun)).written


def is_end(tokens: Int[Array, "*B"], eos_ids: Int[Array, "E"]) -> Bool[Array, "*B"]:
    """Says which tokens end a row."""
    ends = eos_ids.reshape(*(1,) * tokens.ndim, -1)
    return (tokens[..., None] == ends).any(axis=-1)


def without_ends(written: Written, eos_ids: Sequence[int]) -> list[list[int]]:
    """Takes what was written apart by rows, and the token that ends a row off."""
    rows = [row[:length].tolist() for row, length in zip(*written, strict=True)]
    return [row[:-1] if row and row[-1] in eos_ids else row for row in rows]
