"""What the columns of ``indicators.csv`` are called where people read."""

from __future__ import annotations

import re
from collections.abc import Iterable

from jpt.analysis.indicator_table import OF_NEURONS, OF_ROWS, PAPER

EMBEDDING = {name: OF_ROWS[name].label for name in PAPER}
"""The paper's four indicators that compare the vectors of two prompts (its section 5)."""

MEANINGS = {name: indicator.meaning for name, indicator in {**OF_ROWS, **OF_NEURONS}.items()}

OVERLAP = "neuron_overlap"
OVERLAP_ALL = "neuron_overlap_all"
_WINDOW = re.compile(r"neuron_overlap_layers_(\d+)_(\d+)")
_WITH_ROW, _ALL = "_with_row0", "_all"


def indicator_label(name: str) -> str:
    """Gives the name of an indicator for people."""
    window = window_of(name)
    if window is not None:
        return f"ON, layers {window[0]}–{window[1]}"
    if name.endswith(_WITH_ROW):
        return f"{indicator_label(name.removesuffix(_WITH_ROW))} with row 0"
    if name.endswith(_ALL) and name.removesuffix(_ALL) in OF_NEURONS:
        return f"{OF_NEURONS[name.removesuffix(_ALL)].label}, all layers"
    table = {**OF_ROWS, **OF_NEURONS}
    return table[name].label if name in table else name


def window_of(name: str) -> tuple[int, int] | None:
    """Reads the layers off the name of a window."""
    found = _WINDOW.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None


def windows(names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Finds the windows among the columns."""
    found = {name: window for name in names if (window := window_of(name)) is not None}
    return dict(sorted(found.items(), key=lambda item: item[1]))
