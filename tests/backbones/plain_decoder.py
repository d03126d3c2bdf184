"""GPT-2 and Llama written again in the plainest way, to compare shortcuts with.

Prompt and text stand in one sequence, each row has its own copy of the prompt, every layer computes
every position, heads are repeated, and pairs of coordinates turn as complex numbers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jpt.backbones.decoder import DecoderConfig
from jpt.backbones.layers import inverse_frequencies
from jpt.types import Parameters

ACTIVATIONS = {
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": lambda x: jnp.maximum(x, 0),
    "silu": lambda x: x / (1 + jnp.exp(-x)),
}


def read_plainly(
    config: DecoderConfig,
    params: Parameters,
    tokens: jax.Array,
    prompt: jax.Array | None,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Gives the scores [B, T, V] and the neurons [L, B, T, F] at all text positions."""
    with jax.numpy_rank_promotion("allow"):
        states = params["embeddings"]["word"][tokens]
        start = 0
        if prompt is not None:
            start = prompt.shape[-2]
            rows = jnp.broadcast_to(prompt, (tokens.shape[0], start, config.width))
            states = jnp.concatenate([rows, states], axis=1)
        if config.is_gpt2:
            states = states + params["embeddings"]["position"][: states.shape[1]]
        neurons = []
        for number, layer in enumerate(_layers(config, params)):
            layer_mask = 1.0 if mask is None else mask[number]
            states, seen = _layer(config, layer, states, layer_mask)
            neurons.append(seen[:, start:])
        hidden = _norm(config, params["final_norm"], states[:, start:])
        words = params["head"]["words"] if "head" in params else params["embeddings"]["word"]
        return hidden @ words.T, jnp.stack(neurons)


def _layers(config: DecoderConfig, params: Parameters) -> list[Parameters]:
    lower = range(config.layers - 1)
    picked = [jax.tree.map(lambda leaf, n=n: leaf[n], params["layers"]) for n in lower]
    return [*picked, params["last_layer"]]


def _layer(
    config: DecoderConfig, layer: Parameters, states: jax.Array, mask: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
    rows, length, _ = states.shape
    normed = _norm(config, layer["attention_norm"], states)
    query, key, value = (
        _map(layer[name], normed).reshape(rows, length, -1, config.head_width)
        for name in ("query", "key", "value")
    )
    if config.rotary is not None:
        frequencies = inverse_frequencies(config.rotary, config.head_width)
        turn = np.exp(1j * np.arange(length)[:, None] * frequencies)[:, None]
        query, key = _turn(query, turn), _turn(key, turn)
    times = config.heads // config.key_heads
    key, value = jnp.repeat(key, times, axis=2), jnp.repeat(value, times, axis=2)
    scores = jnp.einsum("bqhk,bshk->bhqs", query, key) * config.attention_scale
    later = jnp.arange(length)[:, None] < jnp.arange(length)
    weights = jax.nn.softmax(jnp.where(later, -jnp.inf, scores), axis=-1)
    gathered = jnp.einsum("bhqs,bshk->bqhk", weights, value).reshape(rows, length, -1)
    states = states + _map(layer["attention_out"], gathered)
    normed = _norm(config, layer["feed_forward_norm"], states)
    neurons = ACTIVATIONS[config.activation](_map(layer["feed_forward_in"], normed))
    inner = neurons * mask
    if not config.is_gpt2:
        inner = inner * _map(layer["feed_forward_up"], normed)
    return states + _map(layer["feed_forward_out"], inner), neurons


def _map(weights: Parameters, rows: jax.Array) -> jax.Array:
    return rows @ weights["kernel"] + weights.get("bias", 0.0)


def _turn(heads: jax.Array, turn: np.ndarray) -> jax.Array:
    half = heads.shape[-1] // 2
    turned = jax.lax.complex(heads[..., :half], heads[..., half:]) * turn.astype(np.complex64)
    return jnp.concatenate([turned.real, turned.imag], axis=-1)


def _norm(config: DecoderConfig, weights: Parameters, rows: jax.Array) -> jax.Array:
    if config.is_gpt2:
        rows = rows - rows.mean(-1, keepdims=True)
    rows = rows / jnp.sqrt((rows**2).mean(-1, keepdims=True) + config.epsilon)
    return rows * weights["scale"] + weights.get("bias", 0.0)
