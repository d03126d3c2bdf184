"""Choices by name: a plain loop over the authors' matrix agrees, and so does their cost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jpt.errors import InputError
from jpt.indicators.indicators import Indicators, compute_indicators
from jpt.indicators.source_selection import judge_indicators
from jpt.io.files import read_table, write_json
from jpt.recipes.interop import import_reference
from jpt.report.study import read_selection_record
from jpt.results.statistics import mean_interval
from jpt.types import PromptCard, TransferMatrix


def scores_of(file: Path) -> dict[str, dict[str, float]]:
    scores: dict[str, dict[str, float]] = {}
    for row in read_table(file, ["target_task"]):
        scores.setdefault(row["target_task"], {})[row["source_prompt"]] = float(row["value"])
    return scores


@pytest.mark.parametrize("backbone", ["roberta-base", "t5-base"])
def test_the_authors_prompts_equal_a_plain_loop(reference_folder: Path, backbone: str) -> None:
    reference = reference_folder / "reference"
    file = reference / "transfer" / f"{backbone}.csv"
    record = judge_indicators(
        compute_indicators(import_reference(reference / "prompts" / backbone)), file
    )
    record = json.loads(json.dumps(record, allow_nan=False))
    ending = "_skip0" if backbone.startswith("roberta") else ""  # theirs have row 0 by custom
    theirs = {
        (row["prompt_a"], row["prompt_b"]): row
        for row in read_table(reference / "indicators" / f"{backbone}.csv", ["prompt_a"])
    }
    for name in ("euclidean_concat", "cosine_average"):
        costs, gains = [], []
        for target, of in scores_of(file).items():
            sources = [source for source in of if source not in (target, "random")]
            best = max(sources, key=of.__getitem__)
            guess = max(sources, key=lambda s, t=target: float(theirs[t, s][name + ending]))
            chance = sum(of[source] for source in sources) / len(sources)
            around = record["targets"][target]
            assert best in around["best"] and around["best_score"] == of[best]
            assert around["mean_score"] == pytest.approx(chance)
            assert around["sources"] == len(sources)
            chosen = record["chosen"][name][target]
            assert chosen["sources"] == [guess]
            assert chosen["score"] == pytest.approx(of[guess])
            assert chosen["regret"] == pytest.approx(of[best] - of[guess], abs=1e-12)
            costs.append(of[best] - of[guess])
            gains.append(of[guess] - chance)
        means = record["rankings"][name]
        assert means["regret"] == pytest.approx(np.mean(costs), abs=1e-12)
        assert means["gain"] == pytest.approx(np.mean(gains), abs=1e-12)
        assert means["gain_interval"] == pytest.approx(mean_interval(gains), abs=1e-9)
        assert means["regret_interval"] == pytest.approx(mean_interval(costs), abs=1e-9)


def small() -> tuple[Indicators, TransferMatrix]:
    cards = {
        "imdb": PromptCard("bert", "builtin/imdb", "sentiment"),
        "mnli": PromptCard("bert", "mnli", "nli"),
        "snli": PromptCard("bert", "snli", "nli"),
    }
    alike = np.array([[1.0, 0.5, 0.5], [0.5, 1.0, 0.25], [0.5, 0.25, 1.0]])
    scores = np.array([[0.9, 0.5, 0.75], [0.4, 0.8, 0.6]])
    matrix = TransferMatrix(("imdb", "mnli"), tuple(cards), scores, ("accuracy",) * 2)
    return Indicators(tuple(cards), {"cosine_concat": alike}, cards), matrix


def test_ties_name_all_their_sources_and_what_says_nothing_names_none(tmp_path: Path) -> None:
    found, matrix = small()
    empty = np.where(np.eye(3) == 1, 1.0, np.nan)
    empty[1] = empty[:, 1] = found.columns["cosine_concat"][1]
    found.columns["neuron_overlap"] = empty
    record = judge_indicators(found, matrix)
    imdb = record["chosen"]["cosine_concat"]["imdb"]
    assert imdb == {
        "sources": ["mnli", "snli"],
        "score": pytest.approx(0.625),
        "regret": pytest.approx(0.125),
        "hit": 0.5,
        "rank": 1.5,
    }
    assert record["chosen"]["neuron_overlap"]["imdb"]["sources"] == ["mnli"]
    assert record["chosen"]["same_type"]["mnli"]["sources"] == ["snli"]
    write_json(tmp_path / "choice.json", record)
    facts = read_selection_record(tmp_path / "choice.json", "jpt indicators")
    assert facts.ranges["mnli"].best == ("snli",) and facts.ranges["mnli"].sources == 2
    assert facts.chosen["cosine_concat"]["imdb"].sources == ("mnli", "snli")
    assert facts.means["same_type"].regret == record["rankings"]["same_type"]["regret"]


def test_where_nothing_can_be_judged_the_reason_is_told() -> None:
    found, matrix = small()
    few = TransferMatrix(("imdb",), ("imdb", "mnli"), matrix.values[:1, :2], ("accuracy",))
    record = judge_indicators(found, few)
    assert record["targets"] == record["rankings"] == record["chosen"] == {}
    assert "no choice can be judged" in record["notes"][0]
    with pytest.raises(InputError, match="unknown target"):
        judge_indicators(found, matrix, ["qqp"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rankings": {"a": {"gain_interval": [0.1]}}}, "rankings.a.gain_interval is"),
        ({"rankings": {"a": {"gain_interval": ["x", 1]}}}, "a list of two numbers expected"),
        ({"targets": {"a": {"best": "b"}}}, "targets.a.best is 'b'; a list of texts"),
        ({"chosen": {"a": {"t": {"score": "high"}}}}, "chosen.a.t.score is 'high'; a number"),
    ],
)
def test_broken_files_are_told_by_place(tmp_path: Path, change: dict, said: str) -> None:
    write_json(tmp_path / "choice.json", change)
    with pytest.raises(InputError, match=said):
        read_selection_record(tmp_path / "choice.json", "jpt indicators")
