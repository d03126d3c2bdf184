"""Scores of a whole split: accuracy, F1 and Matthews correlation.

Every score is computed from the confusion counts of all rows at once, so neither batch size nor
row order can change it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64, Int

from jpt.errors import InputError

Counts = Float64[np.ndarray, "C C"]


def count_confusions(
    predictions: Int[np.ndarray, "N"], labels: Int[np.ndarray, "N"]
) -> Float64[np.ndarray, "C C"]:
    """Counts how often each class was answered with each class."""
    n_classes = int(max(predictions.max(), labels.max(), 1)) + 1
    flat = np.bincount(labels * n_classes + predictions, minlength=n_classes**2)
    return flat.reshape(n_classes, n_classes).astype(np.float64)


def _accuracy(counts: Counts) -> float:
    return float(np.trace(counts) / counts.sum())


def _f1_by_class(counts: Counts) -> Float64[np.ndarray, "C"]:
    """F1 of each class; NaN for a class that is neither in the labels nor answered."""
    with np.errstate(invalid="ignore"):
        return 2 * np.diag(counts) / (counts.sum(0) + counts.sum(1))


def _f1(counts: Counts) -> float:
    return float(np.nan_to_num(_f1_by_class(counts)[1]))


def _f1_macro(counts: Counts) -> float:
    return float(np.nanmean(_f1_by_class(counts)))


def _matthews(counts: Counts) -> float:
    """The correlation of several classes (Gorodkin 2004); 0 when one side never varies."""
    answered, true, total = counts.sum(0), counts.sum(1), counts.sum()
    covariance = np.trace(counts) * total - answered @ true
    spread = (total**2 - answered @ answered) * (total**2 - true @ true)
    return float(covariance / np.sqrt(spread)) if spread > 0 else 0.0


METRICS: dict[str, Callable[[Counts], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "f1_macro": _f1_macro,
    "matthews": _matthews,
}
"""The metrics by name. ``f1`` takes the second label as the positive class."""


def compute_metric(
    name: str, predictions: Int[np.ndarray, "N"], labels: Int[np.ndarray, "N"]
) -> float:
    """Scores the answers for all rows of a split."""
    if name not in METRICS:
        raise InputError(f"unknown metric '{name}'; choose one of {', '.join(sorted(METRICS))}")
    if predictions.shape != labels.shape or predictions.ndim != 1 or not len(labels):
        raise InputError(
            f"{name} needs one prediction a row: got predictions of shape {predictions.shape} "
            f"for labels of shape {labels.shape}"
        )
    return METRICS[name](count_confusions(predictions, labels))


def compute_measures(
    predictions: Int[np.ndarray, "N"], labels: Int[np.ndarray, "N"], n_labels: int
) -> dict[str, float]:
    """Scores the answers for all rows of a split by every metric that fits the task."""
    names = [name for name in METRICS if name != "f1" or n_labels == 2]
    return {name: compute_metric(name, predictions, labels) for name in names}
