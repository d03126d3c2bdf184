"""Evaluate a student: a linear probe for sentiment, and its questions on validation text."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import jax
import numpy as np
from batches import FrontBatch, Sampler
from vocabulary import build_tokenizer

from jpt.data.builtin import Split, reviews


@cache
def _probe_rows(split: Split, count: int, pieces: Path) -> tuple[np.ndarray, ...]:
    """Return tokens [N, 48], lengths [N] and labels [N] of Rotten Tomatoes."""
    rows = reviews("rotten_tomatoes", split)
    chosen = np.random.default_rng(3).permutation(len(rows))[:count]
    tokenizer = build_tokenizer(pieces.read_text(encoding="utf-8").split("\n"))
    ids = [one.ids[:48] for one in tokenizer.encode_batch([rows[n].text for n in chosen])]
    tokens = np.stack([np.pad(row, (0, 48 - len(row))) for row in ids]).astype(np.int32)
    lengths = np.array([len(row) for row in ids], np.int32)
    return tokens, lengths, np.array([rows[n].label for n in chosen])


def probe_sentiment(states: Callable[..., jax.Array], pieces: Path) -> float:
    """Return the validation accuracy of a ridge regression on frozen mean states of train rows.

    The labels are used for the value in the log only, never for training.

    Args:
        states: `states(tokens, lengths) -> [B, T, D]`.
        pieces: Vocabulary file.
    """
    train, wanted = _features(states, "train", 2048, pieces)
    held_out, labels = _features(states, "validation", 896, pieces)
    mean, spread = train.mean(0), train.std(0) + 1e-6
    train, held_out = (train - mean) / spread, (held_out - mean) / spread
    matrix = train.T @ train + 100.0 * np.eye(train.shape[1])
    weights = np.linalg.solve(matrix, train.T @ (wanted * 2.0 - 1.0))
    return float(((held_out @ weights > 0) == labels).mean())


def _features(states: Callable[..., jax.Array], split: Split, count: int, pieces: Path):
    tokens, lengths, labels = _probe_rows(split, count, pieces)
    found = []
    for first in range(0, len(tokens), 128):
        batch = slice(first, first + 128)
        last = np.asarray(states(tokens[batch], lengths[batch]))
        real = np.arange(tokens.shape[1]) < lengths[batch, None]
        mean = np.einsum("btd,bt->bd", last, real / lengths[batch, None])
        found.append(np.concatenate([mean, last[:, 0]], axis=1))
    return np.concatenate(found), labels


def ask_questions(
    score: Callable[[FrontBatch], dict[str, jax.Array]], held_out: Sampler, batches: int
) -> dict[str, float]:
    """Average the questions' accuracies over batches of validation text."""
    scores = [score(held_out.front(step)) for step in range(batches)]
    return {name: float(np.mean([one[name] for one in scores])) for name in scores[0]}
