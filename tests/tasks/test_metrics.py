"""Metrics, compared with slow forms, with nltk, and with cases worked out by hand."""

import itertools
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from jpt.errors import InputError
from jpt.tasks.metrics import (
    METRICS,
    TEXT_METRICS,
    chance_level,
    compute_metric,
    count_confusions,
    normalize_answer,
    row_scores,
    score_texts,
)
from jpt.types import Generation


def slow_f1(predictions: np.ndarray, labels: np.ndarray, of_class: int) -> float:
    """F1 as the harmonic mean of precision and recall, row by row."""
    hits = sum(p == of_class == t for p, t in zip(predictions, labels, strict=True))
    if hits == 0:
        return 0.0
    precision = hits / sum(p == of_class for p in predictions)
    recall = hits / sum(t == of_class for t in labels)
    return 2 / (1 / precision + 1 / recall)


def slow_matthews(predictions: np.ndarray, labels: np.ndarray) -> float:
    """The correlation of the one-hot indicators of both sides (Gorodkin 2004, equation 1)."""
    classes = range(max(predictions.max(), labels.max()) + 1)
    answered = np.array([[p == c for c in classes] for p in predictions], float)
    true = np.array([[t == c for c in classes] for t in labels], float)

    def covariance(a: np.ndarray, b: np.ndarray) -> float:
        return float(((a - a.mean(0)) * (b - b.mean(0))).sum())

    spread = covariance(answered, answered) * covariance(true, true)
    return covariance(answered, true) / spread**0.5 if spread > 1e-12 else 0.0


def some_answers(n_classes: int, n_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, n_classes, n_rows)
    wrong = generator.integers(0, n_classes, n_rows)
    return np.where(generator.random(n_rows) < 0.6, labels, wrong), labels


@pytest.mark.parametrize("n_classes", [2, 3, 5])
@pytest.mark.parametrize("n_rows", [1, 7, 300])
def test_every_metric_equals_its_slow_form(n_classes: int, n_rows: int) -> None:
    predictions, labels = some_answers(n_classes, n_rows, seed=n_classes * n_rows)
    present = sorted(set(labels) | set(predictions))
    expected = {
        "accuracy": np.mean([p == t for p, t in zip(predictions, labels, strict=True)]),
        "f1": slow_f1(predictions, labels, 1),
        "f1_macro": np.mean([slow_f1(predictions, labels, c) for c in present]),
        "matthews": slow_matthews(predictions, labels),
    }
    assert set(expected) == set(METRICS)
    for name, value in expected.items():
        assert compute_metric(name, predictions, labels) == pytest.approx(value, abs=1e-12)


# true 0: 6 right, 2 wrong; true 1: 3 right, 1 wrong. Worked out by hand.
LABELS = np.array([0] * 8 + [1] * 4)
PREDICTIONS = np.array([0] * 6 + [1] * 2 + [1] * 3 + [0])


def test_a_case_by_hand() -> None:
    matthews = (3 * 6 - 2 * 1) / (5 * 4 * 8 * 7) ** 0.5
    values = {"accuracy": 9 / 12, "f1": 6 / 9, "f1_macro": (12 / 15 + 6 / 9) / 2}
    for name, value in {**values, "matthews": matthews}.items():
        assert compute_metric(name, PREDICTIONS, LABELS) == pytest.approx(value)


@pytest.mark.parametrize("name", METRICS)
def test_perfect_predictions_and_row_order(name: str) -> None:
    labels = np.array([0, 1, 1, 0])
    assert compute_metric(name, labels, labels) == 1.0
    predictions, labels = some_answers(3, 100, seed=1)
    order = np.random.default_rng(2).permutation(100)
    shuffled = compute_metric(name, predictions[order], labels[order])
    assert compute_metric(name, predictions, labels) == shuffled


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("shares", [(0.7, 0.3), (0.25, 0.75), (0.5, 0.5), (0.2, 0.5, 0.3), (1.0,)])
def test_chance_is_the_best_constant_prediction(name: str, shares: tuple[float, ...]) -> None:
    labels = np.repeat(np.arange(len(shares)), np.multiply(shares, 20).round().astype(int))
    constants = [np.full(20, answer) for answer in range(max(2, len(shares)))]
    scores = [compute_metric(name, constant, labels) for constant in constants]
    assert chance_level(name, labels) == max(scores)
    expected = {"accuracy": max(shares), "matthews": 0.0}
    expected["f1_macro"] = 2 * max(shares) / (1 + max(shares)) / len(shares)
    if len(shares) > 1 and name in expected:
        assert chance_level(name, labels) == pytest.approx(expected[name])


@pytest.mark.parametrize("name", METRICS)
def test_stacked_confusions_equal_single_ones(name: str) -> None:
    pairs = [some_answers(3, 60, seed) for seed in range(5)]
    pairs.append((np.zeros(60, int), np.repeat([0, 1, 2], 20)))
    counts = np.stack([count_confusions(*pair) for pair in pairs])
    expected = [compute_metric(name, *pair) for pair in pairs]
    np.testing.assert_array_equal(METRICS[name](counts), expected)


def test_constant_predictions_and_errors() -> None:
    zeros, ones = np.zeros(5, int), np.ones(5, int)
    assert [compute_metric(name, zeros, zeros) for name in ("f1", "f1_macro")] == [0.0, 1.0]
    assert [compute_metric(name, zeros, ones) for name in ("matthews", "accuracy")] == [0.0, 0.0]
    for n_predictions, n_labels in ((3, 4), (0, 0)):
        with pytest.raises(InputError, match="one prediction per row"):
            compute_metric("accuracy", np.zeros(n_predictions, int), np.zeros(n_labels, int))
    with pytest.raises(InputError, match="unknown metric 'bleu'"):
        compute_metric("bleu", zeros, zeros)


PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


def generated(prediction: str, *references: str) -> Generation:
    ids: dict[str, int] = {}

    def tokens(text: str) -> tuple[int, ...]:
        return tuple(ids.setdefault(word, len(ids)) for word in text.split())

    return Generation(prediction, references, tokens(prediction), tuple(map(tokens, references)))


def slow_words(text: str) -> list[str]:
    """The normalised words, found by runs of letters and digits instead of a pattern."""
    kept = [c for c in text.lower() if c not in PUNCTUATION]
    runs = ("".join(run) for _, run in itertools.groupby(kept, key=str.isalnum))
    return "".join(" " if run in ("a", "an", "the") else run for run in runs).split()


def slow_overlap(prediction: list[str], reference: list[str], order: int = 1) -> float:
    """The harmonic mean of precision and recall, each common n-gram crossed off once."""
    predicted, left = (
        [text[i : i + order] for i in range(len(text) - order + 1)]
        for text in (prediction, reference)
    )
    sizes = len(predicted) + len(left)
    n_common = sum(ngram in left and left.remove(ngram) is None for ngram in predicted)
    return 2 / (sizes / n_common) if n_common else 0.0


def altered(answer: str, other: str, generator: random.Random) -> Iterator[str]:
    """Predictions near to an answer, as models write them."""
    words = answer.split()
    yield answer
    yield " ".join(words[: generator.randint(0, len(words))])
    yield " ".join(generator.sample(words, len(words)))
    yield generator.choice([answer.upper(), answer.lower(), answer.title()])
    yield "".join(c + generator.choice(["", "", "", generator.choice(PUNCTUATION)]) for c in answer)
    yield " ".join(generator.choice(["", "a ", "The ", "an\t"]) + word for word in words) + " the"
    yield f"{answer} {other}"
    yield other


@pytest.mark.parametrize("task", ["squad", "nq_open"])
def test_real_answers_score_as_the_slow_forms(reference_folder: Path, task: str) -> None:
    lines = (reference_folder / "data" / task / "test.jsonl").read_text("utf-8").splitlines()
    answers = [tuple(json.loads(line)["answers"]) for line in lines[:300]]
    generator, seen = random.Random(1), set()
    for references, others in itertools.pairwise(answers):
        for prediction in altered(generator.choice(references), others[0], generator):
            row = Generation(prediction, references, (), ())
            words = slow_words(prediction)
            match = float(any(slow_words(reference) == words for reference in references))
            f1 = max(slow_overlap(words, slow_words(reference)) for reference in references)
            assert normalize_answer(prediction) == " ".join(words)
            assert TEXT_METRICS["exact_match"](row) == match
            assert TEXT_METRICS["token_f1"](row) == pytest.approx(f1, abs=1e-12)
            seen.add((match, 0 < f1 < 1))
    assert {(1.0, False), (0.0, True), (0.0, False)} <= seen


def test_normal_forms_by_hand() -> None:
    for text, normal in (
        ("The Cat, an animal.", "cat animal"),
        ("A-team", "ateam"),  # punctuation goes first, so no article is left
        ("on\u2013the\u2013road", "on\u2013 \u2013road"),
        ("a\u2013b", "\u2013b"),  # the dash is no ASCII punctuation, but ends a word
        ("Théâtre\u00a0 THE\nEnd", "théâtre end"),
        ("another theme", "another theme"),
        ("$1,000_000", "1000000"),
        ("the", ""),
        ("", ""),
    ):
        assert normalize_answer(text) == normal
        assert slow_words(text) == normal.split()


def test_squad_by_hand() -> None:
    for prediction, references, match, f1 in (
        ("The Norfolk county", ["Lower Norfolk County"], 0, 4 / 5),
        ("Norfolk", ["Lower Norfolk County", "norfolk!"], 1, 1),
        ("cats cats cats", ["cats dogs"], 0, 2 / 5),  # a word counts as often as in both
        ("Paris", ["London", "Rome"], 0, 0),
        ("a.", ["The"], 1, 0),  # nothing is left of either: so in SQuAD v1.1
        ("", ["Paris"], 0, 0),
    ):
        row = generated(prediction, *references)
        assert TEXT_METRICS["exact_match"](row) == match
        assert TEXT_METRICS["token_f1"](row) == pytest.approx(f1)


ROUGE = ["rouge1", "rouge2", "rougeL"]


def slow_longest(prediction: list[str], reference: list[str]) -> float:
    @cache
    def longest(i: int, j: int) -> int:
        if i == len(prediction) or j == len(reference):
            return 0
        if prediction[i] == reference[j]:
            return 1 + longest(i + 1, j + 1)
        return max(longest(i + 1, j), longest(i, j + 1))

    return 2 * longest(0, 0) / max(1, len(prediction) + len(reference))


def test_rouge_equals_plain_counts() -> None:
    generator, words = random.Random(2), "the cat has x1 dog b run sun".split()
    for _ in range(200):
        texts = [generator.choices(words, k=generator.randint(0, 14)) for _ in range(3)]
        prediction, *references = texts
        found = row_scores(ROUGE, generated(*map(" ".join, texts)))
        forms = (slow_overlap, partial(slow_overlap, order=2), slow_longest)
        expected = [max(form(prediction, one) for one in references) for form in forms]
        assert found == pytest.approx(dict(zip(ROUGE, expected, strict=True)), abs=1e-12)


def test_rouge_by_hand() -> None:
    for prediction, reference, values in (
        ("The cat sat on the mat.", "the cat ate the mat", (8 / 11, 4 / 9, 8 / 11)),
        ("running dogs", "run dog", (1, 1, 1)),  # stemmed
        ("a b\nc d", "c d\na b", (1, 2 / 3, 1 / 2)),  # one run of words, whatever the lines
        ("кот", "кот", (0, 0, 0)),  # no letter from a to z
        ("", "cat", (0, 0, 0)),
    ):
        found = row_scores(ROUGE, generated(prediction, reference))
        assert found == pytest.approx(dict(zip(ROUGE, values, strict=True)))


def bleu(tokens: tuple[int, ...], *references: tuple[int, ...]) -> float:
    return TEXT_METRICS["bleu"](Generation("", (), tokens, references))


def nltk_bleu(tokens: tuple[int, ...], *references: tuple[int, ...]) -> float:
    smoothing = SmoothingFunction().method1
    return sentence_bleu(references, tokens, weights=(0.7, 0.3), smoothing_function=smoothing)


def test_bleu_equals_nltk() -> None:
    generator, smoothed = random.Random(3), 0
    for case in range(600):
        tokens, *references = (
            tuple(generator.randrange(2 + case % 20) for _ in range(generator.randint(0, 12)))
            for _ in range(generator.randint(2, 5))
        )
        assert bleu(tokens, *references) == pytest.approx(nltk_bleu(tokens, *references), abs=1e-12)
        pairs = {pair for one in references for pair in itertools.pairwise(one)}
        common = pairs & set(itertools.pairwise(tokens))
        smoothed += bool(set(tokens) & set().union(*references)) and not common
    assert smoothed > 30


def test_bleu_by_hand() -> None:
    for tokens, references, value in (
        ((), [(1, 2)], 0),
        ((), [()], 0),
        ((1, 2), [()], 0),
        ((3, 4), [(1, 2)], 0),
        ((1,), [(1,)], 0.1**0.3),  # no pair: one wrong pair, smoothed
        ((1,), [(1, 2, 3)], 0.1**0.3 * 2.718281828459045**-2),
        ((1, 2), [(2, 1)], 0.1**0.3),
        ((1, 1, 1, 1), [(1, 2, 1)], 0.5**0.7 * (0.1 / 3) ** 0.3),
        ((1, 2, 3, 4), [(1, 2), (3, 4)], (2 / 3) ** 0.3),  # both references count at once
        ((1, 2, 3), [(1, 2, 3, 9), (1, 2)], 1),  # of two equally near, the shorter length
        ((1, 2, 3), [(1, 2, 3, 9)], 2.718281828459045 ** (-1 / 3)),
    ):
        assert bleu(tokens, *references) == pytest.approx(value, abs=1e-12)
        assert nltk_bleu(tokens, *references) == pytest.approx(value, abs=1e-12)


def some_rows(n_rows: int) -> list[Generation]:
    generator = random.Random(4)
    words = "the small cat sees a Dog, running over red hills in spring.".split()

    def text() -> str:
        return " ".join(generator.choices(words, k=generator.randint(2, 9)))

    return [generated(text(), text(), text(), text()) for _ in range(n_rows)]


@pytest.mark.parametrize("name", TEXT_METRICS)
def test_a_perfect_answer_scores_one(name: str) -> None:
    rows = [
        row._replace(
            prediction=f"cat {row.references[1]}",
            prediction_tokens=(99, *row.reference_tokens[1]),
            references=(row.references[0], f"cat {row.references[1]}"),
            reference_tokens=(row.reference_tokens[0], (99, *row.reference_tokens[1])),
        )
        for row in some_rows(40)
    ]
    assert score_texts([name], rows) == {name: 1.0}


def test_mean_of_the_rows_in_any_order() -> None:
    rows = some_rows(60)
    found = score_texts(list(TEXT_METRICS), rows)
    assert found == score_texts(list(TEXT_METRICS), rows[::-1])
    assert list(score_texts(["rougeL", "bleu"], rows)) == ["rougeL", "bleu"]
    each = [row_scores(list(TEXT_METRICS), row) for row in rows]
    for row, scores in zip(rows, each, strict=True):
        references, tokens = row.references[::-1], row.reference_tokens[::-1]
        other = row._replace(references=references, reference_tokens=tokens)
        assert row_scores(list(TEXT_METRICS), other) == scores
    for name in TEXT_METRICS:
        values = [one[name] for one in each]
        assert found[name] == pytest.approx(sum(values) / 60) and 0 <= min(values) <= max(values)
        assert max(values) <= 1 and (name == "exact_match" or len(set(values)) > 10)


def test_rows_that_cannot_be_scored() -> None:
    for name, rows, message in (
        ("rouge", [generated("a", "b")], r"unknown metric 'rouge'; did you mean rouge[12L]"),
        ("bleu", [], r"no rows to score with bleu"),
        ("token_f1", [generated("a", "b"), generated("Paris")], "no reference .* 'Paris' with; g"),
        ("bleu", [Generation("Paris", ("Paris",), (1,), ())], "no reference tokens .* 'Paris'"),
    ):
        with pytest.raises(InputError, match=message):
            score_texts([name], rows)


def test_rouge_alone_loads_its_library() -> None:
    code = """
import sys
from jpt.tasks.metrics import score_texts
from jpt.types import Generation
score_texts(["exact_match", "token_f1", "bleu"], [Generation("a", ("a",), (1,), ((1,),))])
print([name for name in ("rouge_score", "nltk", "jax", "scipy") if name in sys.modules])
"""
    command, root = [sys.executable, "-c", code], Path(__file__).resolve().parents[2]
    assert subprocess.check_output(command, cwd=root, text=True).strip() == "[]"
