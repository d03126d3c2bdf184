"""How much training a warm start saves: the two speed-ups, defined, and what several seeds say.

The paper names both speed-ups; its code computes neither, so the definitions are ours and stand in
`DEFINITIONS`, which every result carries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from scipy import stats

TOLERANCE = 0.01
"""How far below its best a run counts as converged: one point of a score between 0 and 1."""

CONFIDENCE = 0.95
_ROUNDING = 1e-9
"""What decimal fractions lose in binary: 0.71 - 0.01 is a little more than 0.70."""

DEFINITIONS = {
    "best": "highest plain (not smoothed) validation score of a run, step 0 included; "
    "its step is the first one that has it",
    "convergence": "first scored step whose validation score is within the tolerance of the "
    "run's own best",
    "convergence_speed_up": "convergence step of the vanilla run / that of the warm run; a run "
    "that learns nothing converges at once, so read it beside the best values",
    "comparable_speed_up": "step of the vanilla run's best / first scored step at which the warm "
    "run has that value; none where it never has it",
    "step_0": "what is reached at step 0 counts as reached at the first scored step of training",
    "gain": "final metric of the warm run's kept prompt minus that of the vanilla run's",
    "over_seeds": "speed-ups: geometric mean and t interval of the logarithms; gains: mean and t "
    "interval; runs are paired by seed, seeds without a value are left out and counted",
}


class Curve(NamedTuple):
    """How the validation score of a run went.

    Attributes:
        steps: rising, from 0.
        values: the score at each of them.
    """

    steps: Int64[np.ndarray, "N"]
    values: Float64[np.ndarray, "N"]

    def first_at(self, value: float) -> int | None:
        """Finds the first step with a score of at least some value.

        Args:
            value: the score.

        Returns:
            The step, or None where no step has it.
        """
        reached = np.flatnonzero(self.values >= value - _ROUNDING)
        return int(self.steps[reached[0]]) if reached.size else None

    @property
    def best(self) -> float:
        """The highest score."""
        return float(self.values.max())

    @property
    def best_step(self) -> int:
        """The first step that has it."""
        return int(self.steps[self.values.argmax()])

    def convergence_step(self, tolerance: float = TOLERANCE) -> int:
        """Finds the first step whose score is within a tolerance of the best.

        Args:
            tolerance: how far below, in the unit of the score.

        Returns:
            The step; 0 where the start itself is that good.
        """
        step = self.first_at(self.best - tolerance)
        assert step is not None
        return step

    def counted(self, step: int) -> int:
        """Counts what is reached before any training as reached at the first scoring after it.

        Args:
            step: one of the curve's.

        Returns:
            The step, 0 made the first one above it.
        """
        return step if step > 0 else int(self.steps[self.steps > 0][0])


@dataclass(frozen=True)
class Comparison:
    """A warm run against the vanilla run of its seed.

    Attributes:
        convergence: convergence speed-up.
        comparable: comparable-result speed-up; None where the vanilla run's best is not reached.
        converged_at_start: whether the warm run converged at step 0.
        reached_at_start: whether it had the vanilla run's best at step 0.
    """

    convergence: float
    comparable: float | None
    converged_at_start: bool
    reached_at_start: bool


def compare_curves(vanilla: Curve, warm: Curve, tolerance: float = TOLERANCE) -> Comparison:
    """Computes both speed-ups of one seed (see `DEFINITIONS`).

    Args:
        vanilla: of the run from a random start.
        warm: of the run from a given prompt, scored at the same steps.
        tolerance: of convergence.

    Returns:
        The comparison.

    Example:
        >>> steps = np.array([0, 10, 20, 30, 40])
        >>> vanilla = Curve(steps, np.array([0.5, 0.5, 0.6, 0.795, 0.8]))
        >>> warm = Curve(steps, np.array([0.7, 0.81, 0.81, 0.8, 0.81]))
        >>> found = compare_curves(vanilla, warm)
        >>> found.convergence, found.comparable
        (3.0, 4.0)
    """
    converged, reached = warm.convergence_step(tolerance), warm.first_at(vanilla.best)
    vanilla_converged = vanilla.counted(vanilla.convergence_step(tolerance))
    comparable = None
    if reached is not None:
        comparable = vanilla.counted(vanilla.best_step) / warm.counted(reached)
    return Comparison(
        vanilla_converged / warm.counted(converged), comparable, converged == 0, reached == 0
    )


def geometric_mean(ratios: Sequence[float | None]) -> dict[str, Any]:
    """Averages ratios over seeds: half and double make one.

    Args:
        ratios: above 0; None where a seed has no value.

    Returns:
        ``mean``, ``low``, ``high`` (None where seeds are too few), ``values``, ``seeds_without``.

    Example:
        >>> geometric_mean([0.5, 2.0, None])["mean"]
        1.0
    """
    logs = [None if ratio is None else math.log(ratio) for ratio in ratios]
    found = arithmetic_mean(logs)
    ends = ("mean", "low", "high")
    turned = {name: None if found[name] is None else math.exp(found[name]) for name in ends}
    return {**found, **turned, "values": list(ratios)}


def arithmetic_mean(values: Sequence[float | None]) -> dict[str, Any]:
    """Averages values over seeds, with the t interval of their mean.

    Args:
        values: None where a seed has no value.

    Returns:
        ``mean``, ``low``, ``high`` (None where seeds are too few), ``values``, ``seeds_without``.

    Example:
        >>> found = arithmetic_mean([1.0, 2.0, 3.0])
        >>> found["mean"], round(found["high"], 3)
        (2.0, 4.484)
    """
    known = np.array([value for value in values if value is not None], np.float64)
    mean = float(known.mean()) if known.size else None
    low = high = None
    if known.size > 1:
        half = stats.t.ppf(0.5 + CONFIDENCE / 2, known.size - 1) * stats.sem(known)
        low, high = mean - float(half), mean + float(half)
    return {
        "mean": mean,
        "low": low,
        "high": high,
        "values": list(values),
        "seeds_without": len(values) - known.size,
    }
