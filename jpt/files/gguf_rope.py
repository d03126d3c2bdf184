"""Llama 3's scaling of rotary positions, recovered from the factors that GGUF files have of it.

The converter evaluates the config's four numbers to one factor a frequency. Only three of them can
be told apart: the factor of the slowest frequencies and the two wavelengths between which it sets
in, so the first context length is taken as 8,192, Llama 3's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

FIRST_CONTEXT = 8192
_LARGEST_ERROR = 2e-6  # relative; the factors are float32, computed in a few steps of float32


def rope_factors(
    theta: float, count: int, factor: float, low_factor: float, high_factor: float
) -> np.ndarray:
    """What each frequency of a head is divided by under Llama 3's scaling."""
    turns = _turns(theta, count)
    between = np.clip((turns - low_factor) / (high_factor - low_factor), 0, 1)
    return 1 / ((1 - between) / factor + between)


def recover_rope_scaling(factors: np.ndarray, theta: float) -> dict[str, Any] | None:
    """Finds the scaling that gives the factors of a file."""
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        return None
    if (factors == 1).all():
        return {}
    factor = float(str(np.float32(factors[-1])))
    if (factors == factors[0]).all():
        return {"rope_type": "linear", "factor": factor}
    if factor <= 1:
        return None
    for low, high in [(1.0, 4.0), *_fits(factors, theta, factor)]:
        found = rope_factors(theta, factors.size, factor, low, high)
        if (np.abs(found - factors) <= _LARGEST_ERROR * factors).all():
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": FIRST_CONTEXT,
            }
    return None


def _turns(theta: float, count: int) -> np.ndarray:
    """How often each frequency turns within the first context."""
    return FIRST_CONTEXT / (2 * np.pi) * theta ** -(np.arange(count) / count)


def _fits(factors: np.ndarray, theta: float, factor: float) -> list[tuple[float, float]]:
    """Bounds that fit the factors between 1 and the largest: rounded, then as computed."""
    between = (1 / factors - 1 / factor) / (1 - 1 / factor)
    inner = (between > 1e-4) & (between < 1 - 1e-4)
    if inner.sum() < 2:
        return []
    slope, start = np.polyfit(_turns(theta, factors.size)[inner], between[inner], 1)
    if slope <= 0:
        return []
    low, high = -start / slope, (1 - start) / slope
    if low <= 0:
        return []
    return [(round(low, 3), round(high, 3)), (float(low), float(high))]
