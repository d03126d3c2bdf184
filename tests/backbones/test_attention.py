"""Attention: what it gathers, what padding gets, and that its softmax is exact in bfloat16."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpt.backbones.attention import KeyBlock, attend
from tests.backbones.golden import difference

pytestmark = pytest.mark.usefixtures("plain_programs")

ROWS, QUERIES, KEYS, HEADS, WIDTH = 3, 2, 7, 5, 6


def draw(dtype: jnp.dtype) -> tuple[jax.Array, jax.Array, jax.Array]:
    random = np.random.default_rng(0)
    shapes = [(ROWS, QUERIES, HEADS, WIDTH), *[(ROWS, KEYS, HEADS, WIDTH)] * 2]
    return tuple(jnp.asarray(random.standard_normal(shape), dtype) for shape in shapes)


def read(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    is_text: jax.Array,
    drop: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    return attend(query, [KeyBlock(key, value, is_text[:, None])], WIDTH**-0.5, drop)


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
    found = read(query, key, value, is_text)
    assert found.dtype == dtype
    assert difference(found, plain(query, key, value, lengths)) < tolerance


def test_padding_gets_no_weight_at_all() -> None:
    query, key, value = draw(jnp.float32)
    is_text = jnp.ones((ROWS, KEYS), bool).at[:, 3:].set(False)
    wild = value.at[:, 3:].set(1e30), key.at[:, 3:].set(1e3)
    expected = read(query, key, value, is_text)
    assert np.array_equal(read(query, wild[1], wild[0], is_text), expected)


def test_row_of_padding_only_stays_finite() -> None:
    query, key, value = draw(jnp.float32)
    is_text = jnp.zeros((ROWS, KEYS), bool)

    def total(query: jax.Array) -> jax.Array:
        return read(query, key, value, is_text).sum()

    value_and_gradient = jax.value_and_grad(total)(query)
    assert all(np.isfinite(part).all() for part in value_and_gradient)


def test_weights_are_dropped_before_values_are_gathered() -> None:
    query, key, value = draw(jnp.float32)
    is_text = jnp.ones((ROWS, KEYS), bool)
    seen = []

    def drop(weights: jax.Array) -> jax.Array:
        seen.append(weights)
        return weights.at[..., 1:].set(0)

    gathered = read(query, key, value, is_text, drop)
    assert seen[0].shape == (ROWS, HEADS, QUERIES, KEYS)
    assert difference(seen[0].sum(axis=-1), np.ones((ROWS, HEADS, QUERIES))) < 1e-6
    first = seen[0][..., 0].swapaxes(1, 2)[..., None] * value[:, :1]
    assert difference(gathered, first) < 1e-6


def test_key_heads_serve_groups_of_query_heads() -> None:
    random = np.random.default_rng(1)
    query = jnp.asarray(random.standard_normal((2, 3, 6, 4)), jnp.float32)
    key, value = (jnp.asarray(random.standard_normal((2, 5, 2, 4)), jnp.float32) for _ in range(2))
    repeated = [jnp.repeat(array, 3, axis=2) for array in (key, value)]
    grouped = attend(query, [KeyBlock(key, value)], 0.5)
    assert difference(grouped, attend(query, [KeyBlock(*repeated)], 0.5)) < 1e-6


def test_blocks_share_one_softmax_and_a_block_of_one_row_serves_all() -> None:
    query, key, value = draw(jnp.float32)
    allowed = (jnp.arange(KEYS)[None] < jnp.array([7, 4, 3])[:, None])[:, None]
    bias = jnp.asarray(
        np.random.default_rng(2).standard_normal((HEADS, QUERIES, KEYS)), jnp.float32
    )

    def block(start: int, end: int, shared: bool) -> KeyBlock:
        rows = slice(0, 1) if shared else slice(None)
        part = allowed[rows, :, start:end], bias[..., start:end]
        return KeyBlock(key[rows, start:end], value[rows, start:end], *part)

    same = [jnp.broadcast_to(array[:1, :2], (ROWS, 2, HEADS, WIDTH)) for array in (key, value)]
    whole = KeyBlock(
        jnp.concatenate([same[0], key[:, 2:]], axis=1),
        jnp.concatenate([same[1], value[:, 2:]], axis=1),
        allowed,
        bias,
    )
    found = attend(query, [block(0, 2, True), block(2, 5, False), block(5, KEYS, False)], 0.3)
    assert difference(found, attend(query, [whole], 0.3)) < 1e-6
