"""Layers that several families share: linear maps, norms, activations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

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
