from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jpt.report.findings import Finding, find, source_finding, standard_error, type_finding
from jpt.report.study import TransferPair, order_study, read_study
from tests.helpers.study import (
    SCORES,
    write_choices,
    write_correlations,
    write_masks,
    write_scores,
    write_study,
    write_transfer_facts,
    write_types,
)


def _found(folder: Path) -> dict[str, Finding]:
    study = read_study(folder)
    return {finding.topic: finding for finding in find(study, order_study(study))}


def _moves(same: list[float], other: list[float], target: str = "x") -> list[TransferPair]:
    kinds = ((same, True), (other, False))
    return [
        TransferPair(target, f"{kind}{i}", value, kind)
        for values, kind in kinds
        for i, value in enumerate(values)
    ]


def test_sentences_tell_the_numbers(tmp_path: Path) -> None:
    found = _found(write_study(tmp_path))
    assert found["training"].text == (
        "All 4 own prompts score above the majority class (mean score 87% against 50%)."
    )
    relative = SCORES / np.diag(SCORES)[:, None]
    same = np.mean([relative[0, 2], relative[2, 0], relative[1, 3], relative[3, 1]])
    other = np.mean([relative[i, j] for i in range(4) for j in range(4) if (i + j) % 2])
    text = found["types"].text
    assert f"reaches {100 * same:.0f}% of that task's own prompt where both" in text
    assert f"{100 * other:.0f}% where not" in text
    assert f"(an untrained prompt: {100 * relative[:, 4].mean():.0f}%)" in text
    assert "on 4 of the 4 tasks" in text
    assert found["best_source"].text.startswith("Of the 4 tasks") and (
        "4 have their best source in their own type; a blind choice would give 1.3"
        in found["best_source"].text
    )
    assert "0.75 on average, those of different types 0.25" in found["overlap"].text
    assert "rank correlation of +0.60" in found["correlation"].text
    assert "(E_concat +0.20)" in found["correlation"].text
    assert "n = 4 tasks, each ranking 3 sources" in found["caution"].text


def test_findings_agree_and_turn_with_the_numbers(tmp_path: Path) -> None:
    write_study(tmp_path)
    topics = ("types", "best_source", "overlap", "correlation")
    assert [_found(tmp_path)[topic].verdict for topic in topics] == ["agrees"] * 4
    turned = SCORES[:, [1, 0, 3, 2, 4]]  # each prompt now does what one of another type did
    turned[np.diag_indices(4)] = np.diag(SCORES)
    write_scores(tmp_path, turned)
    write_correlations(tmp_path, overlap=0.1, embedding=0.5)
    path = tmp_path / "types.json"
    path.write_text(path.read_text().replace("0.75", "0.05"))
    found = _found(tmp_path)
    assert [found[topic].verdict for topic in topics] == ["contradicts"] * 4
    assert all("against the paper" in found[topic].text for topic in topics if topic[0] != "b")


def test_prompts_that_learned_nothing_are_named(tmp_path: Path) -> None:
    scores = SCORES.copy()
    scores[1, 1] = 0.5
    write_scores(tmp_path, scores)
    write_transfer_facts(tmp_path)
    text = _found(tmp_path)["training"].text
    assert text.startswith("1 of 4 own prompts score no better than the majority class (imdb)")


@pytest.mark.parametrize(
    ("same", "other", "random", "verdict", "said"),
    [
        ([0.9, 0.8], [0.5, 0.6], 0.5, "agrees", "as in the paper"),
        ([0.5], [0.9], 0.5, "contradicts", "other types even do better"),
        ([0.705], [0.7], 0.5, "contradicts", "makes no difference"),
        ([0.6], [0.5], 0.8, "contradicts", "no better than no training at all"),
        ([0.6], [], 0.8, "unclear", "all tasks have one type"),
        ([], [0.6], 0.8, "unclear", "no two tasks share a type"),
    ],
)
def test_verdict_on_types(
    same: list[float], other: list[float], random: float, verdict: str, said: str
) -> None:
    found = type_finding(_moves(same, other), {"x": random})
    assert found is not None and found.verdict == verdict and said in found.text


def test_mean_carried_by_one_task_is_not_clear() -> None:
    pairs = _moves([1.0], [0.1], "a") + _moves([0.5], [0.6], "b") + _moves([0.5], [0.6], "c")
    found = type_finding(pairs, {})
    assert found is not None and found.verdict == "unclear"
    assert "only on 1 of the 3 tasks" in found.text and "untrained" not in found.text


def test_nothing_is_said_without_types_or_moves() -> None:
    unknown = [TransferPair("x", "y", 0.5, None)]
    assert type_finding(unknown, {}) is None and source_finding(unknown) is None
    assert type_finding([], {}) is None


def test_best_source_that_ties_with_another_type_is_no_hit() -> None:
    pairs = [*_moves([0.9], [0.9], "a"), *_moves([0.8], [0.9], "b")]
    found = source_finding(pairs)
    assert found is not None and "0 have their best" in found.text
    assert found.verdict == "contradicts"


def test_best_source_near_chance_is_not_clear() -> None:
    found = source_finding([*_moves([0.9], [0.8], "a"), *_moves([0.8], [0.9], "b")])
    assert found is not None and found.verdict == "unclear"


@pytest.mark.parametrize(
    ("overlap", "embedding", "scatter", "verdict", "said"),
    [
        (0.6, 0.2, 0.05, "agrees", "ON tells better"),
        (0.6, 0.5, 0.5, "unclear", "ON leads as in the paper, but within the scatter"),
        (0.5, 0.6, 0.5, "unclear", "ON does not lead, against the paper, but within"),
        (0.2, 0.6, 0.05, "contradicts", "ON tells worse"),
        (-0.1, -0.5, 0.05, "contradicts", "ON does not tell which source"),
        (0.6, None, 0.05, "unclear", "no other indicator"),
        (None, 0.5, 0.05, "unclear", "is not defined"),
    ],
)
def test_verdict_on_overlap(
    tmp_path: Path,
    overlap: float | None,
    embedding: float | None,
    scatter: float,
    verdict: str,
    said: str,
) -> None:
    write_correlations(tmp_path, overlap, embedding, scatter)
    found = _found(tmp_path)["correlation"]
    assert found.verdict == verdict and said in found.text


def test_standard_error_of_one_number_is_not_small() -> None:
    assert standard_error([0.5]) == np.inf
    assert standard_error([1.0, 3.0]) == pytest.approx(1.0)


def test_types_without_a_matrix_speak_of_the_overlap_only(tmp_path: Path) -> None:
    write_types(tmp_path)
    assert list(_found(tmp_path)) == ["overlap"]


@pytest.mark.parametrize(
    ("overlap", "embedding", "verdict", "said"),
    [
        (0.01, 0.05, "agrees", "ON chooses better, as in the paper"),
        (0.05, 0.01, "contradicts", "ON chooses worse, which speaks against the paper"),
        (0.03, 0.03, "unclear", "the two choose alike"),
    ],
)
def test_verdict_on_choices(
    tmp_path: Path, overlap: float, embedding: float, verdict: str, said: str
) -> None:
    write_choices(tmp_path, overlap, embedding)
    found = _found(tmp_path)["choice"]
    assert found.verdict == verdict and said in found.text
    assert f"costs {100 * overlap:.1f} point" in found.text
    assert "one taken by chance 10.0 points; it beats chance" in found.text
    assert f"(E_concat) costs {100 * embedding:.1f} point" in found.text


def test_choices_that_scatter_are_not_clear(tmp_path: Path) -> None:
    write_choices(tmp_path, 0.02, 0.03)
    record = json.loads((tmp_path / "choice.json").read_text())
    for place, chosen in enumerate(record["chosen"]["neuron_overlap"].values()):
        chosen["regret"] = (0.0, 0.0, 0.0, 0.08)[place]
    record["rankings"]["neuron_overlap"]["gain_interval"] = [-0.01, 0.1]
    (tmp_path / "choice.json").write_text(json.dumps(record))
    found = _found(tmp_path)["choice"]
    assert found.verdict == "unclear" and "within the scatter over tasks" in found.text
    assert "no sure gain (95% interval of the gain -1.0 to +10.0)" in found.text


def test_choices_without_neurons_name_the_best_of_the_vectors(tmp_path: Path) -> None:
    write_choices(tmp_path)
    record = json.loads((tmp_path / "choice.json").read_text())
    del record["rankings"]["neuron_overlap"]
    record["rankings"]["cosine_average"]["regret"] = 0.02
    (tmp_path / "choice.json").write_text(json.dumps(record))
    found = _found(tmp_path)["choice"]
    assert found.verdict is None and found.text.startswith("The source that C_average puts first")


@pytest.mark.parametrize(
    ("own", "random", "scatter", "verdict", "said"),
    [
        (0.6, 0.9, 0.02, "agrees", "matter more than others (95% interval of the difference +"),
        (0.9, 0.6, 0.02, "contradicts", "matter less than others"),
        (0.75, 0.8, 0.5, "unclear", "cannot be told"),
    ],
)
def test_verdict_on_masks(
    tmp_path: Path, own: float, random: float, scatter: float, verdict: str, said: str
) -> None:
    write_masks(tmp_path, own, random, scatter)
    found = _found(tmp_path)["masks"]
    assert found.verdict == verdict and said in found.text
    assert f"{100 * own:.0f}% of its score is left on average over 4 tasks" in found.text
    assert f"random ones {100 * random:.0f}%" in found.text and "With the 20% of" in found.text
