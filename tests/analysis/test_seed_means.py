"""Several seeds of a prompt: every run is compared, and the runs of a prompt count as one."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

import jpt
from jpt.errors import InputError
from jpt.indicators.correlation import study_indicators
from jpt.indicators.indicators import Indicators, compute_indicators
from jpt.indicators.pairs import over_seeds
from jpt.prompts.arithmetic import average_prompts, choose_parts, load_parts
from jpt.prompts.store import run_name
from jpt.report.report import write_report
from jpt.report.study import order_study, read_study
from jpt.results.prompt_table import read_activations, write_transfer
from jpt.types import Prompt, PromptCard, TransferMatrix
from tests.analysis.sample_study import PageReader

TASKS = ("imdb", "mnli", "qnli", "sst2", "qqp")
SEEDS = {"imdb": (0, 1, 2), "mnli": (0, 1, 2), "qnli": (3,), "sst2": (0, 7), "qqp": (None,)}
RUNS = {run_name(name, seed): name for name, seeds in SEEDS.items() for seed in seeds}


def by_pairs(column: np.ndarray, names: tuple[str, ...], a: str, b: str) -> float:
    """The mean written out: no run is compared with itself where a prompt has another one."""
    pairs = [
        column[i, j]
        for (i, one), (j, two) in itertools.product(enumerate(names), enumerate(names))
        if RUNS[one] == a and RUNS[two] == b and (one != two or len(SEEDS[a]) == 1)
    ]
    return float(np.mean(pairs))


@pytest.fixture(scope="module")
def prompts() -> dict[str, dict[int, Prompt] | Prompt]:
    generator = np.random.default_rng(0)

    def draw(name: str, seed: int | None) -> Prompt:
        values = generator.normal(size=(4, 128)).astype(np.float32)
        return Prompt(values, PromptCard("builtin/bert-small", f"builtin/{name}", seed=seed))

    found = {name: {seed: draw(name, seed) for seed in seeds} for name, seeds in SEEDS.items()}
    return {**found, "qqp": found["qqp"][None]}


@pytest.fixture(scope="module")
def matrix() -> TransferMatrix:
    scores = np.random.default_rng(1).random((5, 6))
    return TransferMatrix(TASKS, (*TASKS, "random"), scores, ("accuracy",) * 5)


@pytest.fixture(scope="module")
def folder(prompts, matrix, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("study")
    for name, of in prompts.items():
        runs = {None: of} if isinstance(of, Prompt) else of
        for seed, prompt in runs.items():
            file = place / "prompts" / run_name(name, seed) / "prompt.safetensors"
            file.parent.mkdir(parents=True)
            jpt.save_prompt(file, prompt)
    write_transfer(place / "transfer.csv", matrix)
    return place


def test_means_are_those_written_out(prompts) -> None:
    found = compute_indicators(prompts)
    assert found.names == tuple(sorted(RUNS))
    joined = over_seeds(found)
    assert joined.names == tuple(sorted(TASKS))
    for name, column in joined.columns.items():
        np.testing.assert_array_equal(column, column.T)
        for i, j in np.ndindex(column.shape):
            expected = by_pairs(found[name], found.names, joined.names[i], joined.names[j])
            assert column[i, j] == pytest.approx(expected, rel=1e-12)
    assert joined.cards["imdb"].task == "builtin/imdb" and joined.cards["imdb"].seed is None


def test_what_is_undefined_stays_where_it_is() -> None:
    values = np.arange(16.0).reshape(4, 4)
    values[0, 3] = values[3, 0] = np.nan
    found = over_seeds(Indicators(("a/seed-0", "a/seed-1", "b", "c"), {"cosine_concat": values}))
    assert np.isnan(found["cosine_concat"]).tolist() == [
        [False, False, True],
        [False, False, False],
        [True, False, False],
    ]


def test_runs_that_a_matrix_names_stay_runs() -> None:
    found = Indicators(("a/seed-0", "a/seed-1"), {"cosine_concat": np.eye(2)})
    assert over_seeds(found, ("a/seed-0", "a/seed-1")) is found
    one = Indicators(("a", "b"), {"cosine_concat": np.eye(2)})
    assert over_seeds(one) is one


def test_each_run_has_its_own_neurons(folder: Path, prompts) -> None:
    found = jpt.activated_neurons(folder / "prompts", folder / "neurons.npz")
    assert found.names == tuple(sorted(RUNS)) == read_activations(folder / "neurons.npz").names
    alone = jpt.activated_neurons({"x": prompts["sst2"][7]}).values[0]
    place = found.names.index("sst2/seed-7")
    np.testing.assert_allclose(found.values[place], alone, atol=1e-6 * np.abs(alone).max())
    assert np.abs(found.values[place] - found.values[place - 1]).max() > 0.01


def test_correlation_and_types_are_of_the_means(folder: Path, prompts, matrix) -> None:
    study = study_indicators(folder / "prompts", folder, transfer=folder / "transfer.csv")
    found = compute_indicators(prompts)
    for name, column in found.columns.items():
        for row, target in enumerate(TASKS):
            others = [column_of for column_of in TASKS if column_of != target]
            alike = [by_pairs(column, found.names, target, other) for other in others]
            scores = [matrix.values[row, TASKS.index(other)] for other in others]
            told = study.correlation.excluding_in_task[name].per_target[target]
            assert told == pytest.approx(spearmanr(alike, scores).statistic, abs=1e-9)
    record = json.loads((folder / "types.json").read_text())["similarity_by_type"]["cosine_concat"]
    column = found["cosine_concat"]
    seeds = [by_pairs(column, found.names, name, name) for name in ("imdb", "mnli", "sst2")]
    assert record["same_task_mean"] == pytest.approx(np.mean(seeds)) and record["n_same_task"] == 3
    # imdb with sst2, mnli with qnli: the seeds of one prompt are no pairs of one type.
    assert record["n_same"] == 2 and record["n_same"] + record["n_diff"] == 10
    assert "other seed" in study.describe()


def test_the_page_has_one_prompt_a_name_and_every_run(folder: Path) -> None:
    study_indicators(folder / "prompts", folder, transfer=folder / "transfer.csv")
    study = read_study(folder)
    layout = order_study(study)
    assert set(layout.sources) == set(layout.prompts) == set(TASKS)
    assert set(study.prompts) == set(RUNS)
    assert layout.own == {name: name for name in TASKS}
    page = write_report(folder).read_text(encoding="utf-8")
    assert "have no column" not in page and "not in indicators.csv" not in page
    head, *rows = PageReader(page).tables["Mean similarity of pairs of prompts, by type of task"]
    assert head[1] == "other seed" and rows[0][1] not in ("", "–")


def test_a_mixture_takes_runs_by_name(folder: Path, prompts) -> None:
    chosen = choose_parts(folder / "prompts", ["imdb/seed-2", "qqp"])
    expected = (prompts["imdb"][2].values + prompts["qqp"].values) / 2
    np.testing.assert_allclose(average_prompts(chosen).values, expected, rtol=1e-6)
    assert len(load_parts(folder / "prompts")) == len(RUNS)


def test_commands_for_single_prompts_say_what_they_take(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "imdb").symlink_to(folder / "prompts" / "imdb")
    with pytest.raises(InputError, match=r"several seeds \(imdb/seed-S\).*give .*some/imdb, or"):
        jpt.mask_neurons(tmp_path / "some", out=tmp_path / "out", ratio=0.2)
    assert list(jpt.activated_neurons(folder / "prompts" / "imdb").names) == [
        "seed-0",
        "seed-1",
        "seed-2",
    ]
