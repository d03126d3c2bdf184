"""Batches as functions of seed and step: order, padding, packing and token budgets."""

from collections.abc import Callable

import numpy as np
import pytest

from jpt.data import batches as module
from jpt.data.batches import BUCKETS, bucket_length, make_batch, pack_indices, training_rows
from jpt.data.encode import EncodedSplit
from jpt.errors import InputError

PAD = 99


def some_split(n_rows: int, max_tokens: int, seed: int = 0) -> EncodedSplit:
    """Rows of random lengths; the tokens of row i are i * 1000 and on."""
    lengths = np.random.default_rng(seed).integers(2, max_tokens + 1, n_rows)
    tokens = [np.arange(length) + 1000 * (i + 1) for i, length in enumerate(lengths)]
    return EncodedSplit(
        tokens=np.concatenate(tokens).astype(np.int32),
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        labels=np.arange(n_rows, dtype=np.int32) % 3,
        cut_rows=0,
    )


@pytest.mark.parametrize("n_rows", [1, 5, 32, 101])
@pytest.mark.parametrize("batch_size", [1, 8, 32])
def test_every_row_is_trained_on_once_an_epoch(n_rows: int, batch_size: int) -> None:
    n_steps = 3 * n_rows // batch_size + 3
    stream = np.concatenate([training_rows(7, s, batch_size, n_rows) for s in range(n_steps)])
    for start in range(0, len(stream) - n_rows + 1, n_rows):
        assert sorted(stream[start : start + n_rows]) == list(range(n_rows))


def test_batch_size_does_not_change_the_stream() -> None:
    small = np.concatenate([training_rows(3, step, 4, 50) for step in range(48)])
    large = np.concatenate([training_rows(3, step, 16, 50) for step in range(12)])
    np.testing.assert_array_equal(small, large)


RowsOf = Callable[[int, int], np.ndarray]  # the rows of (seed, step)
ORDERS: dict[str, RowsOf] = {
    "plain": lambda seed, step: training_rows(seed, step, 30, 90),
    "grouped": lambda seed, step: training_rows(seed, step, 8, 40, np.arange(40) % 7),
    "budgeted": lambda seed, step: budget_of(90).training_rows(seed, step)[0],
}


@pytest.mark.parametrize("order", ORDERS)
def test_a_step_is_a_function_of_seed_and_step(order: str) -> None:
    rows_of, budget = ORDERS[order], budget_of(90)
    forward = [rows_of(1, step) for step in range(40)]
    for step in reversed(range(40)):
        np.testing.assert_array_equal(rows_of(1, step), forward[step])
        if order == "budgeted":
            np.testing.assert_array_equal(budget.training_rows(1, step)[0], forward[step])


@pytest.mark.parametrize("order", ["plain", "budgeted"])
def test_epochs_and_seeds_have_different_orders(order: str) -> None:
    rows_of, count = ORDERS[order], 3 if order == "plain" else budget_of(90).steps_per_epoch
    orders = {
        tuple(np.concatenate([rows_of(seed, epoch * count + step) for step in range(count)]))
        for seed in range(5)
        for epoch in range(5)
    }
    assert len(orders) == 25


def test_the_order_of_a_seed_never_changes() -> None:
    assert training_rows(0, 0, 10, 10).tolist() == [1, 3, 4, 9, 6, 0, 2, 8, 5, 7]


def test_rows_are_spread_evenly() -> None:
    first = np.array([training_rows(seed, 0, 1, 10)[0] for seed in range(2000)])
    counts = np.bincount(first, minlength=10)
    assert counts.min() > 140 and counts.max() < 260  # 200 each, 4.5 standard deviations


@pytest.mark.parametrize("max_tokens", [5, 16, 60, 128, 3000])
def test_buckets_hold_their_rows_within_max_tokens(max_tokens: int) -> None:
    for length in range(1, max_tokens + 1):
        bucket = bucket_length(length, max_tokens)
        assert length <= bucket <= max_tokens
        assert bucket in BUCKETS or bucket == max_tokens


@pytest.mark.parametrize("batch_size", [3, 5, 8])
def test_a_batch_holds_its_rows_padded_and_filled(batch_size: int) -> None:
    split = some_split(20, 40)
    rows = np.array([4, 17, 2])
    batch = make_batch(split, rows, batch_size, 40, PAD)
    assert batch.tokens.shape == (batch_size, bucket_length(int(split.lengths[rows].max()), 40))
    assert batch.weights.tolist() == [1.0] * 3 + [0.0] * (batch_size - 3)
    for slot, row in enumerate([4, 17, 2] + [4] * (batch_size - 3)):
        length = split.lengths[row]
        text = split.tokens[split.offsets[row] : split.offsets[row + 1]]
        assert (batch.lengths[slot], batch.labels[slot]) == (length, split.labels[row])
        np.testing.assert_array_equal(batch.tokens[slot, :length], text)
        assert (batch.tokens[slot, length:] == PAD).all()
    assert [array.dtype for array in batch[:4]] == [np.int32, np.int32, np.int32, np.float32]


def test_rows_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="row of 17 tokens is longer than max_tokens = 16"):
        bucket_length(17, 16)
    for n_rows in (0, 4):
        with pytest.raises(ValueError, match=f"{n_rows} rows do not fit in a batch of 3"):
            make_batch(some_split(5, 10), np.arange(n_rows), 3, 10, PAD)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 64])
@pytest.mark.parametrize("n_rows", [1, 7, 50])
def test_evaluation_goes_through_every_row_once(n_rows: int, batch_size: int) -> None:
    split = some_split(n_rows, 60, seed=n_rows)
    seen: dict[int, list[int]] = {}
    for rows, batch in module.evaluation_batches(split, batch_size, 60, PAD):
        assert batch.tokens.shape[0] == batch_size
        assert batch.weights.sum() == len(rows)
        assert (batch.lengths >= 1).all()
        for slot, row in enumerate(rows):
            assert batch.weights[slot] == 1.0
            assert batch.labels[slot] == split.labels[row]
            seen[int(row)] = batch.tokens[slot, : batch.lengths[slot]].tolist()
    texts = np.split(split.tokens, split.offsets[1:-1])
    assert seen == {row: text.tolist() for row, text in enumerate(texts)}


def test_evaluation_pads_little_in_few_shapes() -> None:
    split = some_split(500, 128)
    batches = [batch.tokens for _, batch in module.evaluation_batches(split, 16, 128, PAD)]
    assert sum(tokens.size for tokens in batches) < 1.3 * split.tokens.size
    assert len({tokens.shape for tokens in batches}) <= 6


def test_grouped_batches_have_similar_lengths_and_every_row_once() -> None:
    lengths = np.random.default_rng(0).integers(3, 65, 512)
    steps = range(512 // 16)
    grouped = [training_rows(5, step, 16, 512, lengths) for step in steps]
    assert sorted(np.concatenate(grouped).tolist()) == list(range(512))  # an epoch, each row once
    plain = [training_rows(5, step, 16, 512) for step in steps]
    for group in range(0, len(steps), module.GROUPED_BATCHES):  # the same rows, regrouped
        batches = slice(group, group + module.GROUPED_BATCHES)
        assert set(np.concatenate(grouped[batches])) == set(np.concatenate(plain[batches]))
    padded = sum(int(lengths[rows].max()) * 16 - lengths[rows].sum() for rows in grouped)
    before = sum(int(lengths[rows].max()) * 16 - lengths[rows].sum() for rows in plain)
    assert padded < before / 4
    # Not always the short ones first: the place of the longest batch differs between groups.
    longest = [int(lengths[rows].max()) for rows in grouped]
    positions = np.reshape(longest, (-1, module.GROUPED_BATCHES)).argmax(axis=1)
    assert len(set(positions.tolist())) > 1


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_packed_indices_are_the_real_tokens_of_each_group(groups: int) -> None:
    random = np.random.default_rng(groups)
    for lengths in random.integers(0, 13, (20, 8)):
        packed = pack_indices(lengths, 24, groups)
        assert packed is not None and packed.dtype == np.int32
        for found, of_group in zip(packed, np.split(lengths, groups), strict=True):
            is_text = np.arange(24) < of_group[:, None]
            expected = np.flatnonzero(is_text)
            np.testing.assert_array_equal(found[: len(expected)], expected)
            assert set(found[len(expected) :]) <= {is_text.size}


def test_stacked_batches_have_one_size() -> None:
    lengths = np.array([[1, 1, 1, 1], [8, 7, 1, 1]])
    packed = pack_indices(lengths, 8)
    assert packed.shape == (2, 1, 20)  # 17 tokens of 32: 5 eighths
    assert (packed[0] < 32).sum() == 4 and (packed[1] < 32).sum() == 17


def test_there_are_few_sizes_and_full_batches_stay_padded() -> None:
    sizes = set()
    for total in range(1, 129):
        lengths = np.full(8, total // 8) + (np.arange(8) < total % 8)
        packed = pack_indices(lengths, 16)
        sizes.add(None if packed is None else packed.shape[-1])
        assert (packed is None) == (total > 96)
    assert sizes == {16, 32, 48, 64, 80, 96, None}
    packed = pack_indices(np.array([5, 5, 5]), 10)  # 15 of 30 tokens: 4 eighths
    assert packed.shape == (1, 15) and packed.max() == 24


MAX = 100


def lengths_of(n_rows: int) -> np.ndarray:
    return np.random.default_rng(0).integers(2, MAX + 1, n_rows)


def budget_of(
    n_rows: int, tokens: int = 400, extra: int = 0, shares: int = 1
) -> module.TokenBudget:
    return module.TokenBudget(lengths_of(n_rows), MAX, tokens, extra, shares)


@pytest.mark.parametrize("n_rows", [1, 7, 250])
@pytest.mark.parametrize(("tokens", "extra", "shares"), [(400, 0, 1), (400, 21, 2), (900, 5, 4)])
def test_every_row_comes_once_an_epoch(n_rows: int, tokens: int, extra: int, shares: int) -> None:
    budget = budget_of(n_rows, tokens, extra, shares)
    count = budget.steps_per_epoch
    for epoch in range(3):
        steps = range(epoch * count, (epoch + 1) * count)
        rows = np.concatenate([budget.training_rows(5, step)[0] for step in steps])
        assert sorted(rows) == list(range(n_rows))


@pytest.mark.parametrize(("tokens", "extra", "shares"), [(400, 0, 1), (400, 21, 2), (900, 5, 4)])
def test_no_batch_is_over_the_budget_and_few_are_far_below(tokens: int, extra: int, shares: int):
    budget, lengths = budget_of(250, tokens, extra, shares), lengths_of(250)
    shapes = set()
    for step in range(budget.steps_per_epoch):
        rows, size = budget.training_rows(0, step)
        bucket = min([b for b in BUCKETS if b >= lengths[rows].max()] + [MAX])
        shapes.add((size, bucket))
        assert 1 <= len(rows) <= size and size % shares == 0
        assert size * (bucket + extra) <= tokens
        assert (size + shares) * (bucket + extra) > tokens
    # One shape a bucket, so each is compiled once.
    assert len(shapes) == len({bucket for _, bucket in shapes})


def test_budgeted_rows_make_batches() -> None:
    split = some_split(30, MAX)
    np.testing.assert_array_equal(split.lengths, lengths_of(30))
    rows, size = budget_of(30).training_rows(0, 3)
    batch = make_batch(split, rows, size, MAX, 0)
    assert batch.tokens.size <= 400 and batch.weights.sum() == len(rows)


def test_a_budget_too_small_for_the_longest_row() -> None:
    with pytest.raises(InputError, match="is 99, but the longest rows have 100 .* give 100 or"):
        budget_of(250, 99)
    with pytest.raises(InputError, match="have 100 tokens and 20 prompt tokens.* 2 rows; give 240"):
        budget_of(250, 239, 20, 2)
