"""The loss of a run as one line: the right numbers, the right heights, at most 80 columns."""

from __future__ import annotations

import numpy as np
import pytest

from jpt.tuning.logging import BLOCKS, COLUMNS, plot_loss, sparkline


def history(losses: list[float]) -> list[dict]:
    lines = [{"step": 10 * n, "split": "train", "loss": loss} for n, loss in enumerate(losses, 1)]
    lines.insert(1, {"step": 10, "split": "validation", "loss": 99.0, "accuracy": 0.5})
    lines.insert(2, {"step": 10, "split": "validation", "accuracy": 0.5})
    return lines


def test_first_lowest_and_last_loss_are_told() -> None:
    line = plot_loss(history([0.9, 0.7, 0.25, 0.4]))
    assert line.startswith("loss 0.900 ") and line.endswith(" 0.400, lowest 0.250 at step 30")
    assert line.split()[2] == "█▆▁▃"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_two_losses_are_no_curve(count: int) -> None:
    assert plot_loss(history([0.5] * count)) is None


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e12])
def test_long_runs_fit_the_terminal(scale: float) -> None:
    losses = (scale * np.random.default_rng(0).uniform(size=30_000)).tolist()
    line = plot_loss(history(losses))
    assert len(line) == COLUMNS
    assert set(line.split()[2]) <= set(BLOCKS)


def test_each_block_is_the_mean_of_its_steps() -> None:
    values = np.repeat([0.0, 7.0, 3.0, 3.0], 50) + np.tile([-1.0, 1.0], 100)
    assert sparkline(values, 4) == "▁█▄▄"
    assert sparkline(values[:1], 4) == "▁"
    assert sparkline(np.full(9, 0.3), 40) == "▁" * 9
