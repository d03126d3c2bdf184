"""Score several multi-token answers in one pass, as branches behind one text."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from jpt.backbones.layers import AnswerScores


class Branches(NamedTuple):
    """Tokens of several answers in one sequence, and the mask that keeps the answers apart."""

    tokens: Int[Array, "R N"]  # answer tokens, without the last one of each answer
    steps: Int32[np.ndarray, "N"]  # index of each token within its answer
    allowed: Bool[np.ndarray, "N N"]  # attention mask among these tokens


def branch_answers(answers: Int[Array, "R W A"]) -> Branches:
    """Concatenate answers into one sequence."""
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
    """Return the log-probability of every answer token from the logits of text and branches."""
    rows, (_, count, length) = first.shape[0], answers.shape
    answers = jnp.broadcast_to(answers, (rows, count, length))
    scores = jnp.concatenate([first[:, None], others], axis=1)  # [B, 1+N, V]
    # Token 0 is scored at the end of the text, token a of answer w at 1 + w * (A - 1) + a - 1.
    positions = 1 + np.arange(count)[:, None] * (length - 1) + np.arange(-1, length - 1)[None]
    positions[:, 0] = 0
    by_row = jnp.arange(rows)[:, None, None]
    picked = scores[by_row, positions[None], answers]
    total, best = jax.nn.logsumexp(scores, axis=-1), scores.max(axis=-1)
    flat = positions.reshape(-1)
    shape = (rows, count, length)
    return AnswerScores(
        picked - total[:, flat].reshape(shape), picked >= best[:, flat].reshape(shape)
    )
