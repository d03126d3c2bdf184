"""Means by type of task: which pairs count, and what is left out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jpt.errors import InputError
from jpt.indicators.indicators import Indicators
from jpt.indicators.pairs import summarize_types
from jpt.types import PromptCard, TransferMatrix

NAMES = ("imdb", "mine", "mnli", "random", "run7", "sst2")
CARDS = {
    "imdb": PromptCard("bert", "builtin/imdb", "sentiment"),
    "mine": PromptCard("bert", "mine"),
    "mnli": PromptCard("bert", "mnli"),
    "random": PromptCard("bert", "random"),
    "run7": PromptCard("bert", "tasks/snli"),
    "sst2": PromptCard("bert", "sst2"),
}
VALUES = np.random.default_rng(0).random((6, 6))
COLUMN = np.triu(VALUES) + np.triu(VALUES, 1).T
FOUND = Indicators(NAMES, {"cosine_concat": COLUMN}, CARDS)
TARGETS = ("imdb", "mnli", "sst2")
SCORES = np.array(
    [
        [0.8, 0.9, 0.4, 0.5, 0.3, 0.7],
        [0.3, 0.9, 0.6, 0.4, 0.6, 0.3],
        [0.7, 0.9, 0.5, 0.3, 0.5, 0.9],
    ]
)
MATRIX = TransferMatrix(TARGETS, NAMES, SCORES, ("accuracy",) * 3)


def test_similarity_over_unordered_pairs() -> None:
    record = summarize_types(FOUND)
    same = [COLUMN[0, 5], COLUMN[2, 4]]
    different = [COLUMN[0, 2], COLUMN[0, 4], COLUMN[2, 5], COLUMN[4, 5]]
    assert record["similarity_by_type"]["cosine_concat"] == {
        "same_type_mean": pytest.approx(np.mean(same), abs=1e-15),
        "different_type_mean": pytest.approx(np.mean(different), abs=1e-15),
        "n_same": 2,
        "n_diff": 4,
    }
    assert record["notes"] == ["mine: type of task not known, left out"]
    assert list(record) == ["similarity_by_type", "notes"]


def test_relative_transfer() -> None:
    record = json.loads(json.dumps(summarize_types(FOUND, MATRIX), allow_nan=False))
    found = record["relative_transfer"]
    same = [0.7 / 0.8, 0.6 / 0.6, 0.7 / 0.9]
    different = [0.4 / 0.8, 0.3 / 0.8, 0.3 / 0.6, 0.3 / 0.6, 0.5 / 0.9, 0.5 / 0.9]
    assert found["same_type_mean"] == pytest.approx(np.mean(same))
    assert found["different_type_mean"] == pytest.approx(np.mean(different))
    assert (found["n_same"], found["n_diff"]) == (3, 6)
    assert found["random_mean"] == pytest.approx(np.mean([0.5 / 0.8, 0.4 / 0.6, 0.3 / 0.9]))
    assert found["best_other_source"] == {"imdb": "sst2", "mnli": "run7", "sst2": "imdb"}
    assert found["fraction_of_targets_whose_best_other_source_has_same_type"] == 1
    assert record["relative_by_type"] == {
        "sentiment": {
            "sentiment": pytest.approx(np.mean([0.7 / 0.8, 0.7 / 0.9])),
            "nli": pytest.approx(np.mean([0.4 / 0.8, 0.3 / 0.8, 0.5 / 0.9, 0.5 / 0.9])),
        },
        "nli": {"sentiment": pytest.approx(0.5), "nli": pytest.approx(1.0)},
    }


def test_equal_sources_are_told_by_name_whatever_the_order() -> None:
    scores = SCORES.copy()
    scores[1] = 0.5
    for order in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]):
        matrix = TransferMatrix(
            TARGETS, tuple(NAMES[k] for k in order), scores[:, order], ("accuracy",) * 3
        )
        best = summarize_types(FOUND, matrix)["relative_transfer"]
        assert best["best_other_source"]["mnli"] == "imdb"
        assert best["fraction_of_targets_whose_best_other_source_has_same_type"] == 2 / 3


def test_tasks_restrict() -> None:
    record = summarize_types(FOUND, MATRIX, ["imdb", "sst2"])
    assert record["similarity_by_type"]["cosine_concat"]["n_same"] == 1
    assert record["similarity_by_type"]["cosine_concat"]["different_type_mean"] is None
    assert record["relative_transfer"]["best_other_source"] == {"imdb": "sst2", "sst2": "imdb"}
    assert (
        summarize_types(FOUND, tasks=["snli", "mnli"])["similarity_by_type"]["cosine_concat"][
            "n_same"
        ]
        == 1
    )
    with pytest.raises(InputError, match="unknown task of the prompts 'sst'; did you mean sst2"):
        summarize_types(FOUND, tasks=["sst"])
    with pytest.raises(InputError, match="unknown target 'snli'"):
        summarize_types(FOUND, MATRIX, ["snli"])


def test_without_random_and_without_any_pair() -> None:
    matrix = TransferMatrix(("imdb",), ("imdb",), SCORES[:1, :1], ("accuracy",))
    found = summarize_types(FOUND, matrix)["relative_transfer"]
    assert found["random_mean"] is None and found["same_type_mean"] is None
    assert found["best_other_source"] == {}
    assert found["fraction_of_targets_whose_best_other_source_has_same_type"] is None


def test_undefined_overlap_is_left_out() -> None:
    column = COLUMN.copy()
    column[0] = column[:, 0] = np.nan
    found = summarize_types(Indicators(NAMES, {"neuron_overlap": column}, CARDS))
    assert found["similarity_by_type"]["neuron_overlap"]["n_same"] == 1
    assert found["similarity_by_type"]["neuron_overlap"]["n_diff"] == 2


def test_target_without_own_prompt_has_no_relative_performance() -> None:
    matrix = TransferMatrix(("imdb", "qqp"), NAMES, SCORES[:2], ("accuracy",) * 2)
    found = summarize_types(FOUND, matrix)
    assert list(found["relative_transfer"]["best_other_source"]) == ["imdb"]
    assert found["relative_by_type"]["paraphrase"] == {"sentiment": None, "nli": None}
