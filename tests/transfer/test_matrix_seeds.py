"""A prompt of several seeds is one column: the mean of its runs; the record has their spread."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import jpt
from jpt.prompts.store import load_seed_prompts
from jpt.results.prompt_table import read_transfer
from jpt.transfer.zero_shot import TransferResult, transfer_matrix
from jpt.types import Prompt, PromptCard
from tests.toy_task import write_task

pytestmark = pytest.mark.usefixtures("plain_programs")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of a prompt, as `jpt tune --seeds` writes them, and one prompt of one seed."""
    root = tmp_path_factory.mktemp("seeds")
    mood = write_task(root / "mood")
    toml = (mood / "task.toml").read_text().replace("mood", "taste")
    write_task(root / "taste", toml=toml.replace('good = "good"', 'good = "great"'))
    model = jpt.load_backbone("builtin/bert-small")
    options = {"steps": 2, "length": 3, "batch_size": 8, "max_tokens": 16}
    (root / "prompts").mkdir()
    jpt.tune_seeds(model, mood, [0, 1, 2], root / "prompts" / "mood", **options)
    jpt.tune(model, root / "taste", root / "prompts" / "taste", **options)
    return root


@pytest.fixture(scope="module")
def result(root: Path) -> TransferResult:
    return transfer_matrix(root / "prompts", [root / "mood", root / "taste"], root / "out")


def test_a_column_is_the_mean_of_its_seeds(root: Path, result: TransferResult) -> None:
    assert result.matrix.prompts == ("mood", "taste", "random", "none")
    model = jpt.load_backbone("builtin/bert-small")
    for row, target in enumerate(("mood", "taste")):
        runs = [root / "prompts" / "mood" / f"seed-{seed}" for seed in range(3)]
        values = [
            jpt.evaluate(jpt.load_prompt(run), root / target, backbone=model).value for run in runs
        ]
        told = result.record["seeds"]["mood"]
        assert told["seeds"] == [0, 1, 2]
        assert told["targets"][target]["values"] == values
        assert told["targets"][target]["mean"] == result.matrix.values[row, 0]
        mean = sum(values) / 3
        assert result.matrix.values[row, 0] == pytest.approx(mean, abs=1e-15)
        spread = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
        assert told["targets"][target]["std"] == pytest.approx(spread, abs=1e-15)
        assert f"{mean:.3f}±{spread:.3f}" in result.describe()
    assert list(result.record["seeds"]) == ["mood"]
    assert max(told["targets"]["mood"]["values"]) > min(told["targets"]["mood"]["values"])


def test_relative_performance_is_that_of_the_means(root: Path, result: TransferResult) -> None:
    assert result.own == {"mood": "mood", "taste": "taste"}
    own = result.matrix.values[[0, 1], [0, 1]]
    np.testing.assert_array_equal(result.relative.values, result.matrix.values / own[:, None])
    again = read_transfer(root / "out" / "transfer.csv")
    np.testing.assert_array_equal(again.values, result.matrix.values)


def test_each_seed_has_a_cell_of_its_own(root: Path, result: TransferResult) -> None:
    lines = (root / "out" / "cells.jsonl").read_text().splitlines()
    names = [json.loads(line)["source_prompt"] for line in lines]
    runs = ["mood/seed-0", "mood/seed-1", "mood/seed-2", "taste", "random", "none"]
    assert names == runs * 2


def test_prompts_in_python_by_seed(root: Path, result: TransferResult) -> None:
    prompts = load_seed_prompts(root / "prompts")
    given = {"mood": {s: prompts["mood"][s] for s in (2, 0, 1)}, "taste": prompts["taste"][None]}
    found = transfer_matrix(given, [root / "mood"], random=False, untouched=False)
    np.testing.assert_array_equal(found.matrix.values, result.matrix.values[:1, :2])


def test_a_report_reads_such_a_matrix(root: Path, result: TransferResult) -> None:
    page = jpt.write_report(root / "out").read_text()
    assert f"{100 * result.matrix.values[0, 0]:.1f}" in page and "no prompt" in page


def prompt(length: int = 3, task: str = "mood") -> Prompt:
    return Prompt(np.ones((length, 8), np.float32), PromptCard("tiny", task))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"a": {0: prompt(), 1: prompt(4)}}, "prompt a/seed-1 has the length 4 and .* a/seed-0 3"),
        (
            {"a": {0: prompt(), 1: prompt(task="taste")}},
            "prompt a has seed 0 for the task mood and seed 1 for taste",
        ),
        ({"a": {}}, "prompt a has no seed"),
        ({"a": {0: prompt()}, "b": prompt(5)}, "prompt b has the length 5"),
    ],
)
def test_seeds_that_do_not_belong_together(prompts: dict, message: str) -> None:
    with pytest.raises(jpt.InputError, match=message) as error:
        transfer_matrix(prompts, ["builtin/imdb"])
    assert "\n" not in str(error.value)


def test_wrong_folders_of_seeds(tmp_path: Path) -> None:
    for seed in (0, 1):
        (tmp_path / "mood" / f"seed-{seed}").mkdir(parents=True)
    jpt.save_prompt(tmp_path / "mood" / "seed-0" / "prompt.safetensors", prompt())
    with pytest.raises(jpt.InputError, match="seed-1 has no prompt.safetensors: an unfinished run"):
        load_seed_prompts(tmp_path)
    second = dataclasses.replace(prompt(), card=PromptCard("tiny", "taste"))
    jpt.save_prompt(tmp_path / "mood" / "seed-1" / "prompt.safetensors", second)
    with pytest.raises(jpt.InputError, match="seed 1 for taste"):
        load_seed_prompts(tmp_path)
    jpt.save_prompt(tmp_path / "mood.safetensors", prompt())
    with pytest.raises(jpt.InputError, match="two prompts named mood"):
        load_seed_prompts(tmp_path)
    jpt.save_prompt(tmp_path / "mood" / "prompt.safetensors", prompt())
    with pytest.raises(jpt.InputError, match="is a run and holds runs of seeds"):
        load_seed_prompts(tmp_path)
    with pytest.raises(jpt.InputError, match="no such file"):
        load_seed_prompts(tmp_path / "nowhere")
