"""The splits of the built-in tasks: balanced, apart, without repeats and without giveaways."""

import hashlib
import json
import math
from collections import Counter, defaultdict

import pytest

from jpt.data.builtin import SIZES, TASKS, WORD, builtin_rows, reviews
from jpt.errors import InputError

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
