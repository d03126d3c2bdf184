"""How alike prompts are as vectors: the paper's four embedding indicators, in float64, in blocks.

With prompts a and b of rows a_i and b_j, flattened A and B:

    euclidean_concat   1 / (1 + |A - B|)
    euclidean_average  1 / (1 + mean over all i, j of |a_i - b_j|)
    cosine_concat      cos(A, B)
    cosine_average     mean over all i, j of cos(a_i, b_j)

The averages compare every row with every row, so a prompt's own averages are not 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int
from tqdm import tqdm

EMBEDDING_INDICATORS = (
    "euclidean_concat",
    "euclidean_average",
    "cosine_concat",
    "cosine_average",
)

# A norm below it counts as this: the cosine of a row of zeros is 0 (torch's cosine_similarity,
# with which the paper's code computes).
_SMALLEST_NORM = 1e-8
# Squared distances below this share of the squared norms lose too many digits in a gram matrix
# (the error of a distance would be above 1e-11 of the norms); they are computed from differences.
_NEAR = 1e-10
_BLOCK_ROWS = 800  # of each side: a gram matrix of 5 MB stays in the cache
_NEAR_ROWS = 2048  # differences of near rows at once, 17 MB at width 1024

Pairs = Float64[np.ndarray, "K K"]


def embedding_similarities(
    bank: Float32[np.ndarray, "K P D"], first_rows: Sequence[int] = (0,), *, progress: bool = False
) -> list[dict[str, Pairs]]:
    """Computes the four embedding indicators of every pair of prompts.

    Each unordered pair counts once, so the matrices are exactly symmetric. (The authors'
    ``caculate_metric_value_for_correlation.py`` goes through ordered pairs in float32.)

    Args:
        bank: the prompts.
        first_rows: for each of these, the rows before it are left out; all share the work.
        progress: whether to show a bar on stderr.

    Returns:
        For each of ``first_rows`` the matrices by name.

    Example:
        >>> bank = np.array([[[3.0, 4.0]], [[0.0, 0.0]]], np.float32)
        >>> (found,) = embedding_similarities(bank)
        >>> found["euclidean_concat"].round(4).tolist()
        [[1.0, 0.1667], [0.1667, 1.0]]
    """
    squares = _row_squares(bank)
    shape = (len(first_rows), len(bank), len(bank))
    apart, products, distances = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for place, block in _blocks(bank, squares, progress):
        for variant, first in enumerate(first_rows):
            apart[variant][place] = block.apart[:, :, first:].sum(-1)
            products[variant][place] = block.products[:, :, first:].sum(-1)
            distances[variant][place] = block.distances[:, first:, :, first:].mean((1, 3))
    return [
        {
            "euclidean_concat": _mirrored(1 / (1 + np.sqrt(apart[variant]))),
            "euclidean_average": _mirrored(1 / (1 + distances[variant])),
            "cosine_concat": _cosines(products[variant], np.sqrt(squares[:, first:].sum(1))),
            "cosine_average": _mean_cosines(bank, squares, first),
        }
        for variant, first in enumerate(first_rows)
    ]


class _Block:
    """What is known of some prompts (a) against some others (b), row by row.

    Attributes:
        apart: [a, b, P] squared distances of the rows at equal places.
        products: [a, b, P] their products.
        distances: [a, P, b, P] distances of all rows.
    """

    def __init__(
        self,
        a: Float64[np.ndarray, "a P D"],
        b: Float64[np.ndarray, "b P D"],
        a_squares: Float64[np.ndarray, "a P"],
        b_squares: Float64[np.ndarray, "b P"],
    ) -> None:
        rows = np.arange(a.shape[1])
        width = a.shape[2]
        gram = (a.reshape(-1, width) @ b.reshape(-1, width).T).reshape(
            *a.shape[:2], *b.shape[:2]
        )  # [a, P, b, P]
        self.products = np.moveaxis(gram[:, rows, :, rows], 0, -1)  # [P, a, b] -> [a, b, P]
        self.apart = np.stack([_squared(b - one) for one in a])
        norms = a_squares[:, :, None, None] + b_squares
        gram *= -2
        squared = np.maximum(gram + norms, 0)
        near = squared < _NEAR * norms
        # Rows at equal places are the ones that are often near: prompts of a study start equal.
        near[:, rows, :, rows] = False
        squared[:, rows, :, rows] = np.moveaxis(self.apart, -1, 0)
        _mend(squared, near, a, b)
        self.distances = np.sqrt(squared)


def _blocks(
    bank: Float32[np.ndarray, "K P D"], squares: Float64[np.ndarray, "K P"], progress: bool
) -> Iterator[tuple[tuple[slice, slice], _Block]]:
    """The upper triangle of the pairs, a block at a time; memory does not grow with K."""
    size = max(1, _BLOCK_ROWS // bank.shape[1])
    slices = [slice(start, start + size) for start in range(0, len(bank), size)]
    total = len(slices) * (len(slices) + 1) // 2
    with tqdm(total=total, desc="indicators", unit="block", disable=not progress) as bar:
        for count, left in enumerate(slices):
            a = bank[left].astype(np.float64)
            for right in slices[count:]:
                b = bank[right].astype(np.float64)
                yield (left, right), _Block(a, b, squares[left], squares[right])
                bar.update()


def _mend(
    squared: Float64[np.ndarray, "a P b P"],
    near: Bool[np.ndarray, "a P b P"],
    a: Float64[np.ndarray, "a P D"],
    b: Float64[np.ndarray, "b P D"],
) -> None:
    """Computes the near ones among the squared distances from differences, in place."""
    places: Int[np.ndarray, "4 N"] = np.array(np.nonzero(near))
    for start in range(0, places.shape[1], _NEAR_ROWS):
        some = places[:, start : start + _NEAR_ROWS]
        squared[tuple(some)] = _squared(a[some[0], some[1]] - b[some[2], some[3]])


def _squared(rows: Float64[np.ndarray, "*N D"]) -> Float64[np.ndarray, "*N"]:
    return np.einsum("...d,...d->...", rows, rows)


def _row_squares(bank: Float32[np.ndarray, "K P D"]) -> Float64[np.ndarray, "K P"]:
    return np.stack([_squared(prompt.astype(np.float64)) for prompt in bank])


def _cosines(products: Pairs, norms: Float64[np.ndarray, "K"]) -> Pairs:
    """Cosines of the flattened prompts; 1 with itself, whatever the last digit says."""
    floored = np.maximum(norms, _SMALLEST_NORM)
    cosines = np.clip(_mirrored(products / floored[:, None] / floored[None]), -1, 1)
    np.fill_diagonal(cosines, np.where(norms >= _SMALLEST_NORM, 1, cosines.diagonal()))
    return cosines


def _mean_cosines(
    bank: Float32[np.ndarray, "K P D"], squares: Float64[np.ndarray, "K P"], first: int
) -> Pairs:
    """The mean over all cosines of unit rows is the product of the two means of unit rows."""
    norms = np.maximum(np.sqrt(squares), _SMALLEST_NORM)
    pairs = zip(bank, norms, strict=True)
    means = np.stack([(prompt / norm[:, None])[first:].mean(0) for prompt, norm in pairs])
    return np.clip(_mirrored(means @ means.T), -1, 1)


def _mirrored(pairs: Pairs) -> Pairs:
    """The upper triangle on both sides."""
    return np.triu(pairs) + np.triu(pairs, 1).T
