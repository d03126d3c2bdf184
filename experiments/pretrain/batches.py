"""Batches for pretraining the encoders: plain texts, and texts with front tokens.

A batch is a function of (seed, step) only. No label of any review is read here: every question is
made from the text itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from corpus import CLS, MASK, SEP, Corpus

RT_TOKENS = 48
PLAIN_ROWS = 48
FRONT = 8
FRONT_TOKENS = 48
PAIR_TOKENS = FRONT_TOKENS - 3
MASKED = 9
TAUGHT_ROWS = 24064
# (answer if false, answer if true): several wordings, so that no question has one word only.
ORDER = (("random", "natural"), ("scrambled", "natural"), ("shuffled", "normal"), ("no", "yes"))
NEXT = (("other", "next"), ("no", "yes"), ("random", "next"), ("false", "true"))
SAME = (("different", "same"), ("other", "same"), ("unrelated", "related"), ("no", "yes"))
# The questions, by name.
QUESTIONS = ("order", "next", "same", "half", "copy", "word")
WORDINGS = (ORDER, NEXT, SAME, SAME, SAME, ())


class PlainBatch(NamedTuple):
    """Texts for the masked-LM loss and the regression to the teacher.

    Attributes:
        rows: [B] indices of the taught texts.
        tokens: [B, T] tokens, some masked.
        lengths: [B] tokens of each text.
        places: [B, M] masked positions.
        targets: [B, M] the masked tokens.
        weights: [B, M] 1 where `places` is a masked position, 0 for padding.
    """

    rows: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray
    places: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


class FrontBatch(NamedTuple):
    """Texts after `[MASK] p1 .. pP`, with the answer at the mask.

    Attributes:
        front: [B, 1 + P] tokens without positions.
        tokens: [B, T] tokens of the text.
        lengths: [B] tokens of each text.
        answers: [B] the token at the mask.
        order: [B] 1 natural, 0 scrambled, -1 not asked.
        relation: [B] 1 both texts are of one review, 0 of two, -1 no pair.
        kinds: [B] index into `QUESTIONS`.
    """

    front: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray
    answers: np.ndarray
    order: np.ndarray
    relation: np.ndarray
    kinds: np.ndarray


def taught_rows(corpus: Corpus) -> np.ndarray:
    """Choose the texts that the teacher reads: all of Rotten Tomatoes, some of IMDB."""
    first = int((corpus.row_review < corpus.rotten_tomatoes).sum())
    rest = np.random.default_rng(0).permutation(np.arange(first, len(corpus.rows)))
    return np.concatenate([np.arange(first), np.sort(rest[: TAUGHT_ROWS - first])])


class Sampler:
    """Make the batches of a run from the train split.

    Args:
        corpus: The train split.
        pieces: The vocabulary.
        seed: The run's seed.
        rows_of: Rows of a front batch for each of `QUESTIONS`.
    """

    def __init__(self, corpus: Corpus, pieces: list[str], seed: int, rows_of: tuple[int, ...]):
        """Group sentences and tokens as the questions need them."""
        self.corpus, self.seed, self.rows_of = corpus, seed, rows_of
        taught = taught_rows(corpus)
        self.rows = corpus.rows[taught].astype(np.int32)
        self.lengths = corpus.row_lengths[taught]
        self.short = int((corpus.row_review < corpus.rotten_tomatoes).sum())
        place = {piece: number for number, piece in enumerate(pieces)}
        self.places = place
        sizes = np.diff(corpus.offsets)
        self.sizes = sizes
        good = sizes >= 6
        follows = np.append(corpus.review[:-1] == corpus.review[1:], False)
        fits = np.append(sizes[:-1] + sizes[1:] <= PAIR_TOKENS, False)
        self.starts = np.flatnonzero(good & follows & fits & np.append(good[1:], False))
        self.of_size = [np.flatnonzero(sizes == size) for size in range(PAIR_TOKENS + 1)]
        self.single = np.flatnonzero((sizes >= 6) & (sizes <= FRONT_TOKENS - 2))
        self.rt_single = self.single[corpus.review[self.single] < corpus.rotten_tomatoes]
        self.review_start = np.searchsorted(corpus.review, np.arange(corpus.review[-1] + 2))
        whole = np.array([p.isalpha() and len(p) > 2 for p in pieces])
        counts = np.bincount(corpus.tokens, minlength=len(pieces))
        rare_enough = counts < np.sort(counts)[-120]
        self.is_content = whole & rare_enough & (counts > 20)
        self.content = np.flatnonzero(self.is_content)
        self.is_mark = np.array([len(p) == 1 and not p.isalnum() for p in pieces])
        shares = counts[self.content] ** 0.75
        self.content_shares = np.cumsum(shares / shares.sum())

    def plain(self, step: int) -> PlainBatch:
        """Return a batch; every fifth is Rotten Tomatoes (48 tokens), the others are both (64)."""
        random = np.random.default_rng([self.seed, step, 1])
        if step % 5 == 0:
            chosen = random.integers(0, self.short, PLAIN_ROWS)
            room = RT_TOKENS
        else:
            chosen = random.integers(self.short, len(self.rows), PLAIN_ROWS)
            room = self.rows.shape[1]
        tokens = self.rows[chosen, :room].copy()
        lengths = np.minimum(self.lengths[chosen], room)
        maskable = (np.arange(room) < lengths[:, None]) & (tokens > MASK)
        scores = np.where(maskable, random.random(tokens.shape), 2.0)
        places = np.argsort(scores, axis=1)[:, :MASKED]
        wanted = np.maximum(1, np.round(0.15 * lengths)).astype(int)
        weights = np.arange(MASKED) < np.minimum(wanted, maskable.sum(1))[:, None]
        targets = np.take_along_axis(tokens, places, 1)
        uniform = random.random(places.shape)
        other = random.integers(MASK + 1, len(self.places), places.shape)
        hidden = np.where(uniform < 0.8, MASK, np.where(uniform < 0.9, other, targets))
        np.put_along_axis(tokens, places, np.where(weights, hidden, targets), 1)
        return PlainBatch(
            chosen.astype(np.int32),
            tokens,
            lengths.astype(np.int32),
            places.astype(np.int32),
            targets,
            weights.astype(np.float32),
        )

    def front(self, step: int) -> FrontBatch:
        """Ask every question in a fixed number of rows."""
        random = np.random.default_rng([self.seed, step, 2])
        kinds = np.repeat(np.arange(len(self.rows_of)), self.rows_of)
        made = [self._ask(random, QUESTIONS[kind]) for kind in kinds]
        tokens = np.zeros((len(kinds), FRONT_TOKENS), np.int32)
        for row, (text, *_) in zip(tokens, made, strict=True):
            row[: len(text)] = text
        columns = list(zip(*made, strict=True))
        return FrontBatch(
            np.array(columns[1], np.int32),
            tokens,
            np.array([len(text) for text in columns[0]], np.int32),
            *(np.array(column, np.int32) for column in columns[2:]),
            kinds.astype(np.int32),
        )

    def _sentence(self, number: int) -> np.ndarray:
        start, end = self.corpus.offsets[number : number + 2]
        return self.corpus.tokens[start:end].astype(np.int32)

    def _content_pieces(self, random: np.random.Generator, count: int) -> list[int]:
        found = np.searchsorted(self.content_shares, random.random(count) * 0.999999)
        return self.content[found].tolist()

    def _front(self, random: np.random.Generator, named: list[int]) -> list[int]:
        """Return `[MASK]`, the named tokens and random ones, in any order."""
        rest = self._content_pieces(random, FRONT - 1 - len(named))
        return [MASK, *random.permutation([*named, *rest]).tolist()]

    def _ask(self, random: np.random.Generator, question: str):
        """Return text, front, answer, and whether order is natural or the pair is of one review."""
        if question == "word":
            return self._which_word(random)
        so = int(random.integers(2))
        text = (
            self._ordered(random, so) if question == "order" else self._pair(random, question, so)
        )
        wordings = WORDINGS[QUESTIONS.index(question)]
        pair = [self.places[word] for word in wordings[random.integers(len(wordings))]]
        front = self._front(random, [self.places[question], *pair])
        order, relation = (so, -1) if question == "order" else (-1, so)
        return [CLS, *text, SEP], front, pair[so], order, relation

    def _ordered(self, random: np.random.Generator, natural: int) -> np.ndarray:
        pool = self.rt_single if random.random() < 0.25 else self.single
        number = int(random.choice(pool))
        text = self._sentence(number)
        if natural:
            return text
        start, end = self.corpus.offsets[number : number + 2]
        return self._move_words(random, text, self.corpus.words[start:end])

    def _pair(self, random: np.random.Generator, question: str, so: int) -> list[int]:
        number = int(random.choice(self.starts))
        first, second = self._sentence(number), self._sentence(number + 1)
        # Another sentence as long as the true one, so that lengths carry no information.
        other = self._sentence(int(random.choice(self.of_size[len(second)])))
        if question == "half":
            middle = len(second) // 2
            first = second[:middle]
            second = second[middle:] if so else other[middle:]
        elif question == "copy":
            second = random.permutation(first if so else other)[: max(3, 6 * len(other) // 10)]
        elif not so:
            second = other
        elif question == "same":
            second = self._of_review(random, number, second)
        return [*first, SEP, *second]

    def _of_review(self, random: np.random.Generator, first: int, second: np.ndarray) -> np.ndarray:
        """Return another sentence of the same review, not longer than the second."""
        review = self.corpus.review[first]
        local = np.arange(*self.review_start[review : review + 2])
        sizes = self.sizes[local]
        local = local[(sizes >= 5) & (sizes <= len(second)) & (local != first)]
        return self._sentence(int(random.choice(local)))

    def _which_word(self, random: np.random.Generator):
        """Ask for the front word that is in the text, hidden in it, or in the next sentence."""
        number = int(random.choice(self.starts if random.random() < 0.75 else self.rt_single))
        text = self._sentence(number)
        form = random.integers(3)
        follows = number + 1 < len(self.corpus.review)
        near = follows and self.corpus.review[number + 1] == self.corpus.review[number]
        source = self._sentence(number + 1) if form == 2 and near else text
        words = source[self.is_content[source]]
        word = int(random.choice(words)) if len(words) else self._content_pieces(random, 1)[0]
        if form == 1:
            text = np.where(text == word, MASK, text)
        other = [self.places["word"]] if random.random() < 0.5 else []
        return [CLS, *text, SEP], self._front(random, [word, *other]), word, -1, -1

    def _move_words(
        self, random: np.random.Generator, tokens: np.ndarray, words: np.ndarray
    ) -> np.ndarray:
        """Move the words of a sentence, at random or reversed; punctuation mostly stays."""
        marks = self.is_mark[tokens] & (random.random() < 0.8)
        runs = np.split(np.arange(len(tokens)), np.flatnonzero(np.diff(words)) + 1)
        groups: list[np.ndarray] = []
        for run in runs:
            inside = run[~marks[run]]
            groups += [np.arange(inside[0], inside[-1] + 1)] if len(inside) else []
        order = np.arange(len(groups))[::-1]
        while random.random() < 0.75 or (order == np.arange(len(groups))).all():
            order = random.permutation(len(groups))
            if len(groups) < 2 or (order != np.arange(len(groups))).mean() > 0.5:
                break
        moved = [groups[place] for place in order]
        places: list[np.ndarray] = []
        after = 0
        for old, new in zip(groups, moved, strict=True):
            places += [np.arange(after, old[0]), new]
            after = old[-1] + 1
        return tokens[np.concatenate([*places, np.arange(after, len(tokens))])]
