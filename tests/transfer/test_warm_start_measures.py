"""Both speed-ups on curves made by hand, with the numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jpt.transfer.warm_start import ScoreCurve, arithmetic_mean, compare_curves, geometric_mean

STEPS = [0, 10, 20, 30, 40]
VANILLA = [0.50, 0.55, 0.70, 0.79, 0.80]


def curve(values: list[float]) -> ScoreCurve:
    return ScoreCurve(np.array(STEPS), np.array(values))


@pytest.mark.parametrize(
    ("values", "tolerance", "step"),
    [
        (VANILLA, 0.01, 30),  # 0.79 is 0.80 - 0.01, which binary fractions do not quite say
        (VANILLA, 0.0, 40),
        (VANILLA, 0.1, 20),
        ([0.5, 0.9, 0.9, 0.3, 0.9], 0.01, 10),  # a tie: the first counts, dips later do not
        ([0.9, 0.5, 0.5, 0.5, 0.905], 0.01, 0),
        ([0.5, 0.5, 0.5, 0.5, 0.5], 0.01, 0),
        ([-0.1, -0.05, 0.0, 0.2, 0.1], 0.01, 30),  # Matthews correlation may be below 0
    ],
)
def test_a_run_converges_at_the_first_step_near_its_own_best(values, tolerance, step) -> None:
    assert curve(values).convergence_step(tolerance) == step


def test_the_best_step_is_the_first_of_a_tie() -> None:
    found = curve([0.5, 0.8, 0.6, 0.8, 0.7])
    assert (found.best, found.best_step) == (0.8, 10)


@pytest.mark.parametrize(
    ("warm", "convergence", "comparable"),
    [
        (VANILLA, 1.0, 1.0),  # equal runs
        ([0.60, 0.795, 0.80, 0.80, 0.80], 3.0, 2.0),  # 30 / 10, and 40 / 20
        ([0.60, 0.90, 0.80, 0.80, 0.80], 3.0, 4.0),
        ([0.60, 0.60, 0.61, 0.61, 0.79], 30 / 40, None),  # never reached: 0.79 is not 0.80
        ([0.50, 0.50, 0.50, 0.50, 0.80], 30 / 40, 1.0),  # slower to converge, as fast in the end
    ],
)
def test_both_speed_ups(warm, convergence, comparable) -> None:
    found = compare_curves(curve(VANILLA), curve(warm))
    assert found.convergence == pytest.approx(convergence, abs=1e-12)
    assert found.comparable == comparable
    assert not found.converged_at_start and not found.reached_at_start


def test_what_the_start_reaches_counts_as_the_first_scored_step() -> None:
    found = compare_curves(curve(VANILLA), curve([0.85, 0.85, 0.84, 0.85, 0.855]))
    assert (found.convergence, found.comparable) == (30 / 10, 40 / 10)
    assert found.converged_at_start and found.reached_at_start


def test_a_start_that_never_learns_converges_at_once_and_reaches_nothing() -> None:
    found = compare_curves(curve(VANILLA), curve([0.5] * 5))
    assert (found.convergence, found.comparable) == (3.0, None)
    assert found.converged_at_start and not found.reached_at_start


def test_a_vanilla_run_that_never_learns_gives_no_division_by_zero() -> None:
    found = compare_curves(curve([0.5] * 5), curve([0.4, 0.4, 0.4, 0.6, 0.6]))
    assert (found.convergence, found.comparable) == (10 / 30, 10 / 30)
    assert compare_curves(curve([0.5] * 5), curve([0.5] * 5)).comparable == 1.0


def test_ratios_are_averaged_so_that_half_and_double_make_one() -> None:
    found = geometric_mean([0.5, 2.0])
    assert found["mean"] == pytest.approx(1.0)
    # 12.7062 is the two-sided 95 % point of t with one degree of freedom; the standard error of
    # the logarithms -ln 2 and ln 2 is ln 2.
    assert found["high"] == pytest.approx(2**12.7062, rel=1e-4)
    assert found["low"] == pytest.approx(2**-12.7062, rel=1e-4)
    assert found["values"] == [0.5, 2.0] and found["seeds_without"] == 0


def test_seeds_without_a_value_are_left_out_and_counted() -> None:
    found = geometric_mean([4.0, None, 9.0])
    assert found["mean"] == pytest.approx(6.0) and found["seeds_without"] == 1
    assert found["values"] == [4.0, None, 9.0]
    nothing = geometric_mean([None, None])
    assert (nothing["mean"], nothing["low"], nothing["high"]) == (None, None, None)
    assert nothing["seeds_without"] == 2


def test_the_interval_of_a_mean() -> None:
    found = arithmetic_mean([0.01, 0.02, 0.06])
    error = math.sqrt(((0.02**2) + (0.01**2) + (0.03**2)) / 2 / 3)
    assert found["mean"] == pytest.approx(0.03)
    assert found["high"] - found["mean"] == pytest.approx(4.302653 * error, rel=1e-6)
    assert found["mean"] - found["low"] == pytest.approx(4.302653 * error, rel=1e-6)
    one = arithmetic_mean([0.5])
    assert (one["mean"], one["low"], one["high"]) == (0.5, None, None)
    same = geometric_mean([3.0, 3.0, 3.0])
    assert same["low"] == pytest.approx(3.0) and same["high"] == pytest.approx(3.0)
