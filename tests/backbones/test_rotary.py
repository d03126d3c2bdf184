"""Rotary positions: frequencies as transformers has them, and what turning must preserve."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpt.backbones.layers import Rotary, inverse_frequencies, rotary_angles, rotate
from tests.backbones.golden import DECODERS, difference, load_golden

LLAMA3 = Rotary(500_000.0, "llama3", 32.0, 1.0, 4.0, 8192)


@pytest.mark.parametrize("name", [name for name in DECODERS if "gpt2" not in name])
def test_frequencies_are_those_of_transformers_bit_for_bit(name: str) -> None:
    golden = load_golden(name)
    found = inverse_frequencies(golden.config.rotary, golden.config.head_width)
    assert found.dtype == np.float32
    assert np.array_equal(found, golden.stored["inverse_frequencies"])


def test_default_frequencies_fall_from_1_to_almost_the_inverse_of_the_base() -> None:
    found = inverse_frequencies(Rotary(base=10_000.0), 128)
    exact = 10_000.0 ** -(np.arange(64) / 64)
    assert found[0] == 1 and difference(found, exact) < 1e-6
    assert (np.abs(found / exact - 1) < 1e-6).all()


def test_linear_scaling_slows_all_pairs_alike() -> None:
    plain = inverse_frequencies(Rotary(base=100.0), 8)
    assert np.array_equal(inverse_frequencies(Rotary(100.0, "linear", 4.0), 8), plain / 4)


def test_llama3_scaling_slows_only_what_turns_slowly() -> None:
    """The numbers of Llama 3.2: a text of 8,192 tokens, wavelengths from 2,048 to 8,192 between."""
    plain = inverse_frequencies(Rotary(LLAMA3.base), 64)
    found = inverse_frequencies(LLAMA3, 64)
    wavelengths = 2 * np.pi / plain.astype(np.float64)
    fast, slow = wavelengths < 2048, wavelengths > 8192
    assert np.array_equal(found[fast], plain[fast])
    assert np.array_equal(found[slow], plain[slow] / np.float32(32))
    between = ~fast & ~slow
    kept = (8192 / wavelengths[between] - 1) / 3
    expected = plain[between] * (kept + (1 - kept) / 32)
    assert between.sum() == 3 and difference(found[between], expected) < 1e-6
    assert (np.diff(found) < 0).all()


def heads(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def turned(rows: jax.Array, positions: object, base: float = 50.0) -> jax.Array:
    positions = jnp.asarray(positions, jnp.int32)
    return rotate(rows, rotary_angles(Rotary(base), rows.shape[-1], positions))


def test_position_0_turns_nothing_and_lengths_stay() -> None:
    rows = heads(2, 3, 5, 6)
    assert np.array_equal(turned(rows, [[0, 0, 0]]), rows)
    found = turned(rows, [[1, 7, 30]])
    assert difference(jnp.linalg.norm(found, axis=-1), jnp.linalg.norm(rows, axis=-1)) < 1e-6
    assert difference(found, rows) > 0.1


def test_pairs_are_a_coordinate_and_the_one_half_a_head_later() -> None:
    """As a complex number, a pair is multiplied by one of length 1."""
    rows, position = heads(1, 1, 2, 6), 5
    pairs = np.asarray(rows[..., :3]) + 1j * np.asarray(rows[..., 3:])
    pairs = pairs * np.exp(1j * position * inverse_frequencies(Rotary(50.0), 6))
    expected = np.concatenate([pairs.real, pairs.imag], axis=-1)
    assert difference(turned(rows, [[position]]), expected) < 1e-6


def test_products_depend_on_the_distance_alone() -> None:
    query, key = heads(1, 1, 1, 8), heads(1, 1, 1, 8, seed=1)

    def product(at: int, looked_at: int) -> float:
        return float((turned(query, [[at]]) * turned(key, [[looked_at]])).sum())

    assert abs(product(9, 4) - product(25, 20)) < 1e-5
    assert abs(product(9, 4) - product(9, 5)) > 0.01


def test_rows_may_stand_at_positions_of_their_own() -> None:
    rows = heads(2, 3, 1, 4)
    together = turned(rows, [[0, 1, 2], [5, 6, 7]])
    assert np.array_equal(together[1:], turned(rows[1:], [[5, 6, 7]]))


def test_bfloat16_heads_are_turned_in_float32() -> None:
    rows = heads(1, 4, 2, 8).astype(jnp.bfloat16)
    found = turned(rows, [[100, 200, 300, 400]])
    assert found.dtype == jnp.bfloat16
    exact = turned(rows.astype(jnp.float32), [[100, 200, 300, 400]])
    assert difference(found.astype(jnp.float32), exact) < 2**-8


def test_no_angles_turn_nothing() -> None:
    rows = heads(1, 2, 3, 4)
    assert rotate(rows, None) is rows
