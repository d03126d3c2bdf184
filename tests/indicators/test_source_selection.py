"""DOC"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

import jpt
from jpt.errors import InputError
from jpt.indicators.indicators import EMBEDDING_INDICATORS, Indicators, compute_indicators
from jpt.indicators.source_selection import (
    SAME_TYPE,
    ZERO_SHOT,
    judge_choice,
    judge_few_rows,
    judge_indicators,
    judge_ranking,
    leave_one_out,
    mutual_information,
)
from jpt.io.files import read_table, write_json
from jpt.recipes.interop import import_reference
from jpt.report.study import read_selection_record
from jpt.results.prompt_table import read_transfer
from jpt.results.records import SourceChoice
from jpt.results.statistics import mean_interval
from jpt.types import PromptCard, TransferMatrix

# --- choice

NAN = np.nan


def plain_choice(guesses: list[float], scores: list[float]) -> tuple[float, float, float] | None:
    """The definition as loops: every first source is taken in turn, then the mean."""
    known = [k for k in range(len(scores)) if scores[k] == scores[k]]
    told = [k for k in known if guesses[k] == guesses[k]]
    if len(known) < 2 or not told:
        return None
    top = max(guesses[k] for k in told)
    best = max(scores[k] for k in known)
    outcomes = []
    for k in told:
        if guesses[k] == top:
            above = sum(scores[j] > scores[k] for j in known)
            alike = sum(scores[j] == scores[k] for j in known)
            places = [above + 1 + n for n in range(alike)]
            outcomes.append((scores[k] == best, sum(places) / alike, best - scores[k]))
    return tuple(sum(of) / len(outcomes) for of in zip(*outcomes, strict=True))


@pytest.mark.parametrize(
    ("guesses", "scores", "expected"),
    [
        ([3, 2, 1], [0.5, 0.75, 0.25], (0, 2, 0.25)),
        ([1, 2, 3], [0.25, 0.5, 0.75], (1, 1, 0)),
        ([2, 2, 1], [0.5, 0.75, 0.25], (0.5, 1.5, 0.125)),  # two are first
        ([3, 2, 1], [0.75, 0.75, 0.25], (1, 1.5, 0)),  # two are best
        ([0, 0, 0, 0], [0.25, 0.5, 0.75, 0.5], (0.25, 2.5, 0.25)),  # chance
        ([NAN, 2, 1], [0.75, 0.5, 0.25], (0, 2, 0.25)),  # the best one cannot be chosen
        ([3, 2, 1], [NAN, 0.5, 0.25], (1, 1, 0)),  # the first one was not measured
        ([2, 1], [-0.25, 0.25], (0, 2, 0.5)),  # Matthews
    ],
)
def test_choices_by_hand(guesses, scores, expected) -> None:
    found = judge_choice(np.array(guesses, float), np.array(scores, float))
    assert found == SourceChoice(*expected, sources=int((~np.isnan(np.array(scores, float))).sum()))


@pytest.mark.parametrize(
    ("guesses", "scores"), [([NAN, NAN], [1, 2]), ([1, 2], [NAN, 0.5]), ([NAN, 1], [0.5, NAN])]
)
def test_no_choice_where_nothing_is_said(guesses, scores) -> None:
    assert judge_choice(np.array(guesses, float), np.array(scores, float)) is None


def test_random_matrices_with_ties_and_gaps_equal_a_plain_loop() -> None:
    random = np.random.default_rng(0)
    guesses = random.integers(0, 4, (200, 7)) / 4
    scores = random.integers(0, 5, (200, 7)) / 8
    guesses[random.random(guesses.shape) < 0.2] = NAN
    scores[random.random(scores.shape) < 0.3] = NAN
    found = [judge_choice(*lines) for lines in zip(guesses, scores, strict=True)]
    plain = [plain_choice(*lines) for lines in zip(guesses.tolist(), scores.tolist(), strict=True)]
    assert [one is None for one in found] == [one is None for one in plain]
    told = [place for place, one in enumerate(plain) if one is not None]
    assert 100 < len(told) <= 200
    expected = np.array([plain[place] for place in told])
    np.testing.assert_allclose([found[place][:3] for place in told], expected, rtol=1e-12)
    record = judge_ranking(guesses, scores)
    means = record.hits, record.mean_rank, record.regret
    assert record.targets == len(told) and means == pytest.approx(expected.mean(0))
    by_chance = [plain_choice([0.0] * 7, scores[place].tolist()) for place in told]
    chance = record.chance_hits, record.chance_rank, record.chance_regret
    assert chance == pytest.approx(np.mean(by_chance, axis=0))


def test_order_of_sources_and_a_rising_scale_change_nothing() -> None:
    random = np.random.default_rng(1)
    guesses, scores = random.integers(0, 5, (30, 6)) * 1.0, random.random((30, 6))
    order = random.permutation(6)
    plain = judge_ranking(guesses, scores)
    assert judge_ranking(guesses[:, order], scores[:, order]) == pytest.approx(plain)
    assert judge_ranking(np.exp(guesses), scores) == plain
    perfect = judge_ranking(scores, scores)
    assert (perfect.hits, perfect.mean_rank, perfect.regret) == (1, 1, 0)


def test_choosing_on_few_rows_comes_near_the_exact_expectation() -> None:
    scores, rows = np.array([0.8, 0.6]), 10
    counts = np.arange(rows + 1)
    joint = np.outer(binom.pmf(counts, rows, 0.8), binom.pmf(counts, rows, 0.6))
    higher, equal = np.tril(joint, -1).sum(), np.trace(joint)
    hit = higher + equal / 2
    found = judge_few_rows(scores, rows, draws=20_000)
    assert found.hit == pytest.approx(hit, abs=0.01)
    assert found.regret == pytest.approx((1 - hit) * 0.2, abs=0.002)
    assert judge_few_rows(scores, 10_000).hit == 1
    assert judge_few_rows(np.array([0.8, NAN]), 10) is None


def study() -> tuple[Indicators, TransferMatrix]:
    """Two tasks with own prompts, one of them from two seeds, one without, and a random prompt."""
    cards = {
        "imdb": PromptCard("bert", "builtin/imdb", "sentiment"),
        "imdb_again": PromptCard("bert", "builtin/imdb", "sentiment"),
        "mnli": PromptCard("bert", "mnli", "nli"),
        "sst2": PromptCard("bert", "sst2", "sentiment"),
        "random": PromptCard("bert", "random"),
    }
    values = np.array(
        [
            [1.0, 0.9, 0.3, 0.2, 0.99],
            [0.9, 1.0, 0.1, 0.1, 0.1],
            [0.3, 0.1, 1.0, 0.4, 0.99],
            [0.2, 0.1, 0.4, 1.0, 0.99],
            [0.99, 0.1, 0.99, 0.99, 1.0],
        ]
    )
    scores = np.array(
        [[0.9, 0.95, 0.5, 0.75, 0.4], [0.5, 0.625, 0.8, 0.25, 0.9], [0.5, 0.6, 0.7, 0.2, 0.1]]
    )
    matrix = TransferMatrix(("imdb", "mnli", "elsewhere"), tuple(cards), scores, ("accuracy",) * 3)
    return Indicators(tuple(cards), {"cosine_concat": values}, cards), matrix


def test_only_trained_prompts_of_other_tasks_can_be_chosen() -> None:
    found = leave_one_out(*study())
    assert found.targets == ("imdb", "mnli")
    assert any("elsewhere" in note and "no choice to judge" in note for note in found.notes)
    # imdb: mnli (0.3) before sst2 (0.2), though imdb_again (0.9) is its own; mnli: sst2 (0.4).
    assert found.per_target["cosine_concat"] == {
        "imdb": SourceChoice(0, 2, 0.25, 2),
        "mnli": SourceChoice(0, 3, 0.375, 3),
    }
    assert found.per_target[SAME_TYPE] == {
        "imdb": SourceChoice(1, 1, 0, 2),
        "mnli": pytest.approx((1 / 3, 2, 0.625 - 1.375 / 3, 3)),  # none is of its type: chance
    }
    record = found.record["rankings"]["cosine_concat"]
    assert (record["targets"], record["hits"], record["regret"]) == (2, 0, 0.3125)
    assert record["chance_hits"] == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_few_rows_are_simulated_for_accuracy_alone() -> None:
    found, matrix = study()
    assert ZERO_SHOT not in leave_one_out(found, matrix).rankings
    mixed = TransferMatrix(matrix.targets, matrix.prompts, matrix.values, ("accuracy", "f1", "f1"))
    judged = leave_one_out(found, mixed, rows=16)
    assert judged.rankings[ZERO_SHOT].targets == 1 and judged.per_target[ZERO_SHOT]["mnli"] is None


def test_matrices_that_nothing_can_be_judged_on() -> None:
    found, matrix = study()
    strange = TransferMatrix(("imdb",), ("imdb", "other"), np.ones((1, 2)), ("accuracy",))
    with pytest.raises(jpt.InputError, match="have no indicators: other"):
        leave_one_out(found, strange)
    few = TransferMatrix(("imdb",), ("imdb", "mnli"), np.ones((1, 2)), ("accuracy",))
    with pytest.raises(jpt.InputError, match="two other measured sources"):
        leave_one_out(found, few)
    with pytest.raises(jpt.InputError, match="unknown target 'qqp'"):
        leave_one_out(found, matrix, tasks=["qqp"])


@pytest.mark.parametrize(
    ("backbone", "best"), [("roberta-base", "cosine_average"), ("t5-base", "cosine_average")]
)
def test_the_authors_prompts_equal_a_plain_loop(reference_folder: Path, backbone, best) -> None:
    reference = reference_folder / "reference"
    file = reference / "transfer" / f"{backbone}.csv"
    ours = leave_one_out(
        compute_indicators(import_reference(reference / "prompts" / backbone)), file
    )
    ending = "_skip0" if backbone.startswith("roberta") else ""  # theirs have row 0 by custom
    theirs = {
        (row["prompt_a"], row["prompt_b"]): row
        for row in read_table(reference / "indicators" / f"{backbone}.csv", ["prompt_a"])
    }
    scores: dict[str, dict[str, float]] = {}
    for row in read_table(file, ["target_task"]):
        scores.setdefault(row["target_task"], {})[row["source_prompt"]] = float(row["value"])
    for name in EMBEDDING_INDICATORS:
        outcomes, chance = [], []
        for target, of in scores.items():
            sources = [source for source in of if source not in (target, "random")]
            guesses = [float(theirs[target, source][name + ending]) for source in sources]
            values = [of[source] for source in sources]
            outcomes.append(plain_choice(guesses, values))
            chance.append(plain_choice([0.0] * len(values), values))
        record = ours.rankings[name]
        assert record.targets == len(scores) == len(read_transfer(file).targets)
        found = record.hits, record.mean_rank, record.regret
        assert found == pytest.approx(np.mean(outcomes, axis=0), abs=1e-9), name
        found = record.chance_hits, record.chance_rank, record.chance_regret
        assert found == pytest.approx(np.mean(chance, axis=0), abs=1e-9), name
    regrets = {name: ours.rankings[name].regret for name in EMBEDDING_INDICATORS}
    assert min(regrets, key=regrets.__getitem__) == best
    assert regrets[best] < 0.5 * ours.rankings[best].chance_regret


def test_sureness_is_the_mutual_information_written_out() -> None:
    random = np.random.default_rng(2)
    probs = random.dirichlet(np.ones(3), 50)
    joint = probs / 50  # of text and answer
    expected = sum(
        joint[n, c] * np.log(joint[n, c] / (joint[:, c].sum() / 50))
        for n in range(50)
        for c in range(3)
    )
    assert mutual_information(np.log(probs)) == pytest.approx(expected / np.log(3), rel=1e-12)
    constant = np.log(np.tile([[0.98, 0.01, 0.01]], (5, 1)))
    assert mutual_information(constant) == pytest.approx(0, abs=1e-12)
    assert mutual_information(np.full((5, 3), -np.log(3))) == pytest.approx(0, abs=1e-12)


# --- choice table


def scores_of(file: Path) -> dict[str, dict[str, float]]:
    scores: dict[str, dict[str, float]] = {}
    for row in read_table(file, ["target_task"]):
        scores.setdefault(row["target_task"], {})[row["source_prompt"]] = float(row["value"])
    return scores


@pytest.mark.parametrize("backbone", ["roberta-base", "t5-base"])
def test_choice_table_the_authors_prompts_equal_a_plain_loop(
    reference_folder: Path, backbone: str
) -> None:
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
    assert "two other measured sources" in record["notes"][0]
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
