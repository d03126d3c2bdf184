"""Attention over several blocks of keys under one softmax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jpt.backbones.layers import matmul_precision


class KeyBlock(NamedTuple):
    """Keys and values of one source: a prompt, a text or the tokens generated so far."""

    key: Float[Array, "B S G K"]  # B may be 1: shared by all rows and multiplied once
    value: Float[Array, "B S G K"]
    allowed: Bool[Array, "B Q S"] | None = None  # attention mask; None allows all
    bias: Float[Array, "H Q S"] | None = None  # added to the scores, e.g. relative positions


def attend(
    query: Float[Array, "B Q H K"],
    blocks: Sequence[KeyBlock],
    scale: float,
    drop: Callable[[Array], Array] | None = None,
) -> Float[Array, "B Q H K"]:
    """Return the attention output of each query; the softmax is always computed in float32."""
    # Grouped-query attention: with G key heads, query head h reads key head h // (H / G).
    rows, length, heads, width = query.shape
    groups = blocks[0].key.shape[2]
    # Heads first and keys transposed: both products are then plain matrix products on CPUs.
    # [B, Q, H, K] -> [B, H, Q, K] -> [B, G, (H/G)*Q, K]
    queries = query.transpose(0, 2, 1, 3).reshape(rows, groups, -1, width)
    scores = [
        _block_scores(queries, block, scale).reshape(rows, heads, length, -1) for block in blocks
    ]
    scores = [_mask(found, block) for found, block in zip(scores, blocks, strict=True)]
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)
    if drop is not None:
        weights = drop(weights)
    weights = weights.astype(blocks[0].value.dtype)
    output, start = None, 0
    for block in blocks:
        count = block.key.shape[1]
        # [B, H, Q, S] -> [B, G, (H/G)*Q, S]
        part = weights[..., start : start + count].reshape(rows, groups, -1, count)
        found, start = _block_values(part, block), start + count
        output = found if output is None else output + found
    output = output.reshape(rows, heads, length, width)
    return output.transpose(0, 2, 1, 3)  # [B, H, Q, K] -> [B, Q, H, K]


def _block_scores(
    queries: Float[Array, "B G R K"], block: KeyBlock, scale: float
) -> Float[Array, "B G R S"]:
    keys = block.key.transpose(0, 2, 3, 1)  # [B, S, G, K] -> [B, G, K, S]
    return _multiply(queries, keys, jnp.float32) * jnp.float32(scale)


def _block_values(weights: Float[Array, "B G R S"], block: KeyBlock) -> Float[Array, "B G R K"]:
    values = block.value.transpose(0, 2, 1, 3)  # [B, S, G, K] -> [B, G, S, K]
    return _multiply(weights, values, None)


def _multiply(
    left: Float[Array, "B G R M"], right: Float[Array, "B G M N"], dtype: jnp.dtype | None
) -> Float[Array, "B G R N"]:
    """Multiply matrices; a right operand with one row is not repeated for every row."""
    precision = matmul_precision(left.dtype)
    rows, groups, height, _ = left.shape
    if right.shape[0] == rows:
        return jnp.matmul(left, right, precision=precision, preferred_element_type=dtype)
    # [B, G, R, M] -> [G, B*R, M]: one matrix holds all rows of the batch.
    joined = left.transpose(1, 0, 2, 3).reshape(groups, rows * height, -1)
    product = jnp.matmul(joined, right[0], precision=precision, preferred_element_type=dtype)
    return product.reshape(groups, rows, height, -1).transpose(1, 0, 2, 3)


def _mask(scores: Float[Array, "B H Q S"], block: KeyBlock) -> Float[Array, "B H Q S"]:
    if block.bias is not None:
        scores = scores + block.bias.astype(jnp.float32)[None]
    if block.allowed is None:
        return scores
    # The lowest finite number instead of -inf keeps rows of padding only finite.
    lowest = jnp.finfo(jnp.float32).min
    return scores + jnp.where(block.allowed, jnp.float32(0), lowest)[:, None]
