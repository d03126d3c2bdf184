"""The whole study: files, text, record, and nothing written when an input is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from jpt.cli import commands
from jpt.errors import InputError
from jpt.indicators.correlation import IndicatorStudy, study_indicators
from jpt.indicators.indicators import read_indicators
from jpt.prompts.store import save_prompt
from jpt.results.prompt_table import write_activations, write_transfer
from jpt.types import Activations, Prompt, PromptCard, TransferMatrix

NAMES = ("imdb", "mnli", "snli", "sst2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    (tmp_path / "prompts").mkdir()
    for name in NAMES:
        values = generator.normal(size=(3, 5)).astype(np.float32)
        card = PromptCard("builtin/bert-small", f"builtin/{name}")
        save_prompt(tmp_path / "prompts" / f"{name}.safetensors", Prompt(values, card))
    neurons = generator.normal(size=(4, 5, 40)).astype(np.float32)
    write_activations(tmp_path / "neurons.npz", Activations(NAMES[::-1], neurons))
    scores = generator.random((4, 5))
    matrix = TransferMatrix(NAMES, (*NAMES, "random"), scores, ("accuracy",) * 4)
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
