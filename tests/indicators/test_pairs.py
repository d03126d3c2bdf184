"""Pairs of target and source: means over seeds, means by task type, baselines."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

import jpt
from jpt.errors import InputError
from jpt.indicators.correlation import correlate, study_indicators
from jpt.indicators.indicators import Indicators, compute_indicators
from jpt.indicators.pairs import over_seeds, summarize_types
from jpt.prompts.arithmetic import average_prompts, choose_parts, load_parts
from jpt.prompts.store import run_name
from jpt.report.findings import find
from jpt.report.report import notes, prepare, write_report
from jpt.report.study import order_study, read_study
from jpt.results.prompt_table import read_activations, write_transfer
from jpt.types import Prompt, PromptCard, TransferMatrix
from tests.helpers.running import raises
from tests.helpers.study import ORDERED, SCORES, TASKS, Outline, write_study, write_transfer_record

pytestmark = pytest.mark.plain_programs

SEED_TASKS = ("imdb", "mnli", "qnli", "sst2", "qqp")
SEEDS = {"imdb": (0, 1, 2), "mnli": (0, 1, 2), "qnli": (3,), "sst2": (0, 7), "qqp": (None,)}
RUNS = {run_name(name, seed): name for name, seeds in SEEDS.items() for seed in seeds}


def by_pairs(column: np.ndarray, names: tuple[str, ...], a: str, b: str) -> float:
    """Return the mean over pairs of runs; pairs of a run with itself only count without others."""
    pairs = [
        column[i, j]
        for (i, one), (j, two) in itertools.product(enumerate(names), enumerate(names))
        if RUNS[one] == a and RUNS[two] == b and (one != two or len(SEEDS[a]) == 1)
    ]
    return float(np.mean(pairs))


@pytest.fixture(scope="module")
def prompts() -> dict[str, dict[int, Prompt] | Prompt]:
    generator = np.random.default_rng(0)

    def sample(name: str, seed: int | None) -> Prompt:
        values = generator.normal(size=(4, 128)).astype(np.float32)
        return Prompt(values, PromptCard("builtin/bert-small", f"builtin/{name}", seed=seed))

    found = {name: {seed: sample(name, seed) for seed in seeds} for name, seeds in SEEDS.items()}
    return {**found, "qqp": found["qqp"][None]}


@pytest.fixture(scope="module")
def matrix() -> TransferMatrix:
    scores = np.random.default_rng(1).random((5, 6))
    return TransferMatrix(SEED_TASKS, (*SEED_TASKS, "random"), scores, ("accuracy",) * 5)


@pytest.fixture(scope="module")
def folder(prompts, matrix, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    for name, of in prompts.items():
        for seed, prompt in ({None: of} if isinstance(of, Prompt) else of).items():
            file = folder / "prompts" / run_name(name, seed) / "prompt.safetensors"
            file.parent.mkdir(parents=True)
            jpt.save_prompt(file, prompt)
    write_transfer(folder / "transfer.csv", matrix)
    return folder


def test_means_equal_loops(prompts) -> None:
    found = compute_indicators(prompts)
    assert found.names == tuple(sorted(RUNS))
    joined = over_seeds(found)
    assert joined.names == tuple(sorted(SEED_TASKS))
    for name, column in joined.columns.items():
        np.testing.assert_array_equal(column, column.T)
        for i, j in np.ndindex(column.shape):
            expected = by_pairs(found[name], found.names, joined.names[i], joined.names[j])
            assert column[i, j] == pytest.approx(expected, rel=1e-12)
    assert joined.cards["imdb"].task == "builtin/imdb" and joined.cards["imdb"].seed is None


def test_undefined_values_and_runs_of_a_matrix() -> None:
    values = np.arange(16.0).reshape(4, 4)
    values[0, 3] = values[3, 0] = np.nan
    found = over_seeds(Indicators(("a/seed-0", "a/seed-1", "b", "c"), {"cosine_concat": values}))
    assert np.argwhere(np.isnan(found["cosine_concat"])).tolist() == [[0, 2], [2, 0]]
    found = Indicators(("a/seed-0", "a/seed-1"), {"cosine_concat": np.eye(2)})
    assert over_seeds(found, found.names) is found
    one = Indicators(("a", "b"), {"cosine_concat": np.eye(2)})
    assert over_seeds(one) is one


@pytest.mark.slow
def test_each_run_has_separate_neurons(folder: Path, prompts) -> None:
    found = jpt.activated_neurons(folder / "prompts", folder / "neurons.npz")
    assert found.names == tuple(sorted(RUNS)) == read_activations(folder / "neurons.npz").names
    alone = jpt.activated_neurons({"x": prompts["sst2"][7]}).values[0]
    index = found.names.index("sst2/seed-7")
    np.testing.assert_allclose(found.values[index], alone, atol=1e-6 * np.abs(alone).max())
    assert np.abs(found.values[index] - found.values[index - 1]).max() > 0.01


def test_correlation_and_types_are_of_the_means(folder: Path, prompts, matrix) -> None:
    study = study_indicators(folder / "prompts", folder, transfer=folder / "transfer.csv")
    found = compute_indicators(prompts)
    for name, column in found.columns.items():
        for row, target in enumerate(SEED_TASKS):
            others = [other for other in SEED_TASKS if other != target]
            values = [by_pairs(column, found.names, target, other) for other in others]
            scores = [matrix.values[row, SEED_TASKS.index(other)] for other in others]
            correlation = study.correlation.excluding_in_task[name].per_target[target]
            assert correlation == pytest.approx(spearmanr(values, scores).statistic, abs=1e-9)
    record = json.loads((folder / "types.json").read_text())["similarity_by_type"]["cosine_concat"]
    column = found["cosine_concat"]
    seeds = [by_pairs(column, found.names, name, name) for name in ("imdb", "mnli", "sst2")]
    assert record["same_task_mean"] == pytest.approx(np.mean(seeds)) and record["n_same_task"] == 3
    # imdb with sst2, mnli with qnli: seeds of one prompt do not count as pairs of one type.
    assert record["n_same"] == 2 and record["n_same"] + record["n_diff"] == 10
    assert "other seed" in study.describe()


def test_reports_and_mixtures_of_runs(folder: Path, prompts) -> None:
    study_indicators(folder / "prompts", folder, transfer=folder / "transfer.csv")
    study = read_study(folder)
    ordering = order_study(study)
    assert set(ordering.sources) == set(ordering.prompts) == set(SEED_TASKS)
    assert set(study.prompts) == set(RUNS)
    assert ordering.in_task == {name: name for name in SEED_TASKS}
    page = write_report(folder).read_text(encoding="utf-8")
    assert not re.search(r"missing in (indicators|transfer).csv", page)
    head, *rows = Outline(page).tables["Mean similarity of prompt pairs by task type"]
    assert head[1] == "other seed" and rows[0][1] not in ("", "–")
    chosen = choose_parts(folder / "prompts", ["imdb/seed-2", "qqp"])
    expected = (prompts["imdb"][2].values + prompts["qqp"].values) / 2
    np.testing.assert_allclose(average_prompts(chosen).values, expected, rtol=1e-6)
    assert len(load_parts(folder / "prompts")) == len(RUNS)


def test_commands_for_single_prompts_refuse_seeds(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "imdb").symlink_to(folder / "prompts" / "imdb")
    with pytest.raises(InputError, match=r"several seeds \(imdb/seed-S\).*give .*some/imdb, or"):
        jpt.mask_neurons(tmp_path / "some", out=tmp_path / "out", ratio=0.2)
    seeds = jpt.activated_neurons(folder / "prompts" / "imdb").names
    assert list(seeds) == ["seed-0", "seed-1", "seed-2"]


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
TYPE_SCORES = np.array(
    [[0.8, 0.9, 0.4, 0.5, 0.3, 0.7], [0.3, 0.9, 0.6, 0.4, 0.6, 0.3], [0.7, 0.9, 0.5, 0.3, 0.5, 0.9]]
)
MATRIX = TransferMatrix(TARGETS, NAMES, TYPE_SCORES, ("accuracy",) * 3)


def test_similarity_and_relative_transfer() -> None:
    record = summarize_types(FOUND)
    same = [COLUMN[0, 5], COLUMN[2, 4]]
    different = [COLUMN[0, 2], COLUMN[0, 4], COLUMN[2, 5], COLUMN[4, 5]]
    assert record["similarity_by_type"]["cosine_concat"] == {
        "same_type_mean": pytest.approx(np.mean(same), abs=1e-15),
        "different_type_mean": pytest.approx(np.mean(different), abs=1e-15),
        "n_same": 2,
        "n_diff": 4,
    }
    assert record["notes"] == ["mine: unknown task type, left out"]
    assert list(record) == ["similarity_by_type", "notes"]
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


def test_tasks_missing_pairs_and_undefined_overlap() -> None:
    record = summarize_types(FOUND, MATRIX, ["imdb", "sst2"])
    means = record["similarity_by_type"]["cosine_concat"]
    assert (means["n_same"], means["different_type_mean"]) == (1, None)
    assert record["relative_transfer"]["best_other_source"] == {"imdb": "sst2", "sst2": "imdb"}
    without = summarize_types(FOUND, tasks=["snli", "mnli"])["similarity_by_type"]
    assert without["cosine_concat"]["n_same"] == 1
    with pytest.raises(InputError, match="unknown task of the prompts 'sst'; did you mean sst2"):
        summarize_types(FOUND, tasks=["sst"])
    raises(summarize_types, FOUND, MATRIX, ["snli"], match="unknown target 'snli'")
    matrix = TransferMatrix(("imdb",), ("imdb",), TYPE_SCORES[:1, :1], ("accuracy",))
    found = summarize_types(FOUND, matrix)["relative_transfer"]
    assert found["random_mean"] is None and found["same_type_mean"] is None
    assert found["best_other_source"] == {}
    assert found["fraction_of_targets_whose_best_other_source_has_same_type"] is None
    column = COLUMN.copy()
    column[0] = column[:, 0] = np.nan
    found = summarize_types(Indicators(NAMES, {"neuron_overlap": column}, CARDS))
    assert found["similarity_by_type"]["neuron_overlap"]["n_same"] == 1
    assert found["similarity_by_type"]["neuron_overlap"]["n_diff"] == 2
    matrix = TransferMatrix(("imdb", "qqp"), NAMES, TYPE_SCORES[:2], ("accuracy",) * 2)
    found = summarize_types(FOUND, matrix)
    assert list(found["relative_transfer"]["best_other_source"]) == ["imdb"]
    assert found["relative_by_type"]["paraphrase"] == {"sentiment": None, "nli": None}


NONE = np.array([0.31, 0.48, 0.52, 0.46])
WIDE = np.column_stack([SCORES, NONE])


def with_none(values: np.ndarray = WIDE) -> TransferMatrix:
    return TransferMatrix(TASKS, (*TASKS, "random", "none"), values, ("accuracy",) * 4)


@pytest.fixture(scope="module")
def baselines_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_study(tmp_path_factory.mktemp("study") / "study")
    write_transfer(folder / "transfer.csv", with_none())
    write_transfer_record(folder, untouched={"name": "none"})
    return folder


@pytest.mark.slow
def test_the_model_without_a_prompt_is_shown_and_left_out(baselines_folder, tmp_path: Path) -> None:
    tables = Outline(write_report(baselines_folder).read_text(encoding="utf-8")).tables
    head, *rows = tables["Score of each prompt on each task"]
    wanted = ["random", "no prompt", "in-task prompt", "chance"]
    assert head == ["target", "type", "metric", *ORDERED, *wanted]
    column = {row[0]: row[head.index("no prompt")] for row in rows}
    assert column == {task: f"{value:.4f}" for task, value in zip(TASKS, NONE, strict=True)}
    assert not any(abs(value - 0.5) <= 0.0117 for value in NONE), "no marks"
    head, *rows = tables["Score of each prompt relative to the in-task prompt"]
    assert head[-2:] == ["random", "no prompt"]
    assert next(row for row in rows if row[0] == "imdb")[-1] == f"{0.48 / 0.9:.4f}"
    assert read_study(baselines_folder).untouched == "none"
    texts = []
    for folder in (write_study(tmp_path / "study"), baselines_folder):
        study, ordering = prepare(folder)
        texts.append((find(study, ordering), notes(study, ordering)))
        assert ordering.sources == ORDERED and "none" not in ordering.every
    assert texts[0] == texts[1] and texts[0][0]


def test_correlations_and_means_ignore_it() -> None:
    column = np.random.default_rng(0).uniform(size=(4, 4))
    found = Indicators(TASKS, {"cosine_concat": column + column.T})
    narrow = TransferMatrix(TASKS, (*TASKS, "random"), SCORES, ("accuracy",) * 4)
    assert correlate(found, narrow) == correlate(found, with_none())
    means = [summarize_types(found, matrix) for matrix in (narrow, with_none())]
    untouched = [each["relative_transfer"].pop("untouched_mean") for each in means]
    assert means[0] == means[1]
    assert untouched == [None, pytest.approx(np.mean(NONE / np.diag(SCORES)))]
