"""What each built-in task takes from one review: two texts that differ in what the task asks.

Everything else is kept alike in the two, so that nothing but the question tells them apart: moved
words stand in the same punctuation and in small letters, a sentence is compared with one of the
same review and of its length, and both halves of a pair are drawn alike for either answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

from jpt.data.altered_text import (
    END_MARK,
    count_words,
    halves,
    reverse,
    scramble,
    set_period,
    thin_out,
)
from jpt.data.draws import Draws
from jpt.data.movie_reviews import Source
from jpt.data.movie_reviews import sentences as cut_sentences

Unit = tuple[str, str]
Make = Callable[[str, Draws], Unit | None]

QUESTION = re.compile(r"""(?<![?!.])\?["')\]]*$""")
EXCLAMATION = re.compile(r"""(?<![?!.])!+["')\]]*$""")
STATEMENT = re.compile(r"""(?<![?!.])\.["')\]]*$""")

NEGATION = re.compile(r"\b(?:not|no|never|nothing|nobody|none|cannot|without)\b|n't\b", re.I)
FIRST_PERSON = re.compile(r"\b(?:I|me|my|mine|myself)\b")
NUMBER = re.compile(
    r"\d|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|twenty|hundred|first|second)\b", re.I
)

# Words of a sentence alone, and of each sentence of a pair: a row then fits 64 pieces, mostly.
ALONE = (6, 32)
OF_PAIR = (5, 25)
# Of a sentence that is compared with another of its review: questions are often short.
BESIDE = (4, 32)
# Of each passage of a pair.
PASSAGE = (16, 36)

ENDING_WORDS = (20, 50)

# Two sentences that are compared differ by this many words at most, and mostly by none.
MOST_APART = 2


@dataclass(frozen=True)
class Recipe:
    """How the rows of a task are made from reviews."""

    source: Source  # which reviews
    # ``"review"``: the first text, labelled as the review; ``"contrast"``: one of the two texts,
    # class 0 or class 1; ``"twins"``: both of them, as two rows; ``"pair"``: the two as a pair of
    # class 1, or with the second of another review as a pair of class 0
    form: Literal["review", "contrast", "twins", "pair"]
    make: Make  # takes the two texts from a review; None where it has none
    contains: str = ""  # only reviews with this in them are looked at


@lru_cache(maxsize=32_768)
def sentences(text: str) -> tuple[str, ...]:
    """The sentences of a review, kept: several tasks read the same reviews."""
    return tuple(cut_sentences(text))


def _is_plain(sentence: str, limits: tuple[int, int]) -> bool:
    low, high = limits
    return low <= len(sentence.split()) <= high and bool(END_MARK.search(sentence))


def _pick_sentence(text: str, draws: Draws, limits: tuple[int, int]) -> str | None:
    found = [sentence for sentence in sentences(text) if _is_plain(sentence, limits)]
    chosen = draws.pick(found) if found else ""
    return chosen if count_words(chosen) >= limits[0] else None


def _pick_snippet(text: str, draws: Draws, limits: tuple[int, int]) -> str | None:
    """A Rotten Tomatoes review is one sentence, with or without an end mark."""
    return text if limits[0] <= count_words(text) <= limits[1] else None


Pick = Callable[[str, Draws, tuple[int, int]], str | None]


def _whole(text: str, draws: Draws) -> Unit:
    return text, text


def _ending(text: str, draws: Draws) -> Unit | None:
    """The last sentences of a review, until they have enough words."""
    low, high = ENDING_WORDS
    ending = ""
    for sentence in reversed(sentences(text)):
        ending = f"{sentence} {ending}".strip()
        if count_words(ending) >= low:
            return (ending, ending) if count_words(ending) <= high else None
    return None


def _scrambled(text: str, draws: Draws, pick: Pick) -> Unit | None:
    sentence = (pick(text, draws, ALONE) or "").lower()
    scrambled = scramble(sentence, draws)
    return (scrambled, sentence) if scrambled else None


def _reversed(text: str, draws: Draws, pick: Pick) -> Unit | None:
    sentence = (pick(text, draws, ALONE) or "").lower()
    return (reverse(sentence), sentence) if sentence else None


def _next_sentence(text: str, draws: Draws) -> Unit | None:
    found = sentences(text)
    plain = [_is_plain(sentence, OF_PAIR) for sentence in found]
    starts = [i for i in range(len(found) - 1) if plain[i] and plain[i + 1]]
    if not starts:
        return None
    start = draws.pick(starts)
    return found[start], found[start + 1]


def _next_passage(text: str, draws: Draws) -> Unit | None:
    """Two sentences, and the two after them."""
    found = sentences(text)
    couples = [" ".join(couple) for couple in zip(found, found[1:], strict=False)]
    plain = [_is_plain(couple, PASSAGE) for couple in couples]
    starts = [i for i in range(len(couples) - 2) if plain[i] and plain[i + 2]]
    if not starts:
        return None
    start = draws.pick(starts)
    return couples[start], couples[start + 2]


def _same_review(text: str, draws: Draws) -> Unit | None:
    """Two sentences with at least one between them, in the order of the review."""
    found = sentences(text)
    plain = [i for i, sentence in enumerate(found) if _is_plain(sentence, OF_PAIR)]
    starts = [i for i in plain if i + 2 <= plain[-1]]
    if not starts:
        return None
    start = draws.pick(starts)
    return found[start], found[draws.pick([i for i in plain if i >= start + 2])]


def _halves(text: str, draws: Draws, pick: Pick) -> Unit | None:
    sentence = pick(text, draws, (10, 36))
    return halves(sentence) if sentence else None


def _copy(text: str, draws: Draws, pick: Pick) -> Unit | None:
    sentence = pick(text, draws, (8, 25))
    return (sentence, thin_out(sentence, draws)) if sentence else None


def _placed(text: str, draws: Draws, place: int) -> Unit | None:
    """A sentence of the middle and, of nearly its length, the one at a place (0 or -1)."""
    found = sentences(text)
    if len(found) < 4 or not _is_plain(found[place], BESIDE):
        return None
    other = _of_length(found[1:-1], found[place], draws)
    return (other, found[place]) if other else None


def _end_mark(text: str, draws: Draws, mark: re.Pattern[str]) -> Unit | None:
    """A statement and, of nearly its length, a sentence with another mark; both get a period."""
    found = sentences(text)
    marked = [s for s in found if mark.search(s) and _is_plain(s, BESIDE)]
    if not marked:
        return None
    chosen = draws.pick(marked)
    other = _of_length([s for s in found if STATEMENT.search(s)], chosen, draws)
    return (set_period(other), set_period(chosen)) if other else None


def _mention(text: str, draws: Draws, words: re.Pattern[str]) -> Unit | None:
    """A sentence without such a word and, of nearly its length, one with such a word."""
    found = [s for s in sentences(text) if _is_plain(s, BESIDE)]
    saying = [s for s in found if words.search(s)]
    if not saying:
        return None
    chosen = draws.pick(saying)
    other = _of_length([s for s in found if not words.search(s)], chosen, draws)
    return (other, chosen) if other else None


def _of_length(found: Sequence[str], model: str, draws: Draws) -> str | None:
    """Of the sentences the one with most nearly as many words as the model."""
    wanted = len(model.split())
    near = [(abs(len(s.split()) - wanted), s) for s in found if END_MARK.search(s) and s != model]
    least = min((distance for distance, _ in near), default=MOST_APART + 1)
    if least > MOST_APART:
        return None
    return draws.pick([s for distance, s in near if distance == least])


RECIPES: dict[str, Recipe] = {
    "imdb": Recipe("imdb", "review", _whole),
    "rotten_tomatoes": Recipe("rotten_tomatoes", "review", _whole),
    "imdb_ending": Recipe("imdb", "review", _ending),
    "imdb_scrambled": Recipe("imdb", "contrast", partial(_scrambled, pick=_pick_sentence)),
    "rotten_tomatoes_scrambled": Recipe(
        "rotten_tomatoes", "contrast", partial(_scrambled, pick=_pick_snippet)
    ),
    "imdb_reversed": Recipe("imdb", "contrast", partial(_reversed, pick=_pick_sentence)),
    "rotten_tomatoes_reversed": Recipe(
        "rotten_tomatoes", "contrast", partial(_reversed, pick=_pick_snippet)
    ),
    "imdb_next_sentence": Recipe("imdb", "pair", _next_sentence),
    "imdb_next_passage": Recipe("imdb", "pair", _next_passage),
    "imdb_same_review": Recipe("imdb", "pair", _same_review),
    "imdb_halves": Recipe("imdb", "pair", partial(_halves, pick=_pick_sentence)),
    "rotten_tomatoes_halves": Recipe(
        "rotten_tomatoes", "pair", partial(_halves, pick=_pick_snippet)
    ),
    "imdb_copy": Recipe("imdb", "pair", partial(_copy, pick=_pick_sentence)),
    "rotten_tomatoes_copy": Recipe("rotten_tomatoes", "pair", partial(_copy, pick=_pick_snippet)),
    "imdb_opening": Recipe("imdb", "twins", partial(_placed, place=0)),
    "imdb_closing": Recipe("imdb", "twins", partial(_placed, place=-1)),
    "imdb_question": Recipe("imdb", "twins", partial(_end_mark, mark=QUESTION), contains="?"),
    "imdb_exclamation": Recipe("imdb", "twins", partial(_end_mark, mark=EXCLAMATION), contains="!"),
    "imdb_negation": Recipe("imdb", "twins", partial(_mention, words=NEGATION)),
    "imdb_first_person": Recipe("imdb", "twins", partial(_mention, words=FIRST_PERSON)),
    "imdb_number": Recipe("imdb", "twins", partial(_mention, words=NUMBER)),
}
"""The recipe of each built-in task, by its name without ``builtin/``."""
