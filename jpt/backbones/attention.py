"""Attention over blocks of keys, in one softmax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jpt.backbones.layers import matmul_precision


class KeyBlock(NamedTuple):
    # Keys and values that queries look at together: a text, a prompt, what was generated so far.

    # keys; one row of them serves every row of queries and is multiplied once
    key: Float[Array, "B S G K"]
    value: Float[Array, "B S G K"]  # values, like ``key``
    # False where a query must not look, for instance padding; None allows all
    allowed: Bool[Array, "B Q S"] | None = None
    # added to the scores of each head, for instance by relative position
    bias: Float[Array, "H Q S"] | None = None


def attend(
    query: Float[Array, "B Q H K"],
    blocks: Sequence[KeyBlock],
    scale: float,
    drop: Callable[[Array], Array] | None = None,
) -> Float[Array, "B Q H K"]:
    """Lets every query gather the values of the keys it resembles."""
    # The softmax is computed in float32 whatever the dtype of the rest. With G key heads, G a
    # divisor of H, query head h looks at key head h // (H / G).
    rows, places, heads, width = query.shape
    groups = blocks[0].key.shape[2]
    # Heads in front and keys turned: on CPUs the two products are then plain matrix products.
    # [B, Q, H, K] -> [B, H, Q, K] -> [B, G, (H/G)*Q, K]
    queries = query.transpose(0, 2, 1, 3).reshape(rows, groups, -1, width)
    scores = [
        _block_scores(queries, block, scale).reshape(rows, heads, places, -1) for block in blocks
    ]
    scores = [_restrict(found, block) for found, block in zip(scores, blocks, strict=True)]
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)
    if drop is not None:
        weights = drop(weights)
    weights = weights.astype(blocks[0].value.dtype)
    gathered, start = None, 0
    for block in blocks:
        length = block.key.shape[1]
        # [B, H, Q, S] -> [B, G, (H/G)*Q, S]
        part = weights[..., start : start + length].reshape(rows, groups, -1, length)
        found, start = _block_values(part, block), start + length
        gathered = found if gathered is None else gathered + found
    gathered = gathered.reshape(rows, heads, places, width)
    return gathered.transpose(0, 2, 1, 3)  # [B, H, Q, K] -> [B, Q, H, K]


def _block_scores(
    queries: Float[Array, "B G R K"], block: KeyBlock, scale: float
) -> Float[Array, "B G R S"]:
    """Multiplies queries by the keys of a block, in float32."""
    keys = block.key.transpose(0, 2, 3, 1)  # [B, S, G, K] -> [B, G, K, S]
    return _multiply(queries, keys, jnp.float32) * jnp.float32(scale)


def _block_values(weights: Float[Array, "B G R S"], block: KeyBlock) -> Float[Array, "B G R K"]:
    values = block.value.transpose(0, 2, 1, 3)  # [B, S, G, K] -> [B, G, S, K]
    return _multiply(weights, values, None)


def _multiply(
    left: Float[Array, "B G R M"], right: Float[Array, "B G M N"], dtype: jnp.dtype | None
) -> Float[Array, "B G R N"]:
    """Multiplies matrices; one that all rows share is not repeated for each of them."""
    precision = matmul_precision(left.dtype)
    rows, groups, height, _ = left.shape
    if right.shape[0] == rows:
        return jnp.matmul(left, right, precision=precision, preferred_element_type=dtype)
    # [B, G, R, M] -> [G, B*R, M]: the rows of the batch stand in one matrix.
    joined = left.transpose(1, 0, 2, 3).reshape(groups, rows * height, -1)
    product = jnp.matmul(joined, right[0], precision=precision, preferred_element_type=dtype)
    return product.reshape(groups, rows, height, -1).transpose(1, 0, 2, 3)


def _restrict(scores: Float[Array, "B H Q S"], block: KeyBlock) -> Float[Array, "B H Q S"]:
    """Adds the bias and takes away what is not allowed."""
    if block.bias is not None:
        scores = scores + block.bias.astype(jnp.float32)[None]
    if block.allowed is None:
        return scores
    # The lowest finite number, not minus infinity: a row of only padding stays finite.
    lowest = jnp.finfo(jnp.float32).min
    return scores + jnp.where(block.allowed, jnp.float32(0), lowest)[:, None]
