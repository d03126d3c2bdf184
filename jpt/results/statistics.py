"""Rank correlations and bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Int
from scipy.special import ndtr, stdtrit

from jpt.results.records import Lead

LEVEL, RESAMPLES, SEED = 0.95, 10_000, 0
METHOD = "percentile bootstrap over targets, widened for few targets (Hesterberg 2015)"


def mean_interval(
    values: Sequence[float], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[float, float] | None:
    """Return the bootstrap confidence interval of a mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    numbers = np.asarray(values, np.float64)
    means = numbers[_resample(len(numbers), resamples, seed)].mean(1)
    tail = tail_share(len(numbers), level)
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def tail_share(count: int, level: float = LEVEL) -> float:
    """Return the tail probability at either end, widened for few values (Hesterberg 2015)."""
    student = stdtrit(count - 1, (1 + level) / 2)
    return float(ndtr(-np.sqrt(count / (count - 1)) * student))


def lead(
    one: Mapping[str, float | None], other: Mapping[str, float | None], *, seed: int = SEED
) -> Lead:
    """Return the mean difference of two indicators' rank correlations, paired by target."""
    gaps = differences(one, other)
    mean = float(np.mean(gaps)) if gaps else None
    return Lead(mean, mean_interval(gaps, seed=seed), len(gaps))


def differences(one: Mapping[str, float | None], other: Mapping[str, float | None]) -> list[float]:
    """Return the differences of two indicators on the targets for which both are defined."""
    pairs = [(one[target], other[target]) for target in one if target in other]
    gaps = [float("nan") if None in pair else pair[0] - pair[1] for pair in pairs]
    return [gap for gap in gaps if np.isfinite(gap)]


@lru_cache(maxsize=32)
def _resample(count: int, resamples: int, seed: int) -> Int[np.ndarray, "R N"]:
    return np.random.default_rng(seed).integers(0, count, (resamples, count))
