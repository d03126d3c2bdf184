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
    scores = jnp.einsum(
        "bqhk,bshk->bhqs", query, key, precision=precision, preferred_element_type=jnp.float32
    )
    scores = scores * jnp.float32(query.shape[-1] ** -0.5)
    # The lowest finite number, not minus infinity: a row of only padding stays finite.
    lowest = jnp.finfo(jnp.float32).min
    scores = jnp.where(key_is_text[:, None, None, :], scores, lowest)
    weights = jax.nn.softmax(scores, axis=-1)
    if drop is not None:
        weights = drop(weights)
    weights = weights.astype(value.dtype)
    return jnp.einsum("bhqs,bshk->bqhk", weights, value, precision=precision)
