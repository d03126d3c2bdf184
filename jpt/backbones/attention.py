"""Attention over whole sequences, masked by which keys are text."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jpt.backbones.layers import matmul_precision


def attend(
    query: Float[Array, "B Q H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H K"],
    key_is_text: Bool[Array, "B S"],
    drop: Callable[[Array], Array] | None = None,
) -> Float[Array, "B Q H K"]:
    """Lets every query gather the values of the keys it resembles, padding left out.

    The softmax is computed in float32 whatever the dtype of the rest.

    Args:
        query: queries, at all positions or at the answer's only.
        key: keys at all positions.
        value: values at all positions.
        key_is_text: False for padding, which gets no weight at all.
        drop: dropout of the attention weights, where it is wanted.

    Returns:
        The gathered values, in the dtype of ``value``.

    Example:
        >>> q = k = v = jnp.ones((1, 2, 1, 4))
        >>> attend(q, k, v, jnp.ones((1, 2), bool)).shape
        (1, 2, 1, 4)
    """
    precision = matmul_precision(query.dtype)
    # Heads in front and keys turned: on CPUs the two products are then plain matrix products.
    queries = query.transpose(0, 2, 1, 3)  # [B, Q, H, K] -> [B, H, Q, K]
    keys = key.transpose(0, 2, 3, 1)  # [B, S, H, K] -> [B, H, K, S]
    values = value.transpose(0, 2, 1, 3)  # [B, S, H, K] -> [B, H, S, K]
    scores = jnp.matmul(
        queries, keys, precision=precision, preferred_element_type=jnp.float32
    ) * jnp.float32(query.shape[-1] ** -0.5)
    # The lowest finite number, not minus infinity: a row of only padding stays finite.
    lowest = jnp.finfo(jnp.float32).min
    scores = scores + jnp.where(key_is_text, jnp.float32(0), lowest)[:, None, None, :]
    weights = jax.nn.softmax(scores, axis=-1)
    if drop is not None:
        weights = drop(weights)
    gathered = jnp.matmul(weights.astype(value.dtype), values, precision=precision)
    return gathered.transpose(0, 2, 1, 3)  # [B, H, Q, K] -> [B, Q, H, K]
