"""DOC"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from scipy.stats import spearmanr
from typer.testing import CliRunner

from jpt.cli import commands
from jpt.errors import InputError
from jpt.indicators.correlation import (
    CorrelationResult,
    IndicatorStudy,
    correlate,
    spearman,
    study_indicators,
)
from jpt.indicators.indicators import Indicators, read_indicators
from jpt.prompts.store import save_prompt
from jpt.results.prompt_table import write_activations, write_transfer
from jpt.types import Activations, Prompt, PromptCard, TransferMatrix

# --- correlation

GENERATOR = np.random.default_rng(0)
NAMES = ("imdb", "mnli", "mrpc", "qqp", "snli", "sst2")
CARDS = {name: PromptCard("bert", f"builtin/{name}") for name in NAMES}


def symmetric(size: int = 6) -> np.ndarray:
    values = GENERATOR.random((size, size)).round(1)  # with ties
    return np.triu(values) + np.triu(values, 1).T


FOUND = Indicators(NAMES, {"cosine_concat": symmetric(), "neuron_overlap": symmetric()}, CARDS)
SCORES = GENERATOR.random((6, 6)).round(1) + 0.1
MATRIX = TransferMatrix(NAMES, NAMES, SCORES, ("accuracy",) * 6)


def with_scores(scores: np.ndarray, prompts: tuple[str, ...] = NAMES) -> TransferMatrix:
    return TransferMatrix(NAMES[: len(scores)], prompts, scores, ("accuracy",) * len(scores))


@pytest.mark.parametrize("own", ["including_in_task", "excluding_in_task"])
def test_scipy_agrees(own: str) -> None:
    result = getattr(correlate(FOUND, MATRIX), own)
    keep = np.ones((6, 6), bool) if own == "including_in_task" else ~np.eye(6, dtype=bool)
    relative = SCORES / SCORES.diagonal()[:, None]
    for name, found in result.items():
        column = FOUND[name]
        expected = [spearmanr(column[i][keep[i]], SCORES[i][keep[i]])[0] for i in range(6)]
        np.testing.assert_allclose(list(found.per_target.values()), expected, atol=1e-14)
        assert found.mean_over_targets == pytest.approx(np.mean(expected), abs=1e-14)
        assert found.n_targets == 6
        for pooled, values in ((found.pooled_relative, relative), (found.pooled_raw, SCORES)):
            assert pooled == pytest.approx(spearmanr(column[keep], values[keep])[0], abs=1e-14)


def test_spearman_of_two_rows() -> None:
    rising = np.arange(5.0)
    assert spearman(rising, np.exp(rising)) == 1
    assert spearman(rising, -rising) == -1
    assert spearman(rising, np.ones(5)) is None
    assert spearman(np.zeros(5), rising) is None
    assert spearman(rising[:2], rising[:2]) is None


def test_order_of_targets_and_prompts_changes_nothing() -> None:
    rows, columns = GENERATOR.permutation(6), GENERATOR.permutation(6)
    moved = TransferMatrix(
        tuple(NAMES[row] for row in rows),
        tuple(NAMES[column] for column in columns),
        SCORES[np.ix_(rows, columns)],
        ("accuracy",) * 6,
    )
    one, other = correlate(FOUND, MATRIX), correlate(FOUND, moved)
    for name, found in one.excluding_in_task.items():
        assert found.pooled_relative == pytest.approx(
            other.excluding_in_task[name].pooled_relative, abs=1e-14
        )
        for target, value in found.per_target.items():
            assert other.excluding_in_task[name].per_target[target] == pytest.approx(
                value, abs=1e-14
            )


def test_matrix_from_its_file_and_record_to_file(tmp_path: Path) -> None:
    write_transfer(tmp_path / "transfer.csv", MATRIX)
    result = correlate(FOUND, tmp_path / "transfer.csv")
    assert result == correlate(FOUND, MATRIX)
    record = json.loads(json.dumps(result.record, allow_nan=False))
    assert list(record) == [
        "including_in_task",
        "excluding_in_task",
        "overlap_lead",
        "intervals",
        "notes",
    ]
    assert list(record["including_in_task"]["cosine_concat"]) == [
        "mean_over_targets",
        "pooled_relative",
        "pooled_raw",
        "n_targets",
        "per_target",
        "interval",
    ]
    assert record["notes"] == []


def same_values(one: CorrelationResult, other: CorrelationResult) -> bool:
    return (one.including_in_task, one.excluding_in_task) == (
        other.including_in_task,
        other.excluding_in_task,
    )


def test_random_prompt_is_no_source() -> None:
    scores = np.concatenate([SCORES, GENERATOR.random((6, 1))], axis=1)
    matrix = with_scores(scores, (*NAMES, "random"))
    assert same_values(correlate(FOUND, matrix), correlate(FOUND, MATRIX))
    names = (*NAMES, "random")
    column = np.pad(FOUND["cosine_concat"], (0, 1))
    noise = {**CARDS, "random": PromptCard("bert", "random")}
    both = correlate(Indicators(names, {"cosine_concat": column}, noise), matrix)
    assert (
        both.including_in_task["cosine_concat"]
        == correlate(FOUND, MATRIX).including_in_task["cosine_concat"]
    )


def test_tasks_restrict_targets_and_sources() -> None:
    kept = [0, 2, 3, 5]
    smaller = TransferMatrix(
        tuple(NAMES[k] for k in kept),
        tuple(NAMES[k] for k in kept),
        SCORES[np.ix_(kept, kept)],
        ("accuracy",) * 4,
    )
    columns = {name: column[np.ix_(kept, kept)] for name, column in FOUND.columns.items()}
    expected = correlate(Indicators(smaller.prompts, columns, CARDS), smaller)
    found = correlate(FOUND, MATRIX, tasks=["builtin/imdb", "mrpc", "qqp", "sst2"])
    assert same_values(found, expected)
    with pytest.raises(InputError, match="unknown target 'imbd'; did you mean imdb"):
        correlate(FOUND, MATRIX, tasks=["imbd"])
    with pytest.raises(InputError, match="tasks is empty"):
        correlate(FOUND, MATRIX, tasks=[])


def test_names_of_the_catalog_choose_targets_of_the_authors() -> None:
    names = ("ethicsjustice", "imdb", "movierationales", "sst2")
    found = Indicators(names, {"cosine_concat": symmetric(4)})
    matrix = TransferMatrix(names, names, SCORES[:4, :4], ("accuracy",) * 4)
    result = correlate(found, matrix, tasks=["justice", "movie_rationales", "imdb"])
    assert list(result.including_in_task["cosine_concat"].per_target) == list(names[:3])


def test_prompts_for_no_target_are_left_out_and_said() -> None:
    result = correlate(FOUND, with_scores(SCORES[:4]))
    assert result.including_in_task["cosine_concat"].n_targets == 4
    expected = [spearmanr(FOUND["cosine_concat"][0, :4], SCORES[0, :4])[0]]
    assert result.including_in_task["cosine_concat"].per_target["imdb"] == pytest.approx(
        expected[0]
    )
    assert "snli, sst2: for none of the targets, left out of the correlations" in result.notes


def test_second_prompt_of_a_task_is_a_source() -> None:
    names = (*NAMES, "imdb_again")
    columns = {"cosine_concat": symmetric(7)}
    cards = {**CARDS, "imdb_again": PromptCard("bert", "imdb")}
    scores = np.concatenate([SCORES, GENERATOR.random((6, 1))], axis=1)
    result = correlate(Indicators(names, columns, cards), with_scores(scores, names))
    expected = spearmanr(columns["cosine_concat"][0, 1:], scores[0, 1:])[0]
    assert result.excluding_in_task["cosine_concat"].per_target["imdb"] == pytest.approx(expected)


def test_target_without_a_prompt_of_its_own() -> None:
    cards = {**CARDS, "sst2": PromptCard("bert", "imdb")}
    names = (*NAMES[:5], "other")
    found = Indicators(names, FOUND.columns, {**cards, "other": PromptCard("bert", "imdb")})
    result = correlate(found, with_scores(SCORES, names))
    assert list(result.including_in_task["cosine_concat"].per_target) == list(NAMES[:5])
    assert "sst2 has no in-task prompt: relative performance is not defined" in result.notes
    strangers = TransferMatrix(("squad",), NAMES, SCORES[:1], ("accuracy",))
    with pytest.raises(InputError, match=r"none of the 1 targets \(squad\) has a prompt of its"):
        correlate(FOUND, strangers)


def test_missing_cells_are_left_out_and_said() -> None:
    scores = SCORES.copy()
    scores[0, 2] = scores[3, 3] = np.nan
    result = correlate(FOUND, with_scores(scores))
    found = result.including_in_task["cosine_concat"]
    kept = [0, 1, 3, 4, 5]
    expected = spearmanr(FOUND["cosine_concat"][0, kept], scores[0, kept])[0]
    assert found.per_target["imdb"] == pytest.approx(expected)
    assert any(
        note.startswith("2 of 36 pairs of target and source have no") for note in result.notes
    )
    # Without its own score qqp has no relative performance; its scores still have ranks.
    assert any(note.startswith("qqp: its own prompt qqp scores nan") for note in result.notes)
    used = ~np.isnan(scores)
    assert found.pooled_raw == pytest.approx(
        spearmanr(FOUND["cosine_concat"][used], scores[used])[0]
    )
    used[3] = False
    relative = scores / scores.diagonal()[:, None]
    assert found.pooled_relative == pytest.approx(
        spearmanr(FOUND["cosine_concat"][used], relative[used])[0]
    )


def test_own_score_of_zero_makes_no_ratio() -> None:
    scores = SCORES.copy()
    scores[1, 1] = 0
    result = correlate(FOUND, with_scores(scores))
    assert (
        "mnli: its own prompt mnli scores 0 in the transfer matrix: relative performance is not"
        " defined" in result.notes
    )
    assert result.including_in_task["cosine_concat"].n_targets == 6


def test_own_prompt_without_a_column() -> None:
    result = correlate(FOUND, with_scores(SCORES[:, 1:], NAMES[1:]))
    assert any("imdb has no column in the transfer" in note for note in result.notes)
    assert "imdb: no column in the transfer matrix, left out" in result.notes
    expected = spearmanr(FOUND["cosine_concat"][0, 1:], SCORES[0, 1:])[0]
    assert result.including_in_task["cosine_concat"].per_target["imdb"] == pytest.approx(expected)


def test_constant_scores_are_undefined_and_said() -> None:
    scores = SCORES.copy()
    scores[2] = 0.5
    result = correlate(FOUND, with_scores(scores))
    found = result.including_in_task["neuron_overlap"]
    assert found.per_target["mrpc"] is None and found.n_targets == 5
    defined = [value for value in found.per_target.values() if value is not None]
    assert found.mean_over_targets == pytest.approx(np.mean(defined))
    for part in ("own prompt among the sources", "own prompt left out"):
        assert (
            f"mrpc ({part}): no Spearman with any indicator: all sources score the same"
            in result.notes
        )


def test_constant_indicator_is_undefined_and_said() -> None:
    columns = {**FOUND.columns, "neuron_overlap": np.ones((6, 6))}
    result = correlate(Indicators(NAMES, columns, CARDS), MATRIX)
    found = result.excluding_in_task["neuron_overlap"]
    assert (found.mean_over_targets, found.pooled_relative, found.pooled_raw) == (None,) * 3
    assert found.n_targets == 0 and set(found.per_target.values()) == {None}
    assert any(
        note == f"{', '.join(NAMES)}, all pairs (own prompt left out): no Spearman with"
        " neuron_overlap: it is the same for all sources"
        for note in result.notes
    )
    assert result.excluding_in_task["cosine_concat"].n_targets == 6


def test_few_sources_are_undefined_and_said() -> None:
    result = correlate(FOUND, MATRIX, tasks=NAMES[:3])
    assert result.including_in_task["cosine_concat"].n_targets == 3
    assert result.excluding_in_task["cosine_concat"].mean_over_targets is None
    assert result.excluding_in_task["cosine_concat"].pooled_raw is not None
    assert any(note.endswith("any indicator: fewer than 3 sources") for note in result.notes)


def test_undefined_overlap_leaves_pairs_out() -> None:
    silent = FOUND["neuron_overlap"].copy()
    silent[4] = silent[:, 4] = np.nan
    result = correlate(
        Indicators(NAMES, {**FOUND.columns, "neuron_overlap": silent}, CARDS), MATRIX
    )
    found = result.including_in_task["neuron_overlap"]
    assert found.per_target["snli"] is None and found.n_targets == 5
    kept = [0, 1, 2, 3, 5]
    expected = spearmanr(silent[0, kept], SCORES[0, kept])[0]
    assert found.per_target["imdb"] == pytest.approx(expected)
    assert "neuron_overlap (own prompt among the sources): not defined for 11 pairs, left out" in (
        result.notes
    )


def test_matrix_of_other_prompts() -> None:
    with pytest.raises(
        InputError, match="1 of the 6 prompts of the transfer matrix have no indicators: other;"
    ):
        correlate(FOUND, with_scores(SCORES, (*NAMES[:5], "other")))
    many = tuple(f"p{number}" for number in range(12))
    with pytest.raises(InputError, match="12 of the 12 .* p0, p1, p10, .* and 4 more; compute"):
        correlate(FOUND, with_scores(GENERATOR.random((6, 12)), many))


# --- indicator study

INDICATOR_STUDY_NAMES = ("imdb", "mnli", "snli", "sst2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    (tmp_path / "prompts").mkdir()
    for name in INDICATOR_STUDY_NAMES:
        values = generator.normal(size=(3, 5)).astype(np.float32)
        card = PromptCard("builtin/bert-small", f"builtin/{name}")
        save_prompt(tmp_path / "prompts" / f"{name}.safetensors", Prompt(values, card))
    neurons = generator.normal(size=(4, 5, 40)).astype(np.float32)
    write_activations(tmp_path / "neurons.npz", Activations(INDICATOR_STUDY_NAMES[::-1], neurons))
    scores = generator.random((4, 5))
    matrix = TransferMatrix(
        INDICATOR_STUDY_NAMES, (*INDICATOR_STUDY_NAMES, "random"), scores, ("accuracy",) * 4
    )
    write_transfer(tmp_path / "transfer.csv", matrix)
    return tmp_path


def run(folder: Path, **options: object) -> IndicatorStudy:
    files = {"neurons": folder / "neurons.npz", "transfer": folder / "transfer.csv"}
    return study_indicators(folder / "prompts", folder / "out", **{**files, **options})


def test_files_of_a_study(folder: Path) -> None:
    study = run(folder)
    assert [file.name for file in study.files] == [
        "indicators.csv",
        "types.json",
        "correlation.json",
        "choice.json",
    ]
    assert all(file.exists() for file in study.files)
    correlation = json.loads((folder / "out" / "correlation.json").read_text())
    assert correlation == study.correlation.record
    assert json.loads((folder / "out" / "types.json").read_text()) == study.types
    assert list(correlation["including_in_task"]) == list(read_indicators(study.files[0]).columns)
    json.dumps(study.record, allow_nan=False)


def test_text_names_the_best_window(folder: Path) -> None:
    study = run(folder)
    lines = study.describe().splitlines()
    assert lines[0] == "4 prompts of builtin/bert-small, 3 rows x 5"
    means = {
        name: found.mean_over_targets
        for name, found in study.correlation.excluding_in_task.items()
        if "_layers_" in name
    }
    best = max(means, key=means.get)
    shown = [line.split()[0] for line in lines if line.startswith("neuron_overlap")]
    assert shown == ["neuron_overlap", best, "neuron_overlap_all", best]
    assert f"{best} is the best of 3 windows, found by looking" in lines
    found = study.correlation
    row = next(line.split() for line in lines if line.startswith("cosine_average"))
    assert row[1:5] == [
        f"{value:.4f}"
        for part in (found.including_in_task, found.excluding_in_task)
        for value in (
            part["cosine_average"].mean_over_targets,
            part["cosine_average"].pooled_relative,
        )
    ]


def test_without_activations_and_matrix(folder: Path) -> None:
    run(folder)
    study = run(folder, neurons=None, transfer=None)
    assert [file.name for file in study.files] == ["indicators.csv", "types.json"]
    assert study.record["including_in_task"] is None
    assert study.notes == [
        "neuron overlap is left out, for want of activations: jpt neurons --prompts"
        f" {folder / 'prompts'} --out FILE makes them, --neurons FILE reads them",
        f"{folder / 'out' / 'correlation.json'} is of an earlier run: there was no transfer"
        " matrix now",
    ]
    assert "Spearman" not in study.describe()


def test_python_api_needs_no_files(folder: Path) -> None:
    study = study_indicators(folder / "prompts")
    assert study.files == () and not (folder / "out").exists()


WRONG = {
    "layers": ({"layers": "3-5"}, "layers 3-5 are no window of the 5 layers"),
    "tasks": ({"tasks": ["imbd"]}, "unknown target 'imbd'"),
    "neurons": ({"neurons": "none.npz"}, "none.npz"),
    "transfer": ({"transfer": "none.csv"}, "cannot read none.csv"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_writes_nothing(folder: Path, case: str) -> None:
    options, said = WRONG[case]
    with pytest.raises(InputError, match=said):
        run(folder, **options)
    assert not (folder / "out").exists()


def command(*words: object) -> tuple[str, str]:
    app = typer.Typer()
    app.command("indicators")(commands.indicators)
    app.command("reference")(commands.import_reference)
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def test_command_indicators(folder: Path) -> None:
    options = ("--neurons", folder / "neurons.npz", "--transfer", folder / "transfer.csv")
    stdout, stderr = command(
        "indicators", "--prompts", folder / "prompts", *options, "--out", folder / "out",
        "--tasks", "imdb,mnli,snli", "--layers", "0-1", "--json",
    )  # fmt: skip
    record = json.loads(stdout.splitlines()[-1])
    assert list(record["including_in_task"]["neuron_overlap"]["per_target"]) == [
        "imdb",
        "mnli",
        "snli",
    ]
    assert "4 prompts of builtin/bert-small" in stderr and "block" in stderr
    assert (
        "4 prompts of"
        in command("indicators", "--prompts", folder / "prompts", "--out", folder / "out")[0]
    )


def test_command_import_reference(tmp_path: Path) -> None:
    (tmp_path / "t5-small").mkdir()
    np.save(tmp_path / "t5-small" / "qqp.npy", np.ones((3, 512), np.float32))
    stdout, _ = command("reference", tmp_path / "t5-small", "--out", tmp_path / "out", "--json")
    assert json.loads(stdout)["prompts"] == {"qqp": {"task": "qqp", "type": "paraphrase"}}
    assert (tmp_path / "out" / "qqp.safetensors").exists()
