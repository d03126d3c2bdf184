"""How sure a mean over targets is: bootstrap intervals, and how far one indicator leads another.

The targets are drawn anew, with replacement, as often as there are targets, and the mean is taken
each time; the interval holds the middle of these means (percentile bootstrap). With few targets the
middle 95 % are too narrow: of six targets they hold the truth about 86 times in 100. So the share
is widened as Hesterberg proposes ("What Teachers Should Know about the Bootstrap", 2015): so that
the interval of normal numbers is that of Student's t. It never leaves the range of the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int
from scipy.special import ndtr, stdtrit

LEVEL, DRAWS, SEED = 0.95, 10_000, 0
METHOD = "percentile bootstrap over targets, widened for few targets (Hesterberg 2015)"


@dataclass(frozen=True)
class Lead:
    """How far one indicator's mean rank correlation is above another's, over the same targets.

    Attributes:
        mean: the mean difference; None where no target has both.
        interval: of that mean; None for fewer than two targets.
        n_targets: how many have both.
    """

    mean: float | None
    interval: tuple[float, float] | None
    n_targets: int


def mean_interval(
    values: Sequence[float], *, level: float = LEVEL, draws: int = DRAWS, seed: int = SEED
) -> tuple[float, float] | None:
    """Says between which bounds a mean lies, by drawing its numbers anew.

    Args:
        values: one number a target.
        level: how often the bounds should hold the truth.
        draws: how often the numbers are drawn.
        seed: of the draws; numbers of equal count are drawn at equal places.

    Returns:
        The bounds; None for fewer than two numbers, which say nothing of their scatter.

    Example:
        >>> low, high = mean_interval([0.2, 0.3, 0.4, 0.5, 0.6])
        >>> round(low, 2), round(high, 2)
        (0.22, 0.58)
        >>> mean_interval([0.2]) is None
        True
    """
    if len(values) < 2:
        return None
    numbers = np.asarray(values, np.float64)
    means = numbers[_places(len(numbers), draws, seed)].mean(1)
    tail = tail_share(len(numbers), level)
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def tail_share(count: int, level: float = LEVEL) -> float:
    """Computes which share of the means is cut off at either end.

    Args:
        count: of numbers, two or more.
        level: how often the bounds should hold the truth.

    Returns:
        The share: (1 - level) / 2 for very many numbers, less for few.

    Example:
        >>> round(tail_share(1_000_000), 4), round(tail_share(6), 4)
        (0.025, 0.0024)
    """
    student = stdtrit(count - 1, (1 + level) / 2)
    return float(ndtr(-np.sqrt(count / (count - 1)) * student))


def lead(
    one: Mapping[str, float | None], other: Mapping[str, float | None], *, seed: int = SEED
) -> Lead:
    """Subtracts one indicator's rank correlations from another's, target by target.

    Args:
        one: correlation by target; None or NaN where it is not defined.
        other: of the other indicator.
        seed: of the draws.

    Returns:
        How far the first leads.

    Example:
        >>> lead({"a": 0.5, "b": 0.75, "c": None}, {"a": 0.25, "b": 0.5, "c": 1.0})
        Lead(mean=0.25, interval=(0.25, 0.25), n_targets=2)
    """
    gaps = differences(one, other)
    mean = float(np.mean(gaps)) if gaps else None
    return Lead(mean, mean_interval(gaps, seed=seed), len(gaps))


def differences(one: Mapping[str, float | None], other: Mapping[str, float | None]) -> list[float]:
    """Subtracts two indicators target by target.

    Args:
        one: a number by target; None or NaN where it is not defined.
        other: likewise.

    Returns:
        The differences of the targets that both have.

    Example:
        >>> differences({"a": 0.5, "b": float("nan")}, {"a": 0.25, "b": 1.0})
        [0.25]
    """
    pairs = [(one[target], other[target]) for target in one if target in other]
    gaps = [float("nan") if None in pair else pair[0] - pair[1] for pair in pairs]
    return [gap for gap in gaps if np.isfinite(gap)]


@lru_cache(maxsize=32)
def _places(count: int, draws: int, seed: int) -> Int[np.ndarray, "R N"]:
    return np.random.default_rng(seed).integers(0, count, (draws, count))
