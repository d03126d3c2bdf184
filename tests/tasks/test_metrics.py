"""Metrics against formulas written another way: from pairs of rows and from probabilities."""

import numpy as np
import pytest

from jpt.errors import InputError
from jpt.tasks.metrics import METRICS, compute_metric


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accuracy", 9 / 12),
        ("f1", 6 / 9),
        ("f1_macro", (12 / 15 + 6 / 9) / 2),
        ("matthews", (3 * 6 - 2 * 1) / (5 * 4 * 8 * 7) ** 0.5),
    ],
)
def test_a_case_by_hand(name: str, value: float) -> None:
    assert compute_metric(name, PREDICTIONS, LABELS) == pytest.approx(value)


@pytest.mark.parametrize("name", METRICS)
def test_perfect_answers_score_one(name: str) -> None:
    labels = np.array([0, 1, 1, 0])
    assert compute_metric(name, labels, labels) == 1.0


@pytest.mark.parametrize("name", METRICS)
def test_row_order_changes_nothing(name: str) -> None:
    predictions, labels = some_answers(3, 100, seed=1)
    order = np.random.default_rng(2).permutation(100)
    assert compute_metric(name, predictions, labels) == compute_metric(
        name, predictions[order], labels[order]
    )


def test_one_class_only() -> None:
    zeros, ones = np.zeros(5, int), np.ones(5, int)
    assert compute_metric("f1", zeros, zeros) == 0.0
    assert compute_metric("f1_macro", zeros, zeros) == 1.0
    assert compute_metric("matthews", zeros, ones) == 0.0
    assert compute_metric("accuracy", zeros, ones) == 0.0


@pytest.mark.parametrize(("n_predictions", "n_labels"), [(3, 4), (0, 0)])
def test_one_prediction_a_row(n_predictions: int, n_labels: int) -> None:
    with pytest.raises(InputError, match="one prediction a row"):
        compute_metric("accuracy", np.zeros(n_predictions, int), np.zeros(n_labels, int))


def test_unknown_metric() -> None:
    with pytest.raises(InputError, match="unknown metric 'bleu'"):
        compute_metric("bleu", np.zeros(1, int), np.zeros(1, int))
