"""BERT's arithmetic on a flat dictionary of Hugging Face tensor names, for teacher and students.

The library's own `jpt.backbones` trains prompts in front of frozen weights, one prompt for a whole
batch. Pretraining trains the weights, and its front part differs from row to row, so the forward
pass is written out once more here; a test of the library compares both through the saved folder.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Tensors = dict[str, jax.Array]
EPSILON = 1e-12


def encode(
    tensors: Tensors,
    tokens: jax.Array,
    lengths: jax.Array,
    front: jax.Array | None = None,
    *,
    heads: int,
) -> jax.Array:
    """Compute the last states of texts, optionally with front tokens.

    Args:
        tensors: parameters under their Hugging Face names.
        tokens: [B, T] tokens of the text, padded on the right.
        lengths: [B] how many are text.
        front: [B, P] tokens before the text, without position and token type (the layout in
            which jpt runs soft prompts: `[MASK] p1 .. pP [CLS] text [SEP]`).
        heads: H.

    Returns:
        States [B, P + T, D].
    """
    words = tensors["bert.embeddings.word_embeddings.weight"]
    places = tensors["bert.embeddings.position_embeddings.weight"][: tokens.shape[1]]
    kind = tensors["bert.embeddings.token_type_embeddings.weight"][0]
    states = words[tokens] + places[None] + kind[None, None]  # [B, T, D]
    seen = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
    if front is not None:
        states = jnp.concatenate([words[front], states], axis=1)  # [B, P + T, D]
        seen = jnp.concatenate([jnp.ones(front.shape, bool), seen], axis=1)
    states = _normalise(tensors, "bert.embeddings.LayerNorm", states)
    bias = jnp.where(seen, 0.0, -1e9).astype(jnp.float32)
    depth = sum(name.endswith("self.query.weight") for name in tensors)
    for layer in range(depth):
        states = _layer(tensors, f"bert.encoder.layer.{layer}", states, bias, heads)
    return states


def vocabulary_logits(tensors: Tensors, states: jax.Array) -> jax.Array:
    """Apply the masked-LM head: states [..., D] to logits [..., V]."""
    root = "cls.predictions.transform"
    hidden = jax.nn.gelu(_linear(tensors, f"{root}.dense", states), approximate=False)
    hidden = _normalise(tensors, f"{root}.LayerNorm", hidden)
    table = tensors["bert.embeddings.word_embeddings.weight"]
    return hidden @ table.T + tensors["cls.predictions.bias"]


def _layer(tensors: Tensors, root: str, states: jax.Array, bias: jax.Array, heads: int):
    mixed = _attend(tensors, f"{root}.attention.self", states, bias, heads)
    mixed = _linear(tensors, f"{root}.attention.output.dense", mixed)
    states = _normalise(tensors, f"{root}.attention.output.LayerNorm", states + mixed)
    hidden = _linear(tensors, f"{root}.intermediate.dense", states)
    hidden = _linear(tensors, f"{root}.output.dense", jax.nn.gelu(hidden, approximate=False))
    return _normalise(tensors, f"{root}.output.LayerNorm", states + hidden)


def _attend(tensors: Tensors, root: str, states: jax.Array, bias: jax.Array, heads: int):
    batch, length, width = states.shape
    names = ("query", "key", "value")
    # One product for the three maps: narrow matrices are slow one at a time.
    weight = jnp.concatenate([tensors[f"{root}.{name}.weight"] for name in names])
    offset = jnp.concatenate([tensors[f"{root}.{name}.bias"] for name in names])
    mapped = states.reshape(-1, width) @ weight.T + offset[None]
    mapped = mapped.reshape(batch, length, 3, heads, width // heads).transpose(2, 0, 3, 1, 4)
    query, key, value = mapped  # [B, H, S, D / H]
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key) * (width // heads) ** -0.5
    shares = jax.nn.softmax(scores + bias[:, None, None], axis=-1)
    mixed = jnp.einsum("bhqk,bhkd->bhqd", shares, value)
    return mixed.transpose(0, 2, 1, 3).reshape(batch, length, width)


def _linear(tensors: Tensors, name: str, states: jax.Array) -> jax.Array:
    flat = states.reshape(-1, states.shape[-1])
    out = flat @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"][None]
    return out.reshape(*states.shape[:-1], -1)


def _normalise(tensors: Tensors, name: str, states: jax.Array) -> jax.Array:
    mean = states.mean(-1, keepdims=True)
    spread = jnp.square(states - mean).mean(-1, keepdims=True)
    scaled = (states - mean) * jax.lax.rsqrt(spread + EPSILON)
    return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]
