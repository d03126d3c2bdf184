"""Greedy and beam search written out in numpy, with the margin by which every choice was made.

Scripts that store the sequences of torch check with it that no stored choice is a near tie, which
another machine could decide otherwise: it must find the same sequences, and the least margin must
be large. It scores whole sequences anew at every token, so it also checks torch's caches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

Scorer = Callable[[np.ndarray], np.ndarray]
"""From sequences [N, n] of one row of the batch, n possibly 0, to scores [N, V] of the next."""


@dataclass
class Search:
    """The search of one row.

    Attributes:
        score: the model.
        eos: the token that ends a sequence.
        length_tokens: how many tokens a sequence has at most.
        margin: the least margin of a choice so far.
    """

    score: Scorer
    eos: int
    length_tokens: int
    margin: float = field(default=float("inf"))

    def greedy(self) -> list[int]:
        """Takes the best token each time."""
        tokens: list[int] = []
        while len(tokens) < self.length_tokens and self.eos not in tokens:
            scores = self.score(np.array([tokens], int))[0]
            best, second = np.argsort(-scores)[:2]
            self._note(scores[best], scores[second])
            tokens.append(int(best))
        return tokens

    def beams(self, count: int) -> list[int]:
        """Keeps ``count`` open sequences; length penalty 1, no early stopping, as transformers 5.

        A finished sequence is kept when it is among the best ``count`` continuations of its step;
        the search ends when no open one, at its present length, beats the worst finished one.
        """
        running: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
        finished: list[tuple[float, tuple[int, ...]]] = []
        for length in range(1, self.length_tokens + 1):
            ranked = self._continuations(running)
            self._note_boundary(ranked, count)
            is_last = length == self.length_tokens
            ended = [
                (total / length, tokens)
                for total, tokens in ranked[:count]
                if is_last or tokens[-1] == self.eos
            ]
            finished = sorted(finished + ended, reverse=True)
            self._note_boundary(finished, count)
            finished = finished[:count]
            if is_last:
                break
            running = [(total, tokens) for total, tokens in ranked if tokens[-1] != self.eos]
            self._note_boundary(running, count)
            running = running[:count]
            if len(finished) == count:
                best_open, worst_finished = running[0][0] / length, finished[-1][0]
                self._note(max(best_open, worst_finished), min(best_open, worst_finished))
                if best_open <= worst_finished:
                    break
        self._note_boundary(finished, 1)
        return list(finished[0][1])

    def _continuations(
        self, running: Sequence[tuple[float, tuple[int, ...]]]
    ) -> list[tuple[float, tuple[int, ...]]]:
        """Every sequence by every next token, the best first."""
        scores = self.score(np.array([tokens for _, tokens in running], int))
        highest = scores.max(axis=1, keepdims=True)
        logs = scores - highest - np.log(np.exp(scores - highest).sum(axis=1, keepdims=True))
        return sorted(
            (
                (total + float(log), (*tokens, word))
                for (total, tokens), row in zip(running, logs, strict=True)
                for word, log in enumerate(row)
            ),
            reverse=True,
        )

    def _note_boundary(self, ranked: Sequence[tuple[float, tuple[int, ...]]], count: int) -> None:
        """Notes how far the last that is kept is from the first that is not."""
        if len(ranked) > count:
            self._note(ranked[count - 1][0], ranked[count][0])

    def _note(self, chosen: float, other: float) -> None:
        self.margin = min(self.margin, float(chosen - other))


def padded(sequences: Sequence[Sequence[int]], length_tokens: int) -> np.ndarray:
    """Sequences as one array [B, N], with -1 after their ends."""
    rows = [[*tokens, *[-1] * (length_tokens - len(tokens))] for tokens in sequences]
    return np.array(rows, np.int32)
