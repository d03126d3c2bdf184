"""Confidence intervals over targets, and standard errors of scores over rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float64, Int
from scipy.special import ndtr, stdtrit

from jpt.results.records import Lead
from jpt.tasks.metrics import METRICS, count_confusions

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


# --- Standard errors of scores, over the sampling of rows

ERROR_RESAMPLES = 1000


def score_error(
    metric: str, predictions: Int[np.ndarray, "N"], labels: Int[np.ndarray, "N"], seed: int = SEED
) -> float:
    """Return the standard error of a classification score, bootstrapped unless it is a mean."""
    if metric == "accuracy":
        return mean_error(predictions == labels)
    # Resampling rows is a multinomial draw of the confusion matrix, whatever the number of rows.
    counts, rng = count_confusions(predictions, labels), np.random.default_rng(seed)
    cells = np.flatnonzero(counts)
    shares = counts.flat[cells] / len(labels)
    scores = []
    # In parts, so that many classes need little memory.
    for part in np.array_split(
        rng.multinomial(len(labels), shares, ERROR_RESAMPLES), 1 + counts.size // 64**2
    ):
        resampled = np.zeros((len(part), counts.size))
        resampled[:, cells] = part
        scores.append(METRICS[metric](resampled.reshape(-1, *counts.shape)))
    return float(np.concatenate(scores).std())


def mean_error(scores: Sequence[float] | np.ndarray) -> float:
    """Return the standard error of the mean of the scores of rows."""
    return float(np.std(scores)) / math.sqrt(len(scores))


def error_over_seeds(values: Sequence[float], errors: Sequence[float | None]) -> float:
    """Return the standard error of the mean score of one or several seeds; NaN if unknown."""
    # All seeds are scored on the same rows, so the errors over rows do not average out: their root
    # mean square is kept. The variance of the mean over seeds is added to its square.
    spread = float(np.var(values, ddof=1)) / len(values) if len(values) > 1 else 0.0
    return math.sqrt(float(np.mean(np.square(np.array(errors, np.float64)))) + spread)


# --- Scores above chance
# (score - chance) / (in-task score - chance). The paper divides the scores themselves, which gives
# a prompt at chance level 50 to 100 %.

CLEAR_ERRORS, NEAR_ERRORS = 2, 1  # standard errors

Numbers = Float64[np.ndarray, "*N"] | float


def above_chance(
    values: Numbers, chance: Numbers, in_task: Numbers, in_task_error: Numbers
) -> Float64[np.ndarray, "*N"]:
    """Return (score - chance) / (in-task score - chance); NaN where that is near chance."""
    lead = np.subtract(in_task, chance)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.subtract(values, chance) / lead
        return np.where(lead > np.multiply(CLEAR_ERRORS, in_task_error), ratios, np.nan)


def is_at_chance(values: Numbers, chance: Numbers, errors: Numbers) -> Bool[np.ndarray, "*N"]:
    """Return which scores are within one standard error of chance; False where unknown."""
    return np.less_equal(np.abs(np.subtract(values, chance)), np.multiply(NEAR_ERRORS, errors))
