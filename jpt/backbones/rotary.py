"""Rotary positions: queries and keys are turned by angles that grow with their position."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

ROTARY_KINDS = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Rotary:
    """How fast each pair of a head's coordinates turns."""

    base: float = 10_000.0  # of the wavelengths, which grow from 2 pi to almost 2 pi times the base
    # how the angles are slowed down for texts longer than those of pretraining: not at all
    # (``"default"``), all alike (``"linear"``), or only the slow ones (``"llama3"``)
    kind: str = "default"
    factor: float = 1.0  # how many times slower
    # llama3: wavelengths above ``original_positions / low_factor`` are slowed down
    low_factor: float = 1.0
    # llama3: those below ``original_positions / high_factor`` are left alone; what lies between is
    # slowed down in part
    high_factor: float = 4.0
    original_positions: int = 8192  # llama3: how long texts were in pretraining


class Angles(NamedTuple):
    """Cosines and sines of the angles at some positions; R is 1 where all rows have the same."""

    cosine: Float[Array, "R S K/2"]  # of each pair of coordinates
    sine: Float[Array, "R S K/2"]  # likewise


def inverse_frequencies(rotary: Rotary, head_width: int) -> Float32[np.ndarray, "K/2"]:
    """Gives by what angle each pair of coordinates turns from one position to the next."""
    # Every step is rounded to float32 where transformers does so: at position 100,000 a rounding
    # would show.
    one = np.float32(1)
    exponents = np.arange(0, head_width, 2, dtype=np.float32) / np.float32(head_width)
    powers = np.power(float(rotary.base), exponents.astype(np.float64)).astype(np.float32)
    fast, factor = one / powers, np.float32(rotary.factor)
    if rotary.kind != "llama3":
        return fast / factor
    low, high = np.float32(rotary.low_factor), np.float32(rotary.high_factor)
    wavelengths = np.float32(2 * math.pi) / fast
    turns = np.float32(rotary.original_positions) / wavelengths
    # 0 where a pair turned fewer than `low` times in a text of pretraining, 1 from `high` on.
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (one - kept) * fast / factor + kept * fast


def rotary_angles(rotary: Rotary, head_width: int, positions: Int[Array, "R S"]) -> Angles:
    """Computes the angles at some positions, in float32."""
    frequencies = jnp.asarray(inverse_frequencies(rotary, head_width))
    angles = positions.astype(jnp.float32)[..., None] * frequencies[None, None]
    return Angles(jnp.cos(angles), jnp.sin(angles))


def rotate(heads: Float[Array, "B S H K"], angles: Angles | None) -> Float[Array, "B S H K"]:
    """Turns queries or keys; pair k of a head is its coordinates k and k + K/2."""
    if angles is None:
        return heads
    cosine, sine = angles.cosine[:, :, None], angles.sine[:, :, None]
    first, second = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    turned = [first * cosine - second * sine, second * cosine + first * sine]
    return jnp.concatenate(turned, axis=-1).astype(heads.dtype)
