"""Layers, rotary positions and output records that all backbones share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Bool, Float, Float32, Int

# --- What every family of models returns: the answer of a batch, and the memory of generation


@struct.dataclass
class ModelOutput:
    """What a model says of a batch; ``S`` is absent where only the answer was computed."""

    # scores of the label words asked for, or of the whole vocabulary; float32
    logits: Float[Array, "B *S C"]
    hidden: Float[Array, "B *S D"]  # last states
    # feed-forward activations after the non-linearity, where they were asked for
    neurons: Float[Array, "L B *S F"] | None = None


@struct.dataclass
class AnswerScores:
    """What a model says of answers of several tokens that might follow a text."""

    # logarithm of each token's probability, given the text and the tokens before it
    log_probs: Float[Array, "B W A"]
    is_best: Bool[Array, "B W A"]  # whether no other token is more probable there


@struct.dataclass
class Cache:
    """Keys and values that generation computes once and reads at every further token."""

    # those of the prompt, which all rows look at; no axis of rows. None without a prompt or where
    # the prompt is read with the text
    shared: Any
    context: Any  # those of what each row reads; every leaf is [layers, B, ...]. They never change
    lengths: Int[Array, "B"]  # how many tokens each row reads
    generated: Any  # those of the tokens generated so far; every leaf is [layers, B, N, ...]
    steps: Int[Array, ""]  # how many tokens were generated and read again


# --- Rotary positions: queries and keys are turned by angles that grow with their position

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


# --- Layers that several families share: linear maps, norms, activations

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def matmul_precision(dtype: jnp.dtype) -> jax.lax.Precision:
    """Gives the precision of matrix products: float32 is never rounded on the way."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


def linear(
    features: int, dtype: jnp.dtype, name: str | None = None, use_bias: bool = True
) -> nn.Dense:
    """Builds a linear map that is computed in one stated dtype."""
    return nn.Dense(
        features,
        dtype=dtype,
        precision=matmul_precision(dtype),
        kernel_init=nn.initializers.normal(0.02),
        use_bias=use_bias,
        name=name,
    )


class LayerNorm(nn.Module):
    """Normalises each row to mean 0 and variance 1, then scales and shifts it; in float32."""

    epsilon: float  # added to the variance

    @nn.compact
    def __call__(self, inputs: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalises the last axis; the output is float32."""
        width = inputs.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (width,))
        bias = self.param("bias", nn.initializers.zeros_init(), (width,))
        rows = inputs.astype(jnp.float32)
        mean = rows.mean(-1, keepdims=True)
        centered = rows - mean
        variance = jnp.square(centered).mean(-1, keepdims=True)
        normal = centered * jax.lax.rsqrt(variance + jnp.float32(self.epsilon))
        return normal * _as_rows(scale, rows) + _as_rows(bias, rows)


class RMSNorm(nn.Module):
    """Divides each row by its root mean square, then scales it; in float32."""

    epsilon: float  # added to the mean square

    @nn.compact
    def __call__(self, inputs: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalises the last axis; the output is float32."""
        scale = self.param("scale", nn.initializers.ones_init(), (inputs.shape[-1],))
        rows = inputs.astype(jnp.float32)
        mean_square = jnp.square(rows).mean(-1, keepdims=True)
        normal = rows * jax.lax.rsqrt(mean_square + jnp.float32(self.epsilon))
        return normal * _as_rows(scale, rows)


def score_words(
    hidden: Float[Array, "... D"], words: Float[Array, "V D"], dtype: jnp.dtype
) -> Float[Array, "... V"]:
    """Multiplies states by a table of words."""
    return jnp.einsum(
        "...d,vd->...v",
        hidden,
        words.astype(dtype),
        precision=matmul_precision(dtype),
        preferred_element_type=jnp.float32,
    )


class WordHead(nn.Module):
    """Scores words by the word table, or by a table of its own."""

    tied: bool  # whether it has no table of its own
    dtype: jnp.dtype  # dtype of the product

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "... D"],
        words: Float[Array, "V D"],
        label_ids: Int[Array, "C"] | None,
    ) -> Float[Array, "... C"]:
        """Scores the label words only, or the whole vocabulary when none are named."""
        if not self.tied:
            words = self.param("words", nn.initializers.normal(0.02), words.shape)
        return score_words(hidden, words if label_ids is None else words[label_ids], self.dtype)


def rematerialised(module: type[nn.Module], remat: str) -> type[nn.Module]:
    """Chooses what the layers of a scan keep for the way back."""
    if remat == "none":
        return module
    policies = jax.checkpoint_policies
    policy = policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return nn.remat(module, policy=policy, prevent_cse=False)


def _as_rows(vector: Float[Array, "D"], rows: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Gives a vector the rank of ``rows`` (ranks are never promoted silently)."""
    return vector.astype(rows.dtype).reshape((1,) * (rows.ndim - 1) + vector.shape)
