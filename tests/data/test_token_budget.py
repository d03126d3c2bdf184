"""Batches by tokens: every row once an epoch, never over the budget, by seed and step alone."""

from __future__ import annotations

import numpy as np
import pytest

from jpt.data.batches import BUCKETS, TokenBudget, make_batch
from jpt.data.encode import EncodedSplit
from jpt.errors import InputError

MAX = 100


def lengths_of(n_rows: int) -> np.ndarray:
    return np.random.default_rng(0).integers(2, MAX + 1, n_rows)


def budget_of(n_rows: int, tokens: int = 400, beside: int = 0, shares: int = 1) -> TokenBudget:
    return TokenBudget(lengths_of(n_rows), MAX, tokens, beside, shares)


@pytest.mark.parametrize("n_rows", [1, 7, 250])
@pytest.mark.parametrize(("tokens", "beside", "shares"), [(400, 0, 1), (400, 21, 2), (900, 5, 4)])
def test_every_row_comes_once_an_epoch(n_rows: int, tokens: int, beside: int, shares: int) -> None:
    budget = budget_of(n_rows, tokens, beside, shares)
    count = budget.steps_per_epoch
    for epoch in range(3):
        steps = range(epoch * count, (epoch + 1) * count)
        rows = np.concatenate([budget.training_rows(5, step)[0] for step in steps])
        assert sorted(rows) == list(range(n_rows))


@pytest.mark.parametrize(("tokens", "beside", "shares"), [(400, 0, 1), (400, 21, 2), (900, 5, 4)])
def test_no_batch_is_over_the_budget_and_few_are_far_below(
    tokens: int, beside: int, shares: int
) -> None:
    budget, lengths = budget_of(250, tokens, beside, shares), lengths_of(250)
    shapes = set()
    for step in range(budget.steps_per_epoch):
        rows, places = budget.training_rows(0, step)
        bucket = min([b for b in BUCKETS if b >= lengths[rows].max()] + [MAX])
        shapes.add((places, bucket))
        assert 1 <= len(rows) <= places and places % shares == 0
        assert places * (bucket + beside) <= tokens
        # One step more of rows would be too many.
        assert (places + shares) * (bucket + beside) > tokens
    # One shape a bucket, so each is compiled once.
    assert len(shapes) == len({bucket for _, bucket in shapes})


def test_a_step_gives_the_same_rows_whatever_was_asked_before() -> None:
    forward = [budget_of(90).training_rows(1, step)[0] for step in range(60)]
    budget = budget_of(90)
    for step in reversed(range(60)):
        np.testing.assert_array_equal(budget.training_rows(1, step)[0], forward[step])


def test_epochs_and_seeds_have_different_orders() -> None:
    budget = budget_of(90)
    count = budget.steps_per_epoch
    orders = {
        tuple(np.concatenate([budget.training_rows(seed, e * count + s)[0] for s in range(count)]))
        for seed in range(3)
        for e in range(3)
    }
    assert len(orders) == 9


def test_its_rows_make_batches() -> None:
    lengths = lengths_of(30)
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    tokens = np.arange(offsets[-1], dtype=np.int32)
    split = EncodedSplit(tokens, offsets, np.zeros(30, np.int32), 0)
    rows, places = budget_of(30).training_rows(0, 3)
    batch = make_batch(split, rows, places, MAX, 0)
    assert batch.tokens.size <= 400 and batch.weights.sum() == len(rows)


def test_a_budget_too_small_for_the_longest_row_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(InputError, match="is 99, but the longest rows have 100 .* give 100 or"):
        budget_of(250, 99)
    with pytest.raises(InputError, match="have 100 tokens behind 20 of the prompt.* 2 rows .* 240"):
        budget_of(250, 239, 20, 2)
