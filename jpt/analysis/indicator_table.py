"""The table of indicators: what `jpt.indicators` computes. A new one is one entry here.

An indicator of vectors (`OF_ROWS`) makes a matrix [a, b] of a `RowPairs`, one of neurons
(`OF_NEURONS`) a matrix [K, K] of a `NeuronPairs`. Its column is computed, written, read, correlated
and shown like all others; only the upper triangle counts.

Example:
    >>> OF_ROWS["cosine_last"] = Indicator(
    ...     "C_last", "cosine of the last rows", lambda pairs: pairs.row_cosines()[..., -1]
    ... )
    >>> del OF_ROWS["cosine_last"]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jpt.analysis.neuron_pairs import NeuronPairs
from jpt.analysis.row_pairs import RowPairs


@dataclass(frozen=True)
class Indicator:
    """One way to say how alike two prompts are."""

    label: str  # its name for people
    meaning: str  # what it is, in a few words
    # gives the matrix of a `RowPairs` or a `NeuronPairs`; None where that lacks what the indicator
    # needs, which leaves the column out
    compute: Callable[[Any], Any]
    windows: bool = False  # of neurons: whether every three consecutive layers have a column, too
    undefined: str = "no neuron is activated"  # of neurons: of which prompts it is NaN


def _near(distances: Any) -> Any:
    return 1 / (1 + distances)


OF_ROWS: dict[str, Indicator] = {
    "euclidean_concat": Indicator(
        "E_concat",
        "nearness of the two whole prompts",
        lambda pairs: _near(np.sqrt(pairs.apart.sum(-1))),
    ),
    "euclidean_average": Indicator(
        "E_average",
        "mean nearness of all pairs of their rows",
        lambda pairs: _near(pairs.distances.mean((1, 3))),
    ),
    "cosine_concat": Indicator(
        "C_concat", "cosine of the two whole prompts", RowPairs.whole_cosines
    ),
    "cosine_average": Indicator(
        "C_average", "mean cosine of all pairs of their rows", RowPairs.mean_cosines
    ),
    "euclidean_rows": Indicator(
        "E_rows",
        "mean nearness of their rows at equal places",
        lambda pairs: _near(np.sqrt(pairs.apart).mean(-1)),
    ),
    "cosine_rows": Indicator(
        "C_rows",
        "mean cosine of their rows at equal places",
        lambda pairs: pairs.row_cosines().mean(-1),
    ),
}
"""Indicators that compare the vectors of two prompts."""

PAPER = ("euclidean_concat", "euclidean_average", "cosine_concat", "cosine_average")
"""Those of the paper's section 5."""

OF_NEURONS: dict[str, Indicator] = {
    "neuron_overlap": Indicator(
        "ON",
        "cosine of which neurons the prompts activate",
        lambda pairs: pairs.cosines(pairs.shared),
        windows=True,
    ),
    "neuron_jaccard": Indicator(
        "Jaccard",
        "neurons that both activate, among those that either does",
        NeuronPairs.jaccard,
    ),
    "activation_cosine": Indicator(
        "C_activations",
        "cosine of the activations themselves",
        lambda pairs: pairs.cosines(pairs.products),
        undefined="all activations are 0",
    ),
    "activation_cka": Indicator(
        "CKA",
        "linear CKA of the activations over rows of text, mean over layers",
        lambda pairs: pairs.cka,
        undefined="the activations of a layer are the same for all rows",
    ),
}
"""Indicators that compare the neurons behind two prompts, in a window of layers."""


def is_indicator(column: str) -> bool:
    """Says whether a column of a table holds an indicator."""
    return column.startswith((*OF_ROWS, *OF_NEURONS))
