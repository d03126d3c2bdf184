"""Attention: what it gathers, what padding gets, and that its softmax is exact in bfloat16."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpt.backbones.attention import attend
from tests.backbones.golden import difference

ROWS, QUERIES, KEYS, HEADS, WIDTH = 3, 2, 7, 5, 6


def draw(dtype: jnp.dtype) -> tuple[jax.Array, jax.Array, jax.Array]:
    random = np.random.default_rng(0)
    shapes = [(ROWS, QUERIES, HEADS, WIDTH), *[(ROWS, KEYS, HEADS, WIDTH)] * 2]
    return tuple(jnp.asarray(random.standard_normal(shape), dtype) for shape in shapes)


def plain(
    query: jax.Array, key: jax.Array, value: jax.Array, lengths: tuple[int, ...]
) -> np.ndarray:
    """One head of one row after the other, in float64."""
    query, key, value = (np.asarray(array, np.float64) for array in (query, key, value))
    gathered = np.zeros(query.shape)
    for row, length in enumerate(lengths):
        for head in range(HEADS):
            scores = query[row, :, head] @ key[row, :length, head].T / np.sqrt(WIDTH)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            gathered[row, :, head] = weights @ value[row, :length, head]
    return gathered


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)], ids=["float32", "bfloat16"]
)
def test_every_query_gathers_the_text_it_resembles(dtype: jnp.dtype, tolerance: float) -> None:
    # Scores near 160 that differ by a few: rounded to bfloat16 before the softmax they would be off
    # by up to 0.5, and the answer by 0.13 instead of 0.003.
    query, key, value = draw(dtype)
    query, key = query + jnp.asarray(8, dtype), key / 4 + jnp.asarray(8, dtype)
    lengths = (7, 4, 1)
    is_text = jnp.arange(KEYS)[None] < jnp.array(lengths)[:, None]
    found = attend(query, key, value, is_text)
    assert found.dtype == dtype
    assert difference(found, plain(query, key, value, lengths)) < tolerance


def test_padding_gets_no_weight_at_all() -> None:
    query, key, value = draw(jnp.float32)
    is_text = jnp.ones((ROWS, KEYS), bool).at[:, 3:].set(False)
    wild = value.at[:, 3:].set(1e30), key.at[:, 3:].set(1e3)
    expected = attend(query, key, value, is_text)
    assert np.array_equal(attend(query, wild[1], wild[0], is_text), expected)


def test_row_of_padding_only_stays_finite() -> None:
    query, key, value = draw(jnp.float32)
    is_text = jnp.zeros((ROWS, KEYS), bool)

    def total(query: jax.Array) -> jax.Array:
        return attend(query, key, value, is_text).sum()

    value_and_gradient = jax.value_and_grad(total)(query)
    assert all(np.isfinite(part).all() for part in value_and_gradient)


def test_weights_are_dropped_before_values_are_gathered() -> None:
    query, key, value = draw(jnp.float32)
    is_text = jnp.ones((ROWS, KEYS), bool)
    seen = []

    def drop(weights: jax.Array) -> jax.Array:
        seen.append(weights)
        return weights.at[..., 1:].set(0)

    gathered = attend(query, key, value, is_text, drop)
    assert seen[0].shape == (ROWS, HEADS, QUERIES, KEYS)
    assert difference(seen[0].sum(axis=-1), np.ones((ROWS, HEADS, QUERIES))) < 1e-6
    first = seen[0][..., 0].swapaxes(1, 2)[..., None] * value[:, :1]
    assert difference(gathered, first) < 1e-6
