"""Correlation of indicators with transfer, and the study and command `jpt indicators`."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import typer
from scipy.stats import spearmanr
from typer.testing import CliRunner

from jpt.cli import commands
from jpt.indicators.correlation import IndicatorStudy, correlate, spearman, study_indicators
from jpt.indicators.indicators import Indicators, read_indicators
from jpt.prompts.store import save_prompt
from jpt.results.prompt_table import write_activations, write_transfer
from jpt.types import Activations, Prompt, PromptCard, TransferMatrix
from tests.helpers.running import raises

GENERATOR = np.random.default_rng(0)
NAMES = ("imdb", "mnli", "mrpc", "qqp", "snli", "sst2")
CARDS = {name: PromptCard("bert", f"builtin/{name}") for name in NAMES}


def symmetric(size: int = 6) -> np.ndarray:
    values = GENERATOR.random((size, size)).round(1)  # with ties
    return np.triu(values) + np.triu(values, 1).T


def rho(first: np.ndarray, second: np.ndarray) -> float:
    return spearmanr(first, second)[0]


FOUND = Indicators(NAMES, {"cosine_concat": symmetric(), "neuron_overlap": symmetric()}, CARDS)
SCORES = GENERATOR.random((6, 6)).round(1) + 0.1
MATRIX = TransferMatrix(NAMES, NAMES, SCORES, ("accuracy",) * 6)
PARTS = ("including_in_task", "excluding_in_task")
COSINE = FOUND["cosine_concat"]


def with_scores(scores: np.ndarray, prompts: tuple[str, ...] = NAMES) -> TransferMatrix:
    return TransferMatrix(NAMES[: len(scores)], prompts, scores, ("accuracy",) * len(scores))


def with_levels(error: float) -> TransferMatrix:
    levels = {"chance": np.full(6, 0.5), "errors": np.full((6, 6), error)}
    return dataclasses.replace(MATRIX, **levels)


@pytest.mark.parametrize("tied", ["", "_tied"])
@pytest.mark.parametrize("part", PARTS)
def test_scipy_agrees_with_scores_at_chance_as_ties_and_without(part: str, tied: str) -> None:
    result = correlate(FOUND, with_levels(0.15))
    near = np.abs(SCORES - 0.5) <= 0.15
    scores = np.where(near, 0.5, SCORES) if tied else SCORES
    keep = np.ones((6, 6), bool) if part == PARTS[0] else ~np.eye(6, dtype=bool)
    in_task = scores.diagonal()[:, None]
    clear = in_task - 0.5 > 0.3  # two standard errors
    assert 0 < clear.sum() < 6 and near.sum() > 3
    pooled = {
        "raw": (keep, scores),
        "relative": (keep, scores / in_task),
        "above_chance": (keep & clear, (scores - 0.5) / np.where(clear, in_task - 0.5, np.nan)),
    }
    for name, found in getattr(result, part + tied).items():
        column = FOUND[name]
        expected = [rho(column[i][keep[i]], scores[i][keep[i]]) for i in range(6)]
        np.testing.assert_allclose(list(found.per_target.values()), expected, atol=1e-14)
        assert found.mean_over_targets == pytest.approx(np.mean(expected), abs=1e-14)
        assert found.n_targets == 6
        for measure, (used, values) in pooled.items():
            wanted = rho(column[used], values[used])
            assert getattr(found, f"pooled_{measure}") == pytest.approx(wanted, abs=1e-14)
        # Without chance levels, nothing else changes.
        plain = getattr(correlate(FOUND, MATRIX), part)[name]
        assert tied or dataclasses.replace(found, pooled_above_chance=None) == plain


def test_all_scores_at_chance_have_no_correlation() -> None:
    result = correlate(FOUND, with_levels(2.0))
    assert all(found.mean_over_targets is None for found in result.including_in_task_tied.values())
    assert result.including_in_task["cosine_concat"].mean_over_targets is not None
    (note, _) = [note for note in result.notes if "ties at chance" in note]
    assert "all indicators undefined: all sources have the same score" in note


def test_spearman_of_two_rows() -> None:
    rising = np.arange(5.0)
    assert spearman(rising, np.exp(rising)) == 1 and spearman(rising, -rising) == -1
    assert spearman(rising, np.ones(5)) is None and spearman(np.zeros(5), rising) is None
    assert spearman(rising[:2], rising[:2]) is None


def moved(rows: list[int], columns: list[int]) -> TransferMatrix:
    names = (tuple(NAMES[k] for k in each) for each in (rows, columns))
    return TransferMatrix(*names, SCORES[np.ix_(rows, columns)], ("accuracy",) * len(rows))


def test_order_of_targets_and_prompts_does_not_matter() -> None:
    matrix = moved(GENERATOR.permutation(6).tolist(), GENERATOR.permutation(6).tolist())
    one, other = (correlate(FOUND, each).excluding_in_task for each in (MATRIX, matrix))
    for name, found in one.items():
        assert found.pooled_relative == pytest.approx(other[name].pooled_relative, abs=1e-14)
        assert found.per_target == pytest.approx(other[name].per_target, abs=1e-14)


def test_matrix_from_its_file_and_record_to_file(tmp_path: Path) -> None:
    matrix = dataclasses.replace(MATRIX, values=SCORES / 2)
    write_transfer(tmp_path / "transfer.csv", matrix)
    result = correlate(FOUND, tmp_path / "transfer.csv")
    assert result == correlate(FOUND, matrix)
    record = json.loads(json.dumps(result.record, allow_nan=False))
    assert list(record) == [*PARTS, "overlap_lead", "intervals", "notes"]
    fields = "mean_over_targets pooled_relative pooled_raw n_targets per_target interval"
    fields += " pooled_above_chance"
    assert list(record["including_in_task"]["cosine_concat"]) == fields.split()
    assert record["notes"] == []


def test_the_random_prompt_is_not_a_source() -> None:
    expected = correlate(FOUND, MATRIX)
    names = (*NAMES, "random")
    matrix = with_scores(np.concatenate([SCORES, GENERATOR.random((6, 1))], axis=1), names)
    found = correlate(FOUND, matrix)
    assert all(getattr(found, part) == getattr(expected, part) for part in PARTS)
    cards = {**CARDS, "random": PromptCard("bert", "random")}
    both = correlate(Indicators(names, {"cosine_concat": np.pad(COSINE, (0, 1))}, cards), matrix)
    tables = (both.including_in_task, expected.including_in_task)
    assert tables[0]["cosine_concat"] == tables[1]["cosine_concat"]


def test_tasks_restrict_targets_and_sources() -> None:
    kept = [0, 2, 3, 5]
    smaller = moved(kept, kept)
    columns = {name: column[np.ix_(kept, kept)] for name, column in FOUND.columns.items()}
    expected = correlate(Indicators(smaller.prompts, columns, CARDS), smaller)
    found = correlate(FOUND, MATRIX, tasks=["builtin/imdb", "mrpc", "qqp", "sst2"])
    assert all(getattr(found, part) == getattr(expected, part) for part in PARTS)
    raises(correlate, FOUND, MATRIX, tasks=["imbd"], match="target 'imbd'; did you mean imdb")
    raises(correlate, FOUND, MATRIX, tasks=[], match="tasks: expected at least one")
    names = ("ethicsjustice", "imdb", "movierationales", "sst2")
    found = Indicators(names, {"cosine_concat": symmetric(4)})
    matrix = TransferMatrix(names, names, SCORES[:4, :4], ("accuracy",) * 4)
    result = correlate(found, matrix, tasks=["justice", "movie_rationales", "imdb"])
    assert list(result.including_in_task["cosine_concat"].per_target) == list(names[:3])


def test_prompts_of_other_and_of_the_same_tasks() -> None:
    result = correlate(FOUND, with_scores(SCORES[:4]))
    found = result.including_in_task["cosine_concat"]
    assert found.n_targets == 4
    assert found.per_target["imdb"] == pytest.approx(rho(COSINE[0, :4], SCORES[0, :4]))
    assert "snli, sst2: not of a target task, left out of the correlations" in result.notes
    names = (*NAMES, "imdb_again")
    columns = {"cosine_concat": symmetric(7)}
    cards = {**CARDS, "imdb_again": PromptCard("bert", "imdb")}
    scores = np.concatenate([SCORES, GENERATOR.random((6, 1))], axis=1)
    result = correlate(Indicators(names, columns, cards), with_scores(scores, names))
    expected = rho(columns["cosine_concat"][0, 1:], scores[0, 1:])
    assert result.excluding_in_task["cosine_concat"].per_target["imdb"] == pytest.approx(expected)


def test_missing_in_task_prompts_and_scores() -> None:
    cards = {**CARDS, "sst2": PromptCard("bert", "imdb")}
    names = (*NAMES[:5], "other")
    found = Indicators(names, FOUND.columns, {**cards, "other": PromptCard("bert", "imdb")})
    result = correlate(found, with_scores(SCORES, names))
    assert list(result.including_in_task["cosine_concat"].per_target) == list(NAMES[:5])
    assert "sst2 has no in-task prompt: relative performance is not defined" in result.notes
    strangers = TransferMatrix(("squad",), NAMES, SCORES[:1], ("accuracy",))
    raises(correlate, FOUND, strangers, match=r"got none for the 1 targets \(squad\)")
    scores = SCORES.copy()
    scores[1, 1] = 0
    result = correlate(FOUND, with_scores(scores))
    note = "mnli: in-task prompt mnli scores 0 in the transfer matrix, relative performance"
    assert f"{note} undefined" in result.notes
    assert result.including_in_task["cosine_concat"].n_targets == 6
    result = correlate(FOUND, with_scores(SCORES[:, 1:], NAMES[1:]))
    assert any("imdb has no column in the transfer" in note for note in result.notes)
    assert "imdb: no column in the transfer matrix, left out" in result.notes
    found = result.including_in_task["cosine_concat"].per_target["imdb"]
    assert found == pytest.approx(rho(COSINE[0, 1:], SCORES[0, 1:]))


def test_missing_cells_are_left_out() -> None:
    scores = SCORES.copy()
    scores[0, 2] = scores[3, 3] = np.nan
    result = correlate(FOUND, with_scores(scores))
    found, kept = result.including_in_task["cosine_concat"], [0, 1, 3, 4, 5]
    assert found.per_target["imdb"] == pytest.approx(rho(COSINE[0, kept], scores[0, kept]))
    # Without its in-task score qqp has no relative performance; its scores still have ranks.
    for start in (
        "2 of 36 pairs of target and source have no",
        "qqp: in-task prompt qqp scores nan",
    ):
        assert any(note.startswith(start) for note in result.notes), start
    used = ~np.isnan(scores)
    assert found.pooled_raw == pytest.approx(rho(COSINE[used], scores[used]))
    used[3] = False
    relative = scores / scores.diagonal()[:, None]
    assert found.pooled_relative == pytest.approx(rho(COSINE[used], relative[used]))


def test_constant_scores_and_indicators_are_undefined() -> None:
    scores = SCORES.copy()
    scores[2] = 0.5
    result = correlate(FOUND, with_scores(scores))
    found = result.including_in_task["neuron_overlap"]
    assert found.per_target["mrpc"] is None and found.n_targets == 5
    defined = [value for value in found.per_target.values() if value is not None]
    assert found.mean_over_targets == pytest.approx(np.mean(defined))
    reason = "correlation with all indicators undefined: all sources have the same score"
    for part in ("including", "excluding"):
        assert f"mrpc ({part} in-task prompts): {reason}" in result.notes
    columns = {**FOUND.columns, "neuron_overlap": np.ones((6, 6))}
    result = correlate(Indicators(NAMES, columns, CARDS), MATRIX)
    found = result.excluding_in_task["neuron_overlap"]
    assert (found.mean_over_targets, found.pooled_relative, found.pooled_raw) == (None,) * 3
    assert found.n_targets == 0 and set(found.per_target.values()) == {None}
    where = f"{', '.join(NAMES)}, all pairs (excluding in-task prompts)"
    reason = "correlation with neuron_overlap undefined: the same value for all sources"
    assert f"{where}: {reason}" in result.notes
    assert result.excluding_in_task["cosine_concat"].n_targets == 6


def test_few_sources_and_undefined_overlap() -> None:
    result = correlate(FOUND, MATRIX, tasks=NAMES[:3])
    assert result.including_in_task["cosine_concat"].n_targets == 3
    assert result.excluding_in_task["cosine_concat"].mean_over_targets is None
    assert result.excluding_in_task["cosine_concat"].pooled_raw is not None
    assert any(
        note.endswith("all indicators undefined: fewer than 3 sources") for note in result.notes
    )
    overlap = FOUND["neuron_overlap"].copy()
    overlap[4] = overlap[:, 4] = np.nan
    columns = {**FOUND.columns, "neuron_overlap": overlap}
    result = correlate(Indicators(NAMES, columns, CARDS), MATRIX)
    found, kept = result.including_in_task["neuron_overlap"], [0, 1, 2, 3, 5]
    assert found.per_target["snli"] is None and found.n_targets == 5
    assert found.per_target["imdb"] == pytest.approx(rho(overlap[0, kept], SCORES[0, kept]))
    where = "neuron_overlap (including in-task prompts)"
    assert f"{where}: undefined for 11 pairs, left out" in result.notes


def test_matrix_of_other_prompts() -> None:
    other = with_scores(SCORES, (*NAMES[:5], "other"))
    raises(correlate, FOUND, other, match=r"of its 6 prompts, got none of 1 \(other\)")
    many = with_scores(GENERATOR.random((6, 12)), tuple(f"p{number}" for number in range(12)))
    raises(correlate, FOUND, many, match=r"none of 12 \(p0, p1, p10, .* and 4 more\)")


TASKS = ("imdb", "mnli", "snli", "sst2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    (tmp_path / "prompts").mkdir()
    for name in TASKS:
        values = generator.normal(size=(3, 5)).astype(np.float32)
        card = PromptCard("builtin/bert-small", f"builtin/{name}")
        save_prompt(tmp_path / "prompts" / f"{name}.safetensors", Prompt(values, card))
    neurons = generator.normal(size=(4, 5, 40)).astype(np.float32)
    write_activations(tmp_path / "neurons.npz", Activations(TASKS[::-1], neurons))
    matrix = TransferMatrix(TASKS, (*TASKS, "random"), generator.random((4, 5)), ("accuracy",) * 4)
    write_transfer(tmp_path / "transfer.csv", matrix)
    return tmp_path


def run(folder: Path, **options: object) -> IndicatorStudy:
    files = {"neurons": folder / "neurons.npz", "transfer": folder / "transfer.csv"}
    return study_indicators(folder / "prompts", folder / "out", **{**files, **options})


def test_files_and_text_of_a_study(folder: Path) -> None:
    study = run(folder)
    names = ["indicators.csv", "types.json", "correlation.json", "choice.json"]
    assert [file.name for file in study.files] == names
    assert all(file.exists() for file in study.files)
    correlation = json.loads((folder / "out" / "correlation.json").read_text())
    assert correlation == study.correlation.record
    assert json.loads((folder / "out" / "types.json").read_text()) == study.types
    assert list(correlation["including_in_task"]) == list(read_indicators(study.files[0]).columns)
    json.dumps(study.record, allow_nan=False)
    study = run(folder)
    lines = study.describe().splitlines()
    assert lines[0] == "4 prompts of builtin/bert-small, 3 tokens x 5"
    tables = (study.correlation.including_in_task, study.correlation.excluding_in_task)
    windows = [name for name in tables[1] if "_layers_" in name]
    best = max(windows, key=lambda name: tables[1][name].mean_over_targets)
    shown = [line.split()[0] for line in lines if line.startswith("neuron_overlap")]
    assert shown == ["neuron_overlap", best, "neuron_overlap_all", best]
    assert any(line.startswith(f"{best} is the best of 3 windows") for line in lines)
    row = next(line.split() for line in lines if line.startswith("cosine_average"))
    found = [table["cosine_average"] for table in tables]
    values = [value for each in found for value in (each.mean_over_targets, each.pooled_relative)]
    assert row[1:5] == [f"{value:.4f}" for value in values]


def test_studies_without_files(folder: Path) -> None:
    study = study_indicators(folder / "prompts")
    assert study.files == () and not (folder / "out").exists()
    run(folder)
    study = run(folder, neurons=None, transfer=None)
    assert [file.name for file in study.files] == ["indicators.csv", "types.json"]
    assert study.record["including_in_task"] is None
    neurons, earlier = study.notes
    assert f"jpt neurons --prompts {folder / 'prompts'} --out FILE" in neurons
    assert earlier.startswith(f"{folder / 'out' / 'correlation.json'} is from an earlier run")
    assert "Spearman" not in study.describe()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "3-5"}, "layers: .* within 0 to 4, got 3-5"),
        ({"tasks": ["imbd"]}, "unknown target 'imbd'"),
        ({"neurons": "none.npz"}, "none.npz"),
        ({"transfer": "none.csv"}, "cannot read none.csv"),
    ],
)
def test_invalid_input_writes_nothing(folder: Path, options: dict, message: str) -> None:
    raises(run, folder, match=message, **options)
    assert not (folder / "out").exists()


def command(*words: object) -> tuple[str, str]:
    app = typer.Typer()
    app.command("indicators")(commands.indicators)
    app.command("reference")(commands.import_reference)
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def test_command_indicators(folder: Path) -> None:
    where = ("indicators", "--prompts", folder / "prompts", "--out", folder / "out")
    options = ("--neurons", folder / "neurons.npz", "--transfer", folder / "transfer.csv")
    chosen = "--tasks imdb,mnli,snli --layers 0-1 --json".split()
    stdout, stderr = command(*where, *options, *chosen)
    record = json.loads(stdout.splitlines()[-1])
    targets = record["including_in_task"]["neuron_overlap"]["per_target"]
    assert list(targets) == ["imdb", "mnli", "snli"]
    assert "4 prompts of builtin/bert-small" in stderr and "block" in stderr
    assert "4 prompts of" in command(*where)[0]


def test_command_import_reference(tmp_path: Path) -> None:
    (tmp_path / "t5-small").mkdir()
    np.save(tmp_path / "t5-small" / "qqp.npy", np.ones((3, 512), np.float32))
    stdout, _ = command("reference", tmp_path / "t5-small", "--out", tmp_path / "out", "--json")
    assert json.loads(stdout)["prompts"] == {"qqp": {"task": "qqp", "type": "paraphrase"}}
    assert (tmp_path / "out" / "qqp.safetensors").exists()
