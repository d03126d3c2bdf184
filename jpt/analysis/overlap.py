"""How alike the neurons behind prompts are: every indicator of the table, window by window.

ON, the paper's, is the cosine of two prompts' 0/1 vectors: shared / sqrt(activated by a x activated
by b). A neuron is activated where its value is above 0. Of a probe on text it is the cosine of the
shares of rows in which neurons are activated. The authors' code
(``caculate_metric_value_for_correlation.py``) takes windows of three layers from layers 0, 3, 6 and
so on, and all layers; here every window of three is there, and the top three are the default.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from jpt.analysis.indicator_table import OF_NEURONS
from jpt.analysis.neuron_pairs import LayerPairs
from jpt.analysis.row_pairs import symmetric
from jpt.errors import InputError
from jpt.types import Activations

OVERLAP = "neuron_overlap"
ALL = "_all"
OVERLAP_ALL = OVERLAP + ALL
WINDOW = "_layers_"
WINDOW_PREFIX = OVERLAP + WINDOW
WINDOW_LAYERS = 3
_SHOWN = 5


def neuron_similarities(
    activations: Activations, layers: str | tuple[int, int] | None = None
) -> tuple[dict[str, Float64[np.ndarray, "K K"]], list[str]]:
    """Computes the indicators of neurons of every pair of prompts."""
    count = activations.values.shape[1]
    chosen = parse_layers(layers, count)
    windows = [(start, start + WINDOW_LAYERS - 1) for start in range(count - WINDOW_LAYERS + 1)]
    pairs = LayerPairs(activations)
    sums = {window: pairs.window(*window) for window in (chosen, *windows, (0, count - 1))}
    columns: dict[str, Float64[np.ndarray, "K K"]] = {}
    undefined: dict[tuple[str, str, tuple[int, int]], list[str]] = {}
    for name, indicator in OF_NEURONS.items():
        named = {name: chosen}
        if indicator.windows:
            named |= {f"{name}{WINDOW}{first}_{last}": (first, last) for first, last in windows}
        for column, window in {**named, name + ALL: (0, count - 1)}.items():
            matrix = indicator.compute(sums[window])
            if matrix is None:
                continue
            columns[column] = symmetric(matrix)
            lacking = _undefined(activations, columns[column])
            if lacking:
                key = (lacking, indicator.undefined, window)
                undefined.setdefault(key, []).append(column)
    return columns, [*_of_text(activations), *(_note(*item) for item in undefined.items())]


def parse_layers(layers: str | tuple[int, int] | None, count: int) -> tuple[int, int]:
    """Reads which layers a window has."""
    if layers is None:
        return max(0, count - WINDOW_LAYERS), count - 1
    parts = layers.split("-") if isinstance(layers, str) else [str(layer) for layer in layers]
    # isdecimal alone would take digits of other scripts.
    if len(parts) not in (1, 2) or not all(
        part.strip().isascii() and part.strip().isdecimal() for part in parts
    ):
        raise InputError(
            f"layers is {layers!r}; first and last layer expected, for instance"
            f" {max(0, count - WINDOW_LAYERS)}-{count - 1}"
        )
    first, last = int(parts[0]), int(parts[-1])
    if not first <= last < count:
        raise InputError(
            f"layers {first}-{last} are no window of the {count} layers of the activations; they"
            f" are numbered 0 to {count - 1}, the first named first"
        )
    return first, last


def _undefined(activations: Activations, column: Float64[np.ndarray, "K K"]) -> str:
    """The prompts that have no value of their own."""
    places = np.flatnonzero(np.isnan(column.diagonal()))
    names = ", ".join(activations.names[place] for place in places[:_SHOWN])
    return names + (f" and {places.size - _SHOWN} more" if places.size > _SHOWN else "")


def _note(key: tuple[str, str, tuple[int, int]], columns: list[str]) -> str:
    names, reason, (first, last) = key
    told = f"{columns[0]} is" if len(columns) == 1 else f"{', '.join(columns)} are"
    return f"{names}: {reason} in layers {first}-{last}, {told} not defined there"


def _of_text(activations: Activations) -> list[str]:
    """Says that neurons were read behind text, and what that makes of ON."""
    if activations.rates is None:
        return []
    probe = activations.probe
    rows = f"{probe.get('rows', 'some')} rows of {probe.get('task', 'text')}"
    return [
        f"the neurons are of {rows}: neuron_overlap is the cosine of the shares of rows in which"
        " neurons are activated, not of zeros and ones"
    ]
