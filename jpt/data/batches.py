"""Batches as a function of seed and step: shuffled and padded to few shapes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any
from zlib import crc32

import numpy as np
from jaxtyping import Int32, Int64

from jpt.data.encode import EncodedAnswers, EncodedSplit
from jpt.errors import InputError
from jpt.types import Batch

# --- Batches of a fixed number of rows

BUCKETS = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""Padded lengths; few, because each is compiled."""

ROW_ORDER = crc32(b"training_rows")
BATCH_ORDER = crc32(b"training_rows/turns")

GROUPED_BATCHES = 8
"""Number of consecutive batches whose rows are grouped by length."""

SHARES = 8
"""Packed batches have a multiple of 1/8 of the padded size, so few programs are compiled."""
MOST_SHARES = 6
"""Fuller batches stay padded: packing would not save the time of another program."""


def training_rows(
    seed: int,
    step: int,
    batch_size: int,
    n_rows: int,
    lengths: Int64[np.ndarray, "N"] | None = None,
) -> Int64[np.ndarray, "B"]:
    """Return the rows of one training step, a function of (seed, step) alone."""
    # All steps together form an endless stream: every row once per epoch, in a new order. A batch
    # may cross the end of an epoch, several times if it is larger than the split. With lengths,
    # the rows of `GROUPED_BATCHES` batches are regrouped by length to save padding, and these
    # batches are shuffled.
    if lengths is None:
        return _stream(seed, step * batch_size, batch_size, n_rows)
    group, index = divmod(step, GROUPED_BATCHES)
    count = GROUPED_BATCHES * batch_size
    rows = _stream(seed, group * count, count, n_rows)
    rows = rows[np.argsort(lengths[rows], kind="stable")].reshape(GROUPED_BATCHES, batch_size)
    return rows[shuffled(seed, BATCH_ORDER, group, GROUPED_BATCHES)[index]]


def _stream(seed: int, start: int, count: int, n_rows: int) -> Int64[np.ndarray, "N"]:
    """Return a section of the endless stream of rows."""
    positions = np.arange(start, start + count, dtype=np.int64)
    epochs = positions // n_rows
    rows = np.empty(count, dtype=np.int64)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        here = epochs == epoch
        rows[here] = shuffled(seed, ROW_ORDER, epoch, n_rows)[positions[here] % n_rows]
    return rows


@lru_cache(maxsize=16)
def shuffled(seed: int, stream: int, number: int, count: int) -> Int64[np.ndarray, "N"]:
    """Return a random permutation, a function of (seed, stream, number)."""
    # From raw bits, which NumPy guarantees, unlike its permutations.
    bits = np.random.Philox(key=np.array([seed, stream << 32 | number], dtype=np.uint64))
    return np.argsort(bits.random_raw(count), kind="stable")


def bucket_length(length: int, max_tokens: int) -> int:
    """Return the padded length of a row."""
    if length > max_tokens:
        raise ValueError(f"a row of {length} tokens is longer than max_tokens = {max_tokens}")
    return min(next((bucket for bucket in BUCKETS if bucket >= length), max_tokens), max_tokens)


def make_batch(
    split: EncodedSplit,
    rows: Int64[np.ndarray, "N"],
    batch_size: int,
    max_tokens: int,
    pad: int,
    local: Int64[np.ndarray, "M"] | None = None,
) -> Batch:
    """Return a batch of rows, padded on the right to a bucket and filled to the batch size."""
    # Filler rows repeat the first row with weight 0, so that they have text to attend to.
    n_real, filled = len(rows), fill_up(rows, batch_size)
    starts = split.offsets[filled]
    lengths = split.offsets[filled + 1] - starts
    positions = np.arange(bucket_length(int(lengths.max()), max_tokens))
    weights = (np.arange(batch_size) < n_real).astype(np.float32)
    if local is not None:
        filled, starts, lengths, weights = (of[local] for of in (filled, starts, lengths, weights))
    return Batch(
        tokens=_pad_rows(split.tokens, starts, lengths, positions, pad),
        lengths=lengths.astype(np.int32),
        labels=split.labels[filled],
        weights=weights,
        **_answers(split.answers, filled, pad),
    )


def fill_up(rows: Int64[np.ndarray, "N"], batch_size: int) -> Int64[np.ndarray, "B"]:
    """Repeat the first row until a batch is full."""
    if not 1 <= len(rows) <= batch_size:
        raise ValueError(f"{len(rows)} rows do not fit in a batch of {batch_size}")
    return np.concatenate([rows, np.repeat(rows[:1], batch_size - len(rows))])


def pack_indices(
    lengths: Int64[np.ndarray, "*K B"], text: int, groups: int = 1
) -> Int32[np.ndarray, "*K G N"] | None:
    """Return `Batch.packed_index` for padded rows, or None if packing does not pay."""
    batches = np.asarray(lengths).reshape(-1, groups, lengths.shape[-1] // groups)
    room = batches.shape[-1] * text
    totals = batches.sum(axis=-1)
    shares = -(-int(totals.max()) * SHARES // room)
    if shares > MOST_SHARES:
        return None
    packed = np.full((*totals.shape, -(-room * shares // SHARES)), room, dtype=np.int32)
    is_text = (np.arange(text) < batches[..., None]).reshape(*totals.shape, room)
    number, group, position = np.nonzero(is_text)
    starts = np.cumsum(totals.ravel()) - totals.ravel()
    order = np.arange(len(position)) - np.repeat(starts, totals.ravel())
    packed[number, group, order] = position
    return packed.reshape(*lengths.shape[:-1], groups, -1)


def _pad_rows(
    tokens: Int32[np.ndarray, "total"],
    starts: Int64[np.ndarray, "B"],
    lengths: Int64[np.ndarray, "B"],
    positions: Int64[np.ndarray, "T"],
    pad: int,
) -> Int32[np.ndarray, "B T"]:
    is_text = positions < lengths[:, None]  # [B, T]
    padded = np.full(is_text.shape, pad, dtype=np.int32)
    padded[is_text] = tokens[(starts[:, None] + positions)[is_text]]
    return padded


def _answers(
    answers: EncodedAnswers | None, rows: Int64[np.ndarray, "B"], pad: int
) -> dict[str, Int32[np.ndarray, "B *A"]]:
    """Return the answers of rows, padded to one width for all batches."""
    if answers is None:
        return {}
    starts = answers.offsets[rows]
    lengths = answers.offsets[rows + 1] - starts
    padded = _pad_rows(answers.tokens, starts, lengths, np.arange(answers.width), pad)
    return {"answers": padded, "answer_lengths": lengths.astype(np.int32)}


def evaluation_batches(
    split: EncodedSplit,
    batch_size: int,
    max_tokens: int,
    pad: int,
    local: Int64[np.ndarray, "M"] | None = None,
) -> Iterator[tuple[Int64[np.ndarray, "N"], Batch]]:
    """Yield all rows of a split once, sorted by length to save padding."""
    order = np.argsort(split.lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield rows, make_batch(split, rows, batch_size, max_tokens, pad, local)


# --- Batches of a fixed number of tokens


@dataclass(frozen=True)
class TokenBudget:
    """Batches with a budget of tokens, each of rows of one bucket.

    Every row occurs once per epoch; the last batch of a bucket may be partly filled.
    """

    lengths: Int64[np.ndarray, "N"]  # tokens of each row
    max_tokens: int  # of the encoded rows
    tokens: int  # budget of a batch, padding included
    extra: int  # further positions per row, for the prompt
    shares: int  # devices that the rows of a batch are divided among

    def __post_init__(self) -> None:
        longest = int(self._buckets.max()) + self.extra
        if self.tokens < longest * self.shares:
            prompt = f" and {self.extra} prompt tokens" if self.extra else ""
            raise InputError(
                f"tokens_per_batch is {self.tokens}, but the longest rows have "
                f"{longest - self.extra} tokens{prompt}, and a batch has at least {self.shares} "
                f"rows; give {longest * self.shares} or more"
            )

    @cached_property
    def _buckets(self) -> Int64[np.ndarray, "N"]:
        kinds = {n: bucket_length(n, self.max_tokens) for n in set(self.lengths.tolist())}
        return np.array([kinds[n] for n in self.lengths.tolist()], np.int64)

    @cached_property
    def steps_per_epoch(self) -> int:
        """Number of batches per epoch."""
        buckets, counts = np.unique(self._buckets, return_counts=True)
        return sum(-(-int(n) // self.rows_of(int(b))) for b, n in zip(buckets, counts, strict=True))

    def rows_of(self, bucket: int) -> int:
        """Return the number of rows in a batch of a bucket."""
        rows = self.tokens // (bucket + self.extra)
        return rows - rows % self.shares

    def training_rows(self, seed: int, step: int) -> tuple[Int64[np.ndarray, "N"], int]:
        """Return the rows and the batch size of one training step."""
        epoch, index = divmod(step, self.steps_per_epoch)
        rows = self._epoch(seed, epoch)[index]
        return rows, self.rows_of(int(self._buckets[rows[0]]))

    def _epoch(self, seed: int, epoch: int) -> list[Int64[np.ndarray, "N"]]:
        if self._last.get("key") != (seed, epoch):
            order = shuffled(seed, ROW_ORDER, epoch, len(self.lengths))
            kinds, batches = self._buckets[order], []
            for bucket in np.unique(kinds):
                rows, size = order[kinds == bucket], self.rows_of(int(bucket))
                batches += [rows[start : start + size] for start in range(0, len(rows), size)]
            order = shuffled(seed, BATCH_ORDER, epoch, len(batches))
            self._last.update(key=(seed, epoch), batches=[batches[index] for index in order])
        return self._last["batches"]

    @cached_property
    def _last(self) -> dict[str, Any]:
        """Cache of the last epoch's batches."""
        return {}
