"""Batches as a function of seed and step: shuffled, padded to few shapes, in rows or tokens."""

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

# --- Batches of fixed shapes, and which rows go into which
# Which rows a training step takes is a function of (seed, step) alone (rule 9 of the house), so a
# resumed run needs no iterator: epoch after epoch, each a new order of all rows.

BUCKETS = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""Lengths that batches are padded to: few, because each is compiled once (seconds on a CPU)."""

STREAM = crc32(b"training_rows")
TURNS = crc32(b"training_rows/turns")

GROUPED_BATCHES = 8
"""How many batches that follow each other share their rows out by length."""

SHARES = 8
"""A packed batch has room for so many parts of its padded one: few sizes, few programs."""
MOST_SHARES = 6
"""Fuller batches stay padded: what packing would save does not pay for one more program."""


def training_rows(
    seed: int,
    step: int,
    batch_size: int,
    n_rows: int,
    lengths: Int64[np.ndarray, "N"] | None = None,
) -> Int64[np.ndarray, "B"]:
    """Chooses the rows of one training step."""
    # The rows of all steps together are one endless stream: every row once, in an order of the seed
    # and the epoch, then every row again in the next epoch's order. A batch may reach over the end
    # of an epoch, several times where there are fewer rows than it has places.
    # With lengths, the rows of `GROUPED_BATCHES` batches are shared out so that each batch holds
    # rows of like lengths and little is padded; these batches then come in an order of the seed.
    if lengths is None:
        return _stream(seed, step * batch_size, batch_size, n_rows)
    group, place = divmod(step, GROUPED_BATCHES)
    count = GROUPED_BATCHES * batch_size
    rows = _stream(seed, group * count, count, n_rows)
    rows = rows[np.argsort(lengths[rows], kind="stable")].reshape(GROUPED_BATCHES, batch_size)
    return rows[shuffled(seed, TURNS, group, GROUPED_BATCHES)[place]]


def _stream(seed: int, start: int, count: int, n_rows: int) -> Int64[np.ndarray, "N"]:
    """A piece of the endless stream of rows."""
    places = np.arange(start, start + count, dtype=np.int64)
    epochs = places // n_rows
    rows = np.empty(count, dtype=np.int64)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        here = epochs == epoch
        rows[here] = shuffled(seed, STREAM, epoch, n_rows)[places[here] % n_rows]
    return rows


@lru_cache(maxsize=16)
def shuffled(seed: int, stream: int, number: int, count: int) -> Int64[np.ndarray, "N"]:
    """Gives an order by chance: a function of (seed, stream, number)."""
    # From raw numbers: numpy may change how it permutes, not those.
    bits = np.random.Philox(key=np.array([seed, stream << 32 | number], dtype=np.uint64))
    return np.argsort(bits.random_raw(count), kind="stable")


def bucket_length(length: int, max_tokens: int) -> int:
    """Gives the length that rows of some length are padded to."""
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
    """Puts rows into one batch, padded on the right to a bucket and filled to its size."""
    # A filling row repeats the first row, so that it has text to attend to, with weight 0.
    n_real, filled = len(rows), fill_up(rows, batch_size)
    starts = split.offsets[filled]
    lengths = split.offsets[filled + 1] - starts
    places = np.arange(bucket_length(int(lengths.max()), max_tokens))
    weights = (np.arange(batch_size) < n_real).astype(np.float32)
    if local is not None:
        filled, starts, lengths, weights = (of[local] for of in (filled, starts, lengths, weights))
    return Batch(
        tokens=_pad_rows(split.tokens, starts, lengths, places, pad),
        lengths=lengths.astype(np.int32),
        labels=split.labels[filled],
        weights=weights,
        **_answers(split.answers, filled, pad),
    )


def fill_up(rows: Int64[np.ndarray, "N"], batch_size: int) -> Int64[np.ndarray, "B"]:
    """Repeats the first row until a batch is full."""
    if not 1 <= len(rows) <= batch_size:
        raise ValueError(f"{len(rows)} rows do not go into a batch of {batch_size}")
    return np.concatenate([rows, np.repeat(rows[:1], batch_size - len(rows))])


def pack_indices(
    lengths: Int64[np.ndarray, "*K B"], text: int, groups: int = 1
) -> Int32[np.ndarray, "*K G N"] | None:
    """Lays the real tokens of padded rows out one behind the other, for `Batch.places`."""
    batches = np.asarray(lengths).reshape(-1, groups, lengths.shape[-1] // groups)
    room = batches.shape[-1] * text
    totals = batches.sum(axis=-1)
    shares = -(-int(totals.max()) * SHARES // room)
    if shares > MOST_SHARES:
        return None
    places = np.full((*totals.shape, -(-room * shares // SHARES)), room, dtype=np.int32)
    is_text = (np.arange(text) < batches[..., None]).reshape(*totals.shape, room)
    number, group, position = np.nonzero(is_text)
    starts = np.cumsum(totals.ravel()) - totals.ravel()
    order = np.arange(len(position)) - np.repeat(starts, totals.ravel())
    places[number, group, order] = position
    return places.reshape(*lengths.shape[:-1], groups, -1)


def _pad_rows(
    tokens: Int32[np.ndarray, "total"],
    starts: Int64[np.ndarray, "B"],
    lengths: Int64[np.ndarray, "B"],
    places: Int64[np.ndarray, "T"],
    pad: int,
) -> Int32[np.ndarray, "B T"]:
    is_text = places < lengths[:, None]  # [B, T]
    padded = np.full(is_text.shape, pad, dtype=np.int32)
    padded[is_text] = tokens[(starts[:, None] + places)[is_text]]
    return padded


def _answers(
    answers: EncodedAnswers | None, rows: Int64[np.ndarray, "B"], pad: int
) -> dict[str, Int32[np.ndarray, "B *A"]]:
    """The answers of rows, all padded to one width: they are short, and one shape is compiled."""
    if answers is None:
        return {}
    starts = answers.offsets[rows]
    lengths = answers.offsets[rows + 1] - starts
    places = np.arange(answers.width)
    padded = _pad_rows(answers.tokens, starts, lengths, places, pad)
    return {"answers": padded, "answer_lengths": lengths.astype(np.int32)}


def evaluation_batches(
    split: EncodedSplit,
    batch_size: int,
    max_tokens: int,
    pad: int,
    local: Int64[np.ndarray, "M"] | None = None,
) -> Iterator[tuple[Int64[np.ndarray, "N"], Batch]]:
    """Goes through all rows of a split once, short rows first, so that little is padded."""
    order = np.argsort(split.lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield rows, make_batch(split, rows, batch_size, max_tokens, pad, local)


# --- Batches by a budget of tokens instead of a number of rows


@dataclass(frozen=True)
class TokenBudget:
    """Batches of about equally many tokens: rows of one bucket, many where they are short."""

    # Every row comes once an epoch; the last batch of a bucket may have places left over. Which
    # rows a step takes is a function of (seed, step), as in :func:`jpt.data.batches.training_rows`.

    lengths: Int64[np.ndarray, "N"]  # tokens of each row
    max_tokens: int  # the length the rows were encoded with
    tokens: int  # places of a batch, padding included
    beside: int  # places that a row takes beside its text, for the prompt
    shares: int  # the rows of a batch are divided by this number of devices

    def __post_init__(self) -> None:
        """Refuses a budget that does not hold a row of the longest bucket."""
        longest = int(self._buckets.max()) + self.beside
        if self.tokens < longest * self.shares:
            front = f" behind {self.beside} of the prompt" if self.beside else ""
            raise InputError(
                f"tokens_per_batch is {self.tokens}, but the longest rows have "
                f"{longest - self.beside} tokens{front}, and a batch has {self.shares} rows at "
                f"least; give {longest * self.shares} or more"
            )

    @cached_property
    def _buckets(self) -> Int64[np.ndarray, "N"]:
        kinds = {n: bucket_length(n, self.max_tokens) for n in set(self.lengths.tolist())}
        return np.array([kinds[n] for n in self.lengths.tolist()], np.int64)

    @cached_property
    def steps_per_epoch(self) -> int:
        """How many batches hold every row once."""
        buckets, counts = np.unique(self._buckets, return_counts=True)
        return sum(-(-int(n) // self.rows_of(int(b))) for b, n in zip(buckets, counts, strict=True))

    def rows_of(self, bucket: int) -> int:
        """Gives the places for rows that a batch of a bucket has."""
        rows = self.tokens // (bucket + self.beside)
        return rows - rows % self.shares

    def training_rows(self, seed: int, step: int) -> tuple[Int64[np.ndarray, "N"], int]:
        """Chooses the rows of one training step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        rows = self._epoch(seed, epoch)[place]
        return rows, self.rows_of(int(self._buckets[rows[0]]))

    def _epoch(self, seed: int, epoch: int) -> list[Int64[np.ndarray, "N"]]:
        if self._last.get("key") != (seed, epoch):
            order = shuffled(seed, STREAM, epoch, len(self.lengths))
            kinds, batches = self._buckets[order], []
            for bucket in np.unique(kinds):
                rows, size = order[kinds == bucket], self.rows_of(int(bucket))
                batches += [rows[start : start + size] for start in range(0, len(rows), size)]
            turns = shuffled(seed, TURNS, epoch, len(batches))
            self._last.update(key=(seed, epoch), batches=[batches[turn] for turn in turns])
        return self._last["batches"]

    @cached_property
    def _last(self) -> dict[str, Any]:
        """The batches of the epoch that was asked for last."""
        return {}
