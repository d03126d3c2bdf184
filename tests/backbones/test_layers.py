"""Layers that families share: exact norms, exact products, the activations of transformers."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpt.backbones.layers import ACTIVATIONS, LayerNorm, linear
from tests.backbones.golden import difference


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
    """Squares of large values less a large mean would be all rounding in bfloat16."""
    rows = jnp.asarray(200 + 8 * np.random.default_rng(0).standard_normal((4, 64)), jnp.bfloat16)
    norm = LayerNorm(1e-12)
    halves = {"scale": jnp.ones(64, jnp.bfloat16), "bias": jnp.zeros(64, jnp.bfloat16)}
    found = norm.apply({"params": halves}, rows)
    assert found.dtype == jnp.float32
    exact = np.asarray(rows, np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / exact.std(-1, keepdims=True)
    assert difference(found, exact) < 1e-5


def test_products_of_float32_are_asked_for_in_full() -> None:
    """Accelerators would multiply float32 in bfloat16 or TF32 unless told not to."""
    for dtype, precision in ((jnp.float32, "HIGHEST"), (jnp.bfloat16, None)):
        module, rows = linear(3, dtype, "map"), jnp.ones((2, 5), dtype)
        params = {"kernel": jnp.ones((5, 3)), "bias": jnp.zeros(3)}
        program = str(jax.make_jaxpr(lambda p, m=module, r=rows: m.apply({"params": p}, r))(params))
        assert ("HIGHEST" in program) == (precision is not None)
        assert module.apply({"params": params}, rows).dtype == dtype


@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("gelu", lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2)))),
        ("gelu_new", lambda x: _gelu_by_tanh(x)),
        ("gelu_pytorch_tanh", lambda x: _gelu_by_tanh(x)),
        ("relu", lambda x: max(x, 0.0)),
        ("silu", lambda x: x / (1 + math.exp(-x))),
    ],
)
def test_activation_is_what_its_name_says(name: str, exact) -> None:
    points = np.linspace(-6, 6, 241)
    found = ACTIVATIONS[name](jnp.asarray(points, jnp.float32))
    assert difference(found, [exact(point) for point in points]) < 1e-6


def _gelu_by_tanh(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
