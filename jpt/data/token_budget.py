"""Batches by a budget of tokens instead of a number of rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int64

from jpt.data.batches import STREAM, TURNS, bucket_length, shuffled
from jpt.errors import InputError


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
