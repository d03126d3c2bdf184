"""Several answers behind one text, read side by side in one pass.

The answers of a row stand in one line of tokens, all but the last token of each: W answers of A
tokens give W * (A - 1) places. A token looks at the text and at the tokens before it in its own
answer, and stands where it would if its answer were the only one.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from jpt.backbones.output import AnswerScores


class Branches(NamedTuple):
    """Where the tokens of several answers stand.

    Attributes:
        tokens: of the answers, the last of each left out.
        steps: which token of its answer each is, from 0.
        allowed: which of the others each may look at.
    """

    tokens: Int[Array, "R N"]
    steps: Int32[np.ndarray, "N"]
    allowed: Bool[np.ndarray, "N N"]


def lay_out(answers: Int[Array, "R W A"]) -> Branches:
    """Puts several answers into one line.

    Args:
        answers: tokens of each answer, anything behind its end.

    Returns:
        The line; it is empty where every answer is one token.

    Example:
        >>> branches = lay_out(jnp.array([[[5, 6, 7], [8, 9, 4]]]))
        >>> branches.tokens.tolist(), branches.steps.tolist()
        ([[5, 6, 8, 9]], [0, 1, 0, 1])
        >>> branches.allowed[3].tolist()
        [False, False, True, True]
    """
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
    """Reads the scores of answers off what was computed for the text and for their line.

    Args:
        first: scores of the word after the text.
        others: scores of the words after each token of the line.
        answers: tokens of each answer; one row of them serves all rows.

    Returns:
        The score of every token.

    Example:
        >>> first, others = jnp.zeros((1, 4)), jnp.zeros((1, 2, 4))
        >>> scores = score_tokens(first, others, jnp.array([[[1, 2], [3, 0]]]))
        >>> scores.log_probs.shape, round(float(scores.log_probs[0, 0, 0]), 3)
        ((1, 2, 2), -1.386)
    """
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
