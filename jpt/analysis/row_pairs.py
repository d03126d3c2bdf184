"""What is known of some prompts against some others, row by row, in float64, in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int
from tqdm import tqdm

SMALLEST_NORM = 1e-8
"""A norm below it counts as this: the cosine of a row of zeros is 0 (torch's cosine_similarity,
with which the paper's code computes)."""

# Squared distances below this share of the squared norms lose too many digits in a gram matrix
# (the error of a distance would be above 1e-11 of the norms); they are computed from differences.
_NEAR = 1e-10
_BLOCK_ROWS = 800  # of each side: a gram matrix of 5 MB stays in the cache
_NEAR_ROWS = 2048  # differences of near rows at once, 17 MB at width 1024

Pairs = Float64[np.ndarray, "a b"]


@dataclass(frozen=True)
class RowPairs:
    """Some prompts (a) against some others (b): what indicators of vectors are made of."""

    a: Float64[np.ndarray, "a P D"]  # rows of the ones
    b: Float64[np.ndarray, "b P D"]  # rows of the others
    products: Float64[np.ndarray, "a b P"]  # of the rows at equal places
    apart: Float64[np.ndarray, "a b P"]  # squared distances of the rows at equal places
    distances: Float64[np.ndarray, "a P b P"]  # of every row and every row

    def from_row(self, first: int) -> RowPairs:
        """Leaves out the rows before one."""
        return RowPairs(
            self.a[:, first:],
            self.b[:, first:],
            self.products[:, :, first:],
            self.apart[:, :, first:],
            self.distances[:, first:, :, first:],
        )

    def whole_cosines(self) -> Pairs:
        """Cosines of the prompts as one long vector each."""
        norms = [floored_norms(side.reshape(len(side), -1)) for side in (self.a, self.b)]
        return np.clip(self.products.sum(-1) / norms[0][:, None] / norms[1][None], -1, 1)

    def row_cosines(self) -> Float64[np.ndarray, "a b P"]:
        """Cosines of the rows at equal places."""
        norms = floored_norms(self.a)[:, None], floored_norms(self.b)[None]
        return np.clip(self.products / norms[0] / norms[1], -1, 1)

    def mean_cosines(self) -> Pairs:
        """The mean over all cosines of unit rows is the product of the two means of unit rows."""
        means = [(side / floored_norms(side)[..., None]).mean(1) for side in (self.a, self.b)]
        return np.clip(means[0] @ means[1].T, -1, 1)


def row_pairs(
    bank: Float32[np.ndarray, "K P D"], progress: bool = False
) -> Iterator[tuple[tuple[slice, slice], RowPairs]]:
    """Goes through the upper triangle of all pairs, a block at a time."""
    size = max(1, _BLOCK_ROWS // bank.shape[1])
    slices = [slice(start, start + size) for start in range(0, len(bank), size)]
    total = len(slices) * (len(slices) + 1) // 2
    with tqdm(total=total, desc="indicators", unit="block", disable=not progress) as bar:
        for count, left in enumerate(slices):
            a = bank[left].astype(np.float64)
            for right in slices[count:]:
                yield (left, right), compare_rows(a, bank[right].astype(np.float64))
                bar.update()


def compare_rows(a: Float64[np.ndarray, "a P D"], b: Float64[np.ndarray, "b P D"]) -> RowPairs:
    """Compares every row of some prompts with every row of some others."""
    rows, width = np.arange(a.shape[1]), a.shape[2]
    gram = (a.reshape(-1, width) @ b.reshape(-1, width).T).reshape(
        *a.shape[:2], *b.shape[:2]
    )  # [a, P, b, P]
    products = np.moveaxis(gram[:, rows, :, rows], 0, -1)  # [P, a, b] -> [a, b, P]
    apart = np.stack([_squared(b - one) for one in a])
    norms = _squared(a)[:, :, None, None] + _squared(b)
    gram *= -2
    squared = np.maximum(gram + norms, 0)
    near = squared < _NEAR * norms
    # Rows at equal places are the ones that are often near: prompts of a study start equal.
    near[:, rows, :, rows] = False
    squared[:, rows, :, rows] = np.moveaxis(apart, -1, 0)
    _mend(squared, near, a, b)
    return RowPairs(a, b, products, apart, np.sqrt(squared, out=squared))


def floored_norms(rows: Float64[np.ndarray, "*N D"]) -> Float64[np.ndarray, "*N"]:
    """Gives the norms of rows, at least `SMALLEST_NORM`."""
    return np.maximum(np.sqrt(_squared(rows)), SMALLEST_NORM)


def symmetric(pairs: Float[np.ndarray, "K K"]) -> Float64[np.ndarray, "K K"]:
    """Puts the upper triangle on both sides; an own pair that is 1 but for its last digits is 1."""
    whole = np.triu(pairs) + np.triu(pairs, 1).T
    own = whole.diagonal()
    np.fill_diagonal(whole, np.where(np.abs(own - 1) < 1e-12, 1, own))
    return whole


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
