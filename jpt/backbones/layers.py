"""Output records, rotary positions and layers shared by all backbones."""

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

# --- Output records


@struct.dataclass
class ModelOutput:
    """Output of a forward pass; ``S`` is absent if only the answer position was computed."""

    logits: Float[Array, "B *S C"]  # of the label tokens or of the whole vocabulary; float32
    hidden: Float[Array, "B *S D"]  # last hidden states
    neurons: Float[Array, "L B *S F"] | None = None  # feed-forward activations, if captured


@struct.dataclass
class AnswerScores:
    """Scores of multi-token answers behind a text."""

    log_probs: Float[Array, "B W A"]  # of each token, given the text and the tokens before it
    is_best: Bool[Array, "B W A"]  # whether the token is the most probable one at its step


@struct.dataclass
class Cache:
    """Key-value cache of generation."""

    shared: Any  # prompt that all rows share, without a row axis; None if there is none
    context: Any  # constant keys and values of each row's input; leaves are [layers, B, ...]
    lengths: Int[Array, "B"]  # number of input tokens of each row
    generated: Any  # keys and values of generated tokens; leaves are [layers, B, N, ...]
    steps: Int[Array, ""]  # number of generated tokens in the cache


# --- Rotary positions

ROTARY_KINDS = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Rotary:
    """Parameters of rotary position embeddings, as in ``rope_parameters``."""

    base: float = 10_000.0  # ``rope_theta``
    # Frequency scaling for long contexts: none, ``"linear"`` (all frequencies) or ``"llama3"`` (low
    # frequencies only).
    kind: str = "default"
    factor: float = 1.0  # divisor of the scaled frequencies
    # llama3 scales wavelengths above original_positions / low_factor, keeps those below
    # original_positions / high_factor and interpolates in between.
    low_factor: float = 1.0
    high_factor: float = 4.0
    original_positions: int = 8192  # context length in pretraining


class Angles(NamedTuple):
    """Cosines and sines of the rotary angles; R is 1 if all rows share their positions."""

    cosine: Float[Array, "R S K/2"]
    sine: Float[Array, "R S K/2"]


def inverse_frequencies(rotary: Rotary, head_width: int) -> Float32[np.ndarray, "K/2"]:
    """Return the angle per position of each pair of coordinates."""
    # Rounded to float32 at the same steps as in transformers: at position 100,000 a different
    # rounding would be visible.
    one = np.float32(1)
    exponents = np.arange(0, head_width, 2, dtype=np.float32) / np.float32(head_width)
    powers = np.power(float(rotary.base), exponents.astype(np.float64)).astype(np.float32)
    fast, factor = one / powers, np.float32(rotary.factor)
    if rotary.kind != "llama3":
        return fast / factor
    low, high = np.float32(rotary.low_factor), np.float32(rotary.high_factor)
    wavelengths = np.float32(2 * math.pi) / fast
    rotations = np.float32(rotary.original_positions) / wavelengths
    kept = np.clip((rotations - low) / (high - low), 0, 1)
    return (one - kept) * fast / factor + kept * fast


def rotary_angles(rotary: Rotary, head_width: int, positions: Int[Array, "R S"]) -> Angles:
    """Return the rotary angles at the given positions, in float32."""
    frequencies = jnp.asarray(inverse_frequencies(rotary, head_width))
    angles = positions.astype(jnp.float32)[..., None] * frequencies[None, None]
    return Angles(jnp.cos(angles), jnp.sin(angles))


def rotate(heads: Float[Array, "B S H K"], angles: Angles | None) -> Float[Array, "B S H K"]:
    """Rotate queries or keys; pair k of a head is its coordinates k and k + K/2."""
    if angles is None:
        return heads
    cosine, sine = angles.cosine[:, :, None], angles.sine[:, :, None]
    first, second = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cosine - second * sine, second * cosine + first * sine]
    return jnp.concatenate(rotated, axis=-1).astype(heads.dtype)


# --- Layers

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def matmul_precision(dtype: jnp.dtype) -> jax.lax.Precision:
    """Return the matmul precision; float32 is not rounded to TF32 or bfloat16 on accelerators."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


def linear(
    features: int, dtype: jnp.dtype, name: str | None = None, use_bias: bool = True
) -> nn.Dense:
    """Build a dense layer that computes in the given dtype."""
    return nn.Dense(
        features,
        dtype=dtype,
        precision=matmul_precision(dtype),
        kernel_init=nn.initializers.normal(0.02),
        use_bias=use_bias,
        name=name,
    )


class LayerNorm(nn.Module):
    """Layer norm over the last axis, computed and returned in float32."""

    epsilon: float

    @nn.compact
    def __call__(self, inputs: Float[Array, "... D"]) -> Float[Array, "... D"]:
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
    """RMS norm over the last axis, computed and returned in float32."""

    epsilon: float

    @nn.compact
    def __call__(self, inputs: Float[Array, "... D"]) -> Float[Array, "... D"]:
        scale = self.param("scale", nn.initializers.ones_init(), (inputs.shape[-1],))
        rows = inputs.astype(jnp.float32)
        mean_square = jnp.square(rows).mean(-1, keepdims=True)
        normal = rows * jax.lax.rsqrt(mean_square + jnp.float32(self.epsilon))
        return normal * _as_rows(scale, rows)


def score_words(
    hidden: Float[Array, "... D"], words: Float[Array, "V D"], dtype: jnp.dtype
) -> Float[Array, "... V"]:
    """Return float32 logits of the given output embeddings."""
    return jnp.einsum(
        "...d,vd->...v",
        hidden,
        words.astype(dtype),
        precision=matmul_precision(dtype),
        preferred_element_type=jnp.float32,
    )


class WordHead(nn.Module):
    """Language-model head, tied to the input embeddings or with its own output embeddings."""

    tied: bool
    dtype: jnp.dtype  # of the product

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "... D"],
        words: Float[Array, "V D"],
        label_ids: Int[Array, "C"] | None,
    ) -> Float[Array, "... C"]:
        if not self.tied:
            words = self.param("words", nn.initializers.normal(0.02), words.shape)
        return score_words(hidden, words if label_ids is None else words[label_ids], self.dtype)


def rematerialised(module: type[nn.Module], remat: str) -> type[nn.Module]:
    """Wrap a layer so that a scan saves only the activations that ``remat`` names."""
    if remat == "none":
        return module
    policies = jax.checkpoint_policies
    policy = policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return nn.remat(module, policy=policy, prevent_cse=False)


def _as_rows(vector: Float[Array, "D"], rows: Float[Array, "... D"]) -> Float[Array, "... D"]:
    # Explicit, since the tests forbid implicit rank promotion.
    return vector.astype(rows.dtype).reshape((1,) * (rows.ndim - 1) + vector.shape)
