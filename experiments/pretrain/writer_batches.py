"""What the two writing models read in a step: texts to restore or to go on with.

A batch is a function of (seed, step) alone. Half of the batches have words in front where jpt puts
a prompt: some stand in the text, so that looking there pays, and some do not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from batches import taught_rows
from corpus import CLS, SEP, TEXT_TOKENS, Corpus

ROWS = 48
FRONT = 20
HINTS = 8  # of the words in front, so many stand in the text
SENTINELS = 32
DECODED = 24
NOISE, SPAN = 0.15, 3  # T5's own: 15 % of the pieces, in runs of three on average
CONTINUED = 1 / 3  # share of T5's rows that are to be gone on with instead
CUE = ("answer", ":")
IMDB_EVERY = 3  # of the taught texts of IMDB


class Texts(NamedTuple):
    """One step's texts.

    Attributes:
        rows: [B] which of the taught texts these are.
        tokens: [B, T] what the encoder, or the decoder of GPT-2, reads.
        lengths: [B] how many of them are text.
        places: [B, T] the position in the taught text that a token stands at; -1 for none.
        front: [B, P] words in front of the text; P is 0 in half of the batches.
        decoded: [B, A] what T5's decoder reads, its start piece first; of GPT-2's text the places
            that are asked, because scoring all 8,192 pieces everywhere is most of the work.
        targets: [B, A] the piece that follows each of those; -1 where none is asked for.
    """

    rows: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray
    places: np.ndarray
    front: np.ndarray
    decoded: np.ndarray
    targets: np.ndarray


def chosen_texts(corpus: Corpus) -> np.ndarray:
    """Chooses the texts: all of Rotten Tomatoes, every third of the taught ones of IMDB.

    The first ones of IMDB would not do: the package lists all negative reviews before the positive.
    """
    taught = taught_rows(corpus)
    first = int((corpus.row_review < corpus.rotten_tomatoes).sum())
    return np.concatenate([taught[:first], taught[first::IMDB_EVERY]])


class Writer:
    """Makes the batches of a run from the train split.

    Args:
        corpus: the split.
        pieces: the vocabulary of the encoders; T5's sentinels follow on it.
        seed: of the run.
    """

    def __init__(self, corpus: Corpus, pieces: list[str], seed: int):
        """Chooses the texts that have states of the teacher."""
        taught = chosen_texts(corpus)
        self.texts, self.lengths = corpus.rows[taught].astype(np.int32), corpus.row_lengths[taught]
        self.short = int((corpus.row_review < corpus.rotten_tomatoes).sum())
        self.pieces, self.seed = len(pieces), seed
        self.cue = [pieces.index(piece) for piece in CUE]

    def draw(self, step: int, family: str) -> Texts:
        """Gives the batch of a step: one row in three of Rotten Tomatoes, the others of IMDB."""
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
        """Words in front: some of the text, the others of no text, in any order."""
        front = random.integers(SEP + 2, self.pieces, (ROWS, FRONT))
        for row, text in zip(front, tokens, strict=True):
            row[:HINTS] = random.choice(text, HINTS)
        return random.permuted(front, axis=1).astype(np.int32)

    def _restored(self, random: np.random.Generator, row: np.ndarray, number: int):
        """T5: text with runs taken out and the runs as the answer, or a beginning and its end."""
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
        """Where runs begin and end, and where the one before ended."""
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
        """GPT-2: the text itself, every other one with the cue that an answer follows."""
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
