"""Batches for pretraining the two generative models: texts to restore or to continue.

A batch is a function of (seed, step) only. Half of the batches have words in front where jpt puts a
prompt: some are from the text, so that attending to them helps, and some are not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from batches import taught_rows
from corpus import CLS, SEP, TEXT_TOKENS, Corpus

ROWS = 48
FRONT = 20
HINTS = 8  # number of front words from the text
SENTINELS = 32
DECODED = 24
NOISE, SPAN = 0.15, 3  # as in T5: 15% of the tokens, in spans of three on average
CONTINUED = 1 / 3  # share of T5's rows to continue instead
CUE = ("answer", ":")
IMDB_EVERY = 3  # of the taught texts of IMDB


class Texts(NamedTuple):
    """The texts of one step.

    Attributes:
        rows: [B] indices of the taught texts.
        tokens: [B, T] input of the encoder, or of GPT-2's decoder.
        lengths: [B] how many of them are text.
        places: [B, T] position of each token in the taught text; -1 for none.
        front: [B, P] words in front of the text; P is 0 in half of the batches.
        decoded: [B, A] T5's decoder input, its start token first; for GPT-2 the scored positions,
            because logits of all 8,192 tokens at every position are most of the work.
        targets: [B, A] the token that follows each of those; -1 for none.
    """

    rows: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray
    places: np.ndarray
    front: np.ndarray
    decoded: np.ndarray
    targets: np.ndarray


def chosen_texts(corpus: Corpus) -> np.ndarray:
    """Choose the texts: all of Rotten Tomatoes, every third of the taught ones of IMDB.

    Not the first ones of IMDB: the package lists all negative reviews before the positive ones.
    """
    taught = taught_rows(corpus)
    first = int((corpus.row_review < corpus.rotten_tomatoes).sum())
    return np.concatenate([taught[:first], taught[first::IMDB_EVERY]])


class Writer:
    """Make the batches of a run from the train split.

    Args:
        corpus: The split.
        pieces: The encoders' vocabulary; T5's sentinels come after it.
        seed: Seed of the run.
    """

    def __init__(self, corpus: Corpus, pieces: list[str], seed: int):
        """Choose the texts that have states of the teacher."""
        taught = chosen_texts(corpus)
        self.texts, self.lengths = corpus.rows[taught].astype(np.int32), corpus.row_lengths[taught]
        self.short = int((corpus.row_review < corpus.rotten_tomatoes).sum())
        self.pieces, self.seed = len(pieces), seed
        self.cue = [pieces.index(piece) for piece in CUE]

    def batch(self, step: int, family: str) -> Texts:
        """Return the batch of a step: one third Rotten Tomatoes, two thirds IMDB."""
        random = np.random.default_rng([self.seed, step, 11])
        first = random.integers(0, self.short, ROWS // 3)
        rows = np.concatenate([first, random.integers(self.short, len(self.texts), ROWS * 2 // 3)])
        make = self._restored if family == "t5" else self._followed
        made = [make(random, self.texts[row, : self.lengths[row]], n) for n, row in enumerate(rows)]
        tokens, places, decoded, targets = (list(column) for column in zip(*made, strict=True))
        room = TEXT_TOKENS + (0 if family == "t5" else len(CUE))
        return Texts(
            rows.astype(np.int32),
            _pad(tokens, room, 0),
            np.array([len(row) for row in tokens], np.int32),
            _pad(places, room, -1),
            self._front(random, tokens) if step % 2 else np.zeros((ROWS, 0), np.int32),
            _pad(decoded, DECODED, 0),
            _pad(targets, DECODED, -1),
        )

    def _front(self, random: np.random.Generator, tokens: list[list[int]]) -> np.ndarray:
        """Return front words, some from the text and some not, in any order."""
        front = random.integers(SEP + 2, self.pieces, (ROWS, FRONT))
        for row, text in zip(front, tokens, strict=True):
            row[:HINTS] = random.choice(text, HINTS)
        return random.permuted(front, axis=1).astype(np.int32)

    def _restored(self, random: np.random.Generator, row: np.ndarray, number: int):
        """T5: the text without random spans, and the spans as answer; or a text and its end."""
        text = row[1:-1].tolist()
        if number % round(1 / CONTINUED) == 0:
            middle = int(random.integers(len(text) // 3, len(text)))
            after = text[middle : middle + DECODED - 1]
            return [*text[:middle], SEP], [*range(1, middle + 1), -1], [0, *after][:-1], after
        kept, places, answer = [], [], []
        starts = self._runs(random, len(text))
        for sentinel, (start, end, until) in enumerate(starts):
            name = self.pieces + sentinel
            kept += [*text[until:start], name]
            places += [*range(until + 1, start + 1), -1]
            answer += [name, *text[start:end]]
        rest = starts[-1][1]
        kept, places = [*kept, *text[rest:]], [*places, *range(rest + 1, len(text) + 1)]
        answer = [*answer, self.pieces + len(starts), SEP][:DECODED]
        return [*kept, SEP], [*places, -1], [0, *answer[:-1]], answer

    def _runs(self, random: np.random.Generator, length: int) -> list[tuple[int, int, int]]:
        """Return where spans begin and end, and where the previous one ended."""
        count = max(1, round(NOISE * length / SPAN))
        edges = np.sort(random.choice(max(length - SPAN, count), count, replace=False))
        runs, until = [], 0
        for edge in edges:
            start = max(int(edge), until)
            end = min(start + int(random.integers(1, 2 * SPAN)), length)
            if start < end:
                runs.append((start, end, until))
                until = end
        return runs

    def _followed(self, random: np.random.Generator, row: np.ndarray, number: int):
        """GPT-2: the text itself, every other one with the cue before an answer."""
        text = [CLS, *row[1:-1].tolist(), SEP]
        if number % 2 == 0:
            text = [*text[:-1], *self.cue]
        cued = number % 2 == 0
        places = [*range(len(row) - 1), *([-1, -1] if cued else [-1])]
        asked = random.permutation(len(text) - 1)[:DECODED].tolist()
        return text, places, asked, [text[place + 1] for place in asked]


def _pad(rows: list[list[int]], length: int, value: int) -> np.ndarray:
    padded = np.full((len(rows), length), value, np.int32)
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
    return padded
