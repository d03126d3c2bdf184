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
    """How the validation score of a run went."""

    steps: Int64[np.ndarray, "N"]  # rising, from 0
    values: Float64[np.ndarray, "N"]  # the score at each of them

    def first_at(self, value: float) -> int | None:
        """Finds the first step with a score of at least some value."""
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
        """Finds the first step whose score is within a tolerance of the best."""
        step = self.first_at(self.best - tolerance)
        assert step is not None
        return step

    def counted(self, step: int) -> int:
        """Counts what is reached before any training as reached at the first scoring after it."""
        return step if step > 0 else int(self.steps[self.steps > 0][0])


@dataclass(frozen=True)
class Comparison:
    """A warm run against the vanilla run of its seed."""

    convergence: float  # convergence speed-up
    # comparable-result speed-up; None where the vanilla run's best is not reached
    comparable: float | None
    converged_at_start: bool  # whether the warm run converged at step 0
    reached_at_start: bool  # whether it had the vanilla run's best at step 0


def compare_curves(vanilla: Curve, warm: Curve, tolerance: float = TOLERANCE) -> Comparison:
    """Computes both speed-ups of one seed (see `DEFINITIONS`)."""
    converged, reached = warm.convergence_step(tolerance), warm.first_at(vanilla.best)
    vanilla_converged = vanilla.counted(vanilla.convergence_step(tolerance))
    comparable = None
    if reached is not None:
        comparable = vanilla.counted(vanilla.best_step) / warm.counted(reached)
    return Comparison(
        vanilla_converged / warm.counted(converged), comparable, converged == 0, reached == 0
    )


def geometric_mean(ratios: Sequence[float | None]) -> dict[str, Any]:
    """Averages ratios over seeds: half and double make one."""
    logs = [None if ratio is None else math.log(ratio) for ratio in ratios]
    found = arithmetic_mean(logs)
    ends = ("mean", "low", "high")
    turned = {name: None if found[name] is None else math.exp(found[name]) for name in ends}
    return {**found, **turned, "values": list(ratios)}


def arithmetic_mean(values: Sequence[float | None]) -> dict[str, Any]:
    """Averages values over seeds, with the t interval of their mean."""
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
