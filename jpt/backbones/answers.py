"""Score label words of several tokens, and the branches that they share."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from jpt.backbones.layers import AnswerScores


class Branches(NamedTuple):
    """Where the tokens of several answers stand."""

    tokens: Int[Array, "R N"]  # of the answers, the last of each left out
    steps: Int32[np.ndarray, "N"]  # which token of its answer each is, from 0
    allowed: Bool[np.ndarray, "N N"]  # which of the others each may look at


def order_study(answers: Int[Array, "R W A"]) -> Branches:
    """Puts several answers into one line."""
    rows, count, length = answers.shape
    steps = np.tile(np.arange(length - 1, dtype=np.int32), count)
    owner = np.repeat(np.arange(count), length - 1)
    is_before = steps[None] <= steps[:, None]
    return Branches(
        answers[:, :, :-1].reshape(rows, -1), steps, is_before & (owner[None] == owner[:, None])
    )


def score_tokens(
    first: Float[Array, "B V"], others: Float[Array, "B N V"], answers: Int[Array, "R W A"]
) -> AnswerScores:
    """Reads the scores of answers off what was computed for the text and for their line."""
    rows, (_, count, length) = first.shape[0], answers.shape
    answers = jnp.broadcast_to(answers, (rows, count, length))
    scores = jnp.concatenate([first[:, None], others], axis=1)  # [B, 1+N, V]
    # Token 0 is scored by the text, token a of answer w by place 1 + w * (A - 1) + a - 1.
    places = 1 + np.arange(count)[:, None] * (length - 1) + np.arange(-1, length - 1)[None]
    places[:, 0] = 0
    by_row = jnp.arange(rows)[:, None, None]
    picked = scores[by_row, places[None], answers]
    total, best = jax.nn.logsumexp(scores, axis=-1), scores.max(axis=-1)
    flat = places.reshape(-1)
    shape = (rows, count, length)
    return AnswerScores(
        picked - total[:, flat].reshape(shape), picked >= best[:, flat].reshape(shape)
    )
