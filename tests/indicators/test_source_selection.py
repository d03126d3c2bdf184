"""Source selection: leave one out, its record, and mutual information."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

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
from tests.helpers.running import raises

NAN = np.nan


def choice_by_loops(guesses: list[float], scores: list[float]) -> tuple[float, float, float] | None:
    known = [k for k in range(len(scores)) if scores[k] == scores[k]]
    ranked = [k for k in known if guesses[k] == guesses[k]]
    if len(known) < 2 or not ranked:
        return None
    top = max(guesses[k] for k in ranked)
    best = max(scores[k] for k in known)
    outcomes = []
    for k in ranked:
        if guesses[k] == top:
            above = sum(scores[j] > scores[k] for j in known)
            equal = sum(scores[j] == scores[k] for j in known)
            ranks = [above + 1 + n for n in range(equal)]
            outcomes.append((scores[k] == best, sum(ranks) / equal, best - scores[k]))
    return tuple(sum(of) / len(outcomes) for of in zip(*outcomes, strict=True))


@pytest.mark.parametrize(
    ("guesses", "scores", "expected"),
    [
        ([3, 2, 1], [0.5, 0.75, 0.25], (0, 2, 0.25)),
        ([1, 2, 3], [0.25, 0.5, 0.75], (1, 1, 0)),
        ([2, 2, 1], [0.5, 0.75, 0.25], (0.5, 1.5, 0.125)),  # two are first
        ([3, 2, 1], [0.75, 0.75, 0.25], (1, 1.5, 0)),  # two are best
        ([0, 0, 0, 0], [0.25, 0.5, 0.75, 0.5], (0.25, 2.5, 0.25)),  # random
        ([NAN, 2, 1], [0.75, 0.5, 0.25], (0, 2, 0.25)),  # the best one cannot be chosen
        ([3, 2, 1], [NAN, 0.5, 0.25], (1, 1, 0)),  # the first one was not measured
        ([2, 1], [-0.25, 0.25], (0, 2, 0.5)),  # Matthews
        ([NAN, NAN], [1, 2], None),
        ([1, 2], [NAN, 0.5], None),
        ([NAN, 1], [0.5, NAN], None),
    ],
)
def test_choices_by_hand(guesses, scores, expected) -> None:
    guesses, scores = np.array(guesses, float), np.array(scores, float)
    measured = int((~np.isnan(scores)).sum())
    choice = None if expected is None else SourceChoice(*expected, sources=measured)
    assert judge_choice(guesses, scores) == choice


def test_random_matrices_with_ties_and_gaps_equal_loops() -> None:
    random = np.random.default_rng(0)
    guesses = random.integers(0, 4, (200, 7)) / 4
    scores = random.integers(0, 5, (200, 7)) / 8
    guesses[random.random(guesses.shape) < 0.2] = NAN
    scores[random.random(scores.shape) < 0.3] = NAN
    found = [judge_choice(*lines) for lines in zip(guesses, scores, strict=True)]
    plain = [choice_by_loops(*map(list, lines)) for lines in zip(guesses, scores, strict=True)]
    assert [one is None for one in found] == [one is None for one in plain]
    rows = [row for row, one in enumerate(plain) if one is not None]
    assert 100 < len(rows) <= 200
    expected = np.array([plain[row] for row in rows])
    np.testing.assert_allclose([found[row][:3] for row in rows], expected, rtol=1e-12)
    record = judge_ranking(guesses, scores)
    means = record.hits, record.mean_rank, record.regret
    assert record.targets == len(rows) and means == pytest.approx(expected.mean(0))
    at_random = [choice_by_loops([0.0] * 7, list(scores[row])) for row in rows]
    chance = record.chance_hits, record.chance_rank, record.chance_regret
    assert chance == pytest.approx(np.mean(at_random, axis=0))


def test_selection_on_few_rows_is_near_the_exact_expectation() -> None:
    scores, rows = np.array([0.8, 0.6]), 10
    counts = np.arange(rows + 1)
    joint = np.outer(binom.pmf(counts, rows, 0.8), binom.pmf(counts, rows, 0.6))
    higher, equal = np.tril(joint, -1).sum(), np.trace(joint)
    hit = higher + equal / 2
    found = judge_few_rows(scores, rows, samples=20_000)
    assert found.hit == pytest.approx(hit, abs=0.01)
    assert found.regret == pytest.approx((1 - hit) * 0.2, abs=0.002)
    assert judge_few_rows(scores, 10_000).hit == 1
    assert judge_few_rows(np.array([0.8, NAN]), 10) is None


def study() -> tuple[Indicators, TransferMatrix]:
    """Two tasks with in-task prompts, one of them twice, one without, and a random prompt."""
    cards = {
        "imdb": PromptCard("bert", "builtin/imdb", "sentiment"),
        "imdb_again": PromptCard("bert", "builtin/imdb", "sentiment"),
        "mnli": PromptCard("bert", "mnli", "nli"),
        "sst2": PromptCard("bert", "sst2", "sentiment"),
        "random": PromptCard("bert", "random"),
    }
    values = [[1.0, 0.9, 0.3, 0.2, 0.99], [0.9, 1.0, 0.1, 0.1, 0.1], [0.3, 0.1, 1.0, 0.4, 0.99]]
    values += [[0.2, 0.1, 0.4, 1.0, 0.99], [0.99, 0.1, 0.99, 0.99, 1.0]]
    scores = [[0.9, 0.95, 0.5, 0.75, 0.4], [0.5, 0.625, 0.8, 0.25, 0.9], [0.5, 0.6, 0.7, 0.2, 0.1]]
    targets, names = ("imdb", "mnli", "elsewhere"), tuple(cards)
    matrix = TransferMatrix(targets, names, np.array(scores), ("accuracy",) * 3)
    return Indicators(names, {"cosine_concat": np.array(values)}, cards), matrix


def test_only_trained_prompts_of_other_tasks_can_be_selected() -> None:
    found = leave_one_out(*study())
    assert found.targets == ("imdb", "mnli")
    assert any("elsewhere: no in-task prompt or fewer than" in note for note in found.notes)
    # imdb: mnli (0.3) before sst2 (0.2), imdb_again (0.9) is of the task itself; mnli: sst2 (0.4).
    assert found.per_target["cosine_concat"] == {
        "imdb": SourceChoice(0, 2, 0.25, 2),
        "mnli": SourceChoice(0, 3, 0.375, 3),
    }
    assert found.per_target[SAME_TYPE] == {
        "imdb": SourceChoice(1, 1, 0, 2),
        "mnli": pytest.approx((1 / 3, 2, 0.625 - 1.375 / 3, 3)),  # none of its type: random
    }
    record = found.record["rankings"]["cosine_concat"]
    assert (record["targets"], record["hits"], record["regret"]) == (2, 0, 0.3125)
    assert record["chance_hits"] == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_few_rows_are_simulated_only_for_accuracy() -> None:
    found, matrix = study()
    assert ZERO_SHOT not in leave_one_out(found, matrix).rankings
    mixed = TransferMatrix(matrix.targets, matrix.prompts, matrix.values, ("accuracy", "f1", "f1"))
    judged = leave_one_out(found, mixed, rows=16)
    assert judged.rankings[ZERO_SHOT].targets == 1 and judged.per_target[ZERO_SHOT]["mnli"] is None


def test_without_choices_the_reason_is_a_note() -> None:
    found, matrix = study()
    strange, few = (
        TransferMatrix(("imdb",), ("imdb", other), np.ones((1, 2)), ("accuracy",))
        for other in ("other", "mnli")
    )
    for given, tasks, message in (
        (strange, None, r"got none of 1 \(other\)"),
        (few, None, "two other measured sources"),
        (matrix, ["qqp"], "unknown target 'qqp'"),
    ):
        raises(leave_one_out, found, given, tasks=tasks, match=message)
    found, matrix = small()
    few = TransferMatrix(("imdb",), ("imdb", "mnli"), matrix.values[:1, :2], ("accuracy",))
    record = judge_indicators(found, few)
    assert record["targets"] == record["rankings"] == record["chosen"] == {}
    assert "two other measured sources" in record["notes"][0]
    raises(judge_indicators, found, matrix, ["qqp"], match="unknown target")


@dataclass(frozen=True)
class Released:
    """Prompts of the authors, their scores, and reference values of the indicators."""

    indicators: Indicators
    file: Path
    scores: dict[str, dict[str, float]]
    theirs: dict[tuple[str, str], dict[str, str]]
    suffix: str  # of reference columns without row 0

    def sources(self, target: str) -> list[str]:
        return [name for name in self.scores[target] if name not in (target, "random")]

    def guess(self, name: str, target: str, source: str) -> float:
        return float(self.theirs[target, source][name + self.suffix])


@pytest.fixture(scope="module", params=["roberta-base", "t5-base"])
def released(reference_folder: Path, request: pytest.FixtureRequest) -> Released:
    reference, backbone = reference_folder / "reference", request.param
    file = reference / "transfer" / f"{backbone}.csv"
    scores: dict[str, dict[str, float]] = {}
    for row in read_table(file, ["target_task"]):
        scores.setdefault(row["target_task"], {})[row["source_prompt"]] = float(row["value"])
    rows = read_table(reference / "indicators" / f"{backbone}.csv", ["prompt_a"])
    theirs = {(row["prompt_a"], row["prompt_b"]): row for row in rows}
    found = compute_indicators(import_reference(reference / "prompts" / backbone))
    suffix = "_skip0" if backbone.startswith("roberta") else ""
    return Released(found, file, scores, theirs, suffix)


def test_released_prompts_equal_loops(released: Released) -> None:
    ours = leave_one_out(released.indicators, released.file)
    for name in EMBEDDING_INDICATORS:
        outcomes, chance = [], []
        for target, of in released.scores.items():
            sources = released.sources(target)
            guesses = [released.guess(name, target, source) for source in sources]
            values = [of[source] for source in sources]
            outcomes.append(choice_by_loops(guesses, values))
            chance.append(choice_by_loops([0.0] * len(values), values))
        record = ours.rankings[name]
        targets = read_transfer(released.file).targets
        assert record.targets == len(released.scores) == len(targets)
        found = record.hits, record.mean_rank, record.regret
        assert found == pytest.approx(np.mean(outcomes, axis=0), abs=1e-9), name
        found = record.chance_hits, record.chance_rank, record.chance_regret
        assert found == pytest.approx(np.mean(chance, axis=0), abs=1e-9), name
    regrets = {name: ours.rankings[name].regret for name in EMBEDDING_INDICATORS}
    best = "cosine_average"
    assert min(regrets, key=regrets.__getitem__) == best
    assert regrets[best] < 0.5 * ours.rankings[best].chance_regret
    record = judge_indicators(released.indicators, released.file)
    record = json.loads(json.dumps(record, allow_nan=False))
    for name in ("euclidean_concat", "cosine_average"):
        costs, gains = [], []
        for target, of in released.scores.items():
            sources = released.sources(target)
            best = max(sources, key=of.__getitem__)
            guess = max(sources, key=lambda s, n=name, t=target: released.guess(n, t, s))
            chance = sum(of[source] for source in sources) / len(sources)
            ranges = record["targets"][target]
            assert best in ranges["best"] and ranges["best_score"] == of[best]
            assert ranges["mean_score"] == pytest.approx(chance)
            assert ranges["sources"] == len(sources)
            chosen = record["chosen"][name][target]
            assert chosen["sources"] == [guess] and chosen["score"] == pytest.approx(of[guess])
            assert chosen["regret"] == pytest.approx(of[best] - of[guess], abs=1e-12)
            costs.append(of[best] - of[guess])
            gains.append(of[guess] - chance)
        means = record["rankings"][name]
        assert means["regret"] == pytest.approx(np.mean(costs), abs=1e-12)
        assert means["gain"] == pytest.approx(np.mean(gains), abs=1e-12)
        assert means["gain_interval"] == pytest.approx(mean_interval(gains), abs=1e-9)
        assert means["regret_interval"] == pytest.approx(mean_interval(costs), abs=1e-9)


def test_mutual_information_equals_loops() -> None:
    probs = np.random.default_rng(2).dirichlet(np.ones(3), 50)
    joint = probs / 50  # of text and answer
    terms = (joint[n, c] / (joint[:, c].sum() / 50) for n, c in np.ndindex(50, 3))
    expected = np.dot(joint.ravel(), np.log(list(terms)))
    assert mutual_information(np.log(probs)) == pytest.approx(expected / np.log(3), rel=1e-12)
    constant = np.log(np.tile([[0.98, 0.01, 0.01]], (5, 1)))
    assert mutual_information(constant) == pytest.approx(0, abs=1e-12)
    assert mutual_information(np.full((5, 3), -np.log(3))) == pytest.approx(0, abs=1e-12)


def small() -> tuple[Indicators, TransferMatrix]:
    cards = {
        "imdb": PromptCard("bert", "builtin/imdb", "sentiment"),
        "mnli": PromptCard("bert", "mnli", "nli"),
        "snli": PromptCard("bert", "snli", "nli"),
    }
    values = np.array([[1.0, 0.5, 0.5], [0.5, 1.0, 0.25], [0.5, 0.25, 1.0]])
    scores = np.array([[0.9, 0.5, 0.75], [0.4, 0.8, 0.6]])
    matrix = TransferMatrix(("imdb", "mnli"), tuple(cards), scores, ("accuracy",) * 2)
    return Indicators(tuple(cards), {"cosine_concat": values}, cards), matrix


def test_ties_name_all_sources_and_undefined_values_none(tmp_path: Path) -> None:
    found, matrix = small()
    empty = np.where(np.eye(3) == 1, 1.0, np.nan)
    empty[1] = empty[:, 1] = found.columns["cosine_concat"][1]
    found.columns["neuron_overlap"] = empty
    record = judge_indicators(found, matrix)
    imdb = {**record["chosen"]["cosine_concat"]["imdb"]}
    assert imdb.pop("sources") == ["mnli", "snli"]
    assert imdb == pytest.approx({"score": 0.625, "regret": 0.125, "hit": 0.5, "rank": 1.5})
    assert record["chosen"]["neuron_overlap"]["imdb"]["sources"] == ["mnli"]
    assert record["chosen"]["same_type"]["mnli"]["sources"] == ["snli"]
    write_json(tmp_path / "choice.json", record)
    read = read_selection_record(tmp_path / "choice.json", "jpt indicators")
    assert read.ranges["mnli"].best == ("snli",) and read.ranges["mnli"].sources == 2
    assert read.chosen["cosine_concat"]["imdb"].sources == ("mnli", "snli")
    assert read.means["same_type"].regret == record["rankings"]["same_type"]["regret"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rankings": {"a": {"gain_interval": [0.1]}}}, "two numbers at rankings.a.gain_interval"),
        ({"rankings": {"a": {"gain_interval": ["x", 1]}}}, "expected a list of two numbers"),
        ({"targets": {"a": {"best": "b"}}}, "targets.a.best, got 'b'"),
        ({"chosen": {"a": {"t": {"score": "high"}}}}, "a number at chosen.a.t.score, got 'high'"),
    ],
)
def test_broken_files(tmp_path: Path, change: dict, said: str) -> None:
    write_json(tmp_path / "choice.json", change)
    raises(read_selection_record, tmp_path / "choice.json", "jpt indicators", match=said)
