"""Relative positions as T5 has them: distances sorted into buckets, a learnt bias for each."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, Int32

from jpt.backbones.t5_config import T5Config


def relative_buckets(
    distances: Int[np.ndarray, "N"], bidirectional: bool, buckets: int, max_distance: int
) -> Int32[np.ndarray, "N"]:
    """Sorts relative positions into buckets: near ones by themselves, far ones by magnitude."""
    first: int | np.ndarray = 0
    if bidirectional:
        buckets //= 2
        first, far = np.where(distances > 0, buckets, 0), np.abs(distances)
    else:
        far = np.maximum(-distances, 0)
    exact = buckets // 2
    # Rounded to float32 step by step, as torch computes it: whole powers lie on the boundaries.
    logarithms = np.log(np.maximum(far, 1) / exact).astype(np.float32)
    scaled = logarithms / np.float32(math.log(max_distance / exact)) * np.float32(buckets - exact)
    magnitude = np.minimum(exact + scaled.astype(np.int64), buckets - 1)
    return (first + np.where(far < exact, far, magnitude)).astype(np.int32)


class RelativeBias(nn.Module):
    """The table of what each head adds to its scores by relative position."""

    config: T5Config  # shape of the model
    bidirectional: bool  # whether the stack looks both ways

    @nn.compact
    def __call__(self, reach: int) -> Float[Array, "H 2*reach-1"]:
        """Gives the bias of distances from 1 - reach up to reach - 1, key minus query."""
        config = self.config
        shape = (config.buckets, config.heads)
        table = self.param("table", nn.initializers.normal(0.02), shape)
        kinds = relative_buckets(
            np.arange(1 - reach, reach), self.bidirectional, config.buckets, config.max_distance
        )
        return table[kinds].astype(jnp.float32).T


def spread_bias(
    by_distance: Float[Array, "H 2*R-1"], places: Int[np.ndarray, "S"]
) -> Float[Array, "H S S"]:
    """Lays the bias of each distance out over all pairs of a query and a key."""
    reach = (by_distance.shape[1] + 1) // 2
    places = jnp.asarray(places)  # so that no table of S x S is stored in the program
    return by_distance[:, places[None] - places[:, None] + (reach - 1)]
