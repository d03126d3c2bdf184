"""Measure the matrix-product rate of this machine in GFLOP/s.

The better of torch and XLA, in float32 on a CPU, in bfloat16 on a GPU: on AMD processors torch's
library does not use the widest instructions.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import torch


def main() -> None:
    """Print the best of eight calls of each to stderr, and the higher rate to stdout."""
    is_gpu = "--gpu" in sys.argv
    size, dtype = (8192, "bfloat16") if is_gpu else (2048, "float32")
    place = {"device": "cuda" if is_gpu else "cpu", "dtype": getattr(torch, dtype)}
    left, right = (torch.randn(size, size, **place) for _ in range(2))
    keys = jax.random.split(jax.random.key(0))
    first, second = (jax.random.normal(key, (size, size), jnp.dtype(dtype)) for key in keys)
    multiply = jax.jit(lambda left, right: jnp.matmul(left, right, precision="highest"))
    seconds = {
        "torch": time_of(lambda: float((left @ right)[0, 0])),
        "XLA": time_of(lambda: multiply(first, second).block_until_ready()),
    }
    rates = {name: 2 * size**3 / spent_s / 1e9 for name, spent_s in seconds.items()}
    print(", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in rates.items()), file=sys.stderr)
    print(max(rates.values()))


def time_of(multiply: Callable[[], Any]) -> float:
    """Return the shortest of eight calls in seconds, after one to warm up."""
    multiply()
    found = []
    for _ in range(8):
        started_s = time.perf_counter()
        multiply()
        found.append(time.perf_counter() - started_s)
    return min(found)


if __name__ == "__main__":
    main()
