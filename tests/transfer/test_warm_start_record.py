"""The notes say what a reader of the ratios has to know, the text shows what is there."""

from __future__ import annotations

import numpy as np

import jpt
from jpt.transfer.warm_start import (
    ScoreCurve,
    _notes,
    arithmetic_mean,
    compare_curves,
    describe_record,
    geometric_mean,
)
from jpt.tuning.tune import WarmStart

SEEDS = [3, 4]


def start(**card: object) -> WarmStart:
    values = np.ones((2, 4), np.float32)
    return WarmStart("one", jpt.Prompt(values, jpt.PromptCard("bert", "sst2", **card)))


def notes_of(vanilla: list[list[float]], warm: list[list[float]], **card: object) -> list[str]:
    curves = {
        (seed, name): ScoreCurve(np.array([0, 10, 20]), np.array(values))
        for name, runs in (("vanilla", vanilla), ("one", warm))
        for seed, values in zip(SEEDS, runs, strict=True)
    }
    pairs = [(curves[seed, "vanilla"], curves[seed, "one"]) for seed in SEEDS]
    compared = {"one": [compare_curves(*pair) for pair in pairs]}
    return _notes({"one": start(**card)}, compared, curves, SEEDS, 0.01)


def test_notes_count_the_seeds_that_a_ratio_hides() -> None:
    assert notes_of([[0.5, 0.6, 0.7]] * 2, [[0.5, 0.6, 0.7]] * 2) == []
    found = notes_of([[0.5, 0.6, 0.7], [0.5, 0.6, 0.7]], [[0.5, 0.6, 0.65], [0.71, 0.71, 0.9]])
    assert found == [
        "one did not reach the vanilla run's best in 1 of 2 seeds",
        "one had the vanilla run's best at step 0 in 1 of 2 seeds",
        "one converged to less than the vanilla run in 1 of 2 seeds",
        "one converged to more than the vanilla run in 1 of 2 seeds",
    ]


def test_notes_on_what_did_not_learn_and_on_positions() -> None:
    found = notes_of([[0.5, 0.5, 0.5]] * 2, [[0.505, 0.5, 0.5]] * 2, first_position=1)
    assert found == [
        "vanilla was never better than its start in 2 of 2 seeds",
        "one was tuned with text from position 1, here from 0",
        "one had the vanilla run's best at step 0 in 2 of 2 seeds",
        "one converged at step 0 in 2 of 2 seeds",
    ]


def test_the_text_says_how_many_seeds_a_mean_is_of_and_what_was_not_reached() -> None:
    comparison = {
        "convergence_speed_up": geometric_mean([2.0, 2.0, 2.0]),
        "comparable_speed_up": geometric_mean([4.0, None, 4.0]),
        "gain": arithmetic_mean([0.02, 0.02, 0.02]),
    }
    never = {**comparison, "comparable_speed_up": geometric_mean([None] * 3)}
    wild = {**comparison, "comparable_speed_up": geometric_mean([0.1, None, 20.0])}
    run = {"at_start": 0.5, "best": 0.8125, "final": 0.75}
    names = ("vanilla", "some", "never", "wild")
    record = {
        "task": "mood",
        "backbone": "bert",
        "metric": "accuracy",
        "steps": 20,
        "seeds": [0, 1, 2],
        "final_split": "test",
        "confidence": 0.95,
        "sources": dict.fromkeys(names[1:]),
        "runs": [{"run": name, **run} for name in names],
        "comparisons": {"some": comparison, "never": never, "wild": wild},
        "notes": [],
    }
    lines = [line.split() for line in describe_record(record).splitlines()]
    assert ["vanilla", "0.500", "0.812", "0.750"] in lines
    assert ["some", "0.500", "0.812", "0.750", "+2.0", "[+2.0,", "+2.0]"] in lines
    speed = ["2.00", "[2.00,", "2.00]"]
    assert ["some", *speed, "4.00", "[4.00,", "4.00]", "2/3"] in lines
    assert ["never", *speed, "not", "reached"] in lines
    assert ["wild", *speed, "1.41", "[0.00,", ">999]", "2/3"] in lines
