"""Sentences and their altered forms: words moved, halved, thinned out, end marks made equal.

A word is a run of letters and digits with single hyphens, dots or apostrophes in it; what stands
between the words is the skeleton of a sentence. Moving words leaves the skeleton as it is, so that
neither punctuation nor spacing tells an altered sentence from a natural one.
"""

from __future__ import annotations

import re

from jpt.data.draws import Draws

WORD = re.compile(r"[^\W_]+(?:[-'’.][^\W_]+)*")
END_MARK = re.compile(r"""[.!?]+["')\]]*$""")

# Of the places of a scrambled sentence at least this part has another word than before.
MOVED = 0.6
ATTEMPTS = 20


def count_words(text: str) -> int:
    """Counts the words of a text."""
    return len(WORD.findall(text))


def replace_words(text: str, words: list[str]) -> str:
    """Puts other words into the skeleton of a text."""
    rest = iter(words)
    return WORD.sub(lambda _: next(rest), text)


def scramble(text: str, draws: Draws) -> str | None:
    """Puts the words of a text into an order by chance."""
    words = WORD.findall(text)
    for _ in range(ATTEMPTS):
        order = draws.shuffled(words)
        moved = sum(new != old for new, old in zip(order, words, strict=True))
        if moved >= max(2, MOVED * len(words)):
            return replace_words(text, order)
    return None


def reverse(text: str) -> str:
    """Turns the order of the words of a text round."""
    return replace_words(text, WORD.findall(text)[::-1])


def halves(text: str) -> tuple[str, str] | None:
    """Cuts a text at the space that stands nearest before the word in its middle."""
    words = [match.start() for match in WORD.finditer(text)]
    starts = [place for place, start in enumerate(words) if start and text[start - 1] == " "]
    if not starts:
        return None
    middle = words[min(starts, key=lambda place: abs(place - len(words) // 2))]
    return text[: middle - 1].rstrip(), text[middle:]


def thin_out(text: str, draws: Draws, kept: float = 0.6) -> str:
    """Takes a part of the words of a text, small, bare and in an order by chance."""
    words = draws.shuffled(WORD.findall(text.lower()))
    return " ".join(words[: max(1, round(kept * len(words)))])


def set_period(text: str) -> str:
    """Ends a sentence with a period, whatever it ended with."""
    return END_MARK.sub(".", text)
