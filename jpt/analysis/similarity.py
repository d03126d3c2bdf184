"""How alike prompts are as vectors: every indicator of the table, in float64, in blocks.

With prompts a and b of rows a_i and b_j, flattened A and B:

    euclidean_concat   1 / (1 + |A - B|)
    euclidean_average  1 / (1 + mean over all i, j of |a_i - b_j|)
    cosine_concat      cos(A, B)
    cosine_average     mean over all i, j of cos(a_i, b_j)
    euclidean_rows     1 / (1 + mean over i of |a_i - b_i|)
    cosine_rows        mean over i of cos(a_i, b_i)

The first four are the paper's. Its averages compare every row with every row, so a prompt's own
averages are not 1; in the last two a prompt is most like itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Float64

from jpt.analysis.indicator_table import OF_ROWS, PAPER
from jpt.analysis.row_pairs import row_pairs, symmetric

EMBEDDING_INDICATORS = PAPER
"""The paper's four."""


def embedding_similarities(
    bank: Float32[np.ndarray, "K P D"], first_rows: Sequence[int] = (0,), *, progress: bool = False
) -> list[dict[str, Float64[np.ndarray, "K K"]]]:
    """Computes the indicators of vectors of every pair of prompts."""
    # Each unordered pair counts once, so the matrices are exactly symmetric. (The authors'
    # ``caculate_metric_value_for_correlation.py`` goes through ordered pairs in float32.)
    found = [{name: np.zeros((len(bank), len(bank))) for name in OF_ROWS} for _ in first_rows]
    for place, pairs in row_pairs(bank, progress):
        for columns, first in zip(found, first_rows, strict=True):
            some = pairs.from_row(first)
            for name, indicator in OF_ROWS.items():
                columns[name][place] = indicator.compute(some)
    return [{name: symmetric(matrix) for name, matrix in columns.items()} for columns in found]
