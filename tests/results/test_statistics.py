"""Confidence intervals and standard errors: compared with plain loops and scipy; coverage."""

import numpy as np
import pytest
from scipy import stats

from jpt.indicators.correlation import correlate
from jpt.indicators.indicators import Indicators
from jpt.results.records import Lead
from jpt.results.statistics import (
    RESAMPLES,
    SEED,
    error_over_seeds,
    lead,
    mean_error,
    mean_interval,
    score_error,
    tail_share,
)
from jpt.tasks.metrics import compute_metric
from jpt.types import TransferMatrix

VALUES = np.random.default_rng(0).normal(0.3, 0.4, 9).tolist()


def test_intervals_of_numpy_loops_and_scipy() -> None:
    sampled = np.random.default_rng(SEED).integers(0, 9, (RESAMPLES, 9))
    means = [float(np.mean([VALUES[index] for index in line])) for line in sampled.tolist()]
    tail = stats.norm.cdf(-np.sqrt(9 / 8) * stats.t.ppf(0.975, 8))
    assert tail_share(9) == pytest.approx(tail, rel=1e-9)
    expected = np.quantile(means, [tail, 1 - tail])
    np.testing.assert_allclose(mean_interval(VALUES), expected, rtol=1e-12)
    options = {"confidence_level": 1 - 2 * tail_share(9), "n_resamples": 20_000}
    options |= {"method": "percentile", "rng": np.random.default_rng(1)}
    theirs = stats.bootstrap((VALUES,), np.mean, **options).confidence_interval
    np.testing.assert_allclose(mean_interval(VALUES), theirs, atol=0.03)


@pytest.mark.parametrize("count", [6, 14])
def test_normal_values_and_coverage(count: int) -> None:
    values = stats.norm.ppf((np.arange(count) + 0.5) / count)
    half = stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / np.sqrt(count)
    low, high = mean_interval(values.tolist())
    assert -low == pytest.approx(half, rel=0.12) and high == pytest.approx(half, rel=0.12)
    # Without the widening, coverage at six tasks is about 86 %.
    studies = np.random.default_rng(2).normal(0.4, 0.3, (400, count))
    found = [mean_interval(values.tolist(), resamples=2000) for values in studies]
    assert 0.91 <= np.mean([low <= 0.4 <= high for low, high in found]) <= 0.985


def test_bounds_and_paired_differences() -> None:
    random = np.random.default_rng(3)
    for count in range(2, 30):
        values = random.random(count).tolist()
        low, high = mean_interval(values)
        assert min(values) <= low <= np.mean(values) <= high <= max(values)
    assert mean_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)
    assert mean_interval([0.5]) is None and mean_interval([]) is None
    one = dict(zip([f"t{number}" for number in range(9)], VALUES, strict=True))
    shifted = {name: value - 0.1 for name, value in one.items()}
    found = lead(one, {**shifted, "other": 1.0, "t0": None})
    assert found.n_targets == 8 and found.mean == pytest.approx(0.1)
    np.testing.assert_allclose(found.interval, [0.1, 0.1], atol=1e-12)
    assert lead(one, {}) == lead({}, one) == Lead(None, None, 0)


def test_correlations_have_intervals_and_leads() -> None:
    random = np.random.default_rng(4)
    names = tuple("abcdefg")
    raw = random.random((3, 7, 7))
    columns = ("neuron_overlap", "cosine_average", "euclidean_concat")
    similarities = dict(zip(columns, raw + raw.transpose(0, 2, 1), strict=True))
    matrix = TransferMatrix(names, names, random.random((7, 7)) + 0.1, ("accuracy",) * 7)
    result = correlate(Indicators(names, similarities), matrix)
    for part in ("including_in_task", "excluding_in_task"):
        table = getattr(result, part)
        for found in table.values():
            assert found.interval == mean_interval(list(found.per_target.values()))
        leads = result.leads[part]
        overlap, *rivals = (table[name] for name in columns)
        best = max(zip(columns[1:], rivals, strict=True), key=lambda c: c[1].mean_over_targets)
        assert leads.best == best[0]
        for name, rival in zip(columns[1:], rivals, strict=True):
            gaps = [overlap.per_target[t] - rival.per_target[t] for t in names]
            assert leads.over[name].mean == pytest.approx(np.mean(gaps))
            assert leads.over[name].interval == mean_interval(gaps)
        record = result.record["overlap_lead"][part]
        assert record["over"][leads.best]["interval"] == list(leads.over[leads.best].interval)
    alone = correlate(Indicators(names, {"cosine_average": similarities["cosine_average"]}), matrix)
    assert alone.record["overlap_lead"] == {}


@pytest.mark.parametrize("metric", ["f1", "f1_macro", "matthews"])
@pytest.mark.parametrize("classes", [2, 4])
def test_standard_errors_of_scores(metric: str, classes: int) -> None:
    if metric == "f1" and classes > 2:
        return
    rng = np.random.default_rng(5)
    labels = rng.choice(classes, 300, p=np.arange(1, classes + 1) / sum(range(1, classes + 1)))
    predictions = np.where(rng.random(300) < 0.6, labels, rng.integers(0, classes, 300))
    options = {"paired": True, "vectorized": False, "n_resamples": 2000, "method": "percentile"}
    theirs = stats.bootstrap(
        (predictions, labels),
        lambda one, other: compute_metric(metric, one, other),
        rng=np.random.default_rng(6),
        **options,
    ).standard_error
    found = score_error(metric, predictions, labels)
    assert found == pytest.approx(theirs, rel=0.08)
    assert found == score_error(metric, predictions, labels), "seeded"
    assert found != score_error(metric, predictions, labels, seed=1)


def test_standard_errors_of_means_and_over_seeds() -> None:
    scores = np.random.default_rng(7).random(400).tolist()
    bootstrap = stats.bootstrap((scores,), np.mean, rng=np.random.default_rng(8))
    assert mean_error(scores) == pytest.approx(bootstrap.standard_error, rel=0.05)
    rows = np.array([1] * 30 + [0] * 10)
    found = score_error("accuracy", rows, np.ones(40, int))
    assert found == pytest.approx(stats.binom(40, 0.75).std() / 40)
    # A constant prediction has no Matthews correlation, whatever the rows.
    assert score_error("matthews", np.zeros(40, int), rows) == 0
    assert error_over_seeds([0.7], [0.1]) == 0.1 and np.isnan(error_over_seeds([0.7], [None]))
    spread = stats.sem([0.6, 0.7, 0.9])
    found = error_over_seeds([0.6, 0.7, 0.9], [0.01, 0.02, 0.03])
    assert found == pytest.approx(np.hypot(spread, np.sqrt(0.0014 / 3)))
