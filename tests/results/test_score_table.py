"""The cache of cells: an interrupted transfer matrix resumes, and ends the same."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import jpt
from jpt.cli.app import app
from jpt.testing import write_tiny_backbone
from jpt.transfer import zero_shot
from jpt.transfer.zero_shot import transfer_matrix
from jpt.tuning.bound_task import BoundTask
from jpt.types import Prompt, PromptCard
from tests.helpers.running import raises
from tests.helpers.toys import write_task

pytestmark = pytest.mark.plain_programs

FILES = ("transfer.csv", "relative.csv", "transfer.json", "cells.jsonl")


class Study:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.backbone = write_tiny_backbone(root / "model", "bert")
        mood = write_task(root / "mood")
        toml = (mood / "task.toml").read_text()
        changed = toml.replace("mood", "taste").replace('bad = "bad"', 'bad = "poor"')
        self.tasks = [mood, write_task(root / "taste", toml=changed)]
        self.prompts = root / "prompts"
        self.prompts.mkdir()
        for seed, name in enumerate(("mood", "taste")):
            self.write_prompt(name, seed)

    def write_prompt(self, name: str, seed: int, length: int = 3) -> None:
        values = np.random.default_rng(seed).normal(0, 0.5, (length, 32)).astype(np.float32)
        card = PromptCard(str(self.backbone), name, "sentiment", seed=seed)
        path = self.prompts / f"{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        jpt.save_prompt(path, Prompt(values, card))

    def transfer(self, out: Path, **options: Any) -> zero_shot.TransferResult:
        return transfer_matrix(self.prompts, self.tasks, out, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, zero_shot.TransferResult]:
    study = Study(tmp_path_factory.mktemp("study"))
    return study, study.transfer(study.root / "out")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls, score = [], BoundTask.score

    def counted(self: BoundTask, prompts: list, *others: Any, **more: Any) -> list:
        calls.append(self.task.name)
        return score(self, prompts, *others, **more)

    monkeypatch.setattr(BoundTask, "score", counted)
    return calls


def read_cells(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "cells.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {name: (folder / name).read_bytes() for name in FILES[:2]}
    record = json.loads((folder / "transfer.json").read_text())
    del record["elapsed_s"], record["command"]
    lines = read_cells(folder)
    for line in lines:
        del line["elapsed_s"]
    return {**found, "record": record, "cells": lines}


def test_one_line_per_cell(whole) -> None:
    study, result = whole
    lines = read_cells(study.root / "out")
    pairs = [(line["target_task"], line["source_prompt"]) for line in lines]
    columns = ("mood", "taste", "random", "none")
    assert pairs == [(target, name) for target in ("mood", "taste") for name in columns]
    for line in lines:
        cell = result.cells[line["target_task"], line["source_prompt"]]
        score = result.scores[line["target_task"], line["source_prompt"]]
        assert (line["value"], line["loss"], line["rows"]) == (score.value, score.loss, 42)
        assert cell.value == score.value and cell.of == line["of"]


@pytest.mark.parametrize("stopped_at", [1, 5])
def test_stopped_matrix_resumes_and_ends_the_same(whole, scored, monkeypatch, stopped_at) -> None:
    (study, finished), counted = whole, BoundTask.score
    out = study.root / f"stopped-{stopped_at}"

    def stopping(self: BoundTask, *arguments: Any, **more: Any) -> Any:
        if len(scored) == stopped_at:
            raise jpt.StoppedError("SIGTERM", 75)
        return counted(self, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(BoundTask, "score", stopping)
        with pytest.raises(jpt.StoppedError):
            study.transfer(out)
    assert (out / "cells.jsonl").read_text().count("\n") == stopped_at
    assert not (out / "transfer.csv").exists()
    scored.clear()
    result = study.transfer(out)
    assert len(scored) == len(result.scores) == 8 - stopped_at
    assert contents(out) == contents(study.root / "out")
    np.testing.assert_array_equal(result.matrix.values, finished.matrix.values)


def test_finished_matrix_loads_no_model_and_changes_no_file(whole, monkeypatch) -> None:
    study, result = whole
    before = {name: (study.root / "out" / name).read_bytes() for name in FILES}
    monkeypatch.setattr(zero_shot, "resolve_backbone", None)  # nothing may be loaded
    again = study.transfer(study.root / "out")
    assert {name: (study.root / "out" / name).read_bytes() for name in FILES} == before
    assert again.record == result.record and again.cells == result.cells
    assert again.scores == {}


@pytest.mark.slow
def test_changes_are_scored_again(study, scored) -> None:
    out = study.root / "out"
    first = study.transfer(out)

    def rescored(*expected: str, **options: Any) -> zero_shot.TransferResult:
        scored.clear()
        result = study.transfer(out, **options)
        assert scored == list(expected)
        return result

    study.write_prompt("taste", 7)
    second = rescored("mood", "taste")  # the one prompt, on both tasks
    assert set(second.scores) == {("mood", "taste"), ("taste", "taste")}
    assert second.cells["mood", "mood"] == first.cells["mood", "mood"]
    write_task(study.tasks[0], test='{"text": "a fine film", "label": "good"}\n')
    assert rescored(*["mood"] * 4).cells["mood", "mood"].rows == 1
    rescored("mood", "taste", seed=3)  # the random prompt alone
    rescored(*["mood"] * 4, *["taste"] * 4, max_tokens=9)
    toml = study.tasks[1] / "task.toml"
    toml.write_text(toml.read_text().replace('good = "good"', 'good = "great"'))
    rescored(*["taste"] * 4)


@pytest.mark.slow
def test_another_model_is_scored_again(study, scored) -> None:
    study.transfer(study.root / "out")
    scored.clear()
    other = write_tiny_backbone(study.root / "other", "bert", num_hidden_layers=1)
    study.transfer(study.root / "out", backbone=other)
    assert len(scored) == 8


def test_scores_do_not_depend_on_names(study, scored) -> None:
    first = study.transfer(study.root / "out")
    scored.clear()
    (study.prompts / "mood.safetensors").rename(study.prompts / "feeling.safetensors")
    second = study.transfer(study.root / "out")
    assert scored == [] and second.matrix.prompts == ("feeling", "taste", "random", "none")
    assert second.matrix.values[0, 0] == first.matrix.values[0, 0]


def test_incomplete_last_line_is_dropped(whole, scored) -> None:
    study = whole[0]
    out = study.root / "cut"
    study.transfer(out)
    file = out / "cells.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    scored.clear()
    study.transfer(out)
    assert scored == ["taste"] and contents(out) == contents(study.root / "out")


@pytest.mark.parametrize("line", ["{", "[]", '{"value": 1}', "", '{"of": 3}'])
def test_other_broken_lines_are_named(study, line: str) -> None:
    out = study.root / "out"
    out.mkdir()
    (out / "cells.jsonl").write_text(f"{line}\n")
    raises(study.transfer, out, match=r"cells.jsonl, line 1: not a cell .* remove this line")


def test_command_without_baselines(whole) -> None:
    study, result = whole
    names = ",".join(map(str, study.tasks))
    options = ["--prompts", study.prompts, "--tasks", names, "--out", study.root / "command"]
    command = ["transfer", *map(str, options), "--no-random", "--no-untouched", "--json"]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0, run.output
    record = json.loads(run.stdout.splitlines()[-1])
    assert record["random"] is None and record["untouched"] is None
    assert record["relative_by_type"] == result.record["relative_by_type"]
    assert record["relative_transfer"]["untouched_mean"] is None
    assert result.record["relative_transfer"]["untouched_mean"] is not None
    matrix = jpt.read_transfer(study.root / "command" / "transfer.csv")
    assert matrix.prompts == ("mood", "taste")
    np.testing.assert_array_equal(matrix.values, result.matrix.values[:, :2])


@pytest.mark.slow
@pytest.mark.alone
def test_sigterm_leaves_a_matrix_that_resumes(tmp_path: Path) -> None:
    prompts, out, whole = (tmp_path / name for name in ("prompts", "out", "whole"))
    prompts.mkdir()
    for seed in range(3):
        values = np.random.default_rng(seed).normal(0, 0.5, (4, 128)).astype(np.float32)
        card = PromptCard("builtin/bert-small", "builtin/imdb_number")
        jpt.save_prompt(prompts / f"p{seed}.safetensors", Prompt(values, card))
    command = [sys.executable, "-m", "jpt.cli", "transfer", "--prompts", str(prompts)]
    command += ["--tasks", "builtin/imdb_number", "--max-tokens", "32", "--out"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(
        [*command, str(out)], env=environment, stderr=subprocess.PIPE, text=True
    )
    file = out / "cells.jsonl"
    while process.poll() is None and not (file.exists() and file.read_text().count("\n") >= 2):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75 and "re-run" in err.splitlines()[-1]
    assert 2 <= file.read_text().count("\n") < 5 and not (out / "transfer.csv").exists()
    for folder in (out, whole):
        again = [*command, str(folder)]
        assert subprocess.run(again, env=environment, stderr=subprocess.DEVNULL).returncode == 0
    assert contents(out) == contents(whole)
