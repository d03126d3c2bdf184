"""Norms, activations, attention over blocks of keys, and rotary positions."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpt.backbones.attention import KeyBlock, attend
from jpt.backbones.layers import (
    ACTIVATIONS,
    LayerNorm,
    Rotary,
    inverse_frequencies,
    linear,
    rotary_angles,
    rotate,
)
from tests.helpers.golden import DECODERS, difference, load_golden


@pytest.mark.parametrize("shape", [(9,), (4, 9), (2, 3, 9)])
def test_norm_has_mean_0_and_variance_1_before_scale_and_shift(shape: tuple[int, ...]) -> None:
    rows = 5 + 3 * np.random.default_rng(0).standard_normal(shape)
    scale, bias = np.arange(1.0, 10), np.linspace(-1, 1, 9)
    params = {"scale": jnp.asarray(scale, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    found = LayerNorm(1e-3).apply({"params": params}, jnp.asarray(rows, jnp.float32))
    centered = rows - rows.mean(-1, keepdims=True)
    normal = centered / np.sqrt(rows.var(-1, keepdims=True) + 1e-3)
    assert difference(found, normal * scale + bias) < 1e-6


def test_norm_of_bfloat16_rows_is_computed_in_float32() -> None:
    rows = jnp.asarray(200 + 8 * np.random.default_rng(0).standard_normal((4, 64)), jnp.bfloat16)
    norm = LayerNorm(1e-12)
    halves = {"scale": jnp.ones(64, jnp.bfloat16), "bias": jnp.zeros(64, jnp.bfloat16)}
    found = norm.apply({"params": halves}, rows)
    assert found.dtype == jnp.float32
    exact = np.asarray(rows, np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / exact.std(-1, keepdims=True)
    assert difference(found, exact) < 1e-5


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_float32_products_have_full_precision(dtype: jnp.dtype) -> None:
    # By default accelerators multiply float32 in bfloat16 or TF32.
    module, rows = linear(3, dtype, "map"), jnp.ones((2, 5), dtype)
    params = {"kernel": jnp.ones((5, 3)), "bias": jnp.zeros(3)}
    program = str(jax.make_jaxpr(lambda p: module.apply({"params": p}, rows))(params))
    assert ("HIGHEST" in program) == (dtype == jnp.float32)
    assert module.apply({"params": params}, rows).dtype == dtype


def gelu_by_tanh(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("gelu", lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2)))),
        ("gelu_new", gelu_by_tanh),
        ("gelu_pytorch_tanh", gelu_by_tanh),
        ("relu", lambda x: max(x, 0.0)),
        ("silu", lambda x: x / (1 + math.exp(-x))),
    ],
)
def test_activation_is_what_its_name_says(name: str, exact) -> None:
    points = np.linspace(-6, 6, 241)
    found = ACTIVATIONS[name](jnp.asarray(points, jnp.float32))
    assert difference(found, [exact(point) for point in points]) < 1e-6


ROWS, QUERIES, KEYS, HEADS, WIDTH = 3, 2, 7, 5, 6
Three = tuple[jax.Array, jax.Array, jax.Array]
Drop = Callable[[jax.Array], jax.Array]


def random_inputs(dtype: jnp.dtype = jnp.float32) -> Three:
    random = np.random.default_rng(0)
    shapes = [(ROWS, QUERIES, HEADS, WIDTH), *[(ROWS, KEYS, HEADS, WIDTH)] * 2]
    return tuple(jnp.asarray(random.standard_normal(shape), dtype) for shape in shapes)


def read(inputs: Three, is_text: jax.Array, drop: Drop | None = None) -> jax.Array:
    query, key, value = inputs
    return attend(query, [KeyBlock(key, value, is_text[:, None])], WIDTH**-0.5, drop)


def plain(inputs: Three, lengths: tuple[int, ...]) -> np.ndarray:
    """One head of one row after the other, in float64."""
    query, key, value = (np.asarray(array, np.float64) for array in inputs)
    gathered = np.zeros(query.shape)
    for row, length in enumerate(lengths):
        for head in range(HEADS):
            scores = query[row, :, head] @ key[row, :length, head].T / np.sqrt(WIDTH)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            gathered[row, :, head] = weights @ value[row, :length, head]
    return gathered


@pytest.mark.plain_programs
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)], ids=["float32", "bfloat16"]
)
def test_attention_equals_a_plain_loop(dtype: jnp.dtype, tolerance: float) -> None:
    # Scores near 160 that differ by a few: rounded to bfloat16 before the softmax they would be off
    # by up to 0.5, and the output by 0.13 instead of 0.003.
    query, key, value = random_inputs(dtype)
    inputs = (query + jnp.asarray(8, dtype), key / 4 + jnp.asarray(8, dtype), value)
    lengths = (7, 4, 1)
    found = read(inputs, jnp.arange(KEYS)[None] < jnp.array(lengths)[:, None])
    assert found.dtype == dtype
    assert difference(found, plain(inputs, lengths)) < tolerance


@pytest.mark.plain_programs
def test_padding_gets_no_weight_at_all() -> None:
    query, key, value = random_inputs()
    is_text = jnp.ones((ROWS, KEYS), bool).at[:, 3:].set(False)
    wild = query, key.at[:, 3:].set(1e3), value.at[:, 3:].set(1e30)
    assert np.array_equal(read(wild, is_text), read((query, key, value), is_text))


@pytest.mark.plain_programs
def test_row_of_padding_only_stays_finite() -> None:
    query, *others = random_inputs()
    is_text = jnp.zeros((ROWS, KEYS), bool)
    found = jax.value_and_grad(lambda query: read((query, *others), is_text).sum())(query)
    assert all(np.isfinite(part).all() for part in found)


@pytest.mark.plain_programs
def test_weights_are_dropped_before_values_are_gathered() -> None:
    inputs, seen = random_inputs(), []

    def drop(weights: jax.Array) -> jax.Array:
        seen.append(weights)
        return weights.at[..., 1:].set(0)

    found = read(inputs, jnp.ones((ROWS, KEYS), bool), drop)
    assert seen[0].shape == (ROWS, HEADS, QUERIES, KEYS)
    assert difference(seen[0].sum(axis=-1), np.ones((ROWS, HEADS, QUERIES))) < 1e-6
    first = seen[0][..., 0].swapaxes(1, 2)[..., None] * inputs[2][:, :1]
    assert difference(found, first) < 1e-6


@pytest.mark.plain_programs
def test_key_heads_serve_groups_of_query_heads() -> None:
    random = np.random.default_rng(1)
    query = jnp.asarray(random.standard_normal((2, 3, 6, 4)), jnp.float32)
    key, value = (jnp.asarray(random.standard_normal((2, 5, 2, 4)), jnp.float32) for _ in range(2))
    repeated = [jnp.repeat(array, 3, axis=2) for array in (key, value)]
    grouped = attend(query, [KeyBlock(key, value)], 0.5)
    assert difference(grouped, attend(query, [KeyBlock(*repeated)], 0.5)) < 1e-6


@pytest.mark.plain_programs
def test_blocks_share_one_softmax_and_a_block_of_one_row_serves_all() -> None:
    query, key, value = random_inputs()
    allowed = (jnp.arange(KEYS)[None] < jnp.array([7, 4, 3])[:, None])[:, None]
    bias = jax.random.normal(jax.random.key(2), (HEADS, QUERIES, KEYS))

    def block(start: int, end: int, shared: bool) -> KeyBlock:
        rows = slice(0, 1) if shared else slice(None)
        part = allowed[rows, :, start:end], bias[..., start:end]
        return KeyBlock(key[rows, start:end], value[rows, start:end], *part)

    whole = [each.at[:, :2].set(each[:1, :2]) for each in (key, value)]
    expected = attend(query, [KeyBlock(*whole, allowed, bias)], 0.3)
    found = attend(query, [block(0, 2, True), block(2, 5, False), block(5, KEYS, False)], 0.3)
    assert difference(found, expected) < 1e-6


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


def test_linear_scaling_divides_all_frequencies() -> None:
    plain = inverse_frequencies(Rotary(base=100.0), 8)
    assert np.array_equal(inverse_frequencies(Rotary(100.0, "linear", 4.0), 8), plain / 4)


def test_llama3_scaling_divides_low_frequencies_only() -> None:
    # Llama 3.2: texts of 8,192 tokens, wavelengths from 2,048 to 8,192 are interpolated.
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


def rotated(rows: jax.Array, positions: object, base: float = 50.0) -> jax.Array:
    positions = jnp.asarray(positions, jnp.int32)
    return rotate(rows, rotary_angles(Rotary(base), rows.shape[-1], positions))


def test_position_0_rotates_nothing_and_lengths_stay() -> None:
    rows = heads(2, 3, 5, 6)
    assert rotate(rows, None) is rows
    assert np.array_equal(rotated(rows, [[0, 0, 0]]), rows)
    found = rotated(rows, [[1, 7, 30]])
    assert difference(jnp.linalg.norm(found, axis=-1), jnp.linalg.norm(rows, axis=-1)) < 1e-6
    assert difference(found, rows) > 0.1


def test_pairs_are_a_coordinate_and_the_one_half_a_head_later() -> None:
    # As a complex number, a pair is multiplied by one of length 1.
    rows, position = heads(1, 1, 2, 6), 5
    pairs = np.asarray(rows[..., :3]) + 1j * np.asarray(rows[..., 3:])
    pairs = pairs * np.exp(1j * position * inverse_frequencies(Rotary(50.0), 6))
    expected = np.concatenate([pairs.real, pairs.imag], axis=-1)
    assert difference(rotated(rows, [[position]]), expected) < 1e-6


def test_products_depend_on_the_distance_alone() -> None:
    query, key = heads(1, 1, 1, 8), heads(1, 1, 1, 8, seed=1)

    def product(at: int, looked_at: int) -> float:
        return float((rotated(query, [[at]]) * rotated(key, [[looked_at]])).sum())

    assert abs(product(9, 4) - product(25, 20)) < 1e-5
    assert abs(product(9, 4) - product(9, 5)) > 0.01


def test_rows_may_have_different_positions() -> None:
    rows = heads(2, 3, 1, 4)
    together = rotated(rows, [[0, 1, 2], [5, 6, 7]])
    assert np.array_equal(together[1:], rotated(rows[1:], [[5, 6, 7]]))


def test_bfloat16_heads_are_rotated_in_float32() -> None:
    rows = heads(1, 4, 2, 8).astype(jnp.bfloat16)
    found = rotated(rows, [[100, 200, 300, 400]])
    assert found.dtype == jnp.bfloat16
    exact = rotated(rows.astype(jnp.float32), [[100, 200, 300, 400]])
    assert difference(found.astype(jnp.float32), exact) < 2**-8
