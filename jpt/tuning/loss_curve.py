"""The loss of a run as one line of a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

BLOCKS = "▁▂▃▄▅▆▇█"
COLUMNS = 80
_FEWEST = 3  # two points are no curve


def draw_loss(history: Iterable[Mapping[str, Any]]) -> str | None:
    """Draws the training loss with its first, lowest and last value."""
    lines = [line for line in history if line.get("split") == "train" and "loss" in line]
    if len(lines) < _FEWEST:
        return None
    losses = np.array([line["loss"] for line in lines], np.float64)
    lowest = int(np.argmin(losses))
    left = f"loss {_short(losses[0])} "
    right = (
        f" {_short(losses[-1])}, lowest {_short(losses[lowest])} at step {lines[lowest]['step']}"
    )
    return f"{left}{sparkline(losses, COLUMNS - len(left) - len(right))}{right}"


def sparkline(values: np.ndarray, columns: int) -> str:
    """Draws numbers as blocks of eight heights."""
    parts = np.array_split(values, min(columns, len(values)))
    means = np.array([part.mean() for part in parts])
    spread = means.max() - means.min()
    heights = (means - means.min()) / (spread if spread > 0 else 1.0) * (len(BLOCKS) - 1)
    return "".join(BLOCKS[height] for height in np.rint(heights).astype(int))


def _short(loss: float) -> str:
    """A loss in three digits that count."""
    return f"{loss:.3f}" if 0.001 <= abs(loss) < 1000 or loss == 0 else f"{loss:.2e}"
