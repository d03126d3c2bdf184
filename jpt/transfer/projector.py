"""The projector: a small network that turns a prompt of one model into a prompt of another.

Paper: section 4. The whole prompt is flattened, goes through a bottleneck, and comes out as the
rows of the other model's prompt, each of them normalised.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float32

from jpt.backbones.layers import LayerNorm, matmul_precision
from jpt.types import Parameters

EPSILON = 1e-5
"""Of the norm over each row, as in the paper's code."""

ACTIVATIONS = {
    "leaky_relu": partial(jax.nn.leaky_relu, negative_slope=0.01),
    "tanh": jnp.tanh,
    "none": lambda rows: rows,
}


class Projector(nn.Module):
    """Maps prompts of one model to prompts of another; in float32 throughout."""

    # Paper's code: flatten, a linear map to a bottleneck, an activation (LeakyReLU; Tanh towards
    # roberta-large), a linear map, LayerNorm over each row. Its per-token form is one linear map,
    # row by row, and LeakyReLU, without a norm.

    length: int  # P of the target
    width: int  # D of the target
    bottleneck: int = 768  # neurons between the two maps; the per-token form has none
    activation: str = "leaky_relu"  # ``leaky_relu`` (slope 0.01), ``tanh`` or ``none``
    layer_norm: bool = True  # whether each row is normalised, with a learned scale and shift
    # multiplies what leaves the norm so that a fresh projector's rows have this Euclidean norm, in
    # place of the square root of the width. Where a model normalises its input at once, as BERT
    # does, this changes no answer and hardly a step of training; in T5, RoBERTa and decoders it
    # decides how much a prompt row weighs beside a word
    rescale_to: float | None = None
    per_token: bool = False  # whether rows are mapped one by one, all by the same map

    @nn.compact
    def __call__(self, prompts: Float[Array, "*K Ps Ds"]) -> Float[Array, "*K P D"]:
        """Projects one prompt, or several at once."""
        activation = ACTIVATIONS[self.activation]
        prompts = prompts.astype(jnp.float32)
        if self.per_token:
            return activation(_linear(self.width, prompts.shape[-1], "row")(prompts))
        # [..., Ps, Ds] -> [..., Ps * Ds]
        flat = prompts.reshape(*prompts.shape[:-2], prompts.shape[-2] * prompts.shape[-1])
        hidden = activation(_linear(self.bottleneck, flat.shape[-1], "down")(flat))
        rows = _linear(self.length * self.width, self.bottleneck, "up")(hidden)
        # [..., P * D] -> [..., P, D]
        rows = rows.reshape(*rows.shape[:-1], self.length, self.width)
        if not self.layer_norm:
            return rows
        rows = LayerNorm(EPSILON, name="norm")(rows)
        if self.rescale_to is None:
            return rows
        return rows * jnp.float32(self.rescale_to / math.sqrt(self.width))


def _linear(features: int, fan_in: int, name: str) -> nn.Dense:
    """A linear map that starts as torch's: weights and bias even within 1 / sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)

    def even(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    precision = matmul_precision(jnp.float32)
    return nn.Dense(features, kernel_init=even, bias_init=even, precision=precision, name=name)


def initial_parameters(projector: Projector, length: int, width: int, seed: int = 0) -> Parameters:
    """Draws the weights of a fresh projector."""
    # Paper's code: torch's own start of a linear map towards RoBERTa, which is taken here for every
    # target; it has N(0, 1) towards BERT and T5.
    source = jax.ShapeDtypeStruct((length, width), jnp.float32)
    key = jax.random.fold_in(jax.random.key(seed), 1)
    # Compiled, so that no work is done for an output that nobody looks at.
    draw = jax.jit(lambda key: projector.init(key, jnp.zeros(source.shape, source.dtype))["params"])
    return draw(key)


@partial(jax.jit, static_argnums=0)
def project_on_device(
    projector: Projector, params: Parameters, prompts: Float[Array, "*K Ps Ds"]
) -> Float[Array, "*K P D"]:
    """Projects prompts and leaves the result on the devices."""
    return projector.apply({"params": params}, prompts)


def project(
    projector: Projector, params: Parameters, prompts: Float32[np.ndarray, "*K Ps Ds"]
) -> Float32[np.ndarray, "*K P D"]:
    """Projects prompts; equal prompts give equal rows, bit for bit."""
    return np.asarray(project_on_device(projector, params, jnp.asarray(prompts, jnp.float32)))


def distance_loss(
    projector: Projector,
    params: Parameters,
    sources: Float[Array, "K Ps Ds"],
    targets: Float[Array, "K P D"],
) -> Float[Array, ""]:
    """Gives the mean squared difference between projected prompts and the target's own."""
    return jnp.square(projector.apply({"params": params}, sources) - targets).mean()
