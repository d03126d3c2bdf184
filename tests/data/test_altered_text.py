"""Altered sentences: the words are the same, the skeleton is the same, the order is not."""

from collections import Counter

import pytest

from jpt.data.builtin import (
    WORD,
    NamedRandom,
    count_words,
    halves,
    replace_words,
    reverse,
    scramble,
    set_period,
    thin_out,
)

SENTENCES = [
    "a slow , well-made film ( but isn't it long ? ) .",
    'He said: "I\'d go at 5.30 p.m., or not at all!"',
    "the café, the naïve waiter and the 3-d glasses...",
]


def skeleton(text: str) -> str:
    return WORD.sub("_", text)


@pytest.mark.parametrize("text", SENTENCES)
def test_scrambling_moves_words_and_nothing_else(text: str) -> None:
    for seed in range(20):
        scrambled = scramble(text, NamedRandom(str(seed)))
        words, moved = WORD.findall(text), WORD.findall(scrambled)
        assert Counter(words) == Counter(moved)
        assert skeleton(scrambled) == skeleton(text)
        assert sum(a != b for a, b in zip(words, moved, strict=True)) >= 0.6 * len(words)


@pytest.mark.parametrize("text", ["", "one", "... !", "go go go go go", "very " * 9 + "good"])
def test_what_cannot_be_scrambled_gives_nothing(text: str) -> None:
    assert scramble(text, NamedRandom("a")) is None


@pytest.mark.parametrize("text", SENTENCES)
def test_reversing_twice_gives_the_text(text: str) -> None:
    assert reverse(text) != text
    assert skeleton(reverse(text)) == skeleton(text)
    assert reverse(reverse(text)) == text


@pytest.mark.parametrize("text", SENTENCES)
def test_halves_hold_all_words(text: str) -> None:
    first, second = halves(text)
    assert WORD.findall(first) + WORD.findall(second) == WORD.findall(text)
    assert 0 <= count_words(second) - count_words(first) <= 3
    assert f"{first} {second}" == text


@pytest.mark.parametrize("text", ["", "one", "one/two-three", "(one) .", "one 'two'"])
def test_what_has_no_place_to_be_cut_gives_nothing(text: str) -> None:
    assert halves(text) is None


@pytest.mark.parametrize("text", SENTENCES)
def test_thinning_out_keeps_a_part_of_the_words(text: str) -> None:
    words = Counter(WORD.findall(text.lower()))
    kept = Counter(thin_out(text, NamedRandom("a")).split())
    assert kept <= words
    assert kept.total() == round(0.6 * words.total())


def test_words_go_into_the_places_of_words() -> None:
    assert replace_words("One, two-three (four's)!", ["1", "2", "3"]) == "1, 2 (3)!"


@pytest.mark.parametrize(
    ("text", "ended"),
    [
        ("Why?", "Why."),
        ("No!!!", "No."),
        ('"Go?!"', '"Go.'),
        ("So...", "So."),
        ("Mr. X.", "Mr. X."),
    ],
)
def test_every_end_becomes_a_period(text: str, ended: str) -> None:
    assert set_period(text) == ended
