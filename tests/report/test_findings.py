"""Sentences and verdicts of the findings."""

import json
from pathlib import Path

import numpy as np
import pytest

from jpt.report.findings import Finding, find, source_finding, standard_error, type_finding
from jpt.report.report import prepare
from jpt.report.study import TransferPair
from jpt.results.statistics import mean_interval
from tests.helpers import study as samples
from tests.helpers.study import SCORES, write_choices, write_correlations, write_scores, write_study


def _found(folder: Path) -> dict[str, Finding]:
    return {finding.topic: finding for finding in find(*prepare(folder))}


def _pairs(same: list[float], other: list[float], target: str = "x") -> list[TransferPair]:
    groups = ((same, True), (other, False))
    return [
        TransferPair(target, f"{is_same}{i}", value, is_same)
        for values, is_same in groups
        for i, value in enumerate(values)
    ]


def _edit_choices(folder: Path):
    path = folder / "choice.json"
    record = json.loads(path.read_text())
    yield record
    path.write_text(json.dumps(record))


def test_sentences_hold_the_numbers(tmp_path: Path) -> None:
    found = {topic: finding.text for topic, finding in _found(write_study(tmp_path)).items()}
    means, bounds = [], None
    for chance in (0.5, 0.0):  # above chance, and as in the paper
        relative = (SCORES - chance) / (np.diag(SCORES) - chance)[:, None]
        same = np.array([relative[i, (i + 2) % 4] for i in range(4)])
        other = np.array([[relative[i, j] for j in range(4) if (i + j) % 2] for i in range(4)])
        means.append([same.mean(), other.mean(), relative[:, 4].mean()])
        gaps = same - other.mean(1)
        bounds = bounds or mean_interval(gaps.tolist())
    above, whole = ([f"{100 * mean:.0f}%" for mean in of] for of in means)
    low, high = bounds
    wanted = {
        "training": "All 4 in-task prompts score above chance (mean score 87%, chance level 50%).",
        "types": f"Above chance, zero-shot transfer reaches {above[0]} of the in-task prompt within"
        f" a task type and {above[1]} across types (untrained prompt: {above[2]}; 95% CI of the"
        f" difference over tasks: [{100 * low:+.1f}, {100 * high:+.1f}] points; with chance, as in"
        f" the paper: within a type {whole[0]}, across types {whole[1]}, untrained prompt"
        f" {whole[2]}): sources of the same type are better on 4 of 4 tasks, as in the paper.",
        "best_source": "The best source has the target's task type for 4 of 4 tasks (chance level:"
        " 1.3).",
        "overlap": "(ON) is 0.75 within a task type and 0.25 across types",
        "correlation": "transfer is +0.60 (95% CI [+0.55, +0.65]), compared with +0.20 for the best"
        " embedding indicator (E_concat): ON predicts transfer better (difference +0.40",
        "caution": "With n = 4 tasks of 3 sources each",
    }
    for topic, text in wanted.items():
        assert text in found[topic]


def test_verdicts_follow_the_numbers(tmp_path: Path) -> None:
    write_study(tmp_path)
    topics = ("types", "best_source", "overlap", "correlation")
    assert [_found(tmp_path)[topic].verdict for topic in topics] == ["agrees"] * 4
    swapped = SCORES[:, [1, 0, 3, 2, 4]]  # each prompt scores as one of the other type did
    swapped[np.diag_indices(4)] = np.diag(SCORES)
    write_scores(tmp_path, swapped)
    write_correlations(tmp_path, overlap=0.1, embedding=0.5)
    path = tmp_path / "types.json"
    path.write_text(path.read_text().replace("0.75", "0.05"))
    found = _found(tmp_path)
    assert [found[topic].verdict for topic in topics] == ["contradicts"] * 4
    assert all("contrary to the paper" in found[t].text for t in topics if t != "best_source")


@pytest.mark.parametrize(
    ("in_task", "failed", "types", "best"),
    [
        # 1821 rows: 0.52 is less than two standard errors above chance
        (
            {1: 0.52},
            "1 of 4 in-task prompts scores no better than chance, within two",
            "",
            "of 3 t",
        ),
        (dict.fromkeys(range(4), 0.51), "4 of 4 in-task prompts score no better", "No in-task", ""),
    ],
)
def test_prompts_at_chance(tmp_path: Path, in_task, failed: str, types: str, best: str) -> None:
    scores = SCORES.copy()
    for row, score in in_task.items():
        scores[row, row] = score
    write_scores(tmp_path, scores)
    samples.write_transfer_record(tmp_path, scores)
    found = _found(tmp_path)
    assert found["training"].text.startswith(failed)
    starts = f"{types} prompt is clearly above chance" if types else "Above chance, zero-shot"
    assert found["types"].text.startswith(starts)
    assert best in found["best_source"].text if best else "best_source" not in found
    # Without chance levels, the findings are worded as in the paper.
    (tmp_path / "transfer.json").unlink()
    found = _found(tmp_path)
    assert "training" not in found and "chance" not in found["types"].text


@pytest.mark.parametrize(
    ("same", "other", "random", "verdict", "text"),
    [
        ([0.9, 0.8], [0.5, 0.6], 0.5, "agrees", "as in the paper"),
        ([0.5], [0.9], 0.5, "contradicts", "sources of other types are better"),
        ([0.705], [0.7], 0.5, "contradicts", "makes no difference"),
        ([0.6], [0.5], 0.8, "contradicts", "no better than an untrained prompt"),
        ([0.6], [], 0.8, "unclear", "all tasks have the same type"),
        ([], [0.6], 0.8, "unclear", "no two tasks share a type"),
    ],
)
def test_types(same, other, random: float, verdict: str, text: str) -> None:
    found = type_finding(_pairs(same, other), [random])
    assert found is not None and found.verdict == verdict and text in found.text


def test_types_with_a_mean_that_one_task_dominates() -> None:
    pairs = _pairs([1.0], [0.1], "a") + _pairs([0.5], [0.6], "b") + _pairs([0.5], [0.6], "c")
    found = type_finding(pairs, [])
    assert found is not None and found.verdict == "unclear"
    assert "only on 1 of 3 tasks" in found.text and "untrained" not in found.text


def test_findings_without_types_or_pairs(tmp_path: Path) -> None:
    unknown = [TransferPair("x", "y", 0.5, None)]
    assert type_finding(unknown, []) is None and source_finding(unknown) is None
    assert type_finding([], []) is None
    assert standard_error([0.5]) == np.inf
    assert standard_error([1.0, 3.0]) == pytest.approx(1.0)
    samples.write_types(tmp_path)
    assert list(_found(tmp_path)) == ["overlap"]


@pytest.mark.parametrize(
    ("a", "b", "hits", "verdict"),
    [
        (([0.9], [0.9]), ([0.8], [0.9]), 0, "contradicts"),  # a tie does not count
        (([0.9], [0.8]), ([0.8], [0.9]), 1, "unclear"),
    ],
)
def test_best_source(a, b, hits: int, verdict: str) -> None:
    found = source_finding([*_pairs(*a, "a"), *_pairs(*b, "b")])
    assert found is not None and f"for {hits} of 2 tasks" in found.text
    assert found.verdict == verdict


@pytest.mark.parametrize(
    ("overlap", "embedding", "scatter", "verdict", "text"),
    [
        (0.6, 0.2, 0.05, "agrees", "ON predicts transfer better"),
        (0.6, 0.5, 0.5, "unclear", "ON is higher, as in the paper, but not significantly"),
        (0.5, 0.6, 0.5, "unclear", "not predict transfer better than the prompt embeddings here"),
        (0.2, 0.6, 0.05, "contradicts", "ON predicts transfer worse"),
        (-0.1, -0.5, 0.05, "contradicts", "ON does not predict transfer, contrary"),
        (0.6, None, 0.05, "unclear", "no embedding indicator to compare"),
        (None, 0.5, 0.05, "unclear", "is undefined"),
    ],
)
def test_correlation(tmp_path, overlap, embedding, scatter, verdict: str, text: str) -> None:
    write_correlations(tmp_path, overlap, embedding, scatter)
    found = _found(tmp_path)["correlation"]
    assert found.verdict == verdict and text in found.text


@pytest.mark.parametrize(
    ("overlap", "embedding", "verdict", "text"),
    [
        (0.01, 0.05, "agrees", "ON selects better, as in the paper"),
        (0.05, 0.01, "contradicts", "ON selects worse, contrary to the paper"),
        (0.03, 0.03, "unclear", "the two are equally good"),
    ],
)
def test_choices(tmp_path, overlap: float, embedding: float, verdict: str, text: str) -> None:
    write_choices(tmp_path, overlap, embedding)
    found = _found(tmp_path)["choice"]
    assert found.verdict == verdict and text in found.text
    assert f"a mean regret of {100 * overlap:.1f} point" in found.text
    assert "(random source: 10.0 points): better than random" in found.text
    assert f"(E_concat) has a regret of {100 * embedding:.1f} point" in found.text


def test_choices_without_significance_or_neurons(tmp_path: Path) -> None:
    write_choices(tmp_path, 0.02, 0.03)
    for record in _edit_choices(tmp_path):
        for index, chosen in enumerate(record["chosen"]["neuron_overlap"].values()):
            chosen["regret"] = (0.0, 0.0, 0.0, 0.08)[index]
        record["rankings"]["neuron_overlap"]["gain_interval"] = [-0.01, 0.1]
    found = _found(tmp_path)["choice"]
    assert found.verdict == "unclear" and "here, but not significantly" in found.text
    ci = "95% CI of the gain: [-1.0, +10.0] points"
    assert f"not significantly better than random ({ci})" in found.text
    write_choices(tmp_path)
    for record in _edit_choices(tmp_path):
        del record["rankings"]["neuron_overlap"]
        record["rankings"]["cosine_average"]["regret"] = 0.02
    found = _found(tmp_path)["choice"]
    assert found.verdict is None and found.text.startswith("Selecting the source by C_average")


@pytest.mark.parametrize(
    ("in_task", "random", "scatter", "verdict", "text"),
    [
        (0.6, 0.9, 0.02, "agrees", "matter more than random ones (95% CI of the difference: [+"),
        (0.9, 0.6, 0.02, "contradicts", "matter less than random ones"),
        (0.75, 0.8, 0.4, "unclear", "the difference is not significant"),
    ],
)
def test_masks(tmp_path, in_task, random, scatter, verdict: str, text: str) -> None:
    samples.write_masks(tmp_path, in_task, random, scatter)
    found = _found(tmp_path)["masks"]
    assert found.verdict == verdict and text in found.text
    # In-task score 0.8, chance 0.5
    lost, kept = (100 * (0.8 * share - 0.5) / 0.3 for share in (in_task, random))
    whole = f"{lost:.0f}% of the score above chance on average over 4 tasks ({100 * in_task:.0f}%"
    assert f"leaves {whole} of the whole score)" in found.text
    assert f"random neurons leaves {kept:.0f}% ({100 * random:.0f}% of the whole" in found.text
    assert "Masking the 20% of" in found.text
