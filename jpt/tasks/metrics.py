"""Metrics of classification and generative tasks."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from itertools import chain
from typing import TYPE_CHECKING

import lazy_loader

from jpt.errors import InputError, unknown_name

np = lazy_loader.load("numpy")  # shell completion lists tasks and has no time for it
if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float64, Int
    from rouge_score.rouge_scorer import RougeScorer

    from jpt.types import Generation

    Counts = Float64[np.ndarray, "*R C C"]
    Scores = Float64[np.ndarray, "*R"]


# --- Generated answers: exact match, token F1, ROUGE and BLEU
# A split's score is the mean over its rows. With several references, a row's score is its best over
# them, except for BLEU, which is defined for several references.

# The paper's weights of unigrams and bigrams, and the smoothed count of zero (method 1 of Chen and
# Cherry 2014, as in nltk).
BLEU_WEIGHTS = (0.7, 0.3)
BLEU_EPSILON = 0.1

_ROUGE_NAMES = ("rouge1", "rouge2", "rougeL")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Normalise an answer as SQuAD v1.1 does."""
    # In this order: lower case, no ASCII punctuation, no articles, single spaces.
    bare = text.lower().translate(_WITHOUT_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def _exact_match(row: Generation) -> float:
    prediction = normalize_answer(row.prediction)
    return float(any(normalize_answer(reference) == prediction for reference in row.references))


def _token_f1(row: Generation) -> float:
    words = Counter(normalize_answer(row.prediction).split())
    return max(_f1_of_counts(words, reference) for reference in row.references)


def _f1_of_counts(predicted: Counter[str], reference: str) -> float:
    """F1 of the common words; as in SQuAD v1.1, 0 for two empty answers (version 2: 1)."""
    expected = Counter(normalize_answer(reference).split())
    n_common = (predicted & expected).total()
    return 2 * n_common / (predicted.total() + expected.total()) if n_common else 0.0


@cache
def _rouge_scorer() -> RougeScorer:
    # Imported here because it loads nltk and scipy, which takes a second.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(_ROUGE_NAMES), use_stemmer=True)


# Caches the last row: its three scores come from one pass.
@lru_cache(maxsize=1)
def _rouge_scores(prediction: str, references: tuple[str, ...]) -> dict[str, float]:
    scores = _rouge_scorer().score_multi(references, prediction)
    return {name: float(score.fmeasure) for name, score in scores.items()}


def _rouge(name: str) -> Callable[[Generation], float]:
    return lambda row: _rouge_scores(row.prediction, row.references)[name]


def _bleu(row: Generation) -> float:
    """BLEU of unigrams and bigrams, smoothed; 0 without a common token."""
    tokens, references = row.prediction_tokens, row.reference_tokens
    if set(tokens).isdisjoint(chain.from_iterable(references)):
        return 0.0
    weighted = (
        weight * math.log(_smoothed_precision(tokens, references, order))
        for order, weight in enumerate(BLEU_WEIGHTS, start=1)
    )
    closest = min((len(one) for one in references), key=lambda n: (abs(n - len(tokens)), n))
    brevity = min(0.0, 1 - closest / len(tokens))
    return math.exp(brevity + math.fsum(weighted))


def _smoothed_precision(
    tokens: tuple[int, ...], references: tuple[tuple[int, ...], ...], order: int
) -> float:
    """Return the clipped n-gram precision."""
    predicted = _count_ngrams(tokens, order)
    allowed: Counter[tuple[int, ...]] = Counter()
    for reference in references:
        allowed |= _count_ngrams(reference, order)
    n_common = (predicted & allowed).total()
    return (n_common or BLEU_EPSILON) / max(1, predicted.total())


def _count_ngrams(tokens: tuple[int, ...], order: int) -> Counter[tuple[int, ...]]:
    return Counter(zip(*(tokens[start:] for start in range(order)), strict=False))


TEXT_METRICS: dict[str, Callable[[Generation], float]] = {
    "exact_match": _exact_match,
    "token_f1": _token_f1,
    **{name: _rouge(name) for name in _ROUGE_NAMES},
    "bleu": _bleu,
}
"""Metrics by name; each scores one row from 0 to 1.

- ``exact_match``: 1 if the normalised answer equals a reference (SQuAD and NQ-Open; some
  evaluations of NQ-Open also decompose Unicode).
- ``token_f1``: F1 of the words of the normalised answers, as in SQuAD v1.1.
- ``rouge1``, ``rouge2``, ``rougeL``: F-measure of the rouge-score package with the Porter stemmer;
  ``rougeL`` ignores line breaks. Only a to z and digits count, so other scripts score 0.
- ``bleu``: the paper's BLEU of tokens, weights 0.7 and 0.3 for unigrams and bigrams. The paper's
  code sums it over a batch, truncates the sum to an integer, drops the last partial batch and uses
  the first reference only; here every row and reference counts. An answer of one token has no
  bigram, which counts as one wrong bigram: 0.1 ** 0.3 = 0.50 at most.
"""


def row_scores(names: Sequence[str], row: Generation) -> dict[str, float]:
    """Return the scores of one row."""
    for name in names:
        if name not in TEXT_METRICS:
            raise unknown_name("metric", name, TEXT_METRICS)
        if not (row.reference_tokens if name == "bleu" else row.references):
            what = "reference tokens" if name == "bleu" else "reference"
            raise InputError(
                f"{name} has no {what} to compare the answer {row.prediction[:40]!r} with; "
                "give 1 or more per row"
            )
    return {name: TEXT_METRICS[name](row) for name in names}


def score_texts(names: Sequence[str], rows: Sequence[Generation]) -> dict[str, float]:
    """Return the mean scores of generated answers."""
    if not rows:
        raise InputError(f"no rows to score with {', '.join(names)}; give 1 or more")
    return mean_scores([row_scores(names, row) for row in rows])


def mean_scores(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the means of the scores of rows."""
    # fsum is exact, so row order cannot change the last digit.
    return {name: math.fsum(row[name] for row in rows) / len(rows) for name in rows[0]}


# --- Classification: accuracy, F1 and Matthews correlation
# Computed from the confusion counts of all rows, so batch size and row order change nothing.


def count_confusions(
    predictions: Int[np.ndarray, "N"], labels: Int[np.ndarray, "N"]
) -> Float64[np.ndarray, "C C"]:
    """Return the confusion matrix: true classes by predicted classes."""
    n_classes = int(max(predictions.max(), labels.max(), 1)) + 1
    flat = np.bincount(labels * n_classes + predictions, minlength=n_classes**2)
    return flat.reshape(n_classes, n_classes).astype(np.float64)


def _accuracy(counts: Counts) -> Scores:
    return np.trace(counts, axis1=-2, axis2=-1) / counts.sum((-2, -1))


def _f1_by_class(counts: Counts) -> Float64[np.ndarray, "*R C"]:
    """Return the F1 of each class; NaN for a class in neither labels nor predictions."""
    with np.errstate(invalid="ignore"):
        return 2 * np.diagonal(counts, axis1=-2, axis2=-1) / (counts.sum(-2) + counts.sum(-1))


def _f1(counts: Counts) -> Scores:
    return np.nan_to_num(_f1_by_class(counts)[..., 1])


def _f1_macro(counts: Counts) -> Scores:
    return np.nanmean(_f1_by_class(counts), axis=-1)


def _matthews(counts: Counts) -> Scores:
    """Matthews correlation of several classes (Gorodkin 2004); 0 if one side is constant."""
    predicted, true, total = counts.sum(-2), counts.sum(-1), counts.sum((-2, -1))
    covariance = np.trace(counts, axis1=-2, axis2=-1) * total - (predicted * true).sum(-1)
    spread = (total**2 - (predicted**2).sum(-1)) * (total**2 - (true**2).sum(-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spread > 0, covariance / np.sqrt(spread), 0.0)


METRICS: dict[str, Callable[[Counts], Scores]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "f1_macro": _f1_macro,
    "matthews": _matthews,
}
"""Metrics by name, of one or several confusion matrices. The second label is the positive class of
``f1``."""


def compute_metric(
    name: str, predictions: Int[np.ndarray, "N"], labels: Int[np.ndarray, "N"]
) -> float:
    """Return one metric of the predictions for a split."""
    if name not in METRICS:
        raise InputError(f"unknown metric '{name}'; choose one of {', '.join(sorted(METRICS))}")
    if predictions.shape != labels.shape or predictions.ndim != 1 or not len(labels):
        raise InputError(
            f"{name}: expected one prediction per row, got predictions of shape "
            f"{predictions.shape} for labels of shape {labels.shape}"
        )
    return float(METRICS[name](count_confusions(predictions, labels)))


def compute_measures(
    predictions: Int[np.ndarray, "N"], labels: Int[np.ndarray, "N"], n_labels: int
) -> dict[str, float]:
    """Return every applicable metric of the predictions for a split."""
    names = [name for name in METRICS if name != "f1" or n_labels == 2]
    return {name: compute_metric(name, predictions, labels) for name in names}


def chance_level(name: str, labels: Int[np.ndarray, "N"]) -> float:
    """Return the score of the best constant prediction; 0 for Matthews correlation."""
    # For accuracy and macro F1 that is the majority class: 2p / (1 + p) grows with its share p. The
    # F1 of the positive class is 0 for any other prediction.
    answer = 1 if name == "f1" else int(np.bincount(labels).argmax())
    return compute_metric(name, np.full_like(labels, answer), labels)
